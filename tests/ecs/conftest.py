"""A local ECS with what Terraform would have made, and the services of molecule/ecs in it.

The tasks' containers, PgBouncer, PostgreSQL and the examples are real; AWS is tests/local_ecs.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from controller import ROOT, connect, resolve
from controller import ansible as run_ansible
from local_ecs import LocalEcs
from traffic import Traffic

NETWORK = "poolkit-test"
TIME_SCALE = 0.1
"""ECS's health checks and restart periods are this much shorter; time-outs are not."""

PORTS = {"django": 8000, "fastapi": 8001}
POLICIES = ROOT / "templates/iam"
PLAYBOOK, ROLLBACK, STATUS = (
    f"ansible/playbooks/{name}.yml" for name in ("ecs", "ecs_rollback", "ecs_status")
)


def policy(name: str, service: str) -> dict[str, Any]:
    """Return a shipped policy, filled in for a service of this account."""
    text = (POLICIES / f"{name}.json").read_text()
    facts = {"REGION": "eu-central-1", "ACCOUNT": "123456789012", "NAME": service}
    facts["CLUSTER"] = "main"
    for word, value in facts.items():
        text = re.sub(rf"\b{word}\b", value, text)
    # moto's policies know no "?".
    return json.loads(text.replace("-??????", "-*").replace(f"/ecs/{service}", "/ecs/poolkit"))


@dataclass(frozen=True)
class Run:
    """What a playbook printed, and the names of the calls that it made to AWS."""

    code: int
    output: str
    calls: list[Any] = field(default_factory=list, repr=False)

    def made(self, *actions: str) -> list[Any]:
        """Return the calls of these actions, `ecs:UpdateService`."""
        return [call for call in self.calls if call.action in actions]


@dataclass
class Cloud:
    """The local ECS, and what the inventory needs to know of it."""

    ecs: LocalEcs
    facts: dict[str, Any]

    def play(self, service: str, *words: str, **variables: object) -> Run:
        """Run playbooks for one service, or for several: `django,fastapi`."""
        hosts = ",".join(f"{name}_service" for name in service.split(","))
        begin = len(self.ecs.calls)
        done = run_ansible(
            *("ansible-playbook", *words, f"--limit={hosts},db4"),
            *("-e", json.dumps({"__aws": self.facts, **variables})),
            **self.ecs.environment,
        )
        output = re.sub(r"\s+", " ", done.stdout + done.stderr)
        return Run(done.returncode, output, self.ecs.calls[begin:])

    def service(self, name: str) -> dict[str, Any]:
        return self.ecs.client("ecs").describe_services(cluster="main", services=[name])[
            "services"
        ][0]

    def revisions(self, family: str) -> list[str]:
        listed = self.ecs.client("ecs").list_task_definitions(familyPrefix=family)
        return [arn.rpartition("/")[2] for arn in listed["taskDefinitionArns"]]

    def serving(self, name: str) -> str:
        """Return the revision of a service, family:number."""
        return self.service(name)["taskDefinition"].rpartition("/")[2]


@dataclass
class Site:
    """A service, deployed."""

    cloud: Cloud
    name: str

    @cached_property
    def url(self) -> str:
        return self.cloud.ecs.balancer(self.cloud.facts["target_groups"][self.name])

    def deploy(self, source: Path | None = None, **variables: object) -> Run:
        if source:
            variables["app_source"] = str(source)
        return self.cloud.play(self.name, PLAYBOOK, **variables)

    def traffic(self, **parameters: float) -> Traffic:
        return Traffic([self.url], **parameters)

    def readiness(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/readyz", timeout=10).json()

    def tasks(self) -> list[Any]:
        return self.cloud.ecs.tasks(self.name)

    def containers(self, name: str) -> list[str]:
        """Return the ids of the containers of this name that run now."""
        return [task.by_name[name].id for task in self.tasks()]

    def rows(self, sql: str) -> list[str]:
        """Return the rows of a query of the database's administrator, on its own host."""
        host = connect("db4", "docker", "poolkit-test-db4")
        command = "sudo -u postgres psql -XAtqc %s %s"
        return host.check_output(command, sql, self.name).splitlines()

    def assert_nothing_lost(self, traffic: Traffic) -> None:
        traffic.assert_nothing_lost(self.name, self.rows)


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    with LocalEcs(NETWORK, TIME_SCALE, check_permissions=True, shortest_check_seconds=1.5) as ecs:
        ecs.make_cluster("main")
        vpc = ecs.make_vpc()
        subnets = ecs.make_subnets(vpc)
        facts: dict[str, Any] = {"subnets": subnets, "target_groups": {}, "roles": {}}
        facts["security_group"] = ecs.make_security_group(vpc, "tasks")
        for name, port in PORTS.items():
            facts["target_groups"][name] = ecs.make_target_group(
                vpc, subnets, name, port=port, path="/healthz", deregistration_delay_seconds=20
            )
            facts["roles"][name] = {
                kind: ecs.make_role(f"{name}-{kind}", policy(file, name))
                for kind, file in (
                    ("execution", "ecs_execution"),
                    ("migration", "ecs_migration_execution"),
                )
            }
        ecs.make_log_group("/ecs/poolkit")
        facts["registry"] = ecs.registry
        facts["base_image"] = ecs.push("poolkit-base:trixie", "debian")
        yield Cloud(ecs, facts)


@pytest.fixture(scope="session")
def sites(cloud: Cloud) -> Callable[[str], Site]:
    """Return a service by the name of its application; one run has deployed them all."""
    known: dict[str, Site] = {}

    def site(name: str) -> Site:
        if not known:
            run = cloud.play(",".join(PORTS), PLAYBOOK)
            assert run.code == 0, run.output[-4000:]
            known.update({name: Site(cloud, name) for name in PORTS})
        return known[name]

    return site


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Return the source of a release: an example with some of its files changed, or new."""

    def make(name: str, mark: str, edits: dict[str, Callable[[str], str]] | None = None) -> Path:
        source = tmp_path / mark
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "examples" / name, source, ignore=ignored)
        (source / "MARK").write_text(mark)
        for file, edit in (edits or {}).items():
            path = source / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(edit(path.read_text() if path.exists() else ""))
        return source

    return make


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


__all__ = ["Cloud", "Run", "Site", "docker", "resolve"]

"""Fixtures of the tests of releases: an application on two hosts, for each framework."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from controller import ROOT, Run, connect, figures_shown, played, resolve
from controller import ansible as run_ansible
from testinfra.host import Host
from traffic import Traffic

PORTS = {"django": 8000, "fastapi": 8001, "flask": 8002, "estate": 8003}
"""app_port in molecule/rollout/inventory/group_vars/applications.yml."""


COMPILED = shutil.ignore_patterns("__pycache__")


@dataclass(frozen=True)
class Site:
    """One application on its hosts."""

    framework: str
    hosts: dict[str, Host]
    urls: dict[str, str]
    variables: dict[str, object] = field(default_factory=dict)
    """Extra variables of every playbook."""

    def play(self, *playbooks: str, **variables: object) -> Run:
        """Run playbooks with extra variables."""
        environment = {"POOLKIT_FRAMEWORK": self.framework}
        done = run_ansible(
            *("ansible-playbook", *playbooks, "-e", json.dumps(self.variables | variables)),
            **environment,
        )
        return played(done)

    def deploy(self, source: Path | None = None, **variables: object) -> Run:
        if source:
            variables["app_source"] = str(source)
        return self.play("ansible/playbooks/app.yml", **variables)

    def traffic(self, **parameters: float) -> Traffic:
        return Traffic(list(self.urls.values()), **parameters)

    def readiness(self) -> dict[str, dict]:
        return {
            host: httpx.get(f"{url}/readyz", timeout=10).json() for host, url in self.urls.items()
        }

    def releases(self) -> set[str]:
        """Return the releases that serve, by what /readyz says."""
        return {answer["version"] for answer in self.readiness().values()}

    def starts(self) -> dict[str, str]:
        """Return when the service of each host was started."""
        command = f"systemctl show -P ExecMainStartTimestampMonotonic {self.framework}"
        return {name: host.check_output(command) for name, host in self.hosts.items()}

    def served(self) -> str:
        """Return the databases that the second host's pooler serves."""
        command = "sudo -u pgbouncer psql -XAt -h /run/pgbouncer/1 -p 6432 -c 'SHOW DATABASES'"
        return self.hosts["web2"].check_output(command)

    def rows(self, sql: str, service: str = "") -> list[str]:
        """Return the rows of a query of the owner, directly, from a host that is never managed."""
        files = f"/etc/poolkit/{self.framework}/migrate"
        return (
            self.hosts["web2"]
            .check_output(
                f"PGSERVICEFILE={files}.pg_service.conf PGPASSFILE={files}.pgpass "
                "psql -XAtqc %s %s",
                *(sql, f"service={service or self.framework + '_owner'}"),
            )
            .splitlines()
        )

    def assert_nothing_lost(self, traffic: Traffic) -> None:
        traffic.assert_nothing_lost(self.framework, self.rows)


@pytest.fixture(scope="session")
def sites() -> Callable[..., Site]:
    """Return an application by its framework, deployed where the poolers serve another one.

    variables: extra variables of all its playbooks.
    """
    known: dict[str, Site] = {}

    def site(framework: str, **variables: object) -> Site:
        if framework not in known:
            known.clear()  # the poolers of these hosts serve one application at a time
            facts = resolve(
                "applications",
                connection="ansible_connection",
                container="ansible_host",
                address="private_address",
            )
            known[framework] = Site(
                framework,
                {host: connect(host, f["connection"], f["container"]) for host, f in facts.items()},
                {host: f"http://{f['address']}:{PORTS[framework]}" for host, f in facts.items()},
                variables,
            )
            if framework not in known[framework].served():
                run = known[framework].play("site.yml")
                assert run.code == 0, run.output[-3000:]
        return known[framework]

    return site


def make_source(
    folder: Path, framework: str, name: str, edits: dict[str, Callable[[str], str]]
) -> Path:
    """Return the source of a release: an example with some of its files changed, or new."""
    source = folder / name
    shutil.copytree(ROOT / "examples" / framework, source, ignore=COMPILED)
    (source / "RELEASE").write_text(name)
    for file, edit in edits.items():
        path = source / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(edit(path.read_text() if path.exists() else ""))
    return source


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Return the function that makes the source of a release in a folder of the test's own."""
    return functools.partial(make_source, tmp_path)


@pytest.fixture(scope="session")
def passwords() -> dict[str, str]:
    facts = resolve(
        "web1",
        user="app_database_password | urlencode | replace('/', '%2F')",
        owner="app_database_owner_password | urlencode | replace('/', '%2F')",
        plain="app_database_password",
        database="database_host",
    )
    return facts["web1"]


__all__ = ["Run", "figures_shown"]

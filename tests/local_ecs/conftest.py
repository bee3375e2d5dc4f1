"""Fixtures: one local ECS for all tests here, an image that plays each part, and a network."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from local_ecs import LocalEcs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCKERFILE = """\
FROM {base}
COPY actor.py /actor.py
RUN useradd --uid 900 actor && mkdir /run/actor && chown actor /run/actor
VOLUME /run/actor
USER actor
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-u", "/actor.py"]
"""


@dataclass
class World:
    """A local ECS with what Terraform would have made in it."""

    ecs: LocalEcs
    image: str
    cluster: str
    network: dict[str, Any]
    role: str
    vpc: str
    subnets: list[str]

    def __post_init__(self) -> None:
        self.api = self.ecs.client("ecs", recorded=True)

    def container(self, name: str, *command: str, **more: Any) -> dict[str, Any]:
        logs = {
            "awslogs-group": "tests",
            "awslogs-region": "eu-central-1",
            "awslogs-stream-prefix": "t",
        }
        return {
            "name": name,
            "image": self.image,
            "command": list(command),
            "logConfiguration": {"logDriver": "awslogs", "options": logs},
            "stopTimeout": 5,
            **more,
        }

    def definition(self, *containers: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "family": "play",
            "requiresCompatibilities": ["FARGATE"],
            "networkMode": "awsvpc",
            "cpu": "256",
            "memory": "512",
            "executionRoleArn": self.role,
            "containerDefinitions": list(containers),
            **more,
        }

    def register(self, *containers: dict[str, Any], **more: Any) -> str:
        made = self.api.register_task_definition(**self.definition(*containers, **more))
        return made["taskDefinition"]["taskDefinitionArn"]

    def run(self, *containers: dict[str, Any], **more: Any) -> str:
        """Run a task of these containers; return its ARN."""
        definition = self.register(*containers, **more)
        return self.run_task(definition)["tasks"][0]["taskArn"]

    def run_task(self, definition: str, **more: Any) -> dict[str, Any]:
        return self.api.run_task(
            cluster="main",
            taskDefinition=definition,
            launchType="FARGATE",
            networkConfiguration=self.network,
            **more,
        )

    def create_service(self, name: str, definition: str, **more: Any) -> dict[str, Any]:
        return self.api.create_service(
            cluster="main",
            serviceName=name,
            taskDefinition=definition,
            launchType="FARGATE",
            networkConfiguration=self.network,
            **more,
        )["service"]

    def describe(self, arn: str) -> dict[str, Any]:
        return self.api.describe_tasks(cluster="main", tasks=[arn])["tasks"][0]

    def wait(self, arn: str, status: str = "STOPPED") -> dict[str, Any]:
        self.ecs.wait_for(lambda: self.describe(arn)["lastStatus"] == status, 30)
        return self.describe(arn)

    def wait_health(self, arn: str, health: str) -> None:
        self.ecs.wait_for(lambda: self.describe(arn)["healthStatus"] == health, 20)

    def lines(self, arn: str) -> list[tuple[float, str, str]]:
        """Return what the containers of a task printed: (time, container, word), in order."""
        task = arn.rsplit("/", 1)[-1]
        return sorted(
            (float(line.split()[0]), stream.split("/")[1], line.split()[1])
            for stream, lines in self.ecs.logs("tests").items()
            if stream.endswith(task)
            for line in lines
        )


@pytest.fixture(scope="session")
def image() -> str:
    """Build the image of the actor from the image of a test host."""
    base = subprocess.run(
        [ROOT / "scripts/host_image.sh", "trixie"], check=True, capture_output=True, text=True
    ).stdout.strip()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (
            ("Dockerfile", DOCKERFILE.format(base=base).encode()),
            ("actor.py", (HERE / "actor.py").read_bytes()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    archive.seek(0)
    client = docker.from_env()
    client.images.build(fileobj=archive, custom_context=True, tag="local-ecs-actor", rm=True)
    return "local-ecs-actor"


@pytest.fixture(scope="session")
def world(image: str) -> Iterator[World]:
    with LocalEcs("bridge", time_scale=0.05) as ecs:
        cluster = ecs.make_cluster("main")
        vpc = ecs.make_vpc()
        subnets = ecs.make_subnets(vpc)
        group = ecs.make_security_group(vpc, "tasks")
        network = {"awsvpcConfiguration": {"subnets": subnets, "securityGroups": [group]}}
        ecs.make_log_group("tests")
        role = ecs.make_role("execution")
        yield World(ecs, image, cluster, network, role, vpc, subnets)


@pytest.fixture
def make_service(world: World) -> Iterator[Callable[..., Any]]:
    """Create a service; delete it at the end of the test."""
    made = []

    def make(name: str, definition: str, **more: Any) -> dict[str, Any]:
        service = world.create_service(name, definition, **more)
        made.append(name)
        return service

    yield make
    for name in made:
        world.api.delete_service(cluster="main", service=name, force=True)
    world.ecs.wait_for(lambda: not any(world.ecs.tasks(name) for name in made), 30)

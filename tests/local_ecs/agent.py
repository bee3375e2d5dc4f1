"""Docker for tasks: creates, watches, stops and removes the containers of one test run.

Everything made carries the label local-ecs=RUN, so that close() finds each of them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import uuid
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import Mount, Ulimit
from moto.logs.models import logs_backends
from moto.secretsmanager.models import secretsmanager_backends
from moto.ssm.models import ssm_backends

from .api import ACCOUNT, REGION
from .roles import permits

ROOT = Path(__file__).parents[2]
PAUSE_IMAGE = "poolkit-base:trixie"
LABEL = "local-ecs"


class StartFailure(Exception):
    """Why a task could not start: its stoppedReason, with the stopCode TaskFailedToStart."""


class Agent:
    """The local Docker engine, as what runs tasks on one Docker network."""

    def __init__(
        self,
        network: str,
        time_scale: float,
        *,
        permissions: bool = False,
        shortest_check_seconds: float = 0.0,
    ) -> None:
        self.permissions, self.shortest = permissions, shortest_check_seconds
        self.client = docker.from_env(max_pool_size=64)
        self.api = self.client.api
        self.run = uuid.uuid4().hex[:12]
        self.labels = {LABEL: self.run}
        self.scale = time_scale
        self.pulled: set[str] = set()
        self.network = self.client.networks.get(network)
        try:
            self.client.images.get(PAUSE_IMAGE)
        except ImageNotFound:
            subprocess.run([ROOT / "scripts/host_image.sh", "trixie"], check=True)

    def close(self) -> None:
        """Remove every container and volume of this run, and what it pulled."""
        selected = {"label": f"{LABEL}={self.run}"}
        for container in self.api.containers(all=True, filters=selected):
            self.remove(container["Id"])
        for volume in self.client.volumes.list(filters=selected):
            with contextlib.suppress(APIError):
                volume.remove(force=True)
        for reference in self.pulled:
            with contextlib.suppress(APIError):
                self.client.images.remove(reference)
        self.client.close()

    def remove(self, container: str) -> None:
        for _ in range(3):
            with contextlib.suppress(NotFound):
                try:
                    self.api.remove_container(container, force=True, v=True)
                except APIError:
                    # "removal ... is already in progress"
                    time.sleep(0.3)
                    continue
            return

    def pause(self, name: str, sysctls: dict[str, str]) -> tuple[str, str]:
        """Start the container that owns a task's network; return its id and address."""
        made = self.client.containers.run(
            PAUSE_IMAGE,
            ["sleep", "infinity"],
            detach=True,
            init=True,
            name=name,
            network=self.network.name,
            labels=self.labels,
            sysctls=sysctls,
        )
        made.reload()
        networks = made.attrs["NetworkSettings"]["Networks"]
        return made.id, networks[self.network.name]["IPAddress"]

    def pull(self, reference: str) -> dict[str, Any]:
        """Return the image's attributes, pulled where it is not there."""
        try:
            return self.client.images.get(reference).attrs
        except ImageNotFound:
            pass
        try:
            self.api.pull(reference)
            self.pulled.add(reference)
            return self.client.images.get(reference).attrs
        except (APIError, docker.errors.DockerException) as error:
            raise StartFailure(f"CannotPullContainerError: {reference}: {error}") from error

    def volume(self, name: str) -> str:
        self.client.volumes.create(name, labels=self.labels)
        return name

    def create(
        self,
        definition: dict[str, Any],
        image: dict[str, Any],
        *,
        name: str,
        pause: str,
        volumes: dict[str, str],
        environment: dict[str, str],
    ) -> str:
        """Create a container from its definition; return its id."""
        linux = definition.get("linuxParameters", {})
        capabilities = linux.get("capabilities", {})
        options: dict[str, Any] = {}
        limits = {row["name"]: row for row in definition.get("ulimits", ())}
        # "The default nofile soft limit is 65535 and the default hard limit is 65535." (Fargate)
        limits.setdefault("nofile", {"softLimit": 65535, "hardLimit": 65535})
        # An empty list is as none: the image's own is used.
        for key, ours in (("entryPoint", "entrypoint"), ("command", "command")):
            if definition.get(key):
                options[ours] = definition[key]
        for key, ours in (("user", "user"), ("workingDirectory", "working_dir")):
            if definition.get(key):
                options[ours] = definition[key]
        if definition.get("memory"):
            options["mem_limit"] = f"{definition['memory']}m"
        try:
            made = self.client.containers.create(
                image["Id"],
                name=name,
                network_mode=f"container:{pause}",
                environment=environment,
                labels={**definition.get("dockerLabels", {}), **self.labels},
                read_only=definition.get("readonlyRootFilesystem", False),
                init=linux.get("initProcessEnabled", False),
                cap_add=capabilities.get("add"),
                cap_drop=capabilities.get("drop"),
                ulimits=[
                    Ulimit(
                        name=key,
                        soft=self.cut(key, row["softLimit"]),
                        hard=self.cut(key, row["hardLimit"]),
                    )
                    for key, row in limits.items()
                ],
                mounts=[mount(row, volumes, image) for row in definition.get("mountPoints", ())],
                healthcheck=self.health_check(definition.get("healthCheck")),
                **options,
            )
        except APIError as error:
            raise StartFailure(f"CannotCreateContainerError: {error.explanation}") from error
        return made.id

    @cached_property
    def most_files(self) -> int:
        """The hard limit of open files that this engine can give (20000 in some sandboxes)."""
        said = self.client.containers.run(
            PAUSE_IMAGE, ["sh", "-c", "ulimit -Hn"], remove=True, labels=self.labels
        )
        return int(said) if said.strip().isdigit() else 1 << 30

    def cut(self, limit: str, value: int) -> int:
        return min(value, self.most_files) if limit == "nofile" else value

    def start(self, container: str) -> str | None:
        """Start a container; return the reason where it did not."""
        try:
            self.api.start(container)
        except APIError as error:
            return f"CannotStartContainerError: {error.explanation}"
        return None

    def inspect(self, container: str) -> dict[str, Any] | None:
        """Return Docker's State of a container; None where somebody removed it."""
        try:
            return self.api.inspect_container(container)["State"]
        except NotFound:
            return None

    def stop(self, container: str, timeout_seconds: int) -> None:
        """StopTask: "a stop signal value and a default 30-second timeout", then SIGKILL."""
        with contextlib.suppress(APIError):
            self.api.stop(container, timeout=timeout_seconds)

    def health_check(self, check: dict[str, Any] | None) -> dict[str, Any]:
        """Return Docker's form: "maps to the HEALTHCHECK parameter of docker run".

        An image's own check is switched off: "Amazon ECS does not monitor Docker health checks that
        are embedded in a container image". interval and startPeriod are scaled, timeout is not.
        """
        if not check:
            return {"test": ["NONE"]}
        second = 1_000_000_000
        return {
            "test": check["command"],
            "interval": int(max(check.get("interval", 30) * self.scale, self.shortest) * second),
            "timeout": check.get("timeout", 5) * second,
            "retries": check.get("retries", 3),
            "start_period": int(check.get("startPeriod", 0) * self.scale * second),
        }

    def follow(
        self, container: str, group: str, stream: str, since: float | None
    ) -> threading.Thread:
        """Copy a container's output, from that time on, into moto's CloudWatch Logs.

        The thread ends with the container.
        """
        backend = logs_backends[ACCOUNT][REGION]
        backend.ensure_log_stream(group, stream)

        def copy() -> None:
            with contextlib.suppress(Exception):
                rest = b""
                for part in self.api.logs(container, stream=True, follow=True, since=since):
                    *lines, rest = (rest + part).split(b"\n")
                    put(lines)
                put([rest] if rest else [])

        def put(lines: list[bytes]) -> None:
            now = int(time.time() * 1000)
            events = [
                {"timestamp": now, "message": line.decode(errors="replace")} for line in lines
            ]
            if events:
                backend.put_log_events(group, stream, events)

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        return thread


def mount(point: dict[str, Any], volumes: dict[str, str], image: dict[str, Any]) -> Mount:
    """Return a task volume's mount.

    On Fargate a bind mount is root's, 0755, unless the image declares that path with VOLUME: then
    it takes the image's content and ownership (developer guide, bind mounts; containers-roadmap
    issue 938).
    """
    path = point["containerPath"]
    declared = {key.rstrip("/") for key in (image["Config"].get("Volumes") or {})}
    return Mount(
        path,
        volumes[point["sourceVolume"]],
        read_only=point.get("readOnly", False),
        no_copy=path.rstrip("/") not in declared,
    )


def secret(value_from: str, role: str | None = None) -> str:
    """Read a secret from moto: ARN:json-key:version-stage:version-id, or an SSM parameter.

    Where a role is given, its policies must allow it.
    Secret, valueFrom: "either the full ARN of the Secrets Manager secret or the full ARN of the
    parameter in the SSM Parameter Store ... or name of the parameter".
    """
    failed = "ResourceInitializationError: unable to pull secrets or registry auth: "
    if ":secretsmanager:" not in value_from:
        name = value_from.split(":parameter", 1)[-1]
        found = ssm_backends[ACCOUNT][REGION].get_parameters([name])
        if name not in found:
            raise StartFailure(f"{failed}invalid ssm parameters: {name}")
        return found[name].response_object(decrypt=True, region=REGION)["Value"]
    arn, key, stage, version = (":".join(value_from.split(":")[:7]), *parts(value_from))
    if role and not permits(role, "secretsmanager:GetSecretValue", arn):
        raise StartFailure(
            f"{failed}unable to retrieve secret from asm: AccessDeniedException: {role} is not "
            f"authorized to perform: secretsmanager:GetSecretValue on resource: {arn}"
        )
    try:
        found = secretsmanager_backends[ACCOUNT][REGION].get_secret_value(arn, version, stage)
    except Exception as error:
        raise StartFailure(f"{failed}unable to retrieve secret from asm: {arn}: {error}") from error
    text = found["SecretString"]
    if not key:
        return text
    try:
        return str(json.loads(text)[key])
    except (ValueError, KeyError, TypeError):
        # The agent's words, without the secret.
        raise StartFailure(
            f"{failed}retrieved secret from Secrets Manager did not contain json key {key}"
        ) from None


def parts(value_from: str) -> tuple[str, str, str]:
    """Return json-key, version-stage and version-id of a secret's reference, "" where left out."""
    key, stage, version = ([*value_from.split(":")[7:], "", "", ""])[:3]
    return key, stage, version

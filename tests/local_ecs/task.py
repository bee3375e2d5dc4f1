"""One task: the state of its containers, from PROVISIONING to STOPPED, in one thread.

Sentences in quotes are from botocore's ECS model (ContainerDefinition, ContainerDependency,
ContainerRestartPolicy, HealthCheck, Task).
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .agent import Agent, StartFailure, secret
from .api import ACCOUNT, REGION

TICK_SECONDS = 0.2


class Container:
    """One container of a task."""

    def __init__(self, definition: dict[str, Any]) -> None:
        self.definition = definition
        self.name: str = definition["name"]
        self.essential: bool = definition.get("essential", True)
        self.image: dict[str, Any] = {}
        self.id = ""
        self.state = "PENDING"
        self.health = "UNKNOWN"
        self.exit_code: int | None = None
        self.reason = ""
        self.restarts = 0
        self.started: float | None = None
        """time.monotonic() of the first start."""
        self.stopping = False
        self.logs: list[threading.Thread] = []

    @property
    def needs(self) -> list[tuple[str, str]]:
        return [
            (row["containerName"], row["condition"]) for row in self.definition.get("dependsOn", ())
        ]

    def may_restart(self, code: int, ran_seconds: float, scale: float) -> bool:
        """Apply the restart policy to an exit.

        "If a container isn't able to run for this time period and exits early, it will not be
        restarted." "By default, a container must run for 300 seconds before it can be restarted."
        """
        policy = self.definition.get("restartPolicy") or {}
        return (
            policy.get("enabled", False)
            and code not in policy.get("ignoredExitCodes", ())
            and ran_seconds >= policy.get("restartAttemptPeriod", 300) * scale
        )

    def met(self, condition: str) -> bool | None:
        """Say whether a dependency on this container is met; None where it never will be."""
        started, over = self.started is not None, self.state == "STOPPED"
        if condition == "START":
            # "It validates that a dependent container is started"
            return started or (None if over else False)
        if condition == "COMPLETE":
            return over
        if condition == "SUCCESS":
            # "it also requires that the container exits with a zero status"
            return (self.exit_code == 0 or None) if over else False
        # "validates that the dependent container passes its Docker health check"
        return None if over else self.health == "HEALTHY"


class Task:
    """A task that runs in its own thread as soon as start() is called."""

    def __init__(
        self,
        agent: Agent,
        definition: Any,
        *,
        cluster_arn: str,
        group: str,
        started_by: str = "",
        overrides: dict[str, Any] | None = None,
        tags: list[dict[str, str]] | None = None,
        on_started: Callable[[Task], None] | None = None,
    ) -> None:
        self.agent = agent
        self.definition = definition
        self.cluster_arn = cluster_arn
        self.group = group
        self.started_by = started_by
        self.overrides = overrides or {}
        self.tags = tags or []
        self.on_started = on_started
        self.id = uuid.uuid4().hex
        cluster = cluster_arn.rsplit("/", 1)[-1]
        self.arn = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/{cluster}/{self.id}"
        self.containers = [
            Container(self.overridden(row)) for row in definition.container_definitions
        ]
        self.by_name = {container.name: container for container in self.containers}
        self.pause = self.address = ""
        self.volumes: dict[str, str] = {}
        self.last_status, self.desired_status = "PROVISIONING", "RUNNING"
        self.stop_code = self.stopped_reason = ""
        self.at: dict[str, datetime] = {"createdAt": datetime.now(UTC)}
        self.running_since: float | None = None
        self.wake = threading.Event()
        self.before_stop: Callable[[Task], None] | None = None
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def overridden(self, container: dict[str, Any]) -> dict[str, Any]:
        """Apply RunTask's containerOverrides: command and environment."""
        for row in self.overrides.get("containerOverrides", ()):
            if row["name"] == container["name"]:
                changed = {**container}
                if row.get("command"):
                    changed["command"] = row["command"]
                changed["environment"] = [
                    *container.get("environment", ()),
                    *row.get("environment", ()),
                ]
                return changed
        return container

    def start(self) -> None:
        self.thread.start()

    def stop(
        self, code: str, reason: str, before_stop: Callable[[Task], None] | None = None
    ) -> None:
        """Ask the task to stop; before_stop runs in its thread while it is DEACTIVATING."""
        with self.lock:
            if self.desired_status == "STOPPED":
                return
            self.stop_code, self.stopped_reason = code, reason
            self.before_stop = before_stop
            self.desired_status = "STOPPED"
        self.wake.set()

    @property
    def stopping(self) -> bool:
        return self.desired_status == "STOPPED"

    @property
    def health(self) -> str:
        """Return the task's: "determined by the health of the essential containers in the task"."""
        states = {container.health for container in self.containers if container.essential}
        for state in ("UNHEALTHY", "UNKNOWN"):
            if state in states:
                return state
        return "HEALTHY"

    @property
    def checked(self) -> bool:
        """Whether an essential container has a health check."""
        return any(row.essential and row.definition.get("healthCheck") for row in self.containers)

    def age(self, container: Container) -> float:
        """Return how many seconds ago a container was started first."""
        return time.monotonic() - container.started if container.started else 0

    def mark(self, status: str, moment: str = "") -> None:
        if moment:
            self.at[moment] = datetime.now(UTC)
        self.last_status = status

    def run(self) -> None:
        try:
            self.prepare()
            while not self.stopping:
                self.observe()
                self.start_containers()
                self.pause_for_a_tick()
        except StartFailure as error:
            self.stop("TaskFailedToStart", str(error))
        except Exception:
            self.stop("TaskFailedToStart", f"local_ecs failed: {traceback.format_exc()}")
        try:
            self.end()
        finally:
            self.clean()
            self.mark("STOPPED", "stoppedAt")

    def pause_for_a_tick(self) -> None:
        self.wake.wait(TICK_SECONDS)
        if not self.stopping:
            self.wake.clear()

    def prepare(self) -> None:
        """Make network, volumes and containers; read the secrets, once, before any start."""
        sysctls = {
            row["namespace"]: row["value"]
            for container in self.containers
            for row in container.definition.get("systemControls", ())
        }
        name = f"local-ecs-{self.id[:12]}"
        self.pause, self.address = self.agent.pause(f"{name}-pause", sysctls)
        self.mark("PENDING", "pullStartedAt")
        role = getattr(self.definition, "execution_role_arn", None)
        secrets = {
            container.name: {
                row["name"]: secret(row["valueFrom"], role if self.agent.permissions else None)
                for row in container.definition.get("secrets", ())
            }
            for container in self.containers
        }
        for container in self.containers:
            container.image = self.agent.pull(container.definition["image"])
        self.mark("ACTIVATING", "pullStoppedAt")
        for volume in self.definition.volumes:
            if set(volume) - {"name", "host"} or volume.get("host", {}).get("sourcePath"):
                raise StartFailure(f"local_ecs has only empty host volumes, not {volume}")
            self.volumes[volume["name"]] = self.agent.volume(f"{name}-{volume['name']}")
        for container in self.containers:
            given = {
                row["name"]: row["value"] for row in container.definition.get("environment", ())
            }
            container.id = self.agent.create(
                container.definition,
                container.image,
                name=f"{name}-{container.name}",
                pause=self.pause,
                volumes=self.volumes,
                environment=given | secrets[container.name],
            )

    def start_containers(self) -> None:
        """Start what may start; RUNNING "when" each container has been started."""
        for container in self.containers:
            if container.started is not None or self.stopping:
                continue
            answers = [
                (self.by_name[name], self.by_name[name].met(condition))
                for name, condition in container.needs
            ]
            for other, met in answers:
                limit = other.definition.get("startTimeout")
                waited = self.age(other)
                # "If a startTimeout value is specified for containerB and it doesn't reach the
                # desired status within that time then containerA gives up and not start."
                if met is None or (not met and limit and waited > limit):
                    container.reason = f"dependency {other.name} was not met"
                    raise StartFailure(
                        f"Task failed to start: {container.name} gave up on {other.name}"
                    )
            if all(met for _, met in answers):
                self.start_container(container)
        if self.last_status == "ACTIVATING" and all(row.started for row in self.containers):
            # "In this state, Amazon ECS ... registers load balancer target groups"
            if self.on_started and not self.stopping:
                self.on_started(self)
            self.running_since = time.monotonic()
            self.mark("RUNNING", "startedAt")

    def start_container(self, container: Container) -> None:
        begin = time.time()
        if failure := self.agent.start(container.id):
            container.state, container.reason = "STOPPED", failure
            raise StartFailure(failure)
        since = None if container.started is None else begin
        container.started = container.started or time.monotonic()
        container.state, container.health = "RUNNING", "UNKNOWN"
        logs = container.definition.get("logConfiguration", {})
        if logs.get("logDriver") == "awslogs":
            options = logs["options"]
            stream = f"{options['awslogs-stream-prefix']}/{container.name}/{self.id}"
            try:
                thread = self.agent.follow(container.id, options["awslogs-group"], stream, since)
            except Exception as error:
                raise StartFailure(
                    "ResourceInitializationError: failed to validate logger args: "
                    f"{options['awslogs-group']}: {error!r}"
                ) from error
            container.logs.append(thread)

    def observe(self) -> None:
        """Take over from Docker what has ended, and each container's health."""
        for container in self.containers:
            if container.state != "RUNNING":
                continue
            state = self.agent.inspect(container.id)
            if state and state["Running"]:
                health = (state.get("Health") or {}).get("Status")
                container.health = {"healthy": "HEALTHY", "unhealthy": "UNHEALTHY"}.get(
                    health, "UNKNOWN"
                )
            else:
                self.ended(container, state)

    def ended(self, container: Container, state: dict[str, Any] | None) -> None:
        code = state["ExitCode"] if state else None
        if state and not self.stopping and code is not None:
            ran = (moment(state["FinishedAt"]) - moment(state["StartedAt"])).total_seconds()
            if container.may_restart(code, ran, self.agent.scale):
                self.start_container(container)
                container.restarts += 1
                return
        container.state, container.exit_code, container.health = "STOPPED", code, "UNKNOWN"
        if state and state["OOMKilled"]:
            container.reason = "OutOfMemoryError: Container killed due to memory usage"
        if container.essential:
            # "if that container fails or stops for any reason, all other containers that are part
            # of the task are stopped"
            self.stop("EssentialContainerExited", "Essential container in task exited")

    def end(self) -> None:
        """Leave the balancer, then stop each container after those that depend on it."""
        self.mark("DEACTIVATING", "stoppingAt")
        if self.before_stop:
            self.before_stop(self)
        self.mark("STOPPING")
        left = [row for row in self.containers if row.state == "RUNNING"]
        while left:
            for container in left:
                # "When a dependency is defined for container startup, for container shutdown it is
                # reversed." Not transitive (amazon-ecs-agent pull request 1866).
                waits = any(
                    name == container.name and other.state == "RUNNING"
                    for other in left
                    for name, _ in other.needs
                )
                if not waits and not container.stopping:
                    container.stopping = True
                    # "if the parameter is not specified, the default value of 30 seconds is used"
                    limit = container.definition.get("stopTimeout", 30)
                    threading.Thread(
                        target=self.agent.stop, args=(container.id, limit), daemon=True
                    ).start()
            time.sleep(TICK_SECONDS / 2)
            self.observe()
            left = [row for row in self.containers if row.state == "RUNNING"]
        for container in self.containers:
            container.state = "STOPPED"
        self.at["executionStoppedAt"] = datetime.now(UTC)

    def clean(self) -> None:
        self.mark("DEPROVISIONING")
        for thread in (thread for container in self.containers for thread in container.logs):
            thread.join(timeout=5)
        for container in (*(row.id for row in self.containers), self.pause):
            if container:
                self.agent.remove(container)
        for volume in self.volumes.values():
            with contextlib.suppress(Exception):
                self.agent.client.volumes.get(volume).remove(force=True)

    def describe(self) -> dict[str, Any]:
        """Return the API's Task."""
        attachment = f"{self.id[:8]}-eni"
        described = {
            "taskArn": self.arn,
            "clusterArn": self.cluster_arn,
            "taskDefinitionArn": self.definition.arn,
            "attachments": [
                {
                    "id": attachment,
                    "type": "ElasticNetworkInterface",
                    "status": "DELETED" if self.last_status == "STOPPED" else "ATTACHED",
                    "details": [{"name": "privateIPv4Address", "value": self.address}],
                }
            ],
            "containers": [self.describe_container(row, attachment) for row in self.containers],
            "cpu": self.definition.cpu,
            "memory": self.definition.memory,
            "desiredStatus": self.desired_status,
            "lastStatus": self.last_status,
            "group": self.group,
            "healthStatus": self.health,
            "launchType": "FARGATE",
            "platformVersion": "1.4.0",
            "overrides": self.overrides,
            "startedBy": self.started_by,
            "version": 1,
            **self.at,
        }
        if self.stopping:
            described |= {"stopCode": self.stop_code, "stoppedReason": self.stopped_reason}
        return described

    def describe_container(self, row: Container, attachment: str) -> dict[str, Any]:
        digests = row.image.get("RepoDigests") or [row.image.get("Id", "")]
        described = {
            "containerArn": self.arn.replace(":task/", ":container/") + f"/{row.name}",
            "taskArn": self.arn,
            "name": row.name,
            "image": row.definition["image"],
            "imageDigest": digests[0].rsplit("@", 1)[-1],
            "runtimeId": row.id,
            "lastStatus": row.state,
            "healthStatus": row.health,
            "cpu": str(row.definition.get("cpu", 0)),
            "networkInterfaces": [{"attachmentId": attachment, "privateIpv4Address": self.address}],
        }
        if row.exit_code is not None:
            described["exitCode"] = row.exit_code
        if row.reason:
            described["reason"] = row.reason[:1024]
        return described


def moment(text: str) -> datetime:
    """Read Docker's time, which has nanoseconds."""
    return datetime.fromisoformat(text[:26].rstrip("Z"))

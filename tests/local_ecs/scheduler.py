"""The service scheduler: rolling deployments, replacement of failed tasks, circuit breaker.

Sentences in quotes are from botocore's ECS model (DeploymentConfiguration, Deployment,
DeploymentCircuitBreaker, ThresholdConfiguration, Service).
"""

from __future__ import annotations

import itertools
import math
import secrets
import threading
import time
import traceback
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .agent import Agent
from .api import ACCOUNT, REGION
from .targets import Targets
from .task import Task

TICK_SECONDS = 0.2
BACK_OFF_SECONDS = 1.0
"""Between a failed task and the next start; ECS waits longer as failures go on."""
IN_PROGRESS = {"PENDING", "IN_PROGRESS", "ROLLBACK_REQUESTED", "ROLLBACK_IN_PROGRESS"}
VERSIONED = (
    "taskDefinition",
    "networkConfiguration",
    "loadBalancers",
    "launchType",
    "platformVersion",
    "capacityProviderStrategy",
    "serviceRegistries",
    "serviceConnectConfiguration",
    "volumeConfigurations",
    "vpcLatticeConfigurations",
)
"""UpdateService: "This parameter triggers a new service deployment." """


def now() -> datetime:
    return datetime.now(UTC)


def identifier() -> str:
    return str(secrets.randbelow(10**19)).zfill(19)


@dataclass
class Deployment:
    """A deployment as DescribeServices shows it, and the revision that it brings."""

    definition: Any
    settings: dict[str, Any]
    revision_arn: str
    id: str = field(default_factory=lambda: f"ecs-svc/{identifier()}")
    status: str = "PRIMARY"
    rollout_state: str = "IN_PROGRESS"
    reason: str = ""
    proven: bool = False
    """Whether it completed once: what a roll-back may go back to."""
    failed: int = 0
    created: datetime = field(default_factory=now)
    updated: datetime = field(default_factory=now)
    tasks: list[Task] = field(default_factory=list)
    was_healthy: set[str] = field(default_factory=set)
    """Ids of tasks that once were healthy."""
    counted: set[str] = field(default_factory=set)
    """Ids of ended tasks that were looked at."""

    def __post_init__(self) -> None:
        self.reason = self.reason or f"ECS deployment {self.id} in progress."

    def alive(self) -> list[Task]:
        return [task for task in self.tasks if not task.stopping]

    def running(self) -> int:
        return sum(task.last_status == "RUNNING" for task in self.tasks)

    def pending(self) -> int:
        return sum(
            task.last_status in ("PROVISIONING", "PENDING", "ACTIVATING") for task in self.tasks
        )

    def gone(self) -> bool:
        return all(task.last_status == "STOPPED" for task in self.tasks)


class Service:
    """A service; moto's tag calls read arn, tags, name and cluster_name of it."""

    def __init__(
        self,
        agent: Agent,
        targets: Targets,
        cluster: Any,
        parameters: dict[str, Any],
        definition: Any,
        *,
        count_crashes: bool,
    ) -> None:
        self.agent, self.targets = agent, targets
        self.cluster_name, self.cluster_arn = cluster.name, cluster.arn
        self.name: str = parameters["serviceName"]
        self.arn = f"arn:aws:ecs:{REGION}:{ACCOUNT}:service/{cluster.name}/{self.name}"
        self.tags: list[dict[str, str]] = parameters.pop("tags", [])
        self.settings = parameters
        self.status = "ACTIVE"
        self.created = now()
        self.count_crashes = count_crashes
        self.events: list[dict[str, Any]] = []
        self.deployments: list[Deployment] = []
        self.past_tasks: list[Task] = []
        self.records: list[dict[str, Any]] = []
        """ServiceDeployments, newest last; the keys _deployment and _back are ours."""
        self.revisions: list[dict[str, Any]] = []
        self.steady = False
        self.next_start = 0.0
        self.lock = threading.RLock()
        self.deploy(definition)

    # What the API asks for.

    @property
    def physical_resource_id(self) -> str:
        return self.arn

    @property
    def desired(self) -> int:
        return self.settings.get("desiredCount", 0) if self.status == "ACTIVE" else 0

    @property
    def primary(self) -> Deployment:
        return self.deployments[0]

    @property
    def configuration(self) -> dict[str, Any]:
        """ "The default maximumPercent value ... is 200%"; minimumHealthyPercent "is 100%"."""
        given = self.settings.get("deploymentConfiguration") or {}
        return {"maximumPercent": 200, "minimumHealthyPercent": 100, "strategy": "ROLLING", **given}

    @property
    def breaker(self) -> dict[str, Any]:
        return self.configuration.get("deploymentCircuitBreaker") or {
            "enable": False,
            "rollback": False,
        }

    @property
    def tasks(self) -> list[Task]:
        return [*self.past_tasks, *(task for row in self.deployments for task in row.tasks)]

    def update(self, changes: dict[str, Any], definition: Any, force: bool) -> None:
        """Take over UpdateService's parameters; a changed revision makes a new deployment."""
        with self.lock:
            changed = force or definition.arn != self.primary.definition.arn
            for key, value in changes.items():
                changed |= key in VERSIONED and value != self.settings.get(key)
                self.settings[key] = value
            self.steady = False
            if changed:
                self.deploy(definition)

    def deploy(self, definition: Any) -> None:
        """Make a deployment PRIMARY; what is in progress before it is stopped."""
        with self.lock:
            for record in self.records:
                if record["status"] in IN_PROGRESS:
                    self.close(record, "STOPPED", "Superseded by a newer service deployment.")
            source = [row.revision_arn for row in self.deployments if row.proven]
            for row in self.deployments:
                row.status = "ACTIVE"
            settings = {key: self.settings[key] for key in VERSIONED if key in self.settings}
            arn = f"{self.arn.replace(':service/', ':service-revision/')}/{identifier()}"
            deployment = Deployment(definition, settings, arn)
            self.deployments.insert(0, deployment)
            self.revisions.append(
                {
                    "serviceRevisionArn": arn,
                    "serviceArn": self.arn,
                    "clusterArn": self.cluster_arn,
                    "createdAt": deployment.created,
                    "launchType": "FARGATE",
                    **settings,
                    "taskDefinition": definition.arn,
                }
            )
            self.records.append(
                {
                    "serviceDeploymentArn": self.arn.replace(":service/", ":service-deployment/")
                    + f"/{uuid.uuid4().hex[:21]}",
                    "serviceArn": self.arn,
                    "clusterArn": self.cluster_arn,
                    "createdAt": deployment.created,
                    "startedAt": deployment.created,
                    "status": "IN_PROGRESS",
                    "_source": source,
                    "_deployment": deployment,
                    "_back": None,
                    "_configuration": self.configuration,
                }
            )

    def close(self, record: dict[str, Any], status: str, reason: str = "") -> None:
        record |= {"status": status, "finishedAt": now(), "updatedAt": now()}
        if status == "STOPPED":
            record["stoppedAt"] = now()
        if reason:
            record["statusReason"] = reason

    def event(self, message: str) -> None:
        text = f"(service {self.name}) {message}"
        self.events.insert(0, {"id": str(uuid.uuid4()), "createdAt": now(), "message": text})
        del self.events[100:]  # "The event stream for your service. A maximum of 100 ..."

    # The scheduler's step.

    def step(self) -> None:
        with self.lock:
            self.replace_unhealthy()
            self.look()
            self.judge()
            self.scale_down()
            self.scale_up()
            self.finish()

    def healthy(self, task: Task) -> bool:
        """ "wait for both the task to reach a healthy status and the load balancer target group".

        Without a check and a balancer: "the service scheduler will wait for 40 seconds after a
        task reaches a RUNNING state" (scaled).
        """
        if task.stopping or task.last_status != "RUNNING" or task.running_since is None:
            return False
        states = self.target_states(task)
        if task.checked and task.health != "HEALTHY":
            return False
        if states or task.checked:
            return all(state == "healthy" for state in states)
        return time.monotonic() - task.running_since >= 40 * self.agent.scale

    def unhealthy(self, task: Task) -> bool:
        """Whether it must be replaced; the grace period "ignores unhealthy ... health checks"."""
        if task.stopping or task.running_since is None:
            return False
        grace = self.settings.get("healthCheckGracePeriodSeconds", 0) * self.agent.scale
        if time.monotonic() - task.running_since < grace:
            return False
        return task.health == "UNHEALTHY" or "unhealthy" in self.target_states(task)

    def places(self, task: Task) -> list[tuple[str, int]]:
        """Return the (target group, port) pairs of a task."""
        deployment = self.deployment_of(task)
        rows = deployment.settings.get("loadBalancers", ()) if deployment else ()
        return [(row["targetGroupArn"], row["containerPort"]) for row in rows]

    def target_states(self, task: Task) -> list[str]:
        found = [self.targets.get(arn, task.address, port) for arn, port in self.places(task)]
        return [target.state if target else "unused" for target in found]

    def deployment_of(self, task: Task) -> Deployment | None:
        return next((row for row in self.deployments if row.id == task.started_by), None)

    def register(self, task: Task) -> None:
        for arn, port in self.places(task):
            self.targets.register(arn, task.address, port)
            self.event(f"registered 1 targets in (target-group {arn})")

    def drain(self, task: Task) -> None:
        """DEACTIVATING: "target groups will be deregistered in this state"."""
        delays = [
            self.targets.deregister(arn, task.address, port) for arn, port in self.places(task)
        ]
        if any(delays):
            self.event("has begun draining connections on 1 tasks.")
            time.sleep(max(delays))

    def look(self) -> None:
        """Take notice of tasks that became healthy or ended.

        failedTasks: "can't launch the task, the task doesn't transition to a RUNNING state, or if
        it fails any of its defined health checks and is stopped". A task that exits after RUNNING
        and before it was healthy is counted where count_crashes is on: what ECS does there is not
        documented, and containers-roadmap issue 1206 says that it did not count.
        """
        for deployment in self.deployments:
            for task in deployment.tasks:
                if task.id not in deployment.was_healthy and self.healthy(task):
                    deployment.was_healthy.add(task.id)
                    # "a task that reaches a healthy state resets the failure count to 0"
                    if self.breaker.get("resetOnHealthyTask", True):
                        deployment.failed = 0
                if not task.stopping or task.id in deployment.counted:
                    continue
                deployment.counted.add(task.id)
                self.steady = False
                # Where it was not drained (StopTask by hand, a container that exited) its targets
                # leave only now: containers-roadmap issue 576.
                if task.stop_code != "ServiceSchedulerInitiated":
                    for arn, port in self.places(task):
                        self.targets.deregister(arn, task.address, port)
                crashed = task.stop_code == "EssentialContainerExited" and (
                    task.running_since is None or self.count_crashes
                )
                if task.id in deployment.was_healthy:
                    continue
                unwell = "health checks" in task.stopped_reason
                if task.stop_code == "TaskFailedToStart" or crashed or unwell:
                    deployment.failed += 1
                    self.next_start = time.monotonic() + BACK_OFF_SECONDS
                    self.event(f"(task {task.id}) failed: {task.stopped_reason}")

    @property
    def threshold(self) -> int:
        """ThresholdConfiguration: "multiplies value by the latest service desired count"."""
        given = self.breaker.get("thresholdConfiguration") or {
            "type": "BOUNDED_PERCENT",
            "value": 50,
        }
        if given["type"] == "COUNT":
            return given["value"]
        share = math.ceil(self.desired * given["value"] / 100)
        # "a minimum threshold of 3 and a maximum threshold of 200"
        return share if given["type"] == "UNBOUNDED_PERCENT" else max(3, min(200, share))

    def judge(self) -> None:
        """Trip the circuit breaker."""
        primary = self.primary
        if (
            self.breaker["enable"]
            and primary.rollout_state == "IN_PROGRESS"
            and primary.failed >= self.threshold
        ):
            self.fail("tasks failed to start.", self.breaker["rollback"])

    def fail(self, reason: str, rollback: bool) -> None:
        """End the primary deployment as FAILED and go back to the last one that completed.

        "the service is rolled back to the last deployment that completed successfully"; that
        deployment, which is still listed, becomes PRIMARY again.
        """
        failed, record = self.primary, self.records[-1]
        failed.rollout_state, failed.updated = "FAILED", now()
        failed.reason = f"ECS deployment circuit breaker: {reason}"
        self.event(f"(deployment {failed.id}) deployment failed: {reason}")
        again = record["_back"] is not None
        completed = [row for row in self.deployments[1:] if row.proven]
        if not rollback or not completed or again:
            self.close(record, "ROLLBACK_FAILED" if rollback else "STOPPED", failed.reason)
            return
        back = completed[0]
        self.deployments.remove(back)
        self.deployments.insert(0, back)
        failed.status, back.status = "ACTIVE", "PRIMARY"
        back.rollout_state, back.failed, back.updated = "IN_PROGRESS", 0, now()
        back.reason = f"ECS deployment circuit breaker: rolling back to deploymentId {back.id}"
        self.event(f"rolling back to deployment {back.id}.")
        for key, value in back.settings.items():
            self.settings[key] = value
        record |= {
            "status": "ROLLBACK_IN_PROGRESS",
            "statusReason": failed.reason,
            "updatedAt": now(),
            "_back": back,
            "rollback": {
                "reason": failed.reason,
                "startedAt": now(),
                "serviceRevisionArn": back.revision_arn,
            },
        }

    def replace_unhealthy(self) -> None:
        """ "starting replacement tasks first and then stopping the unhealthy tasks".

        Without room "the scheduler stops the unhealthy tasks one-by-one - using the
        minimumHealthyPercent as a constraint". Those of a deployment in progress are stopped at
        once, under the same constraint.
        """
        alive = [task for row in self.deployments for task in row.alive()]
        bad = [task for task in self.primary.alive() if self.unhealthy(task)]
        room = len(alive) < self.maximum
        replaced = sum(map(self.healthy, self.primary.alive())) >= self.desired
        for task in bad:
            if self.primary.rollout_state == "COMPLETED" and room and not replaced:
                continue
            if not replaced and len(alive) - 1 < self.minimum:
                continue
            states = self.target_states(task)
            cause = "ELB health checks" if "unhealthy" in states else "container health checks"
            self.event(f"(task {task.id}) failed {cause}")
            task.stop("ServiceSchedulerInitiated", f"Task failed {cause}", self.drain)
            return

    @property
    def maximum(self) -> int:
        """ "as a percentage of the desiredCount (rounded down to the nearest integer)"."""
        return self.desired * self.configuration["maximumPercent"] // 100

    @property
    def minimum(self) -> int:
        """ "as a percentage of the desiredCount (rounded up to the nearest integer)"."""
        return math.ceil(self.desired * self.configuration["minimumHealthyPercent"] / 100)

    def scale_down(self) -> None:
        """Stop old tasks as far as new ones are healthy, and what is over desiredCount."""
        new = self.primary.alive()
        surplus = [task for row in self.deployments[1:] for task in row.alive()]
        extra = len([task for task in new if not self.unhealthy(task)]) - self.desired
        surplus += sorted(new, key=self.healthy)[: max(0, extra)]
        total = sum(self.healthy(task) for row in self.deployments for task in row.alive())
        for task in sorted(surplus, key=self.healthy):
            if self.healthy(task):
                if total <= self.minimum:
                    return
                total -= 1
            self.event(f"has stopped 1 running tasks: (task {task.id}).")
            task.stop(
                "ServiceSchedulerInitiated",
                f"Scaling activity initiated by (deployment {self.primary.id})",
                self.drain,
            )

    def scale_up(self) -> None:
        """ "A deployment in FAILED state doesn't launch any new tasks."""
        primary = self.primary
        if primary.rollout_state == "FAILED" or time.monotonic() < self.next_start:
            return
        alive = sum(len(row.alive()) for row in self.deployments)
        good = sum(not self.unhealthy(task) for task in primary.alive())
        for _ in range(min(self.desired - good, self.maximum - alive)):
            task = Task(
                self.agent,
                primary.definition,
                cluster_arn=self.cluster_arn,
                group=f"service:{self.name}",
                started_by=primary.id,
                tags=self.propagated_tags(primary.definition),
                on_started=self.register,
            )
            primary.tasks.append(task)
            task.start()
            self.event(f"has started 1 tasks: (task {task.id}).")

    def propagated_tags(self, definition: Any) -> list[dict[str, str]]:
        """ "If no value is specified, the tags aren't propagated." """
        source = self.settings.get("propagateTags")
        return list({"SERVICE": self.tags, "TASK_DEFINITION": definition.tags}.get(source) or [])

    def finish(self) -> None:
        """ "When the service reaches a steady state, the deployment transitions to COMPLETED"."""
        primary = self.primary
        new = primary.alive()
        ready = len(new) == self.desired and all(map(self.healthy, new))
        if not ready or not all(row.gone() for row in self.deployments[1:]):
            return
        for row in self.deployments[1:]:
            self.past_tasks += row.tasks
        if primary.rollout_state == "IN_PROGRESS":
            primary.rollout_state, primary.proven, primary.updated = "COMPLETED", True, now()
            primary.reason = f"ECS deployment {primary.id} completed."
            self.event(f"(deployment {primary.id}) deployment completed.")
            record = self.records[-1]
            if record["_back"] is primary:
                self.close(record, "ROLLBACK_SUCCESSFUL")
            elif record["status"] in IN_PROGRESS:
                self.close(record, "SUCCESSFUL")
        del self.deployments[1:]
        if not self.steady:
            self.steady = True
            self.event("has reached a steady state.")

    def describe(self) -> dict[str, Any]:
        """Return the API's Service."""
        with self.lock:
            return {
                **self.settings,
                "serviceArn": self.arn,
                "serviceName": self.name,
                "clusterArn": self.cluster_arn,
                "status": self.status,
                "schedulingStrategy": "REPLICA",
                "deploymentController": {"type": "ECS"},
                "taskDefinition": self.primary.definition.arn,
                "desiredCount": self.desired,
                "runningCount": sum(row.running() for row in self.deployments),
                "pendingCount": sum(row.pending() for row in self.deployments),
                "deploymentConfiguration": self.configuration,
                "deployments": [self.describe_deployment(row) for row in self.deployments],
                "events": list(self.events),
                "createdAt": self.created,
                "currentServiceDeployment": self.records[-1]["serviceDeploymentArn"],
                "currentServiceRevisions": [self.revision(row) for row in self.deployments],
                "tags": self.tags,
            }

    def describe_deployment(self, row: Deployment) -> dict[str, Any]:
        primary = row is self.primary
        return {
            "id": row.id,
            "status": row.status,
            "taskDefinition": row.definition.arn,
            "desiredCount": self.desired if primary else 0,
            "runningCount": row.running(),
            "pendingCount": row.pending(),
            "failedTasks": row.failed,
            "createdAt": row.created,
            "updatedAt": row.updated,
            "launchType": "FARGATE",
            "platformVersion": "1.4.0",
            "platformFamily": "Linux",
            "networkConfiguration": row.settings.get("networkConfiguration", {}),
            "rolloutState": row.rollout_state,
            "rolloutStateReason": row.reason,
        }

    def revision(self, row: Deployment) -> dict[str, Any]:
        return {
            "arn": row.revision_arn,
            "requestedTaskCount": self.desired if row is self.primary else 0,
            "runningTaskCount": row.running(),
            "pendingTaskCount": row.pending(),
        }

    def describe_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the API's ServiceDeployment."""
        deployment = record["_deployment"]
        public = {key: value for key, value in record.items() if not key.startswith("_")}
        breaker = record["_configuration"].get("deploymentCircuitBreaker") or {}
        state = "MONITORING" if record["status"] in IN_PROGRESS else "MONITORING_COMPLETE"
        if deployment.rollout_state == "FAILED":
            state = "TRIGGERED"
        return public | {
            "targetServiceRevision": self.revision(deployment),
            "sourceServiceRevisions": [{"arn": arn} for arn in record["_source"]],
            "deploymentConfiguration": record["_configuration"],
            "deploymentCircuitBreaker": {
                "status": state if breaker.get("enable") else "DISABLED",
                "failureCount": deployment.failed,
                "threshold": self.threshold,
            },
        }


class Scheduler:
    """Steps every service in one thread; an error of a step ends it and is kept for the facade."""

    def __init__(self) -> None:
        self.services: list[Service] = []
        self.error = ""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stopped.wait(TICK_SECONDS):
            for service in list(itertools.islice(self.services, 100)):
                try:
                    service.step()
                except Exception:
                    self.error = traceback.format_exc()
                    return

    def close(self) -> None:
        self.stopped.set()
        self.thread.join()

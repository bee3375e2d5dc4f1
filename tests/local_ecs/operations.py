"""The ECS operations that are ours: services, deployments and tasks.

Each method is named as the operation; it takes the request's parameters and returns the answer's,
or None to leave it to moto. Sentences in quotes are from botocore's ECS model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moto.ec2.models import ec2_backends
from moto.ecs.exceptions import (
    ClusterNotFoundException,
    ECSException,
    ServiceNotFoundException,
)
from moto.ecs.models import ecs_backends
from moto.elbv2.models import elbv2_backends

from .agent import Agent
from .api import ACCOUNT, REGION
from .roles import exists
from .rules import check_definition, client_error, parameter_error
from .scheduler import IN_PROGRESS, Scheduler, Service
from .targets import Targets
from .task import Task


class Operations:
    """The answers, over one agent, scheduler and set of targets."""

    def __init__(
        self, agent: Agent, scheduler: Scheduler, targets: Targets, *, count_crashes: bool
    ) -> None:
        self.agent, self.scheduler, self.targets = agent, scheduler, targets
        self.count_crashes = count_crashes
        self.alone: list[Task] = []
        """Tasks of RunTask."""
        self.tokens: dict[str, tuple[dict[str, Any], list[Task]]] = {}
        self.moto = ecs_backends[ACCOUNT][REGION]

    def answers(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]]:
        return {name: getattr(self, name) for name in dir(self) if name[0].isupper()}

    # Look-ups.

    def tasks(self) -> list[Task]:
        return [*self.alone, *(task for row in self.scheduler.services for task in row.tasks)]

    def cluster(self, p: dict[str, Any]) -> Any:
        name = p.get("cluster", "default").rsplit("/", 1)[-1]
        if name not in self.moto.clusters:
            raise ClusterNotFoundException
        return self.moto.clusters[name]

    def service(self, p: dict[str, Any]) -> Service:
        cluster = self.cluster(p)
        for service in self.scheduler.services:
            names = (service.name, service.arn)
            if service.cluster_name == cluster.name and p["service"] in names:
                return service
        raise ServiceNotFoundException

    def active(self, p: dict[str, Any]) -> Service:
        service = self.service(p)
        if service.status != "ACTIVE":
            raise ECSException("ServiceNotActiveException", "Service was not ACTIVE.")
        return service

    def definition(self, reference: str) -> Any:
        """Return one: "If a revision isn't specified, the latest ACTIVE revision is used"."""
        name = reference.rsplit("/", 1)[-1]
        if ":" not in name:
            revisions = self.moto.task_definitions.get(name, {}).values()
            active = [row for row in revisions if row.status == "ACTIVE"]
            if not active:
                raise client_error("TaskDefinition not found.")
            return active[-1]
        found = self.moto.describe_task_definition(name)
        if found.status != "ACTIVE":
            raise client_error("TaskDefinition is inactive")
        return found

    # Refusals that need to look at other services.

    def check_roles(self, definition: Any) -> None:
        for kind in ("execution_role_arn", "task_role_arn"):
            arn = getattr(definition, kind, None)
            if arn and not exists(arn):
                raise client_error(
                    f"ECS was unable to assume the role '{arn}' that was provided for this task."
                )

    def check_network(self, p: dict[str, Any]) -> None:
        """networkConfiguration "is required for task definitions that use ... awsvpc"."""
        network = p.get("networkConfiguration", {}).get("awsvpcConfiguration")
        if not network:
            raise parameter_error(
                "Network Configuration must be provided when networkMode 'awsvpc' is specified."
            )
        backend = ec2_backends[ACCOUNT][REGION]
        known = {row.id for row in backend.describe_subnets()}
        groups = {row.id for row in backend.describe_security_groups()}
        for what, given, there in (
            ("subnet ID", network["subnets"], known),
            ("security group", network.get("securityGroups", []), groups),
        ):
            for name in given:
                if name not in there:
                    raise parameter_error(
                        f"Error retrieving information: the {what} '{name}' does not exist"
                    )

    def check_balancers(self, p: dict[str, Any], definition: Any) -> None:
        """ "you must choose ip as the target type"; a port "must correspond to a containerPort"."""
        groups = elbv2_backends[ACCOUNT][REGION].target_groups
        for row in p.get("loadBalancers", ()):
            group = groups.get(row.get("targetGroupArn"))
            if group is None:
                raise parameter_error(f"Unable to assume role and validate the target group {row}.")
            if group.target_type != "ip":
                raise parameter_error(
                    f"The provided target group {group.arn} has target type {group.target_type}, "
                    "which is incompatible with the awsvpc network mode."
                )
            if not group.load_balancer_arns:
                raise parameter_error(
                    f"The target group with targetGroupArn {group.arn} does not have an "
                    "associated load balancer."
                )
            ports = {
                mapping["containerPort"]
                for container in definition.container_definitions
                if container["name"] == row.get("containerName")
                for mapping in container.get("portMappings", ())
            }
            if row.get("containerPort") not in ports:
                raise parameter_error(
                    f"The container {row.get('containerName')} did not have a container port "
                    f"{row.get('containerPort')} defined."
                )

    # Task definitions: moto keeps them.

    def RegisterTaskDefinition(self, p: dict[str, Any]) -> None:
        check_definition(p)

    # Tasks.

    def RunTask(self, p: dict[str, Any]) -> dict[str, Any]:
        """clientToken: "Run RunTask with the clientToken and the original set of parameters"."""
        cluster = self.cluster(p)
        token = p.get("clientToken")
        if token in self.tokens:
            given, tasks = self.tokens[token]
            if given != p:
                raise ECSException(
                    "ConflictException",
                    "The provided clientToken is already in use with a different RunTask request.",
                )
            return {"tasks": [self.shown(task) for task in tasks], "failures": []}
        definition = self.definition(p["taskDefinition"])
        self.check_roles(definition)
        self.check_network(p)
        known = {row["name"] for row in definition.container_definitions}
        for row in p.get("overrides", {}).get("containerOverrides", ()):
            if row.get("name") not in known:
                raise parameter_error(
                    "Override for container named ... is not a container in the TaskDefinition."
                )
        if not 1 <= p.get("count", 1) <= 10:  # "You can specify up to 10 tasks for each call."
            raise parameter_error("count must be between 1 and 10.")
        tasks = [
            Task(
                self.agent,
                definition,
                cluster_arn=cluster.arn,
                # "The default value is the family name of the task definition"
                group=p.get("group", f"family:{definition.family}"),
                started_by=p.get("startedBy", ""),
                overrides=p.get("overrides"),
                tags=[
                    *p.get("tags", ()),
                    *(definition.tags if p.get("propagateTags") == "TASK_DEFINITION" else ()),
                ],
            )
            for _ in range(p.get("count", 1))
        ]
        self.alone += tasks
        if token:
            self.tokens[token] = (p, tasks)
        for task in tasks:
            task.start()
        return {"tasks": [self.shown(task) for task in tasks], "failures": []}

    def StopTask(self, p: dict[str, Any]) -> dict[str, Any]:
        """By hand: not drained first (containers-roadmap issues 576 and 708)."""
        self.cluster(p)
        for task in self.tasks():
            if p["task"] in (task.arn, task.id):
                task.stop("UserInitiated", p.get("reason", "Task stopped by user"))
                return {"task": self.shown(task)}
        raise parameter_error("The referenced task was not found.")

    def ListTasks(self, p: dict[str, Any]) -> dict[str, Any]:
        """ "The default status filter is RUNNING, which shows tasks that Amazon ECS has set the
        desired status to RUNNING." """
        cluster = self.cluster(p)
        wanted = p.get("desiredStatus", "RUNNING")
        service = p.get("serviceName", "").rsplit("/", 1)[-1]
        found = [
            task.arn
            for task in self.tasks()
            if task.cluster_arn == cluster.arn
            and task.desired_status == wanted
            and (not service or task.group == f"service:{service}")
            and p.get("family", task.definition.family) == task.definition.family
            and p.get("startedBy", task.started_by) == task.started_by
        ]
        return {"taskArns": found}

    def DescribeTasks(self, p: dict[str, Any]) -> dict[str, Any]:
        cluster = self.cluster(p)
        if len(p["tasks"]) > 100:  # "A list of up to 100 task IDs or full ARN entries."
            raise parameter_error("Tasks cannot have more than 100 elements.")
        by_name = {key: task for task in self.tasks() for key in (task.arn, task.id)}
        tasks, failures = [], []
        for name in p["tasks"]:
            task = by_name.get(name)
            if task and task.cluster_arn == cluster.arn:
                tasks.append(self.shown(task, tags="TAGS" in p.get("include", ())))
            else:
                arn = (
                    name if ":" in name else f"{cluster.arn.replace(':cluster/', ':task/')}/{name}"
                )
                failures.append({"arn": arn, "reason": "MISSING"})
        return {"tasks": tasks, "failures": failures}

    @staticmethod
    def shown(task: Task, tags: bool = True) -> dict[str, Any]:
        return task.describe() | ({"tags": task.tags} if tags else {})

    # Services.

    def CreateService(self, p: dict[str, Any]) -> dict[str, Any]:
        cluster = self.cluster(p)
        if "taskDefinition" not in p:
            raise parameter_error("TaskDefinition cannot be null.")
        definition = self.definition(p["taskDefinition"])
        for service in self.scheduler.services:
            if (service.cluster_name, service.name) == (cluster.name, p["serviceName"]):
                if service.status == "ACTIVE":
                    raise parameter_error("Creation of service was not idempotent.")
                self.scheduler.services.remove(service)
        self.check_roles(definition)
        self.check_network(p)
        self.check_balancers(p, definition)
        self.check_percents(p)
        service = Service(
            self.agent, self.targets, cluster, {**p}, definition, count_crashes=self.count_crashes
        )
        self.moto.services[f"{cluster.name}:{service.name}"] = service
        self.scheduler.services.append(service)
        return {"service": service.describe()}

    def UpdateService(self, p: dict[str, Any]) -> dict[str, Any]:
        service = self.active(p)
        changes = {key: value for key, value in p.items() if key not in ("cluster", "service")}
        force = changes.pop("forceNewDeployment", False)
        reference = changes.pop("taskDefinition", service.primary.definition.arn)
        definition = (
            service.primary.definition
            if reference == service.primary.definition.arn
            else self.definition(reference)
        )
        self.check_roles(definition)
        if "networkConfiguration" in p:
            self.check_network(p)
        self.check_balancers(
            {"loadBalancers": service.settings.get("loadBalancers", [])} | p, definition
        )
        self.check_percents(p)
        service.update(changes, definition, force)
        return {"service": service.describe()}

    @staticmethod
    def check_percents(p: dict[str, Any]) -> None:
        """Refuse percentages that allow no step: AWS's "would cause the service to be stuck"."""
        given = p.get("deploymentConfiguration", {})
        if given.get("strategy", "ROLLING") != "ROLLING":
            raise parameter_error("local_ecs has only the strategy ROLLING.")
        low, high = given.get("minimumHealthyPercent", 100), given.get("maximumPercent", 200)
        if high < 100 or low > high or low == high == 100:
            raise parameter_error(
                f"minimumHealthyPercent {low} and maximumPercent {high} do not fit."
            )

    def DeleteService(self, p: dict[str, Any]) -> dict[str, Any]:
        service = self.service(p)
        if service.desired > 0 and not p.get("force"):
            raise parameter_error("The service cannot be stopped while it is scaled above 0.")
        service.status = "DRAINING"
        return {"service": service.describe()}

    def DescribeServices(self, p: dict[str, Any]) -> dict[str, Any]:
        cluster = self.cluster(p)
        if len(p["services"]) > 10:  # "You may specify up to 10 services"
            raise parameter_error("Services cannot have more than 10 elements.")
        services, failures = [], []
        for name in p["services"]:
            try:
                found = self.service({**p, "service": name})
            except ServiceNotFoundException:
                arn = (
                    name
                    if ":" in name
                    else f"{cluster.arn.replace(':cluster/', ':service/')}/{name}"
                )
                failures.append({"arn": arn, "reason": "MISSING"})
                continue
            if found.status == "DRAINING" and not any(
                task.last_status != "STOPPED" for task in found.tasks
            ):
                found.status = "INACTIVE"
            shown = found.describe()
            if "TAGS" not in p.get("include", ()):
                shown.pop("tags")
            services.append(shown)
        return {"services": services, "failures": failures}

    def ListServices(self, p: dict[str, Any]) -> dict[str, Any]:
        cluster = self.cluster(p)
        return {
            "serviceArns": [
                row.arn
                for row in self.scheduler.services
                if row.cluster_name == cluster.name and row.status != "INACTIVE"
            ]
        }

    # Service deployments.

    def record(self, arn: str) -> tuple[Service, dict[str, Any]]:
        for service in self.scheduler.services:
            for record in service.records:
                if record["serviceDeploymentArn"] == arn:
                    return service, record
        raise ECSException("ServiceDeploymentNotFoundException", f"{arn} not found.")

    def ListServiceDeployments(self, p: dict[str, Any]) -> dict[str, Any]:
        """Newest first; "If you do not specify a status, then all status values are included"."""
        service = self.service(p)
        brief = (
            "serviceDeploymentArn",
            "serviceArn",
            "clusterArn",
            "startedAt",
            "createdAt",
            "finishedAt",
            "status",
            "statusReason",
        )
        rows = [
            {key: record[key] for key in brief if key in record}
            | {"targetServiceRevisionArn": record["_deployment"].revision_arn}
            for record in reversed(service.records)
            if record["status"] in (p.get("status") or [record["status"]])
        ]
        first, size = int(p.get("nextToken", 0)), p.get("maxResults", 20)
        answer: dict[str, Any] = {"serviceDeployments": rows[first : first + size]}
        if first + size < len(rows):
            answer["nextToken"] = str(first + size)
        return answer

    def DescribeServiceDeployments(self, p: dict[str, Any]) -> dict[str, Any]:
        found, failures = [], []
        for arn in p["serviceDeploymentArns"]:
            try:
                service, record = self.record(arn)
                found.append(service.describe_record(record))
            except ECSException:
                failures.append({"arn": arn, "reason": "MISSING"})
        return {"serviceDeployments": found, "failures": failures}

    def DescribeServiceRevisions(self, p: dict[str, Any]) -> dict[str, Any]:
        known = {
            row["serviceRevisionArn"]: row
            for service in self.scheduler.services
            for row in service.revisions
        }
        arns = p["serviceRevisionArns"]
        return {
            "serviceRevisions": [known[arn] for arn in arns if arn in known],
            "failures": [{"arn": arn, "reason": "MISSING"} for arn in arns if arn not in known],
        }

    def StopServiceDeployment(self, p: dict[str, Any]) -> dict[str, Any]:
        """stopType ROLLBACK, the default, goes back to the last completed deployment."""
        service, record = self.record(p["serviceDeploymentArn"])
        with service.lock:
            if record["status"] not in IN_PROGRESS or record is not service.records[-1]:
                raise ECSException(
                    "ConflictException", "The service deployment is not in progress."
                )
            service.fail(
                "stopped by StopServiceDeployment.", p.get("stopType", "ROLLBACK") == "ROLLBACK"
            )
        return {"serviceDeploymentArn": record["serviceDeploymentArn"]}

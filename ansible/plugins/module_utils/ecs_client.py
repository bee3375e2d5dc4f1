"""AWS's API as the modules of ECS use it: clients, and what ECS says of a service."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .ecs_definition import POOLER, why_stopped
from .refused import Refused

try:
    import boto3
    import botocore.exceptions
except ImportError:  # told() says so
    boto3 = None

EVENTS = 5
"""How many of a service's last events a message shows."""

ARGUMENTS = {name: {"type": "str", "required": True} for name in ("region", "cluster")}
"""What a module of ECS takes, to know where a service is."""


def run(module: Any, work: Callable[[Any], dict[str, Any]]) -> None:
    """Do a module's work, and end it with what that returns, none of which is a secret.

    Ansible would blot out every text that is also a value of a no_log option, and ARNs hold words
    that a value may be. So it gets no such values, and no arguments to show. A message of Refused
    has passed no such care: there the values are blotted out.
    """
    try:
        result = work(module)
    except Refused as error:
        module.fail_json(msg=str(error))
    module.no_log_values.clear()
    module.exit_json(**result, invocation={"module_args": {}})


def client(service: str, region: str) -> Any:
    """Return a client of one of AWS's services; raises Refused without boto3.

    Credentials are the controller's own, as of AWS's programs: its role, or its environment.
    """
    with told():
        return boto3.client(service, region_name=region)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raise AWS's errors as Refused, in AWS's words and with the call."""
    if boto3 is None:
        raise Refused("the Python library boto3 is missing on the controller: make venv")
    try:
        yield
    except botocore.exceptions.ClientError as error:
        details = error.response.get("Error", {})
        raise Refused(
            f"AWS refuses {error.operation_name}: {details.get('Code')}: {details.get('Message')}"
        ) from None
    except botocore.exceptions.BotoCoreError as error:
        raise Refused(f"AWS cannot be asked: {error}") from None


def found_service(ecs: Any, cluster: str, name: str) -> dict[str, Any] | None:
    """Return a service that is active, or None."""
    answer = ecs.describe_services(cluster=cluster, services=[name], include=["TAGS"])
    rows = [row for row in answer["services"] if row["status"] == "ACTIVE"]
    return rows[0] if rows else None


def definition_of(ecs: Any, arn: str) -> dict[str, Any]:
    return ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]


def newest(ecs: Any, family: str) -> dict[str, Any] | None:
    """Return the newest active revision of a family, or None."""
    arns = ecs.list_task_definitions(
        **{"familyPrefix": family, "status": "ACTIVE", "sort": "DESC", "maxResults": 10}
    )["taskDefinitionArns"]
    # The prefix shop finds shop-api as well.
    own = [arn for arn in arns if arn.rpartition("/")[2].rpartition(":")[0] == family]
    newest_arn = max(own, key=lambda arn: int(arn.rpartition(":")[2]), default="")
    return definition_of(ecs, newest_arn) if newest_arn else None


def events_of(service: dict[str, Any]) -> list[str]:
    """Return a service's last events, the newest first."""
    return [row["message"] for row in service.get("events", [])[:EVENTS]]


def state_of(container: dict[str, Any]) -> str:
    """Return a container's state and health, `RUNNING, HEALTHY`."""
    return ", ".join(filter(None, (container.get("lastStatus"), container.get("healthStatus"))))


def is_past_pooler(task: dict[str, Any]) -> bool:
    """Say whether a task has a pooler that does not serve it, so that it uses the fallback."""
    return any(
        row.get("lastStatus") == "STOPPED" or row.get("healthStatus") == "UNHEALTHY"
        for row in task["containers"]
        if row["name"] == POOLER
    )


def stopped_tasks(ecs: Any, cluster: str, definition: str) -> list[str]:
    """Return why tasks of a revision have stopped: a line for each of those that ECS still knows.

    ECS forgets a stopped task after an hour.
    """
    family = definition.rpartition("/")[2].rpartition(":")[0]
    arns = ecs.list_tasks(cluster=cluster, family=family, desiredStatus="STOPPED")["taskArns"]
    tasks = ecs.describe_tasks(cluster=cluster, tasks=arns[:100])["tasks"] if arns else []
    mine = [task for task in tasks if task["taskDefinitionArn"] == definition]
    return list(dict.fromkeys(why_stopped(task) for task in mine))[:EVENTS]


def log_end(logs: Any, group: str, stream: str, lines: int = 40) -> str:
    """Return the last lines of a log stream; "" where there is none."""
    try:
        events = logs.get_log_events(
            logGroupName=group, logStreamName=stream, limit=lines, startFromHead=False
        )["events"]
    except logs.exceptions.ResourceNotFoundException:
        return ""
    return "\n".join(row["message"] for row in events)

"""AWS's API as the modules of ECS use it: clients, and what ECS says of a service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .ecs_definition import why_stopped
from .refused import Refused

try:
    import boto3
    import botocore.exceptions
except ImportError:  # require() says so
    boto3 = None

EVENTS = 5
"""How many of a service's last events a message shows."""

ARGUMENTS = {"region": {"type": "str", "required": True}}
"""What each module of ECS takes."""


def finish(module: Any, result: dict[str, Any]) -> None:
    """End a module with what it returns, none of which is a secret.

    Ansible would blot out every text that is also a value of a no_log option, and ARNs hold words
    that a value may be. So it gets no such values, and no arguments to show.
    """
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


def is_away(container: dict[str, Any]) -> bool:
    """Say whether a pooler's container does not serve its task."""
    return container.get("lastStatus") == "STOPPED" or container.get("healthStatus") == "UNHEALTHY"


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

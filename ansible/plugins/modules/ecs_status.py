#!/usr/bin/python
"""Read how a service of ECS is."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_status
short_description: Read how a service of ECS is
version_added: 0.1.0
author: The poolkit authors (@poolkit)
extends_documentation_fragment: poolkit.poolkit.ecs
description:
  - Returns the service's revision, its deployments, its tasks with the state and health of each
    container, and its last events.
  - Changes nothing.
options:
  service:
    description: Name of the service.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Read the service
  poolkit.poolkit.ecs_status: {region: eu-central-1, cluster: main, service: shop}
"""

RETURN = r"""
serves:
  description: The service's revision, family:revision.
  type: str
  returned: success
completed_before:
  description: Where a rollback goes; "" where nothing has completed before.
  type: str
  returned: success
deployments:
  description: A line for each deployment that goes on or has ended last.
  type: list
  elements: str
  returned: success
tasks:
  description: A line for each task, with the state and health of its containers.
  type: list
  elements: str
  returned: success
past_pooler:
  description: Tasks whose pooler does not run or is not healthy, so that they use the fallback.
  type: list
  elements: str
  returned: success
events:
  description: The service's last events.
  type: list
  elements: str
  returned: success
"""

from typing import Any

from ..module_utils import ecs_client
from ..module_utils.ecs_definition import revision, rollback_target
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule


def status(module: UnloggedModule) -> dict[str, Any]:
    given = module.params
    with ecs_client.told():
        return found(given, ecs_client.client("ecs", given["region"]))


def found(given: dict[str, Any], ecs: Any) -> dict[str, Any]:
    service = ecs_client.found_service(ecs, given["cluster"], given["service"])
    if not service:
        raise Refused(f"there is no service {given['service']} in {given['cluster']}")
    tags = {row["key"]: row["value"] for row in service.get("tags", [])}
    arns = ecs.list_tasks(cluster=given["cluster"], serviceName=given["service"])["taskArns"]
    tasks = ecs.describe_tasks(cluster=given["cluster"], tasks=arns[:100])["tasks"] if arns else []
    lines, past = [], []
    for task in tasks:
        name = task["taskArn"].rpartition("/")[2]
        rows = sorted(task["containers"], key=lambda row: row["name"])
        states = [f"{row['name']} {ecs_client.state_of(row)}" for row in rows]
        of = revision(task["taskDefinitionArn"])
        lines.append(f"{name} ({of}) {task['lastStatus']}: {', '.join(states)}")
        if ecs_client.is_past_pooler(task):
            past.append(name)
    serves = revision(service["taskDefinition"])
    return {
        "changed": False,
        "serves": serves,
        "completed_before": rollback_target(serves, tags),
        "deployments": [
            f"{row['id']} of {revision(row['taskDefinition'])}: {row.get('rolloutState', '')}, "
            f"{row['runningCount']} of {row['desiredCount']} tasks run"
            for row in service["deployments"]
        ],
        "tasks": lines,
        "past_pooler": past,
        "events": ecs_client.events_of(service),
    }


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            **ecs_client.ARGUMENTS,
            "service": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    ecs_client.run(module, status)


if __name__ == "__main__":
    main()

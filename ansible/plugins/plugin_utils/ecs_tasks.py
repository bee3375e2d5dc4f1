"""Services of ECS in the fleet: each task that may run at once counts as a host of its own.

A task has its application with its pooler beside it, and nobody replaces a process inside of it: a
deployment starts whole tasks beside the old ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from .topology import POOLED, Groups, Hostvars, batch_size, strategy_of, value_of, whole_number


def maximum_percent(tasks: int, serial: str) -> int:
    """Return ECS's maximumPercent: room for one batch (app_serial) beside all tasks.

    ECS rounds what it makes of it down, so it is rounded up here.
    """
    return math.ceil(100 * (tasks + batch_size(serial, tasks)) / tasks)


def tasks_of(facts: Mapping[str, Any], host: str) -> tuple[int, int]:
    """Return (ecs_tasks, ecs_tasks_max) of a service, the latter the former where not given."""
    tasks = whole_number(value_of(facts, "ecs_tasks"), "ecs_tasks", host)
    most = whole_number(facts.get("ecs_tasks_max", tasks), "ecs_tasks_max", host)
    if not 1 <= tasks <= most:
        raise AnsibleFilterError(
            f"{host}: ecs_tasks is {tasks} and ecs_tasks_max {most}: give at least 1, and as a "
            "maximum at least as many"
        )
    return tasks, most


def tasks_at_once(facts: Mapping[str, Any], host: str) -> int:
    """Return how many tasks of a service may have connections at once: during a deployment.

    ECS's maximumPercent counts the tasks that run or start (DeploymentConfiguration in botocore's
    model), and not those that drain, which still have theirs. Where draining takes longer than
    starting, every old task is still there when the last new one runs.
    """
    return 2 * tasks_of(facts, host)[1]


def with_tasks(facts: Hostvars, groups: Groups) -> tuple[dict[str, dict], dict[str, list[str]]]:
    """Return facts and groups in which the services of the group ecs are hosts like others.

    The first task has the service's own name in the inventory. Where its strategy goes through
    poolers it is also in the group pgbouncer: the pooler is beside it, in the same task.
    """
    found, wider = dict(facts), {name: list(hosts) for name, hosts in groups.items()}
    for service in groups.get("ecs") or []:
        if service in (*groups["applications"], *groups["pgbouncer"]):
            raise AnsibleFilterError(
                f"{service} is in the group ecs, and in applications or pgbouncer as well: a "
                "service of ECS belongs into ecs alone, its pooler is in its tasks"
            )
        for number in range(1, tasks_at_once(facts[service], service) + 1):
            task = service if number == 1 else f"{service} (task {number})"
            found[task] = {**facts[service], "ecs_task": number}
            wider["applications"].append(task)
            if strategy_of(facts, service) in POOLED:
                wider["pgbouncer"].append(task)
    return found, wider

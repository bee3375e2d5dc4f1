#!/usr/bin/python
"""Run a task of ECS to its end, and take its container's exit code for the answer."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_migration
short_description: Run the migrations of an application as a task of ECS, to their end
version_added: 0.1.0
author: The poolkit authors (@poolkit)
extends_documentation_fragment: poolkit.poolkit.ecs
description:
  - Registers the task definition where the newest revision of its family differs, runs one task of
    it, and waits until that has stopped. A task that ends within a second is seen as well.
  - The exit code of the one container decides. Without one, as when the task could not start, it
    has failed. The message has the task's reason and the end of its log.
  - Waits for a task of the same revision that an earlier run has left, instead of starting one.
  - Check mode runs nothing.
options:
  definition:
    description: The task definition, as RegisterTaskDefinition takes it, with one container.
    type: dict
    required: true
  network:
    description: An awsvpcConfiguration, as RunTask takes it.
    type: dict
    required: true
  timeout_seconds:
    description: How long the task may run, its start left out.
    type: int
    default: 14400
  secrets:
    description: Values that must not appear in the definition.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Migrate
  poolkit.poolkit.ecs_migration:
    region: eu-central-1
    cluster: main
    definition: "{{ definition }}"
    network: {subnets: [subnet-1], securityGroups: [sg-1], assignPublicIp: DISABLED}
"""

RETURN = r"""
output:
  description: The end of the task's log.
  type: str
  returned: success
task:
  description: ARN of the task.
  type: str
  returned: success, not in check mode
"""

import time
import uuid
from typing import Any

from ..module_utils import ecs_client
from ..module_utils.command_output import shortened
from ..module_utils.ecs_definition import definition_errors, migration_verdict, normalised
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule

POLL_SECONDS = 2
START_SECONDS = 600
"""How long a task may take until its container runs."""
LOG_SECONDS = 20
"""How long the log's last line may take to arrive."""
LAST_LINE = "app-migrate: "
"""How the last line of the log begins."""
NOTHING = "app-migrate: nothing to migrate"


def task_of(ecs: Any, given: dict[str, Any], arn: str) -> str:
    """Return the ARN of the task that migrates: one of an earlier run, or a new one."""
    family = given["definition"]["family"]
    running = ecs.list_tasks(cluster=given["cluster"], family=family, desiredStatus="RUNNING")
    if arns := running["taskArns"]:
        tasks = ecs.describe_tasks(cluster=given["cluster"], tasks=arns)["tasks"]
        for task in tasks:
            if task["taskDefinitionArn"] == arn:
                return task["taskArn"]
    answer = ecs.run_task(
        cluster=given["cluster"],
        taskDefinition=arn,
        launchType="FARGATE",
        count=1,
        networkConfiguration={"awsvpcConfiguration": given["network"]},
        startedBy="poolkit",
        # botocore repeats a call that got no answer: the same token is the same task.
        clientToken=str(uuid.uuid4()),
    )
    if answer.get("failures") or not answer["tasks"]:
        reasons = [f"{row.get('reason')} ({row.get('arn')})" for row in answer["failures"]]
        raise Refused(f"ECS does not start the migrations' task: {'; '.join(reasons)}")
    return answer["tasks"][0]["taskArn"]


def stopped(ecs: Any, cluster: str, arn: str, seconds: int) -> dict[str, Any]:
    """Wait until a task has stopped, whatever it does before; raises Refused."""
    end = time.monotonic() + seconds
    while True:
        tasks = ecs.describe_tasks(cluster=cluster, tasks=[arn])["tasks"]
        if tasks and tasks[0]["lastStatus"] == "STOPPED":
            return tasks[0]
        if time.monotonic() > end:
            ecs.stop_task(cluster=cluster, task=arn, reason="app_migration_timeout_seconds")
            raise Refused(
                f"the migrations' task {arn.rpartition('/')[2]} has not ended within {seconds} s "
                "(app_migration_timeout_seconds and its start), so it was stopped: look at what it "
                "did, then run this again"
            )
        time.sleep(POLL_SECONDS)


def log_of(given: dict[str, Any], container: dict[str, Any], arn: str) -> str:
    """Return the end of a container's log; waits for its last line."""
    options = container.get("logConfiguration", {}).get("options", {})
    if "awslogs-group" not in options:
        return ""
    logs = ecs_client.client("logs", given["region"])
    stream = "/".join((options["awslogs-stream-prefix"], container["name"], arn.rpartition("/")[2]))
    end = time.monotonic() + LOG_SECONDS
    while True:
        text = ecs_client.log_end(logs, options["awslogs-group"], stream)
        if LAST_LINE in text or time.monotonic() > end:
            return text
        time.sleep(POLL_SECONDS)


def migrate(module: UnloggedModule) -> dict[str, Any]:
    given = module.params
    container = given["definition"]["containerDefinitions"][0]
    if errors := definition_errors(given["definition"], given["secrets"]):
        raise Refused("; ".join(errors))
    with ecs_client.told():
        ecs = ecs_client.client("ecs", given["region"])
        newest = ecs_client.newest(ecs, given["definition"]["family"])
        same = newest and normalised(newest) == normalised(given["definition"])
        if module.check_mode:
            return {"changed": False, "output": ""}
        if same:
            arn = newest["taskDefinitionArn"]
        else:
            answer = ecs.register_task_definition(**given["definition"])
            arn = answer["taskDefinition"]["taskDefinitionArn"]
        task = task_of(ecs, given, arn)
        seconds = given["timeout_seconds"] + START_SECONDS
        ended = stopped(ecs, given["cluster"], task, seconds)
    try:
        with ecs_client.told():
            output = log_of(given, container, task)
    except Refused as error:  # which says nothing of the migrations
        output = f"the log cannot be read: {error}"
    if why := migration_verdict(ended, container["name"]):
        said = shortened(output) or "its log is empty"
        raise Refused(f"the migrations failed: {why}. {said}")
    return {"changed": NOTHING not in output, "output": output, "task": task}


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            **ecs_client.ARGUMENTS,
            "definition": {"type": "dict", "required": True},
            "network": {"type": "dict", "required": True},
            "timeout_seconds": {"type": "int", "default": 14400},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    ecs_client.run(module, migrate)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Bring a service of ECS to a task definition, and wait for the verdict of that very deployment."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_release
short_description: Bring a service of ECS to a task definition, and wait for its verdict
version_added: 0.1.0
author: The poolkit authors (@poolkit)
extends_documentation_fragment: poolkit.poolkit.ecs
description:
  - Compares every field of the definition with the revision that serves. Where nothing differs,
    nothing is registered and nothing is deployed.
  - Waits for the deployment that it began. A roll-back by ECS's circuit breaker is a failure, with
    the service's events and why tasks stopped, although the service is stable again.
  - Finds the deployment of a run that was cut off, and waits for that. Refuses to begin one while
    another deployment goes on.
  - Keeps in the service's tags which revision has completed last and which one before. A rollback
    goes there. No revision is deregistered.
options:
  service:
    description: Name of the service, which is made where it is missing.
    type: str
    required: true
  definition:
    description: The task definition, as RegisterTaskDefinition takes it; not with rollback.
    type: dict
  settings:
    description:
      - The service's own fields, as UpdateService and CreateService take them.
    type: dict
    default: {}
  tasks:
    description: Number of tasks.
    type: int
    default: 1
  scaled:
    description: Whether something else sets the number of tasks of a service that exists.
    type: bool
    default: false
  rollback:
    description: Go back to the revision that completed before, instead of to definition.
    type: bool
    default: false
  timeout_seconds:
    description: How long the deployment may take.
    type: int
    default: 1800
  secrets:
    description: Values that must not appear in the definition.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Deploy
  poolkit.poolkit.ecs_release:
    region: eu-central-1
    cluster: main
    service: shop
    definition: "{{ definition }}"
    tasks: 2
"""

RETURN = r"""
task_definition:
  description: ARN of the revision that serves; in check mode of the one that serves before.
  type: str
  returned: success
changes:
  description: A line for each field that differs from what served.
  type: list
  elements: str
  returned: success
seconds:
  description: How long the deployment took.
  type: float
  returned: success
"""

import time
from typing import Any

from ..module_utils import ecs_client
from ..module_utils.ecs_definition import (
    BEFORE,
    COMPLETED,
    POOLER,
    definition_errors,
    differences,
    normalised,
    revision,
    rollback_target,
    verdict,
)
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule

POLL_SECONDS = 5
UNSEEN_SECONDS = 60
"""How long ECS may not know a deployment yet that it has begun."""
LABEL = "poolkit-serving"
"""Staging label of the secrets' versions in use, so that Secrets Manager keeps them."""


class Service:
    """A service of ECS, its deployments and its revisions."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.cluster, self.name = given["cluster"], given["service"]
        self.ecs = ecs_client.client("ecs", given["region"])
        self.now = self.read()
        arn = self.now["taskDefinition"] if self.now else ""
        self.serving = ecs_client.definition_of(self.ecs, arn) if arn else {}
        self.first = revision(arn) if arn else ""
        """What served before this run."""
        rows = (self.now or {}).get("tags", [])
        self.tags = {row["key"]: row["value"] for row in rows}

    def read(self) -> dict[str, Any] | None:
        return ecs_client.found_service(self.ecs, self.cluster, self.name)

    def deployment(self) -> dict[str, Any]:
        """Return the service's newest deployment; empty where it has none."""
        rows = (self.now or {}).get("deployments", [])
        return next((row for row in rows if row["status"] == "PRIMARY"), {})

    def target(self) -> str:
        """Return the revision that a rollback goes to; raises Refused."""
        if not self.now:
            raise Refused(f"there is no service {self.name} in {self.cluster} to roll back")
        serves = revision(self.now["taskDefinition"])
        target = rollback_target(serves, self.tags)
        if not target:
            raise Refused(
                f"{self.name}: no deployment is known to have completed before {serves}: deploy "
                "the release that you want instead"
            )
        definition = ecs_client.definition_of(self.ecs, target)
        if definition["status"] != "ACTIVE":
            raise Refused(f"{target}, which served before, was deregistered: deploy again instead")
        return definition["taskDefinitionArn"]

    def registered(self) -> str:
        """Return the ARN of a revision that is as wanted; "" where none is."""
        wanted = normalised(self.given["definition"])
        if self.serving and normalised(self.serving) == wanted:
            return self.serving["taskDefinitionArn"]
        newest = ecs_client.newest(self.ecs, self.given["definition"]["family"])
        return newest["taskDefinitionArn"] if newest and normalised(newest) == wanted else ""

    def settings(self) -> dict[str, Any]:
        """Return the fields of the service that are not as wanted."""
        wanted = dict(self.given["settings"])
        if not (self.now and self.given["scaled"]):
            wanted["desiredCount"] = self.given["tasks"]
        if not self.now:
            return wanted
        return {
            name: value
            for name, value in wanted.items()
            if _part(self.now.get(name), value) != value
        }

    def deploy(self, arn: str, settings: dict[str, Any]) -> str:
        """Begin a deployment; return its id."""
        given = {"cluster": self.cluster, "taskDefinition": arn, **settings}
        if self.now:
            fresh = {"forceNewDeployment": True} if self.failed(arn) else {}
            answer = self.ecs.update_service(service=self.name, **given, **fresh)
        else:
            answer = self.ecs.create_service(serviceName=self.name, launchType="FARGATE", **given)
        self.now = answer["service"]
        return self.deployment()["id"]

    def failed(self, arn: str) -> bool:
        """Say whether this revision was tried and has failed, so that ECS would do nothing."""
        mine = self.deployment()
        return mine.get("taskDefinition") == arn and mine.get("rolloutState") == "FAILED"

    def wait(self, deployment: str, arn: str) -> None:
        """Wait for the end of a deployment; raises Refused unless it completes."""
        begin = time.monotonic()
        end, seen = begin + self.given["timeout_seconds"], False
        while True:
            self.now = self.read() or {}
            state, said = verdict(deployment, self.now)
            seen = seen or state != "gone"
            if state == "gone":  # the API is consistent eventually
                state = "failed" if seen or time.monotonic() - begin > UNSEEN_SECONDS else "going"
            mine = self.deployment()
            full = mine.get("runningCount", 0) >= mine.get("desiredCount", 0)
            if state == "completed" and full:
                return
            if state == "failed":
                raise Refused(self.why(deployment, arn, said))
            if time.monotonic() > end:
                limit = self.given["timeout_seconds"]
                said = f"it has not completed within {limit} s ({said or 'tasks are missing'})"
                raise Refused(
                    self.why(deployment, arn, said)
                    + ". It goes on: run this again to wait for it, or ecs_rollback.yml to go back"
                )
            time.sleep(POLL_SECONDS)

    def why(self, deployment: str, arn: str, said: str) -> str:
        """Return what is known of a deployment that failed."""
        stopped = ecs_client.stopped_tasks(self.ecs, self.cluster, arn)
        serves = revision(self.now["taskDefinition"]) if self.now else "nothing"
        return "; ".join(
            filter(
                None,
                (
                    f"the deployment {deployment} of {revision(arn)} failed: {said}",
                    " | ".join(stopped),
                    "last events: " + " | ".join(ecs_client.events_of(self.now or {})),
                    f"{serves} is the service's revision now",
                ),
            )
        )

    def prove(self, arn: str) -> None:
        """See that each task has its pooler; raises Refused."""
        arns = self.ecs.list_tasks(
            cluster=self.cluster, serviceName=self.name, desiredStatus="RUNNING"
        )["taskArns"]
        tasks = (
            self.ecs.describe_tasks(cluster=self.cluster, tasks=arns[:100])["tasks"] if arns else []
        )
        past = [
            task["taskArn"].rpartition("/")[2]
            for task in tasks
            if task["taskDefinitionArn"] == arn and ecs_client.is_past_pooler(task)
        ]
        if past:
            raise Refused(
                f"{self.name} serves, but past the pooler of the task {', '.join(past)}: see the "
                f"log of its container {POOLER}"
            )

    def remember(self, arn: str) -> bool:
        """Keep which revision has completed, and label the secrets that it reads."""
        done = revision(arn)
        if self.tags.get(COMPLETED) == done:
            return False
        before = self.tags.get(COMPLETED) or self.first
        if self.given["rollback"] or not before:
            before = done  # there is nothing to go back to
        # The tags come last: without them the next run does both again.
        self.label(ecs_client.definition_of(self.ecs, arn))
        tags = {COMPLETED: done, BEFORE: before}
        self.ecs.tag_resource(
            resourceArn=self.now["serviceArn"],
            tags=[{"key": key, "value": value} for key, value in tags.items()],
        )
        return True

    def label(self, definition: dict[str, Any]) -> None:
        """Let Secrets Manager keep the versions that a definition names."""
        named = set()
        for container in definition["containerDefinitions"]:
            for row in container.get("secrets", []):
                parts = row["valueFrom"].split(":")
                if parts[2] == "secretsmanager" and len(parts) == 10 and parts[9]:
                    named.add((":".join(parts[:7]), parts[9]))
        if not named:
            return
        manager = ecs_client.client("secretsmanager", self.given["region"])
        for secret, version in sorted(named):
            stages = manager.describe_secret(SecretId=secret).get("VersionIdsToStages", {})
            old = [id_ for id_, labels in stages.items() if LABEL in labels]
            if old != [version]:
                manager.update_secret_version_stage(
                    SecretId=secret,
                    VersionStage=LABEL,
                    MoveToVersionId=version,
                    **({"RemoveFromVersionId": old[0]} if old else {}),
                )


def _part(value: Any, like: Any) -> Any:
    """Return of a service's field what is also in the wanted one: ECS fills in more."""
    if isinstance(like, dict):
        return {key: _part((value or {}).get(key), each) for key, each in like.items()}
    if isinstance(like, list) and all(isinstance(each, str) for each in like):
        return like if sorted(value or []) == sorted(like) else value
    if isinstance(like, list) and isinstance(value, list) and len(like) == len(value):
        return [_part(one, each) for one, each in zip(value, like, strict=True)]
    return value


def release(module: UnloggedModule) -> dict[str, Any]:
    """Return what the module returns; raises Refused."""
    given = module.params
    begin = time.monotonic()
    with ecs_client.told():
        service = Service(given)
        if given["rollback"]:
            arn = service.target()
            wanted, settings = ecs_client.definition_of(service.ecs, arn), {}
        else:
            if errors := definition_errors(given["definition"], given["secrets"]):
                raise Refused("; ".join(errors))
            wanted, arn, settings = given["definition"], service.registered(), service.settings()
        old, new = normalised(service.serving) if service.serving else {}, normalised(wanted)
        current = {name: _part((service.now or {}).get(name), settings[name]) for name in settings}
        changes = differences(old, new, given["secrets"]) + differences(current, settings)
        running = service.deployment()
        busy = running.get("rolloutState") == "IN_PROGRESS"
        serves = (service.now or {}).get("taskDefinition") == arn
        # A rollback is for a deployment that goes on, too.
        if busy and running["taskDefinition"] != arn and not given["rollback"]:
            raise Refused(
                f"another deployment of {service.name} goes on, {running['id']} of "
                f"{revision(running['taskDefinition'])}: wait for its end, or stop it in ECS. "
                "The service was not changed"
            )
        result = {
            "changes": changes,
            "task_definition": (service.now or {}).get("taskDefinition", ""),
            "diff": {"before": "", "after": "".join(f"{line}\n" for line in changes)},
        }
        again = serves and not settings and not service.failed(arn)
        if module.check_mode:
            return {**result, "changed": not again, "seconds": 0.0}
        if not arn:
            answer = service.ecs.register_task_definition(**given["definition"])
            arn = answer["taskDefinition"]["taskDefinitionArn"]
        id_ = running["id"] if again else service.deploy(arn, settings)
        service.wait(id_, arn)
        service.prove(arn)
        remembered = service.remember(arn)
    seconds = round(time.monotonic() - begin, 1)
    changed = not again or busy or remembered
    return {**result, "changed": changed, "task_definition": arn, "seconds": seconds}


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            **ecs_client.ARGUMENTS,
            "service": {"type": "str", "required": True},
            "definition": {"type": "dict"},
            "settings": {"type": "dict", "default": {}},
            "tasks": {"type": "int", "default": 1},
            "scaled": {"type": "bool", "default": False},
            "rollback": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 1800},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        required_if=[("rollback", False, ("definition",))],
        supports_check_mode=True,
    )
    ecs_client.run(module, release)


if __name__ == "__main__":
    main()

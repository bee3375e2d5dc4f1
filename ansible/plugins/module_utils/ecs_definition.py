"""Task definitions and services of ECS: compared, shown and judged. Every function is pure.

A definition is a request of RegisterTaskDefinition, or what DescribeTaskDefinition returns. What
ECS fills in is from the API's own model (botocore's service-2.json of ecs, 2014-11-13).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

ANSWERED = (
    *("taskDefinitionArn", "revision", "status", "requiresAttributes", "compatibilities"),
    *("registeredAt", "registeredBy", "deregisteredAt", "deleteRequestedAt", "tags"),
)
"""Fields of an answer that no request has, and tags, which are not compared."""

POOLER = "pgbouncer"
"""The pooler's container, in a task that has one."""

COMPLETED, BEFORE = "poolkit:completed", "poolkit:completed-before"
"""Tags of a service: the task definitions that completed last and before, as family:revision."""

CONTAINER = {"cpu": 0, "essential": True}
HEALTH_CHECK = {"interval": 30, "timeout": 5, "retries": 3}
PORT = {"protocol": "tcp"}
"""What ECS fills in."""

NAMES = {
    "containerDefinitions": "name",
    "dependsOn": "containerName",
    "environment": "name",
    "mountPoints": "containerPath",
    "portMappings": "containerPort",
    "secrets": "name",
    "ulimits": "name",
    "volumes": "name",
}
"""Lists whose order means nothing, and what names an entry."""

SHORTEST_PART = 8
"""A secret of so many characters is looked for in the midst of a text."""

NO_SECRETS = ("family", "image", "executionRoleArn", "taskRoleArn")
"""Fields that hold names."""

PASSWORD = re.compile(r"\w://[^/\s:@]+:[^/\s@]+@|\bpassword\s*=", re.IGNORECASE)
"""A URL with a password, or a password of libpq's or PgBouncer's."""


def normalised(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition without what an answer adds, with what ECS fills in, its lists by name.

    Two definitions that mean the same are equal then, and two that differ in any field are not.
    """
    found = {key: value for key, value in definition.items() if key not in ANSWERED}
    for key in ("cpu", "memory"):
        if key in found:
            found[key] = str(found[key])
    containers = []
    for container in found.get("containerDefinitions", []):
        container = CONTAINER | container
        if check := container.get("healthCheck"):
            container["healthCheck"] = HEALTH_CHECK | check
        container["portMappings"] = [
            # With awsvpc both ports are the same.
            PORT | {"hostPort": port.get("containerPort")} | port
            for port in container.get("portMappings", [])
        ]
        containers.append(container)
    found["containerDefinitions"] = containers
    return _canonical(found)


def _canonical(value: Any, name: str = "") -> Any:
    """Return a value with its lists by name, without what is empty or false.

    ECS leaves some of it out and fills some in, such as enableFaultInjection.
    """
    if isinstance(value, Mapping):
        parts = {key: _canonical(part, key) for key, part in value.items()}
        return {
            key: part
            for key, part in sorted(parts.items())
            if part not in ([], {}) and part is not None and part is not False
        }
    if isinstance(value, list | tuple):
        parts = [_canonical(part) for part in value]
        if name in NAMES:
            parts.sort(key=lambda part: str(part.get(NAMES[name])))
        return parts
    return value


def differences(old: Any, new: Any, secrets: Iterable[str] = ()) -> list[str]:
    """Return a line for each field that differs: `web.environment.RATE: 1 -> 2`.

    old, new: definitions, or parts of a service. A text of several lines is shown as a diff. What
    may be a secret of an old definition, that somebody else has made, is not shown.
    """
    before, after = _fields(old), _fields(new)
    hidden = set(clear_text(old, secrets))
    lines = []
    for name in sorted(before.keys() | after.keys()):
        was, is_ = before.get(name), after.get(name)
        if was == is_:
            continue
        if name in hidden or (".environment." in name and name not in after):
            was = "(not shown)"
        if "\n" in str(was) and "\n" in str(is_):
            changed = difflib.unified_diff(
                str(was).splitlines(), str(is_).splitlines(), lineterm="", n=0
            )
            lines.append(f"{name}:")
            lines += [f"  {line}" for line in changed if not line.startswith(("---", "+++", "@@"))]
            continue
        words = [
            "nothing"
            if value is None
            else f"{len(str(value).splitlines())} lines"
            if "\n" in str(value)
            else str(value)
            for value in (was, is_)
        ]
        lines.append(f"{name}: {words[0]} -> {words[1]}")
    return lines


def _fields(value: Any, path: str = "", kind: str = "") -> dict[str, Any]:
    """Return {path: value} of each value that has no parts."""
    if isinstance(value, Mapping):
        parts = [(str(key), part, str(key)) for key, part in value.items()]
    elif isinstance(value, list | tuple) and kind in NAMES:
        # A container's path is its name alone, and a variable's the name of its value.
        parts = []
        for number, part in enumerate(value):
            name = str(part.get(NAMES[kind], number))
            rest = {key: each for key, each in part.items() if key != NAMES[kind]}
            parts.append(
                (name, next(iter(rest.values())) if len(rest) == 1 else rest or "there", "")
            )
    elif isinstance(value, list | tuple):
        return {path: " ".join(str(part) for part in value)}
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for name, part, kind_of_part in parts:
        shown = "" if name == "containerDefinitions" else name
        joined = ".".join(filter(None, (path, shown)))
        found |= _fields(part, joined, kind_of_part)
    return found


def clear_text(definition: Mapping[str, Any], secrets: Iterable[str]) -> list[str]:
    """Return the fields of a definition that hold a secret in clear text.

    secrets: values that must not appear; a short one only as a whole field, since `web` may be a
    password somewhere. Also found: a URL with a password, and `password=`.
    """
    secrets = [secret for secret in secrets if secret]
    found = []
    for name, value in _fields(definition).items():
        if name.rpartition(".")[2] in NO_SECRETS:
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if PASSWORD.search(text) or any(
            secret in text if len(secret) >= SHORTEST_PART else secret == text for secret in secrets
        ):
            found.append(name)
    return found


def definition_errors(definition: Mapping[str, Any], secrets: Iterable[str] = ()) -> list[str]:
    """Return what must not be in a definition, whatever ECS takes. secrets: as of `clear_text`."""
    errors = [
        f"{name} would hold a secret in clear text: move it to app_environment or ecs_secrets "
        "(a password in pgbouncer.ini comes from pgbouncer_databases)"
        for name in clear_text(definition, secrets)
    ]
    for container in definition["containerDefinitions"]:
        name = container["name"]
        if not re.search(r"@sha256:[0-9a-f]{64}$", container["image"]):
            errors.append(
                f"the image of the container {name} is {container['image']}, without a digest: a "
                "tag may be another image tomorrow"
            )
        if name == POOLER and container.get("portMappings"):
            errors.append("the pooler has a port mapping: others than its task would reach it")
    return errors


def verdict(deployment: str, service: Mapping[str, Any]) -> tuple[str, str]:
    """Return ("completed", ""), ("going", how far), ("failed", why) or ("gone", why).

    deployment: the id that UpdateService or CreateService returned. Of that one alone: after a
    roll-back the service is stable again, on the revision before.
    """
    found = {row["id"]: row for row in service.get("deployments", [])}
    mine = found.get(deployment)
    others = [row for row in found.values() if row["id"] != deployment]
    first = next((row for row in others if row.get("status") == "PRIMARY"), None)
    if mine is None:
        return "gone", (
            f"ECS has dropped it: {reason}"
            if first and (reason := first.get("rolloutStateReason"))
            else "ECS has dropped it, which a roll-back does, and so does another deployment"
        )
    state, reason = mine.get("rolloutState"), mine.get("rolloutStateReason") or ""
    if state == "FAILED":
        return "failed", reason
    if state == "COMPLETED":
        return "completed", ""
    if mine.get("status") != "PRIMARY":
        by = f" ({revision(first['taskDefinition'])})" if first else ""
        return "failed", reason or f"another deployment{by} has taken its place"
    # Services whose deployments have no state of their own.
    counts = (mine.get("runningCount", 0), mine.get("desiredCount", 0))
    if state is None and counts[0] >= counts[1] and not others:
        return "completed", ""
    failed = f", {mine['failedTasks']} failed" if mine.get("failedTasks") else ""
    return "going", f"{counts[0]} of {counts[1]} tasks run{failed}"


def revision(arn: str) -> str:
    """Return family:revision of a task definition's ARN."""
    return arn.rpartition("/")[2]


def rollback_target(serves: str, tags: Mapping[str, str]) -> str:
    """Return the revision that a rollback goes to; "" where none is known.

    serves: the service's revision, family:revision. tags: of the service. A rollback that was cut
    off goes on; it does not turn round.
    """
    completed, before = tags.get(COMPLETED, ""), tags.get(BEFORE, "")
    if serves not in (completed, before):
        return completed
    return "" if completed == before else before


def why_stopped(task: Mapping[str, Any]) -> str:
    """Return why a task stopped, in a line: its code, reason, and the exit codes of containers."""
    containers = [
        f"{row['name']} "
        + (f"exit code {row['exitCode']}" if row.get("exitCode") is not None else "never ran")
        + (f" ({row['reason']})" if row.get("reason") else "")
        for row in task.get("containers", [])
    ]
    name = task["taskArn"].rpartition("/")[2]
    said = ": ".join(filter(None, (task.get("stopCode"), task.get("stoppedReason"))))
    return f"task {name}: {said or 'stopped'}; {', '.join(containers)}"


def migration_verdict(task: Mapping[str, Any], container: str) -> str:
    """Return why a task did not do its work, by its container of this name; "" where it did."""
    row = next((row for row in task.get("containers", []) if row["name"] == container), {})
    if row.get("exitCode") == 0 and task.get("stopCode") != "TaskFailedToStart":
        return ""
    return why_stopped(task)

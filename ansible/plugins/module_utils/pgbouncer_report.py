"""What a change of the configuration tells people: results and differences, without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .pgbouncer_configuration import given_files
from .text_files import read

CLEAR_PASSWORD = re.compile(r"password\s*=\s*('(?:[^']|'')*'|\S+)")
"""What a file from before poolkit may hold, and a diff must not show."""


def told(done: list[dict], reasons: list[str], problems: list[str]) -> list[dict]:
    """Return, for --diff, what becomes of the processes and why."""
    lines = [f"process {each['process']}: {each['action']}\n" for each in done]
    lines += [f"{problem}\n" for problem in problems]
    lines += [f"a reload does not suffice: {reason}\n" for reason in reasons]
    return [{"prepared": "".join(lines)}] if lines else []


def shown(
    before: Mapping[str, str | None],
    after: Mapping[str, str | None],
    secret_paths: set[str],
    foreign: bool,
) -> list[dict]:
    """Return the files that differ, for --diff; of those with secrets, only that they do.

    A file that goes may have been a key; one that somebody else has written (foreign) may hold
    anything.
    """

    def one(path: str) -> dict:
        if path in secret_paths:
            return {"prepared": f"{path} differs (its content is secret)\n"}
        if after[path] is None:
            return {"prepared": f"{path} is removed\n"}
        if foreign and before[path] is not None:
            return {"prepared": f"{path} is replaced; its old content may hold secrets\n"}
        return {
            "before_header": path,
            "after_header": path,
            "before": CLEAR_PASSWORD.sub("password=***", before[path] or ""),
            "after": CLEAR_PASSWORD.sub("password=***", after[path]),
        }

    return [one(path) for path, content in after.items() if before[path] != content]


def first_time(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of check mode where PgBouncer or its user is not on the host yet.

    What tells the processes apart depends on PgBouncer's version.
    """
    after = given_files(params)
    before = {path: read(Path(path)) for path in after}
    secret = {file["path"] for file in params["secret_files"]}
    numbers = range(1, params["processes"] + 1)
    done = [{"process": number, "action": "start", "seconds": 0.0} for number in numbers]
    return {
        "changed": True,
        "action": "start",
        "processes": done,
        "settings": [],
        "restart_reason": [],
        "problems": [],
        "seconds": 0.0,
        "diff": [
            {"prepared": "PgBouncer or its user is not there yet: it tries the files later\n"},
            *told(done, [], []),
            *shown(before, after, secret, foreign=True),
        ],
    }

"""The page that scripts/status.py --report writes: one HTML file of the fleet, for people.

Pure functions over the reports of ansible/playbooks/status.yml. The template is report.html.j2;
it escapes every text, for some of them come from applications and certificates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

Report = Mapping[str, Any]
"""What one host has reported; {host, error} of one that is silent."""

ROW_HEIGHT, BOX_HEIGHT = 50, 38
"""Of the picture, in pixels."""
NAME_LETTERS = 24
"""How much of a usual name fits into a box; what is wider is cut off."""


def clipped(text: str, beside: int = 0) -> str:
    """Return as much of a text as a box of the picture has room for; less beside another text."""
    room = NAME_LETTERS - 6 if beside else NAME_LETTERS
    return text if len(text) <= room else f"{text[: room - 1]}…"


def all_pools(rows: Sequence[Report], poolers: Sequence[Report]) -> list[dict[str, Any]]:
    """Return a row for each pool of each process; the console's own is left out.

    A pooler beside an application has reported its pools with the application.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for report in [*poolers, *rows]:
        if report.get("pools"):
            found[report["host"]] = report["pools"]
    return [
        {
            "host": host,
            **{key: pool.get(key, "") for key in ("process", "database", "user", "pool_mode")},
            "active": number(pool, "cl_active"),
            "waiting": number(pool, "cl_waiting"),
            "wait_seconds": number(pool, "maxwait") + number(pool, "maxwait_us") / 1e6,
            "servers_active": number(pool, "sv_active"),
            "servers_idle": number(pool, "sv_idle") + number(pool, "sv_used"),
        }
        for host, pools in found.items()
        for pool in pools
        if pool.get("database") != "pgbouncer"
    ]


def number(pool: Mapping[str, Any], column: str) -> int:
    """Return a number of SHOW POOLS; 0 where this version has no such column."""
    return int(pool.get(column) or 0)


def budget_rows(budget: Report) -> list[dict[str, Any]]:
    """Return the rows of the connection budget, each with `used`: its connections now, or None."""
    users, databases = budget.get("users", {}), budget.get("databases", {})
    counted = budget.get("connections") or []
    found = []
    for row in budget.get("rows", []):
        name = row["application"]
        own = [
            each["connections"]
            for each in counted
            if (each["user"], each["database"]) == (users.get(name), databases.get(name))
        ]
        found.append({**row, "used": sum(own) if counted else None})
    return found


def topology(
    rows: Sequence[Report], poolers: Sequence[Report], path_of: Callable[[Report], str]
) -> dict[str, Any]:
    """Return the picture: {height, box, applications, poolers, database, lines}, in pixels.

    Applications stand at the left, one in each line: first those with a pooler beside them, then
    those of a tier, by the pooler that each tries first, then the others. A tier's pooler stands
    in the middle of those that try it first. path_of: returns the path of a report.
    """
    known = {pooler["host"]: pooler for pooler in poolers}
    names = {str(pooler.get("address", pooler["host"])): pooler["host"] for pooler in poolers}
    used: dict[int, list[str]] = {}  # the poolers' names, by the number of the application's row
    for n, row in enumerate(rows):
        used[n] = [
            row["host"] if is_beside(address) else names.get(address, address)
            for address in row.get("poolers", [])
        ]
    beside = [n for n, row in enumerate(rows) if row["host"] in used[n]]
    tier = [n for n in used if used[n] and n not in beside]
    line_of = {n: line for line, n in enumerate(beside)}
    middle = {rows[n]["host"]: float(line) for n, line in line_of.items()}
    line = len(beside)
    shared = dict.fromkeys([*known, *(name for n in tier for name in used[n])])
    for name in [name for name in shared if name not in middle]:
        first = [n for n in tier if used[n][0] == name]
        line_of |= {n: line + place for place, n in enumerate(first)}
        lines = max(len(first), 1)
        middle[name] = line + (lines - 1) / 2
        line += lines
    for n in used:
        if n not in line_of:
            line_of[n], line = line, line + 1
    height = max(line, 1) * ROW_HEIGHT
    database = (height - ROW_HEIGHT) // 2
    top = {name: round(place * ROW_HEIGHT) for name, place in middle.items()}
    applications, ways, busy = [], [], set()
    for n, row in enumerate(rows):
        y, path, past = line_of[n] * ROW_HEIGHT, path_of(row), max(row.get("direct", 0), 0)
        name = row.get("application", "no answer")
        place = {"y": y, "host": row["host"]}
        applications.append({**place, "name": name, "path": path, "past": past})
        for turn, pooler in enumerate(used[n]):
            taken = path == "pooler" and turn == 0
            busy |= {pooler} if taken else set()
            ways.append({"kind": "first", "from": y, "to": top[pooler], "taken": taken})
        if path == "direct" or past or (path and not used[n]):
            taken = path == "direct" or not used[n]
            ways.append({"kind": "past", "from": y, "to": database, "taken": taken})
    for name, y in top.items():
        ways.append({"kind": "second", "from": y, "to": database, "taken": name in busy})
    return {
        "height": height,
        "box": BOX_HEIGHT,
        "applications": applications,
        "poolers": [
            {"host": name, "y": y, "version": known.get(name, {}).get("version", "")}
            for name, y in top.items()
        ],
        "database": database,
        "lines": sorted(ways, key=lambda way: way["taken"]),  # the way in use lies on top
    }


def is_beside(address: str) -> bool:
    """Say whether a pooler's address is on the application's own host."""
    return address in ("127.0.0.1", "localhost", "::1") or address.startswith("/")


def certificates(reports: Sequence[Report], now: datetime) -> list[dict[str, Any]]:
    """Return every certificate that hosts have reported, with `host` and `days`; the next first.

    days: until it ends, rounded down, below 0 where it has ended; None where that is not known.
    """
    found = []
    for report in reports:
        for each in report.get("certificates", []):
            days = None
            if each["not_after"]:
                left = datetime.fromisoformat(each["not_after"].replace("Z", "+00:00")) - now
                days = math.floor(left.total_seconds() / 86400)
            found.append({"host": report["host"], **each, "days": days})
    return sorted(found, key=lambda each: each["not_after"])


def page(view: Mapping[str, Any]) -> str:
    """Return the page. view: as `status.view` makes it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clipped"] = clipped
    return environment.get_template("report.html.j2").render(view)

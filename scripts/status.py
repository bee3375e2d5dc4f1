"""Print one line for each application: its address, the path of its database traffic, connections.

`direct` counts the connections of a host past its poolers, with the age of the oldest, in UTC. A
pooler that does not have what the inventory says is named, and so are certificates that end within
30 days. Exit code 0 when every application is ready through its pooler, all poolers are as they
should be and no certificate has ended, 1 otherwise, 2 when the hosts could not be asked. Run it as
`make status`, or with --inventory for another fleet. Options that it does not know go to
ansible-playbook: --limit, --ask-vault-pass, --vault-password-file, … docs/status.md has more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

APPLICATIONS = "Read the applications' status"
POOLERS = "Compare the poolers with the inventory"
BUDGET = "Add up the fleet's connections"
"""The plays of ansible/playbooks/status.yml."""

SOON_DAYS = 30
"""A certificate that ends within this time is named. Renewals take a week where people sign."""


def connections(pools: list[dict[str, str]], database: str) -> tuple[int, int] | None:
    """Return (clients, servers) of a database in all processes; None without an answer.

    pools: the rows of `SHOW POOLS` of every process of the host. Columns differ between PgBouncer
    versions: every cl_* counts a client, every sv_* a server connection, less the cancel requests,
    which are neither.
    """
    if not pools:
        return None

    def count(prefix: str) -> int:
        return sum(
            int(value)
            for row in pools
            if row["database"] == database
            for column, value in row.items()
            if column.startswith(prefix) and "cancel" not in column
        )

    return count("cl_"), count("sv_")


def direct(row: dict) -> str:
    """Return how many connections a host has past its poolers, and since when."""
    if row["direct"] < 0:
        return ""
    return (
        f"{row['direct']}, since {row['direct_since']}"
        if row["direct_since"]
        else str(row["direct"])
    )


def said(readiness: object, key: str, default: str) -> str:
    """Return a text of the application's answer, which may be any JSON, fit for one line."""
    value = readiness.get(key) if isinstance(readiness, dict) else None
    if not isinstance(value, str) or not value:
        return default
    return "".join(letter if letter.isprintable() else " " for letter in value[:200])


def unseen(row: dict) -> str:
    """Return what to look at where nothing tells that an application uses its pooler."""
    if not row.get("pooled") or row.get("pooler_error") or row.get("status") != 200:
        return ""
    if said(row["readiness"], "path", "") or connections(row["pools"], row["database"]) != (0, 0):
        return ""
    return (
        "has no connection to its pooler, and its health path names no way (path: unknown). If "
        "that stays so under traffic, it uses another database, or reads another variable than "
        "DATABASE_URL: docs/databases.md"
    )


def reports(playbook_output: dict, play: str) -> list[dict]:
    """Return what the last task of a play said of each of its hosts; {host} of the silent.

    play: APPLICATIONS or POOLERS.
    """
    said: dict[str, dict] = {}
    for played in playbook_output["plays"]:
        for task in played["tasks"] if played["play"]["name"] == play else ():
            for host, result in task["hosts"].items():
                said.setdefault(host, {"host": host})
                if isinstance(result.get("msg"), dict):
                    said[host] |= result["msg"]
                elif result.get("failed") or result.get("unreachable"):
                    said[host]["error"] = str(result.get("msg", ""))
    return list(said.values())


def differences(poolers: list[dict]) -> list[str]:
    """Return a sentence for each pooler that does not have what the inventory says."""
    found = []
    for pooler in poolers:
        silent = "PostgreSQL does not answer, and automatic pool sizes depend on it"
        if error := pooler.get("error", silent):
            found.append(
                f"{pooler['host']}: the pooler cannot be compared with the inventory: {error}"
            )
        elif pooler["differs"]:
            names = ", ".join(pooler["settings"] + pooler["reasons"] + pooler["problems"])
            found.append(
                f"{pooler['host']}: the pooler does not have what the inventory says"
                f"{f' ({names})' if names else ''}. ansible/playbooks/pgbouncer.yml repairs it; "
                "with --check --diff it shows what it would change"
            )
    return found


def exposures(poolers: list[dict]) -> list[str]:
    """Return a line for each advisory, with the poolers that are exposed to it."""
    return [f"{', '.join(names)}: {advisory}" for advisory, names in exposed(poolers).items()]


def exposed(poolers: list[dict]) -> dict[str, list[str]]:
    """Return {advisory: the hosts of the poolers that are exposed to it}."""
    hosts: dict[str, list[str]] = {}
    for pooler in poolers:
        for advisory in pooler.get("advisories", []):
            hosts.setdefault(advisory, []).append(pooler["host"])
    return hosts


def expiries(certificates: list[dict]) -> list[str]:
    """Return a line for each certificate that has ended or does soon, or that cannot be read.

    certificates: as `report.certificates` returns them.
    """
    found = []
    for each in certificates:
        name = f"{each['host']}: the certificate of {each['certificate']}"
        whose = f" ({each['subject']})" if each["subject"] else ""
        when = each["not_after"].replace("T", " ").replace("Z", " UTC")
        if each["error"]:
            found.append(f"{name} cannot be read: {each['error']}")
        elif each["days"] < 0:
            found.append(f"{name}{whose} has ended, {when}. Renew it and deploy: docs/status.md")
        elif each["days"] < SOON_DAYS:
            days = f"{each['days']} days" if each["days"] != 1 else "1 day"
            found.append(f"{name}{whose} ends in {days}, {when}. Renew it: docs/status.md")
    return found


def remarks(rows: list[dict]) -> list[str]:
    """Return a line for everything that applications have reported and no column holds."""
    found = []
    for row in rows:
        if row.get("pooler_error"):
            found.append(f"{row['host']}: PgBouncer: {row['pooler_error']}")
        if row.get("uncounted"):
            found.append(f"{row['host']}: {row['application']} {row['uncounted']}")
        if quiet := unseen(row):
            found.append(f"{row['host']}: {row['application']} {quiet}")
        found += [
            f"{row['host']}: {row['application']}: {reason}" for reason in row.get("refused", [])
        ]
    return found


def path_of(row: Mapping[str, Any]) -> str:
    """Return the way that an application says it takes; empty where the host is silent."""
    return said(row["readiness"], "path", "unknown") if "application" in row else ""


def healthy(row: dict) -> bool:
    """Say whether an application is ready, through its pooler where it has one."""
    if "application" not in row:
        return False
    way = path_of(row) in ("pooler", "unknown") or not row["pooled"]
    refused = row["refused"] or row.get("uncounted") or row["pooler_error"]
    return row["status"] == 200 and way and not refused


def cells(row: dict) -> list[str]:
    """Return the cells of an application in the order of COLUMNS."""
    if "application" not in row:
        return ["", row["host"], "", "no: the host does not answer", "", "", "", ""]
    # A process that does not answer makes the numbers too small, so there are none.
    counted = None if row["pooler_error"] else connections(row["pools"], row["database"])
    missing = "no answer" if row["pooled"] else "none"
    if row.get("poolers") and not any(map(report.is_beside, row["poolers"])):
        missing = "tier"  # whose pools hold those of all hosts of the application
    clients, servers = counted if counted else (missing, missing)
    ready = row["status"] == 200
    return [
        row["application"],
        row["host"],
        f"http://{row['address']}:{row['port']}/",
        "yes" if ready else f"no: {said(row['readiness'], 'reason', 'no answer')}",
        path_of(row),
        str(clients),
        str(servers),
        direct(row),
    ]


COLUMNS = ("application", "host", "open", "ready", "path", "clients", "servers", "direct")


def table(rows: list[dict]) -> tuple[Table, bool]:
    """Return the table, and whether every application is ready through its pooler."""
    view = Table(*COLUMNS, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    view.columns[2].no_wrap = True  # an address that is cut off cannot be opened
    for row in rows:
        view.add_row(*map(escape, cells(row)))
    return view, bool(rows) and all(map(healthy, rows))


def page(
    rows: list[dict],
    poolers: list[dict],
    budget: dict,
    problems: Sequence[str],
    inventory: str,
    now: datetime,
) -> str:
    """Return the page for people. problems: the lines that make the exit code 1, or may."""
    return report.page(
        {
            "inventory": inventory,
            "made": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "columns": COLUMNS,
            "applications": [
                {"cells": cells(row), "healthy": healthy(row), "error": row.get("error", "")}
                for row in rows
            ],
            "problems": problems,
            "picture": report.topology(rows, poolers, path_of),
            "pools": report.all_pools(rows, poolers),
            "budget": budget,
            "budget_rows": report.budget_rows(budget),
            "poolers": poolers,
            "exposed": exposed(poolers),
            "certificates": report.certificates([*poolers, *rows], now),
            "soon_days": SOON_DAYS,
            "releases": [row for row in rows if "application" in row],
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        *("-i", "--inventory"),
        action="append",
        help="may be given several times; default: the one of ansible.cfg, inventories/local",
    )
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    parser.add_argument("--report", metavar="FILE", help="write a page for people as well")
    options, others = parser.parse_known_args()
    command = ["ansible-playbook", "ansible/playbooks/status.yml", *others]
    for inventory in options.inventory or ():
        command += ["--inventory", inventory]
    if options.report:
        command += ["--extra-vars", "ask_server=true"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    try:
        output = json.loads(run.stdout)
    except ValueError:
        print(run.stdout + run.stderr, file=sys.stderr)
        return 2
    rows, poolers = reports(output, APPLICATIONS), reports(output, POOLERS)
    budget = next((each for each in reports(output, BUDGET) if len(each) > 1), {})
    if not rows and not poolers:
        print("No host answered: are the hosts up? Run `make up`.", file=sys.stderr)
        return 2
    now = datetime.now(UTC)
    view, ready = table(rows)
    certificates = report.certificates([*poolers, *rows], now)
    differing, ending = differences(poolers), expiries(certificates)
    problems = remarks(rows) + differing + ending
    if options.json:
        told = {"applications": rows, "poolers": poolers, "budget": budget}
        print(json.dumps(told, indent=2))
    else:
        Console(width=max(Console().width, 120)).print(view)  # a name that is cut off helps nobody
    for sentence in problems + exposures(poolers):
        print(sentence, file=sys.stderr)
    if options.report:
        usual = os.environ.get("ANSIBLE_INVENTORY", "inventories/local")
        name = ", ".join(options.inventory or [usual])
        text = page(rows, poolers, budget, problems, name, now)
        Path(options.report).write_text(text)
        print(f"Wrote {options.report}", file=sys.stderr)
    ended = any(each["days"] is not None and each["days"] < 0 for each in certificates)
    return 0 if (ready or not rows) and not differing and not ended else 1


if __name__ == "__main__":
    sys.exit(main())

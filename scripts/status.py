"""Print one line for each application: its address, the path of its database traffic, connections.

`direct` counts the connections of a host past its poolers, with the age of the oldest, in UTC. A
pooler that does not have what the inventory says is named. Exit code 0 when every application is
ready through its pooler and all poolers are as they should be, 1 otherwise, 2 when the hosts could
not be asked. Run it as `make status`, or with --inventory for another fleet. Options that it
does not know go to ansible-playbook: --limit, --ask-vault-pass, --vault-password-file, …
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

APPLICATIONS = "Read the applications' status"
POOLERS = "Compare the poolers with the inventory"
"""The plays of ansible/playbooks/status.yml."""


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


def table(rows: list[dict]) -> tuple[Table, bool]:
    """Return the table, and whether every application is ready through its pooler."""
    names = ("application", "host", "open", "ready", "path", "clients", "servers", "direct")
    view = Table(*names, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    view.columns[2].no_wrap = True  # an address that is cut off cannot be opened
    healthy = bool(rows)
    for row in rows:
        if "application" not in row:
            view.add_row("", row["host"], "", "no: the host does not answer", "", "", "", "")
            healthy = False
            continue
        ready = row["status"] == 200
        path = said(row["readiness"], "path", "unknown")
        # A process that does not answer makes the numbers too small, so there are none.
        silent = bool(row["pooler_error"])
        healthy &= ready and (path in ("pooler", "unknown") or not row["pooled"]) and not silent
        healthy &= not row["refused"] and not row.get("uncounted")
        counted = None if silent else connections(row["pools"], row["database"])
        missing = "no answer" if row["pooled"] else "none"
        clients, servers = counted if counted else (missing, missing)
        view.add_row(
            row["application"],
            row["host"],
            f"http://{row['address']}:{row['port']}/",
            "yes" if ready else escape(f"no: {said(row['readiness'], 'reason', 'no answer')}"),
            escape(path),
            str(clients),
            str(servers),
            direct(row),
        )
    return view, healthy


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", help="default: the one of ansible.cfg, inventories/local")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    options, others = parser.parse_known_args()
    command = ["ansible-playbook", "ansible/playbooks/status.yml", *others]
    if options.inventory:
        command += ["--inventory", options.inventory]
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
    differing = differences(poolers)
    if not rows and not poolers:
        print("No host answered: are the hosts up? Run `make up`.", file=sys.stderr)
        return 2
    view, healthy = table(rows)
    if options.json:
        print(json.dumps({"applications": rows, "poolers": poolers}, indent=2))
    else:
        Console(width=max(Console().width, 120)).print(view)  # a name that is cut off helps nobody
        for row in rows:
            if row.get("pooler_error"):
                print(f"{row['host']}: PgBouncer: {row['pooler_error']}", file=sys.stderr)
            if row.get("uncounted"):
                print(f"{row['host']}: {row['application']} {row['uncounted']}", file=sys.stderr)
            if quiet := unseen(row):
                print(f"{row['host']}: {row['application']} {quiet}", file=sys.stderr)
            for reason in row.get("refused", []):
                print(f"{row['host']}: {row['application']}: {reason}", file=sys.stderr)
    for sentence in differing:
        print(sentence, file=sys.stderr)
    return 0 if (healthy or not rows) and not differing else 1


if __name__ == "__main__":
    sys.exit(main())

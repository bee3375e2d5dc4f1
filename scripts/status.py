"""Print one line for each application: its address, the path of its database traffic, connections.

Exit code 0 when every application is ready through its pooler, 1 when one is not, 2 when the hosts
could not be asked. Run it as `make status`, or with --inventory for another fleet. Options that it
does not know go to ansible-playbook: --limit, --ask-vault-pass, --vault-password-file, …
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


def connections(show_pools: str, database: str) -> tuple[int, int] | None:
    """Return (clients, servers) of a database, from `SHOW POOLS` as CSV; None without an answer.

    Columns differ between PgBouncer versions: every cl_* counts a client, every sv_* a server
    connection, less the cancel requests, which are neither.
    """
    if not show_pools:
        return None
    rows = [row for row in csv.DictReader(io.StringIO(show_pools)) if row["database"] == database]

    def count(prefix: str) -> int:
        return sum(
            int(value)
            for row in rows
            for column, value in row.items()
            if column.startswith(prefix) and "cancel" not in column
        )

    return count("cl_"), count("sv_")


def reports(playbook_output: dict) -> list[dict]:
    """Return what the task `Report` of roles/app/tasks/status.yml said; {host} of the silent."""
    said = {
        host: {"host": host, **result["msg"]}
        for play in playbook_output["plays"]
        for task in play["tasks"]
        for host, result in task["hosts"].items()
        if task["task"]["name"].endswith("Report") and isinstance(result.get("msg"), dict)
    }
    asked = [host for host in playbook_output["stats"] if host != "localhost"]
    return [said.get(host, {"host": host}) for host in asked]


def table(rows: list[dict]) -> tuple[Table, bool]:
    """Return the table, and whether every application is ready through its pooler."""
    names = ("application", "host", "open", "ready", "path", "clients", "servers")
    view = Table(*names, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    view.columns[2].no_wrap = True  # an address that is cut off cannot be opened
    healthy = bool(rows)
    for row in rows:
        if "application" not in row:
            view.add_row("", row["host"], "", "no: the host does not answer", "", "", "")
            healthy = False
            continue
        ready = row["status"] == 200
        path = row["readiness"].get("path", "unknown")
        healthy &= ready and (path in ("pooler", "unknown") or not row["pooled"])
        counted = connections(row["pools"], row["database"])
        missing = "no answer" if row["pooled"] else "none"
        clients, servers = counted if counted else (missing, missing)
        view.add_row(
            row["application"],
            row["host"],
            f"http://{row['address']}:{row['port']}/",
            "yes" if ready else f"no: {row['readiness'].get('reason', 'no answer')}",
            path,
            str(clients),
            str(servers),
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
        rows = reports(json.loads(run.stdout))
    except ValueError:
        print(run.stdout + run.stderr, file=sys.stderr)
        return 2
    if not rows:
        print("No host answered: are the hosts up? Run `make up`.", file=sys.stderr)
        return 2
    view, healthy = table(rows)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(view)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())

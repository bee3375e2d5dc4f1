"""Measures what preflight.yml and plan.yml cost the controller, by the number of hosts.

Inventories of stand-ins: N applications with one host each and a pooler beside it, all of them this
machine, where only the preflights' questions run. One host's preflight is the difference of four
hosts and one (--limit), a third of it, so that what a run costs once is left out.
usage: fleet_cost.py [HOSTS …]     default: 10 100 300; plan.yml alone takes 1000 in addition
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def inventory(hosts: int) -> str:
    """Return an inventory of that many applications on a host each."""
    facts = {
        **{"ansible_connection": "local", "ansible_become": False},
        "ansible_python_interpreter": sys.executable,
        **{"app_framework": "flask", "app_module": "app:create_app()", "app_workers": 1},
        **{"app_source": str(ROOT / "examples/flask"), "app_port": 18000},
        **{"app_database_password": "p" * 16, "app_database_owner_password": "o" * 16},
        **{"database_host": "192.0.2.254", "database_port": 5432},
        **{"database_admin_user": "admin", "database_admin_password": "a" * 16},
        **{"postgres_max_connections": 40 * hosts + 100, "scram_salt_seed": "0123456789abcdef"},
        **{"pgbouncer_listen_port": 16432, "pgbouncer_take_over": True},
    }
    names = {
        f"h{number}": {"app_name": f"app{number}", "private_address": f"192.0.2.{number % 250}"}
        for number in range(hosts)
    }
    children = {group: {"hosts": dict.fromkeys(names)} for group in ("applications", "pgbouncer")}
    children["database_admin"] = {"hosts": {"h0": None}}
    # A server that the inventory makes is not asked by a preflight: it need not exist yet.
    children["postgres"] = {"hosts": {"db1": {"private_address": "192.0.2.253"}}}
    return yaml.safe_dump({"all": {"vars": facts, "hosts": names, "children": children}})


def processor_seconds(book: str, hosts: int, limit: int | None = None) -> float:
    """Return the processor time of one run of a playbook, in seconds, its children included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hosts.yml"
        path.write_text(inventory(hosts))
        chosen = [f"h{number}" for number in range(limit or 0)]
        limited = ["--limit", ",".join(["localhost", *chosen])] if limit else []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            ["ansible-playbook", "-i", path, f"ansible/playbooks/{book}.yml", *limited],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_INVENTORY_ENABLED": "yaml", "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        sys.exit(run.stdout[-3000:] + run.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [10, 100, 300]
    print("hosts   plan.yml   preflight of one host   each host more   (processor seconds)")
    for hosts in sizes:
        plan = processor_seconds("plan", hosts)
        one, four = (processor_seconds("preflight", hosts, limit) for limit in (1, 4))
        print(f"{hosts:5}   {plan:8.1f}   {one:21.1f}   {(four - one) / 3:14.2f}", flush=True)
    if not sys.argv[1:]:
        print(f" 1000   {processor_seconds('plan', 1000):8.1f}")


if __name__ == "__main__":
    main()

"""The applications on the hosts of `make up`, under each strategy in turn."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .load import Unusable, load

ROOT = Path(__file__).resolve().parents[2]
SOCKET = {"app_poolers": [{"host": "/run/pgbouncer/1", "port": 6432}]}
STRATEGIES: dict[str, dict[str, Any]] = {
    "no query": {},
    "pgbouncer": {},
    "pgbouncer, socket": SOCKET,
    "native": {"app_connection_strategy": "native"},
    "pgbouncer_nopool": {"app_connection_strategy": "pgbouncer_nopool"},
    "direct": {"app_connection_strategy": "direct"},
}
"""Name -> what app.yml is given. Everything else is the inventory's."""

SAMPLE_SECONDS = 0.3
PATHS = ("/ping-db", "/items")
NO_QUERY = "/nodb"
CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}' AND backend_type = "
    "'client backend'"
)


def playbook(name: str, variables: Mapping[str, Any]) -> None:
    """Run one of the kit's playbooks; raise Unusable with its last words."""
    done = subprocess.run(
        ["ansible-playbook", f"ansible/playbooks/{name}.yml", "-e", json.dumps(variables)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = (done.stdout + done.stderr).strip().splitlines()
        raise Unusable(
            f"{name}.yml with {json.dumps(variables)} failed:\n" + "\n".join(words[-15:])
        )


@dataclass(frozen=True)
class Application:
    """One application on its host, its pooler beside it."""

    name: str
    container: str
    port: int
    database: str
    """The container of PostgreSQL."""

    def shell(self, command: str, container: str = "") -> str:
        run = ["docker", "exec", container or self.container, "sh", "-c", command]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout

    def sql(self, statement: str) -> str:
        psql = f'su postgres -c "psql -XAtq -c \\"{statement}\\""'
        return self.shell(psql, self.database).strip()

    def console(self, what: str) -> list[dict[str, str]]:
        """Return the rows of a SHOW of the pooler."""
        psql = "su -s /bin/sh pgbouncer -c 'psql -Xq --csv -h /run/pgbouncer/1 -p 6432 pgbouncer"
        return list(csv.DictReader(self.shell(f'{psql} -c "SHOW {what}"\'').splitlines()))

    def pooler(self, what: str) -> list[dict[str, str]]:
        """Return those rows that are the application's database's."""
        return [row for row in self.console(what) if row["database"] == self.name]

    def max_clients(self) -> int:
        settings = {row["key"]: row["value"] for row in self.console("CONFIG")}
        return int(settings["max_client_conn"])

    def cpu_ms(self) -> dict[str, float]:
        """Return the processor time of each part since it started."""
        unit = "systemctl show -P CPUUsageNSec "
        places = {
            "application": (self.name, ""),
            "pgbouncer": ("pgbouncer@1", ""),
            "postgresql": ("'postgresql@*'", self.database),
        }
        return {
            part: int(self.shell(unit + name, container).split()[0]) / 1e6
            for part, (name, container) in places.items()
        }


def applications() -> list[Application]:
    """Return those of the inventory; raise Unusable where the hosts are not up."""
    done = subprocess.run(
        ["ansible-inventory", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    inventory = json.loads(done.stdout)
    facts = inventory["_meta"]["hostvars"]
    prefix = next(iter(facts.values()))["docker_prefix"]
    names = subprocess.run(
        ["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True
    ).stdout.split()
    (database,) = inventory["postgres"]["hosts"]
    found = []
    for group in inventory["applications"]["children"]:
        for host in inventory[group]["hosts"]:
            if prefix + host not in names:
                raise Unusable(f"{host} is not up: make up")
            port = int(facts[host].get("app_port", 8000))
            name = facts[host]["app_name"]
            found.append(Application(name, prefix + host, port, prefix + database))
    return found


@contextlib.contextmanager
def sampled(ask: Callable[[], int], every_seconds: float = SAMPLE_SECONDS) -> Iterator[list[int]]:
    """Collect numbers meanwhile."""
    numbers: list[int] = []
    over = threading.Event()

    def collect() -> None:
        while not over.wait(every_seconds):
            with contextlib.suppress(subprocess.CalledProcessError, ValueError):
                numbers.append(ask())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield numbers
    finally:
        over.set()
        thread.join()


def measure(app: Application, path: str, requests: int, concurrency: int, seconds: float) -> dict:
    """Return one load with what it cost: connections, the pooler's numbers, processor time."""
    url = f"http://127.0.0.1:{app.port}{path}"
    prefix = ["docker", "exec", app.container]
    (before,), cpu_before = app.pooler("STATS"), app.cpu_ms()
    asks = CONNECTIONS.format(user=app.name)
    with sampled(lambda: int(app.sql(asks))) as connections:
        row = load(url, requests, concurrency, seconds, prefix)
    (after,), cpu_after = app.pooler("STATS"), app.cpu_ms()
    made = max(1, row["requests"])
    difference = {name: int(after[name]) - int(before[name]) for name in after if "total" in name}
    return {
        **row,
        "connections": connections,
        "connections_peak": max(connections, default=0),
        "connections_mean": round(sum(connections) / max(1, len(connections)), 1),
        "pooler_queries_per_request": round(difference["total_query_count"] / made, 2),
        "pooler_wait_ms_per_request": round(difference["total_wait_time"] / 1000 / made, 3),
        "cpu_ms_per_request": {
            part: round((cpu_after[part] - cpu_before[part]) / made, 3) for part in cpu_after
        },
    }


def plan(apps: list[Application], rounds: int, concurrencies: list[int]) -> Iterator[dict]:
    """Yield each load in its order: the strategies take turns, so that a drift hits all alike."""
    for number in range(1, rounds + 1):
        for strategy in STRATEGIES:
            for app in apps:
                for path in (NO_QUERY,) if strategy == "no query" else PATHS:
                    for concurrency in concurrencies if path != "/items" else concurrencies[:1]:
                        yield {
                            "round": number,
                            "strategy": strategy,
                            "name": app.name,
                            "path": path,
                            "concurrency": concurrency,
                        }


def versions(app: Application) -> dict[str, str]:
    return {
        "postgresql": app.sql("SHOW server_version"),
        "pgbouncer": app.shell("pgbouncer --version").splitlines()[0].split()[-1],
        "python": app.shell("/srv/*/current/.venv/bin/python -V").split()[-1],
        "controller": sys.version.split()[0],
    }


def run(
    requests: int,
    rounds: int,
    concurrencies: list[int],
    seconds: float,
    frameworks: list[str],
    keep: Callable[[dict], None],
    tell: Callable[[str, int, int], None],
) -> dict[str, str]:
    """Measure everything; keep: gets each row at once. tell: gets (what, done, of how many).

    Returns the versions. The applications have their inventory's strategy again at the end.
    """
    apps = [app for app in applications() if not frameworks or app.name in frameworks]
    if not apps:
        raise Unusable(f"no application is called {', '.join(frameworks)}")
    for app in apps:
        app.shell("command -v hey >/dev/null || (apt-get update -q && apt-get install -y -q hey)")
        if max(concurrencies) > app.max_clients():
            raise Unusable(
                f"{max(concurrencies)} clients are more than the max_client_conn of {app.name}'s "
                f"pooler, {app.max_clients()}: choose fewer"
            )
    loads = list(plan(apps, rounds, concurrencies))
    deployed: dict[str, Any] | None = {}
    limit = ",".join(app.container.removeprefix("poolkit-") for app in apps)
    try:
        for done, what in enumerate(loads):
            variables = STRATEGIES[what["strategy"]]
            if variables != deployed:
                tell(f"deploying {what['strategy']}", done, len(loads))
                deployed = None
                playbook("app", variables)
                deployed = variables
            tell(f"{what['name']} {what['path']} {what['strategy']}", done, len(loads))
            (app,) = [app for app in apps if app.name == what["name"]]
            load(  # the first requests of a strategy open connections
                f"http://127.0.0.1:{app.port}{what['path']}",
                2 * what["concurrency"],
                what["concurrency"],
                2,
                ["docker", "exec", app.container],
            )
            keep(what | measure(app, what["path"], requests, what["concurrency"], seconds))
            time.sleep(0.2)
    finally:
        if deployed != {}:
            tell("deploying the inventory's strategy again", len(loads), len(loads))
            playbook("app", {})
    return versions(apps[0]) | {"hosts": limit}

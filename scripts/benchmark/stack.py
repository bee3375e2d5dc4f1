"""The applications on the hosts of `make up`, under each strategy in turn."""

from __future__ import annotations

import contextlib
import csv
import itertools
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

from .load import Unusable, check, load

ROOT = Path(__file__).resolve().parents[2]
SOCKET = {"app_poolers": [{"host": "/run/pgbouncer/1", "port": 6432}]}
STRATEGIES: dict[str, dict[str, Any]] = {
    "no query": {},
    "pgbouncer": {},
    "pgbouncer, socket": SOCKET,
    "native": {"app_connection_strategy": "native"},
    "pgbouncer_nopool": {"app_connection_strategy": "pgbouncer_nopool"},
    "direct": {"app_connection_strategy": "direct", "app_database_connection_limit": 24},
}
"""Name -> what app.yml is given; everything else is the inventory's.

An ASGI application without a pool opens a connection for each request. The plan wants a limit for
them, and this is the one that the applications' roles have anyway.
"""

SAMPLE_SECONDS = 0.3
WARM_UP_SECONDS = 1
SETTLE_SECONDS = 90
ROOM_CONNECTIONS = 70
"""With so many PostgreSQL can take more: of its 100, the applications' own pools have up to 54."""
PATHS = ("/ping-db", "/items")
NO_QUERY = "/nodb"
ITEMS = (
    "INSERT INTO items (key, name, created_at) SELECT 'benchmark-' || n, 'an item', now() "
    "FROM generate_series(1, 50) AS n ON CONFLICT DO NOTHING"
)
"""/items answers with the newest 50; an empty table would be another query."""
CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}' AND backend_type = "
    "'client backend'"
)


def ansible(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs, those of this Python's environment first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ANSIBLE_NOCOLOR": "1", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def deploy(hosts: list[str], variables: Mapping[str, Any]) -> None:
    """Run app.yml for some hosts; raise Unusable with its last words."""
    command = ["ansible-playbook", "ansible/playbooks/app.yml", "--limit", ",".join(hosts)]
    done = ansible(*command, "-e", json.dumps(variables))
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise Unusable(f"app.yml with {json.dumps(variables)} failed:\n{words}")


@dataclass(frozen=True)
class Application:
    """One application on its host, its pooler beside it."""

    name: str
    host: str
    container: str
    port: int
    database: str
    """The container of PostgreSQL."""

    def shell(self, command: str, container: str = "") -> str:
        run = ["docker", "exec", container or self.container, "sh", "-c", command]
        done = subprocess.run(run, capture_output=True, text=True)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or [f"{done.returncode}"]
            raise Unusable(f"{container or self.container}: {command.split()[0]}: {words[-1]}")
        return done.stdout

    def sql(self, statement: str, database: str = "postgres") -> str:
        psql = f'su postgres -c "psql -XAtq -d {database} -c \\"{statement}\\""'
        return self.shell(psql, self.database).strip()

    @property
    def on_the_host(self) -> list[str]:
        return ["docker", "exec", self.container]

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
    """Return those of the inventory; raise Unusable where their hosts are not up."""
    facts = {"application": "app_name | default('')", "container": "ansible_host"}
    facts["port"] = "app_port | default(8000)"
    message = "{{ {" + ", ".join(f"'{name}': {value}" for name, value in facts.items()) + "} }}"
    done = ansible(
        *("ansible", "applications:postgres", "-m", "ansible.builtin.debug"),
        *("-a", json.dumps({"msg": message})),
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
    )
    if done.returncode:
        raise Unusable(f"the inventory cannot be read:\n{done.stdout}{done.stderr}")
    results = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]
    found = {host: result["msg"] for host, result in results.items()}
    docker = subprocess.run(
        ["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True
    )
    running = docker.stdout.split()
    if missing := [
        fact["container"] for fact in found.values() if fact["container"] not in running
    ]:
        raise Unusable(f"{', '.join(missing)}: not up. Run make up")
    (database,) = (fact["container"] for fact in found.values() if not fact["application"])
    return [
        Application(fact["application"], host, fact["container"], int(fact["port"]), database)
        for host, fact in found.items()
        if fact["application"]
    ]


@contextlib.contextmanager
def sampled(app: Application, statement: str, seconds: float) -> Iterator[list[int]]:
    """Collect the number that a statement returns, for so long at most.

    One session asks again and again, since a new one each time would take a tenth of the machine.
    It ends when its time is up: a signal does not reach it through docker exec.
    """
    numbers: list[int] = []
    psql = f"su postgres -c 'timeout {seconds:g} psql -XAtq'"
    asking = subprocess.Popen(
        ["docker", "exec", "-i", app.database, "sh", "-c", psql],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    asking.stdin.write(f"{statement} \\watch {SAMPLE_SECONDS}\n")
    asking.stdin.flush()
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(asking.stdout))
    reader.start()
    try:
        yield numbers
    finally:
        asking.terminate()
        reader.join()
        asking.wait()
        numbers += [int(line) for line in found if line.strip().isdigit()]


def settle(app: Application) -> None:
    """Wait until PostgreSQL has room again, for SETTLE_SECONDS at most.

    An ASGI application without a pool leaves logins half done when hundreds of requests come at
    once; PostgreSQL keeps each for authentication_timeout, a minute, and then refuses everybody.
    """
    end = time.monotonic() + SETTLE_SECONDS
    count = "ss -Htn state established '( sport = :5432 )' | wc -l"
    while int(app.shell(count, app.database)) > ROOM_CONNECTIONS and time.monotonic() < end:
        time.sleep(1)


def measure(app: Application, url: str, requests: int, clients: int, seconds: float) -> dict:
    """Return one load with what it cost: connections, the pooler's numbers, processor time."""
    asks = CONNECTIONS.format(user=app.name)
    (before,), cpu_before = app.pooler("STATS"), app.cpu_ms()
    with sampled(app, asks, seconds + 1) as connections:
        row = load(url, requests, clients, seconds, app.on_the_host)
    (after,), cpu_after = app.pooler("STATS"), app.cpu_ms()
    made = max(1, row["requests"])

    def each(name: str) -> float:
        return (int(after[name]) - int(before[name])) / made

    return {
        **row,
        "connections": connections,
        "connections_peak": max(connections, default=0),
        "connections_mean": round(sum(connections) / max(1, len(connections)), 1),
        "pooler_queries_per_request": round(each("total_query_count"), 2),
        "pooler_wait_ms_per_request": round(each("total_wait_time") / 1000, 3),
        "cpu_ms_per_request": {
            part: round((cpu_after[part] - cpu_before[part]) / made, 3) for part in cpu_after
        },
    }


def plan(
    apps: list[Application], rounds: int, strategies: list[str], concurrencies: list[int]
) -> Iterator[dict]:
    """Yield each load in its order: the strategies take turns, so that a drift hits all alike.

    Each round begins with another one, so that none has the same place every time.
    """
    turns = (
        (number, strategies[(number - 1 + place) % len(strategies)])
        for number, place in itertools.product(range(1, rounds + 1), range(len(strategies)))
    )
    for number, strategy in turns:
        for app in apps:
            for path in (NO_QUERY,) if strategy == "no query" else PATHS:
                for concurrency in concurrencies if path != "/items" else concurrencies[:1]:
                    where = {"name": app.name, "path": path, "concurrency": concurrency}
                    yield {"round": number, "strategy": strategy, **where}


def versions(app: Application) -> dict[str, str]:
    return {
        "postgresql": app.sql("SHOW server_version"),
        "pgbouncer": app.shell("pgbouncer --version").splitlines()[0].split()[-1],
        "python": app.shell("/srv/*/current/.venv/bin/python -V").split()[-1],
    }


def prepare(only: list[str], concurrencies: list[int]) -> list[Application]:
    """Return the applications to measure, with a generator on their hosts, or raise Unusable."""
    every = applications()
    if unknown := set(only) - {app.name for app in every}:
        known = ", ".join(app.name for app in every)
        raise Unusable(f"there is no application {', '.join(unknown)}: choose of {known}")
    apps = [app for app in every if not only or app.name in only]
    most = max(concurrencies)
    for app in apps:
        if most > app.max_clients():
            raise Unusable(
                f"{most} clients are more than the max_client_conn of {app.name}'s pooler, "
                f"{app.max_clients()}: choose fewer"
            )
        app.shell("command -v hey >/dev/null || (apt-get update -q && apt-get install -y -q hey)")
        for path in (NO_QUERY, *PATHS):
            check(f"http://127.0.0.1:{app.port}{path}", app.on_the_host)
        app.sql(ITEMS, app.name)
    return apps


def run(
    apps: list[Application],
    loads: list[dict],
    requests: int,
    seconds: float,
    keep: Callable[[dict], None],
    tell: Callable[[str, int, int], None],
) -> None:
    """Make the loads of a plan. The applications have their inventory's strategy at the end.

    keep: gets each row at once. tell: gets (what is done, how many loads are over, of how many).
    """
    deployed: dict[str, Any] | None = {}
    hosts = [app.host for app in apps]
    warm = ("", "")
    try:
        for over, what in enumerate(loads):
            variables = STRATEGIES[what["strategy"]]
            if variables != deployed:
                tell(f"deploying {what['strategy']}", over, len(loads))
                deployed = None
                settle(apps[0])
                deploy(hosts, variables)
                deployed = variables
            tell(f"{what['name']} {what['path']} {what['strategy']}", over, len(loads))
            (app,) = [app for app in apps if app.name == what["name"]]
            url, clients = f"http://127.0.0.1:{app.port}{what['path']}", what["concurrency"]
            settle(app)
            if (what["strategy"], url) != warm:  # the first requests open its connections
                load(url, 4 * clients, clients, WARM_UP_SECONDS, app.on_the_host)
                warm = what["strategy"], url
            keep(what | measure(app, url, requests, clients, seconds))
    finally:
        if deployed != {}:
            tell("deploying the inventory's strategy again", len(loads), len(loads))
            settle(apps[0])
            deploy(hosts, {})

"""The three applications under constant load, and what a fault does to them.

Everything is measured from outside: requests by clients on the controller, connections by the
kernel of each application's host, connections and rows by PostgreSQL.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
from controller import connect, resolve
from testinfra.host import Host
from traffic import Traffic

CLIENTS = 4
"""Of each application: two that keep their HTTP connections, two that make a new one each time."""

MOST_SECONDS = 120
"""So long runs at most what looks on inside of a host: it outlives the program that started it."""

WAYS = r"""
import pwd, time, sys
user = pwd.getpwnam(sys.argv[1]).pw_uid
ports = {int(sys.argv[2]): 0, 6432: 1}
for _ in range(5 * int(sys.argv[3])):
    found = [[], []]
    for name in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{name}").readlines()[1:]:
            fields = line.split()
            way = ports.get(int(fields[2].rpartition(":")[2], 16))
            if way is not None and fields[3] == "01" and int(fields[7]) == user:
                found[way].append(str(int(fields[1].rpartition(":")[2], 16)))
    print(time.time(), len(found[1]), *found[0], flush=True)
    time.sleep(0.2)
"""
"""Prints five times a second how many connections an application has to its poolers, and the ports
of those past them."""

BACKENDS = (
    "SELECT extract(epoch FROM clock_timestamp()), usename, string_agg(client_port || '=' || "
    "extract(epoch FROM state_change), ' ') FROM pg_stat_activity "
    "WHERE client_port > 0 GROUP BY usename"
)
"""Asks for the connections of each role: their ports, and when each was last used."""


@dataclass(frozen=True)
class Service:
    """One application on its host, with its pooler beside it."""

    name: str
    host: Host
    container: str
    url: str
    port: int
    """PostgreSQL's."""

    def run(self, command: str) -> str:
        """Run a shell command as root on the host; return its output, whatever its exit code."""
        return self.host.run(command).stdout.strip()

    def console(self, command: str, process: int = 1) -> str:
        psql = f"sudo -u pgbouncer psql -XAtq -h /run/pgbouncer/{process} -p 6432"
        return self.run(f"{psql} -c '{command}' pgbouncer")

    def pid(self, process: int = 1) -> str:
        return self.run(f"systemctl show -P MainPID pgbouncer@{process}")


@dataclass(frozen=True)
class Site:
    """The applications and the database's host."""

    services: dict[str, Service]
    database: Host
    database_container: str
    database_unit: str

    def everywhere(self, command: str) -> None:
        """Run a shell command on every application's host at once."""
        threads = [
            threading.Thread(target=service.run, args=(command,))
            for service in self.services.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def sql(self, database: str, statement: str) -> list[str]:
        """Return the rows of a statement of the superuser, on the server itself."""
        return self.database.check_output(
            "sudo -u postgres psql -XAtq -d %s -c %s", database, statement
        ).splitlines()


def site() -> Site:
    facts = resolve(
        "applications",
        name="app_name",
        connection="ansible_connection",
        address="ansible_host",
        url="'http://127.0.0.1:%s' | format(docker_published_port)",
        port="database_port",
    )
    services = {
        fact["name"]: Service(
            fact["name"],
            connect(inventory_host, fact["connection"], fact["address"]),
            fact["address"],
            fact["url"],
            int(fact["port"]),
        )
        for inventory_host, fact in facts.items()
    }
    ((host, values),) = resolve(
        "postgres", connection="ansible_connection", address="ansible_host"
    ).items()
    database = connect(host, values["connection"], values["address"])
    units = database.check_output("systemctl list-units --plain --no-legend 'postgresql@*'")
    return Site(services, database, values["address"], units.split()[0])


@dataclass(frozen=True)
class Request:
    """One request as a client saw it. Times are seconds of time.time()."""

    client: str
    what: str
    start: float
    end: float
    kind: str
    """ok, the status (503), or timeout or connection of the client's own error."""


class Load(Traffic):
    """Clients that write and read, and keep a record of each request."""

    def __init__(self, service: Service) -> None:
        super().__init__([service.url], clients=CLIENTS, pause_seconds=0.1)
        self.record: list[Request] = []

    def request(self, session: httpx.Client, expected: int, *what: str, **body: object) -> bool:
        start = time.time()
        try:
            status = session.request(*what, **body).status_code
            kind = "ok" if status == expected else str(status)
        except httpx.TimeoutException:
            kind = "timeout"
        except httpx.HTTPError:
            kind = "connection"
        with self.lock:
            self.requests += 1
            name, asked = threading.current_thread().name, " ".join(what)
            self.record.append(Request(name, asked, start, time.time(), kind))
        return kind == "ok"


@contextlib.contextmanager
def lines_of(command: list[str]) -> Iterator[list[list[str]]]:
    """Collect the lines that a program prints meanwhile, as lists of words."""
    lines: list[list[str]] = []
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.5):  # a host that is started anew ends its programs
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as program:
                for line in program.stdout:
                    lines.append(line.replace("|", " ").split())
                    if over.is_set():
                        program.kill()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield lines
    finally:
        over.set()
        reader.join()


@dataclass
class Outcome:
    """What one fault did to one application. Seconds; None where it did not come to pass."""

    fault: str
    application: str
    requests: int
    failed: dict[str, int]
    slowest: float
    """The longest request."""
    longest_outage: float
    """The longest time of one client between two answers that were right, less its pause."""
    until_service: float | None
    """From the fault until the first right answer to a request that was made after it."""
    until_normal: float | None
    """From the fault's end until no request failed any more."""
    until_pooler: float | None
    """From the fault's end until a connection past the pooler was used for the last time."""
    peak_past_the_pooler: int
    peak_connections: int
    limit: int
    lost: int
    doubled: int


def used_past_the_pooler(ways: list[list[str]], backends: list[list[str]]) -> float:
    """Return when a connection past the pooler was last used; 0 for never.

    One that lies idle in the pool of a process without requests does nobody any harm. The port of
    one that is gone may become the pooler's: the kernel shuffles them every 10 s.
    """
    seen = {port: float(line[0]) for line in ways for port in line[2:]}  # for the last time
    used = [
        float(moment)
        for line in backends
        for port, _, moment in (word.partition("=") for word in line[2:])
        if float(line[0]) < seen.get(port, 0) + 1
    ]
    return max(used, default=0.0)


def measured(
    name: str, service: Service, load: Load, ways: list, backends: list, fault: float, end: float
) -> Outcome:
    """Work out an application's outcome; fault, end: when the fault began and was over."""
    by_client: dict[str, list[Request]] = {}
    for request in sorted(load.record, key=lambda request: request.end):
        by_client.setdefault(request.client, []).append(request)
    outages = []
    for requests in by_client.values():
        good = [request for request in requests if request.kind == "ok"]
        outages += [b.end - a.end - load.pause for a, b in itertools.pairwise(good)]
    served = [r.end - fault for r in load.record if r.kind == "ok" and r.start > fault]
    failed = [request for request in load.record if request.kind != "ok"]
    last = max((request.end for request in failed), default=end)
    own = [line for line in backends if len(line) > 1 and line[1] == service.name]
    past = used_past_the_pooler(ways, own)
    pooled = int(ways[-1][1]) if ways else 0
    peak = max((len(line) - 2 for line in own), default=0)
    return Outcome(
        fault=name,
        application=service.name,
        requests=load.requests,
        failed=dict(Counter(request.kind for request in failed)),
        slowest=max((r.end - r.start for r in load.record), default=0.0),
        longest_outage=max(outages, default=float("inf")),
        until_service=min(served, default=None),
        until_normal=max(0.0, last - end),
        # The last second tells whether it is over.
        until_pooler=None if not pooled or past > time.time() - 1 else max(0.0, past - end),
        peak_past_the_pooler=max((len(line) - 2 for line in ways), default=0),
        peak_connections=peak,
        limit=0,
        lost=0,
        doubled=0,
    )


@contextlib.contextmanager
def under_load(the_site: Site, name: str, outcomes: list[Outcome]) -> Iterator[dict[str, float]]:
    """Load all applications; the block makes the fault and notes `fault` and `end`.

    Before it the load runs for 2 s, after it until nothing has changed for a while. Appends an
    Outcome for each application.
    """
    docker = ["docker", "exec"]
    moments: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        asks = [*docker, "-u", "postgres", the_site.database_container, "sh", "-c"]
        loop = f'for _ in $(seq {5 * MOST_SECONDS}); do psql -XAtqc "$0"; sleep 0.2; done'
        backends = stack.enter_context(lines_of([*asks, loop, BACKENDS]))
        ways = {
            service.name: stack.enter_context(
                lines_of(
                    [
                        *docker,
                        service.container,
                        "python3",
                        "-c",
                        WAYS,
                        service.name,
                        str(service.port),
                        str(MOST_SECONDS),
                    ]
                )
            )
            for service in the_site.services.values()
        }
        loads = {
            service.name: stack.enter_context(Load(service))
            for service in the_site.services.values()
        }
        time.sleep(2)
        yield moments
        settle(loads, ways, backends, moments["end"])
    for service in the_site.services.values():
        load = loads[service.name]
        outcome = measured(
            name, service, load, ways[service.name], backends, moments["fault"], moments["end"]
        )
        (counts,) = the_site.sql(
            service.name,
            "SELECT count(*), count(DISTINCT key) FROM items "
            f"WHERE key = ANY ('{{{','.join(load.keys)}}}')",
        )
        rows, distinct = map(int, counts.split("|"))
        outcome.lost, outcome.doubled = len(load.keys) - distinct, rows - distinct
        (limit,) = the_site.sql(
            service.name, f"SELECT rolconnlimit FROM pg_roles WHERE rolname = '{service.name}'"
        )
        outcome.limit = int(limit)
        outcomes.append(outcome)


def settle(loads: dict, ways: dict, backends: list, end: float, most: float = 30) -> None:
    """Go on until all is well for 3 s: no failure, nothing used past the pooler."""
    while time.time() < end + most:
        time.sleep(0.5)
        recent = time.time() - 3
        calm = all(
            all(request.kind == "ok" for request in load.record if request.end > recent)
            for load in loads.values()
        )
        home = all(
            bool(lines)
            and lines[-1][1] != "0"
            and used_past_the_pooler(lines, [line for line in backends if line[1:2] == [name]])
            < recent
            for name, lines in ways.items()
        )
        if calm and home and recent > end:
            return

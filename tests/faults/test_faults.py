"""The fault matrix: each fault against each framework under load, and what users may notice of it.

POOLKIT_FAULTS=short runs those that CI has time for. The table, and .cache/faults.json, have the
figures of every row; docs/fallback.md explains the limits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import httpx
import pytest
from controller import ROOT, ansible, dropped
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from site_under_load import CLIENTS, Outcome, Service, Site, site, under_load

JSON = ROOT / ".cache/faults.json"
SHORT = os.environ.get("POOLKIT_FAULTS") == "short"


@dataclass(frozen=True)
class Limits:
    """What users may notice at most. Seconds; None: not limited."""

    failed: int | None = CLIENTS
    """Requests: as many as there are clients are those that were in flight."""
    kinds: frozenset[str] = frozenset({"503"})
    """How they may fail."""
    slowest: float | None = None
    service: float | None = None
    normal: float | None = None
    pooler: float | None = 15
    outage: float | None = None
    django: float | None = None
    """Instead of service and outage, where Django cannot keep them: see docs/fallback.md."""


def killed(the_site: Site) -> None:
    the_site.everywhere("systemctl kill --kill-whom=main -s KILL pgbouncer@1")


def stopped(the_site: Site, seconds: float = 30) -> None:
    try:
        the_site.everywhere("systemctl stop pgbouncer@1")
        time.sleep(seconds)
    finally:
        the_site.everywhere("systemctl start pgbouncer@1")


def hung(the_site: Site) -> None:
    """The watchdog ends it, not the test."""
    before = {name: service.pid() for name, service in the_site.services.items()}
    the_site.everywhere("systemctl kill --kill-whom=main -s STOP pgbouncer@1")
    end = time.time() + 20
    while time.time() < end and any(
        service.pid() in (before[name], "0") for name, service in the_site.services.items()
    ):
        time.sleep(0.2)
    for name, service in the_site.services.items():
        log = service.run("journalctl -u pgbouncer-watchdog -n 5 -o cat")
        assert f"killed process 1 (pid {before[name]}): no answer for 3 s" in log


def unreachable(the_site: Site, seconds: float = 20) -> None:
    """Packets to the pooler are dropped, as those to a host that is gone."""
    with contextlib.ExitStack() as stack:
        for service in the_site.services.values():
            stack.enter_context(dropped(service.container, "INPUT", "-p", "tcp", "--dport", "6432"))
        time.sleep(seconds)


@contextlib.contextmanager
def changed(the_site: Site, path: str, expression: str) -> Iterator[None]:
    """Edit a file of every pooler behind Ansible's back; kill the process, so that it is read."""
    kill = "systemctl kill --kill-whom=main -s KILL pgbouncer@1"
    the_site.everywhere(f"cp -a {path} /run/kept; sed -i '{expression}' {path}; {kill}")
    try:
        yield
    finally:
        the_site.everywhere(f"cp -a /run/kept {path}; systemctl reload pgbouncer@1; rm /run/kept")


def full(the_site: Site) -> None:
    """A pooler that takes two clients: the others go past it, or hear 503."""
    limit = "s/^max_client_conn = .*/max_client_conn = 2/"
    with changed(the_site, "/etc/pgbouncer/pgbouncer.ini", limit):
        time.sleep(15)


def status(code: int) -> str:
    """Run `make status`, which is to end with a code; return what it said."""
    command = [sys.executable, ROOT / "scripts/status.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


def wrong_password(the_site: Site) -> None:
    """The applications go on past the pooler, and the status names the pooler that refuses them."""
    passwords = 's/ "SCRAM-SHA-256[^"]*"/ "another"/'
    with changed(the_site, "/etc/pgbouncer/userlist.txt", passwords):
        time.sleep(3)
        said = status(1)
    for name in the_site.services:
        assert f"{name}: PgBouncer at 127.0.0.1:6432 does not let the application in: " in said
    assert "its password for the application is another one" in said


def damaged(the_site: Site) -> None:
    """A file that ends too early, and a reload by hand: named by the status, mended by a run."""
    ini = "/etc/pgbouncer/pgbouncer.ini"
    try:
        the_site.everywhere(f"sed -i '/^max_client_conn/,$d' {ini}; systemctl reload pgbouncer@1")
        assert status(1).count("the pooler does not have what the inventory says") == 3
    finally:
        done = ansible("ansible-playbook", "ansible/playbooks/pgbouncer.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    status(0)


def journal_full(the_site: Site, seconds: float = 15) -> None:
    """The journal has a small disk of its own, and it is full."""
    journal = "/var/log/journal"
    restart = "systemctl restart systemd-journald"
    try:
        the_site.everywhere(
            f"mount -t tmpfs -o size=8m tmpfs {journal} && {restart}; "
            f"dd if=/dev/zero of={journal}/fill bs=64k; sync"
        )
        for service in the_site.services.values():
            assert service.run(f"df --output=avail {journal} | tail -n 1") == "0"
        time.sleep(seconds)
    finally:
        the_site.everywhere(f"rm -f {journal}/fill; umount -l {journal}; {restart}")


def more_than_the_limit(the_site: Site, seconds: float = 10) -> None:
    """PostgreSQL lets an application have one connection, and its clients need more."""
    limits = {}
    for name in the_site.services:
        asks = f"SELECT rolconnlimit FROM pg_roles WHERE rolname = '{name}'"
        (limits[name],) = the_site.sql("postgres", asks)
    try:
        for name in limits:
            the_site.sql("postgres", f"ALTER ROLE {name} CONNECTION LIMIT 1")
        stopped(the_site, seconds)
    finally:
        for name, limit in limits.items():
            the_site.sql("postgres", f"ALTER ROLE {name} CONNECTION LIMIT {limit}")


def postgres_down(the_site: Site, seconds: float = 20) -> None:
    try:
        the_site.database.check_output(f"systemctl stop {the_site.database_unit}")
        time.sleep(seconds)
    finally:
        the_site.database.check_output(f"systemctl start {the_site.database_unit}")


def postgres_hung(the_site: Site, seconds: float = 20) -> None:
    try:
        the_site.database.check_output(f"systemctl kill -s STOP {the_site.database_unit}")
        time.sleep(seconds)
    finally:
        the_site.database.check_output(f"systemctl kill -s CONT {the_site.database_unit}")


def postgres_restarted_in_a_pause(the_site: Site) -> None:
    def all_of(*commands: str) -> None:
        with ThreadPoolExecutor() as pool:
            for command in commands:
                list(pool.map(Service.console, the_site.services.values(), repeat(command)))

    try:
        # As docs/fallback.md has it: what waits in the pause is not to fail.
        all_of("SET query_wait_timeout = 30", "SET query_timeout = 0", "PAUSE")
        the_site.database.check_output(f"systemctl restart {the_site.database_unit}")
    finally:
        all_of("RESUME")
        time.sleep(5)  # what has waited for longer than the file allows is served by then
        all_of("RELOAD")


def stampede(the_site: Site, seconds: float = 10) -> None:
    """300 clients, 100 of each application, ask at the moment when the poolers go."""
    wrong = []
    end = time.time() + seconds

    def client(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as session:
            while time.time() < end:
                answer = session.get("/ping-db")
                if answer.status_code not in (200, 503):
                    wrong.append(answer.status_code)

    try:
        the_site.everywhere("systemctl stop pgbouncer@1")
        urls = [service.url for service in the_site.services.values()] * 100
        threads = [threading.Thread(target=client, args=(url,)) for url in urls]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 2)
        assert the_site.sql("postgres", "SELECT 1") == ["1"], "the administrator cannot log in"
        for thread in threads:
            thread.join()
    finally:
        the_site.everywhere("systemctl start pgbouncer@1")
    assert not wrong, wrong


def rebooted(the_site: Site) -> None:
    containers = [service.container for service in the_site.services.values()]
    subprocess.run(["docker", "restart", "-t", "20", *containers], check=True, capture_output=True)


def one_of_two_hung(the_site: Site) -> None:
    """With a peer that takes the new clients; what hung has lost its own, and no other."""
    others = {name: service.pid(2) for name, service in the_site.services.items()}
    hung(the_site)
    assert {name: service.pid(2) for name, service in the_site.services.items()} == others


MATRIX: dict[str, tuple[Callable, Limits]] = {
    "pooler killed": (killed, Limits(service=1, outage=2)),
    # It ends its transactions first, and refuses what comes meanwhile.
    "pooler stopped for 30 s": (stopped, Limits(failed=2 * CLIENTS, service=3, outage=3)),
    "pooler hung": (hung, Limits(service=5, outage=5)),
    "pooler unreachable": (
        unreachable,
        # A client may meet a lost connection in each of two workers, then wait for a new one.
        Limits(failed=2 * CLIENTS, service=5, outage=8, django=10),
    ),
    "max_client_conn reached": (full, Limits(failed=None, slowest=2)),
    "wrong password in the user list": (wrong_password, Limits()),
    "pgbouncer.ini damaged, reloaded by hand": (damaged, Limits(failed=0)),
    "journal's disk full": (journal_full, Limits(failed=0)),
    "connection limit reached": (more_than_the_limit, Limits(failed=None, slowest=5, normal=5)),
    "pooler stopped, no fallback": (
        partial(stopped, seconds=10),
        Limits(failed=None, slowest=5, normal=5),
    ),
    "PostgreSQL down for 20 s": (postgres_down, Limits(failed=None, slowest=5, normal=5)),
    "PostgreSQL hung for 20 s": (postgres_hung, Limits(failed=None, slowest=5, normal=5)),
    "PostgreSQL restarted in a pause": (postgres_restarted_in_a_pause, Limits(failed=0)),
    "stampede of 300 clients": (stampede, Limits(failed=None)),
    "host rebooted": (
        rebooted,
        Limits(failed=None, kinds=frozenset({"503", "connection", "timeout"})),
    ),
    "one of two processes hung": (one_of_two_hung, Limits(outage=5)),
}
IN_SHORT = {"pooler killed", "pooler hung", "PostgreSQL down for 20 s", "stampede of 300 clients"}


def slack() -> float:
    """Return by how much times may be longer: in CI another lane has its share of the processors.

    The processes for each processor of the last minute, 1 at least; `make faults` grants nothing.
    """
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) if SHORT else 1.0


def broken(outcome: Outcome, limits: Limits) -> list[str]:
    """Return which limits an outcome does not keep."""
    found = []
    longer = slack()
    if outcome.application == "django" and limits.django:
        limits = dataclasses.replace(limits, service=limits.django, outage=limits.django)
    failed = sum(outcome.failed.values())
    if limits.failed is not None and failed > limits.failed:
        found.append(f"{failed} requests failed, at most {limits.failed}")
    if wrong := sorted(set(outcome.failed) - limits.kinds):
        found.append(f"requests failed with {', '.join(wrong)}")
    for name, value, most in (
        ("slowest request", outcome.slowest, limits.slowest),
        ("longest outage of a client", outcome.longest_outage, limits.outage),
        ("until service", outcome.until_service, limits.service),
        ("until normal", outcome.until_normal, limits.normal),
        ("until back on the pooler", outcome.until_pooler, limits.pooler),
    ):
        if most is not None and (value is None or value > most * longer):
            found.append(
                f"{name}: {'never' if value is None else f'{value:.1f} s'}, at most {most} s"
            )
    if outcome.peak_connections > outcome.limit:
        found.append(f"{outcome.peak_connections} connections, at most {outcome.limit}")
    if outcome.lost or outcome.doubled:
        found.append(f"{outcome.lost} rows lost, {outcome.doubled} doubled")
    return found


def table(outcomes: list[Outcome]) -> Table:
    names = ("fault", "application", "requests", "failed", "slowest", "outage", "service", "normal")
    view = Table(*names, "pooler", "connections", "lost", "doubled", box=SIMPLE, pad_edge=False)

    def seconds(value: float | None) -> str:
        return "never" if value is None else f"{value:.1f}"

    for o in outcomes:
        failed = ", ".join(f"{count} x {kind}" for kind, count in o.failed.items()) or "0"
        times = (o.slowest, o.longest_outage, o.until_service, o.until_normal, o.until_pooler)
        view.add_row(
            *(o.fault, o.application, str(o.requests), failed, *map(seconds, times)),
            *(f"{o.peak_connections} of {o.limit}", str(o.lost), str(o.doubled)),
        )
    return view


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[list[Outcome]]:
    """Collect what the faults did; print it as a table at the end, and keep it as JSON."""
    found: list[Outcome] = []
    yield found
    JSON.parent.mkdir(exist_ok=True)
    JSON.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print()
        Console(width=150).print(table(found))
        print(f"Times in seconds. The same as JSON: {JSON.relative_to(ROOT)}")


@pytest.fixture(scope="module")
def the_site() -> Site:
    return site()


DEPLOYMENTS = {
    "two processes": ("ansible/playbooks/pgbouncer.yml", "pgbouncer_processes=2"),
    "no fallback": ("site.yml", "app_database_fallback_enabled=false"),
}
"""What some faults need: a part of the fault's name -> (playbook, variable)."""


@pytest.fixture
def deployment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Deploy what the fault needs, and afterwards what the inventory says."""
    needed = [given for part, given in DEPLOYMENTS.items() if part in request.node.name]
    for playbook, variable in needed:
        done = ansible("ansible-playbook", playbook, "-e", variable)
        assert done.returncode == 0, done.stdout + done.stderr
    yield
    for playbook, _ in needed:
        done = ansible("ansible-playbook", playbook)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("deployment")
@pytest.mark.parametrize("fault", [name for name in MATRIX if not SHORT or name in IN_SHORT])
def test_fault(fault: str, the_site: Site, outcomes: list[Outcome]) -> None:
    inject, limits = MATRIX[fault]
    new: list[Outcome] = []
    with under_load(the_site, fault, new) as moments:
        moments["fault"] = time.time()
        inject(the_site)
        moments["end"] = time.time()
    outcomes.extend(new)
    if "limit reached" in fault:
        assert all(o.failed.get("503") for o in new), new
    if "no fallback" in fault:
        assert not any(o.peak_past_the_pooler for o in new), new
    problems = {o.application: text for o in new if (text := broken(o, limits))}
    assert not problems, problems

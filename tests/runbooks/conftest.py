"""An application on two hosts under traffic, and what each runbook did to it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from controller import ROOT, Run, connect, cut_off, figures_shown, played, resolve
from controller import ansible as run_ansible
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from testinfra.host import Host

sys.path.insert(0, str(ROOT / "tests/rollout"))

from traffic import Traffic

PLAYBOOKS = Path("ansible/playbooks")
NAME = "django"


@dataclass
class Site:
    """The application, its hosts and its database."""

    hosts: dict[str, Host]
    urls: dict[str, str]
    servers: dict[str, Host]
    database: Host
    variables: dict[str, object] = field(default_factory=dict)
    """Extra variables of every playbook: what an operator would have written into the inventory."""
    rehearsed: list[tuple[str, ...]] = field(default_factory=list)

    def play(self, name: str, *words: str, **variables: object) -> Run:
        """Run a playbook; name: of a file of ansible/playbooks."""
        return played(run_ansible(*self.command(name, *words, **variables)))

    def command(self, name: str, *words: str, **variables: object) -> list[str]:
        playbook = str(PLAYBOOKS / f"{name}.yml")
        return ["ansible-playbook", playbook, *words, "-e", json.dumps(self.variables | variables)]

    def follow(self, page: str, section: str, *words: str, **variables: object) -> Run:
        """Run the commands of a section of a page of docs/runbooks; return what they printed.

        words: `NAME=value` puts a value in the place of a word that the page leaves to its reader.
        The status may complain, but not where it is the proof.
        """
        output, changed = "", {}
        for command in commands(page, section):
            if command == "python scripts/status.py":
                complaint = self.status()
                assert section != "Proof" or not complaint, complaint
                output += complaint
                continue
            for word in words:
                name, _, value = word.partition("=")
                command = re.sub(rf"\b{re.escape(name)}\b", value, command)
            done = run_ansible(*shlex.split(command), "-e", json.dumps(self.variables | variables))
            assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-2000:]}"
            run = played(done)
            output, changed = output + run.output, run.changed
        return Run(0, output, changed)

    def cut_off(
        self, task: str, name: str, *words: str, times: int = 1, **variables: object
    ) -> str:
        """Run a playbook, kill it when it begins a task (for the nth time); return its output."""
        return cut_off(self.command(name, *words, **variables), task, times)

    @contextmanager
    def rehearsal(
        self, action: str, hosts: Iterable[str] = (), may_fail: int = 0, **parameters: float
    ) -> Iterator[Traffic]:
        """Send traffic meanwhile; afterwards nothing was lost, and the table has a line more.

        hosts: those that get it; all where not given. may_fail: requests that may; one of each
        client at most. No acknowledged row may be lost.
        """
        urls = [self.urls[host] for host in hosts or self.urls]
        with Traffic(urls, **parameters) as traffic:
            traffic.wait_for(50)
            yield traffic
            traffic.wait_for(traffic.requests + 50)
        lost, more = traffic.lost_and_more(self.rows)
        self.rehearsed.append(
            (
                *(action, str(traffic.requests), str(len(traffic.failures))),
                *(f"{traffic.slowest_seconds:.1f} s", str(lost), str(more)),
            )
        )
        print("\n".join(traffic.failures[:5]))
        assert len(traffic.failures) <= may_fail
        assert lost == 0 and 0 <= more <= len(traffic.failures)

    def rows(self, sql: str, database: str = NAME) -> list[str]:
        """Return the rows of a query of PostgreSQL's superuser, in the application's database."""
        command = f"sudo -u postgres psql -XAtqc %s {database}"
        return self.database.check_output(command, sql).splitlines()

    def password(self) -> str:
        """Return the password of the application's user in the inventory."""
        return resolve("web3", password="app_database_password")["web3"]["password"]

    def newer_package(self, host: str) -> str:
        """Offer the host PgBouncer's package with a higher version; return that version.

        The program is the same: no other version can be had here for both distributions.
        """
        script = Path(__file__).with_name("newer_package.sh").read_text()
        return self.hosts[host].check_output("sh -ec %s", script)

    def readiness(self) -> dict[str, dict]:
        return {
            host: httpx.get(f"{url}/readyz", timeout=10).json() for host, url in self.urls.items()
        }

    def table(self, host: str, what: str) -> list[dict[str, str]]:
        """Return the rows of a SHOW of a pooler's console."""
        words = "sudo -u pgbouncer psql -X --csv -h /run/pgbouncer/1 -p 6432 -c %s"
        shown = self.hosts[host].check_output(words, f"SHOW {what}")
        return list(csv.DictReader(shown.splitlines()))

    def console(self, host: str, command: str) -> None:
        """Send a command to a pooler's console."""
        words = "sudo -u pgbouncer psql -Xq -h /run/pgbouncer/1 -p 6432 -c %s"
        self.hosts[host].check_output(words, command)

    def status(self) -> str:
        """Return what `make status` complains of; empty where all is well."""
        words = [sys.executable, "scripts/status.py", "-e", json.dumps(self.variables)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        # The advisories of the distribution's version are no fault of ours.
        lines = [line for line in done.stderr.splitlines() if ": CVE-" not in line]
        return "\n".join(lines) or ("" if done.returncode == 0 else done.stdout)

    def wait_for_pooler(self, seconds: float = 20) -> None:
        """Wait until every host uses its pooler."""
        end = time.monotonic() + seconds
        while {answer["path"] for answer in self.readiness().values()} != {"pooler"}:
            assert time.monotonic() < end, self.readiness()
            time.sleep(0.5)


def commands(page: str, section: str) -> list[str]:
    """Return the command lines of a section of a page."""
    text = (ROOT / f"docs/runbooks/{page}.md").read_text()
    (part,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


FILES = "/etc/poolkit/django/migrate"


@contextmanager
def client(site: Site, sql: str, *, owner: bool = False) -> Iterator[None]:
    """Keep a client of the first host's pooler, or the owner past it, busy with statements."""
    service = "django_owner" if owner else "django host=127.0.0.1 port=6432 sslmode=disable"
    host = site.hosts["web3"]
    pid = host.check_output(
        f"PGSERVICEFILE={FILES}.pg_service.conf PGPASSFILE={FILES}.pgpass setsid sh -c "
        f"\"(echo '{sql}'; sleep 60) | psql -Xq 'service={service}'\" >/dev/null 2>&1 & echo $!"
    )
    time.sleep(1)
    try:
        yield
    finally:
        host.run(f"kill -- -{pid}")


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    facts = resolve(
        "all:!localhost",
        connection="ansible_connection",
        container="ansible_host",
        address="private_address",
    )
    hosts = {host: connect(host, f["connection"], f["container"]) for host, f in facts.items()}
    web = {host: hosts[host] for host in ("web3", "web4")}
    urls = {host: f"http://{facts[host]['address']}:8000" for host in web}
    servers = {host: hosts[host] for host in ("db5", "db6")}
    found = Site(web, urls, servers, servers["db5"])
    yield found
    table = Table(
        *("action", "requests", "failed", "longest pause", "rows lost", "rows beyond"), box=SIMPLE
    )
    for row in found.rehearsed:
        table.add_row(*row)
    # pytest would keep what is printed here to itself.
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        Console(width=110).print("\n", table)


@pytest.fixture(scope="session")
def pooler_host(site: Site) -> Host:
    """The host whose faults the alerts are to see."""
    return site.hosts["web3"]


@pytest.fixture(scope="session")
def application_url(site: Site) -> str:
    return site.urls["web3"]


@pytest.fixture(scope="session")
def exporter_url(application_url: str) -> str:
    return f"{application_url.removesuffix(':8000')}:9127/metrics"


@pytest.fixture(scope="session")
def application() -> str:
    """The application's name: its operating system user, its database and its role there."""
    return NAME


__all__ = ["figures_shown"]

"""A real Prometheus sees real faults of a pooler: each alert of the shipped rules fires, and ends.

It runs on the controller, takes a sample each second, and waits for a second where the rules wait
for minutes. When alerts fire to the second is tried with promtool: tests/unit/test_monitoring.py.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
import yaml
from conftest import Site
from controller import ROOT, resolve
from testinfra.host import Host

RULES = ROOT / "templates/monitoring/pgbouncer-alerts.yml"
WAIT_SECONDS = 25
"""For an alert to fire or to end: the way back from the fallback takes 15 s."""


@dataclass
class Prometheus:
    """A server on this machine that scrapes one exporter; the instance is the target."""

    folder: Path
    promtool: str
    """Its path: the server lies beside it."""
    target: str
    port: int
    process: subprocess.Popen | None = None
    seen: set[str] = field(default_factory=set)
    """The alerts that have fired."""

    def configure(self, *targets: str) -> None:
        """Write the configuration, and rules that do not wait long."""
        scrape = {"job_name": "pgbouncer", "static_configs": [{"targets": list(targets)}]}
        interval = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
        whole = {"global": interval, "rule_files": ["rules.yml"], "scrape_configs": [scrape]}
        rules = re.sub(r"for: \w+", "for: 1s", RULES.read_text()).replace("[15m]", "[20s]")
        (self.folder / "rules.yml").write_text(rules)
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(whole))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run without a target."""
        self.configure()
        binary = Path(self.promtool).with_name("prometheus")
        log = self.folder / "log"
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={self.folder}/prometheus.yml",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdout=output,
                stderr=output,
            )
        try:
            wait_for(self.ready, "Prometheus", log.read_text)
            yield
        finally:
            self.process.terminate()
            self.process.wait(timeout=20)

    def ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def value(self, query: str) -> float | None:
        """Return the largest value of a query; None where there is none."""
        answer = self.get(f"/api/v1/query?{urlencode({'query': query})}").json()
        return max((float(one["value"][1]) for one in answer["data"]["result"]), default=None)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)

    def firing(self) -> dict[str, list[dict]]:
        """Return {alert: its labels and annotations, each time that it fires}."""
        found: dict[str, list[dict]] = {}
        for alert in self.get("/api/v1/alerts").json()["data"]["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    def fires(self, name: str, **labels: str) -> None:
        """Wait until an alert fires, with these labels, for this host."""
        expected = {"instance": self.target, "job": "pgbouncer", **labels}

        def told() -> bool:
            return any(
                expected.items() <= alert["labels"].items() for alert in self.firing().get(name, [])
            )

        wait_for(told, f"{name} with {expected}", self.firing)
        for alert in self.firing().get(name, []):
            for text in alert["annotations"].values():
                assert text and "<" not in text, text  # <no value>, <error expanding template …>
            assert self.target in alert["annotations"]["summary"]
        self.seen.add(name)

    def ends(self, *names: str) -> None:
        """Wait until alerts fire no more; without names: all of them."""

        def gone() -> bool:
            return not self.firing().keys() & (set(names) or self.firing().keys())

        wait_for(gone, f"the end of {names or 'all alerts'}", self.firing)


def wait_for(
    reached: Callable[[], bool],
    what: str,
    state: Callable[[], object],
    seconds: float = WAIT_SECONDS,
) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"not within {seconds} s: {what}; there is {state()}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, exporter_url: str) -> Iterator[Prometheus]:
    found = subprocess.run([ROOT / "scripts/promtool.sh"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    folder = tmp_path_factory.mktemp("prometheus")
    target = urlsplit(exporter_url).netloc
    prometheus = Prometheus(folder, found.stdout.strip(), target, free_port())
    with prometheus.running():
        yield prometheus


@pytest.fixture(scope="module", autouse=True)
def _requests(application_url: str) -> Iterator[None]:
    """Use the application all the time: it goes past the pooler, and back, when it is asked."""
    end = threading.Event()

    def ask() -> None:
        while not end.wait(0.1):
            with suppress(httpx.HTTPError):
                httpx.get(f"{application_url}/ping-db", timeout=10)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield
    end.set()
    for thread in threads:
        thread.join(timeout=20)


@pytest.fixture
def console(pooler_host: Host) -> Callable[..., None]:
    def run(*commands: str) -> None:
        words = " ".join(f"-c '{command}'" for command in commands)
        pooler_host.check_output(
            f"sudo -u pgbouncer psql -qX -h /run/pgbouncer/1 -p 6432 {words} pgbouncer"
        )

    return run


@contextmanager
def undone(do: Callable[[], object], undo: Callable[[], object]) -> Iterator[None]:
    try:
        do()
        yield
    finally:
        undo()


def kill(host: Host, name: str) -> None:
    host.check_output(f"systemctl kill --kill-whom=main -s {name} pgbouncer@1")


def test_there_is_no_target(server: Prometheus) -> None:
    """And when there is one, nothing fires."""
    wait_for(lambda: "PgBouncerNoTargets" in server.firing(), "the alert", server.firing)
    server.seen.add("PgBouncerNoTargets")
    server.configure(server.target)
    server.process.send_signal(signal.SIGHUP)
    scrapes = "count_over_time(pgbouncer_up[1m])"
    wait_for(lambda: (server.value(scrapes) or 0) >= 3, "three scrapes", server.firing)
    server.ends()


def test_exporter_is_stopped(server: Prometheus, pooler_host: Host) -> None:
    with undone(
        lambda: pooler_host.check_output("systemctl stop pgbouncer-exporter"),
        lambda: pooler_host.check_output("systemctl start pgbouncer-exporter"),
    ):
        server.fires("PgBouncerExporterAway")
    server.ends("PgBouncerExporterAway")


def test_process_hangs_and_ends_again_and_again(server: Prometheus, pooler_host: Host) -> None:
    """The watchdog kills it first; then somebody else does, twice, and it is started each time."""
    kill(pooler_host, "STOP")
    server.fires("PgBouncerKilledByWatchdog", process="1")
    assert "PgBouncerRestartsOften" not in server.firing()
    console = 'pgbouncer_stats_queries_pooled_total{database="pgbouncer"}'

    def known(starts: int) -> bool:
        """Prometheus has seen so many, and asked since, so that the next one begins lower."""
        resets = server.value(f"resets({console}[20s])") or 0
        return resets >= starts and bool(server.value(f"delta({console}[3s]) > 0"))

    for starts in (1, 2):
        wait_for(partial(known, starts), f"start {starts}", server.firing)
        kill(pooler_host, "KILL")
    server.fires("PgBouncerRestartsOften", process="1", database="pgbouncer")


def test_pooler_is_stopped(server: Prometheus, pooler_host: Host, application: str) -> None:
    """The application goes past it."""
    with undone(
        lambda: pooler_host.check_output("systemctl stop pgbouncer@1"),
        lambda: pooler_host.check_output("systemctl start pgbouncer@1"),
    ):
        server.fires("PgBouncerSilent", process="1")
        server.fires("ApplicationPastItsPooler", user=application)
    server.ends("PgBouncerSilent")


def test_paused_pooler_has_no_clients_that_wait(
    server: Prometheus, console: Callable[..., None], application: str
) -> None:
    server.ends("ApplicationPastItsPooler")  # its clients are the pooler's again
    with undone(lambda: console("PAUSE"), lambda: console("RESUME")):
        server.fires("PgBouncerPaused", process="1")
        longest = f'pgbouncer_pools_client_maxwait_seconds{{database="{application}"}}'
        wait_for(lambda: (server.value(longest) or 0) > 1, "clients that wait", server.firing)
        time.sleep(2.5)
        assert "PgBouncerClientsWait" not in server.firing()
    server.ends("PgBouncerPaused")


def test_database_is_disabled(
    server: Prometheus, console: Callable[..., None], application: str
) -> None:
    with undone(
        lambda: console(f"DISABLE {application}"), lambda: console(f"ENABLE {application}")
    ):
        server.fires("PgBouncerDisabled", process="1", database=application)
    server.ends("PgBouncerDisabled")


def test_clients_reach_the_limit(server: Prometheus, console: Callable[..., None]) -> None:
    with undone(lambda: console("SET max_client_conn = 1"), lambda: console("RELOAD")):
        server.fires("PgBouncerClientsNearLimit", process="1")
    server.ends("PgBouncerClientsNearLimit")


def test_pool_is_exhausted(
    server: Prometheus,
    pooler_host: Host,
    console: Callable[..., None],
    application: str,
    exporter_url: str,
) -> None:
    """More transactions than the pool and its reserve have servers, each of six seconds."""
    size = re.search(
        rf'databases_pool_size{{process="1",database="{application}"}} (\d+)',
        httpx.get(exporter_url).text,
    )
    files = f"/etc/poolkit/{application}"
    transaction = "BEGIN; SET LOCAL statement_timeout = 0; SELECT pg_sleep(6); COMMIT"
    client = (
        f"sudo -u {application} env PGSERVICEFILE={files}/pg_service.conf "
        f"PGPASSFILE={files}/pgpass psql -qX service={application} "
        f"-c '{transaction}' >/dev/null 2>&1 </dev/null &"
    )
    patient = ("SET query_wait_timeout = 30", "SET query_timeout = 0")
    with undone(lambda: console(*patient), lambda: console("RELOAD")):
        pooler_host.check_output(client * (int(size[1]) + 5))
        server.fires("PgBouncerClientsWait", process="1", database=application, user=application)
        server.ends("PgBouncerClientsWait")


def test_certificate_ends_soon(server: Prometheus, site: Site, tmp_path: Path) -> None:
    """The file of authorities has one more, which ends in five days."""
    words = "openssl req -x509 -nodes -newkey rsa:2048 -keyout /dev/null -days 5 -subj /CN=soon"
    bundle = tmp_path / "both.crt"
    known = Path(resolve("web3", file="database_ca_file")["web3"]["file"]).read_text()
    bundle.write_text(known + site.database.check_output(f"{words} 2>/dev/null"))

    def deploy(**variables: str) -> None:
        run = site.play("pgbouncer", "--limit", "web3", **variables)
        assert run.code == 0, run.output[-2000:]

    with undone(lambda: deploy(database_ca_file=str(bundle)), deploy):
        for days in (30, 7):
            server.fires(f"PgBouncerCertificateExpiresIn{days}Days", file="database_ca.crt")
        assert "database_ca.crt" in site.status()


def test_every_alert_has_fired_and_ended(server: Prometheus) -> None:
    server.ends()
    text = yaml.safe_load(RULES.read_text())
    assert {rule["alert"] for group in text["groups"] for rule in group["rules"]} == server.seen

"""Several processes on one port: cancel requests, divided limits, restarts that lose no client."""

import threading
import time

import psycopg
import pytest
from conftest import Pooler
from load import Load

PROCESSES = range(1, 5)


def test_processes_share_the_port(trixie: Pooler) -> None:
    lines = trixie.host.check_output(
        f"ss -Hltn --cgroup 'src = {trixie.address}:6432'"
    ).splitlines()
    assert len(lines) == 4
    for number in PROCESSES:
        assert any(f"pgbouncer@{number}.service" in line for line in lines)
        assert trixie.host.service(f"pgbouncer@{number}").is_enabled  # it comes back at boot


def test_limits_of_the_host_are_divided(trixie: Pooler) -> None:
    """24 and 2 server connections and 500 clients over four processes; reserves round down."""
    for process in PROCESSES:
        live = trixie.settings(process)
        shares = [live[k] for k in ("default_pool_size", "reserve_pool_size", "max_client_conn")]
        assert shares == ["6", "0", "125"]


def test_clients_reach_every_process(trixie: Pooler) -> None:
    connections = [trixie.connect() for _ in range(60)]
    counts = [
        sum(row["database"] == "shop" for row in trixie.console("SHOW CLIENTS", process))
        for process in PROCESSES
    ]
    for connection in connections:
        connection.close()
    assert sum(counts) == 60
    assert min(counts) > 0


def test_120_cancelled_queries_all_take_effect(trixie: Pooler) -> None:
    """A cancel request comes on a connection of its own and reaches any process."""
    cancelled, errors = [], []

    def query() -> None:
        try:
            with trixie.connect() as connection:
                connection.execute("SELECT 1")
                timer = threading.Timer(0.5, connection.cancel)
                timer.start()
                start = time.monotonic()
                try:
                    connection.execute("SELECT pg_sleep(10)")
                    errors.append("ran to its end")
                except psycopg.errors.QueryCanceled:
                    cancelled.append(time.monotonic() - start)
                timer.join()
        except Exception as error:
            errors.append(repr(error))

    for _ in range(20):  # six at a time, for which each process has a server connection
        threads = [threading.Thread(target=query) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert len(cancelled) == 120


@pytest.mark.parametrize("processes", [2, 1])
def test_restart_under_load_loses_no_transaction(trixie: Pooler, processes: int) -> None:
    """listen_backlog needs a restart; a lone process has a stand-in meanwhile."""
    code, output = trixie.configure(pgbouncer_processes=processes)
    assert code == 0, output[-2000:]
    with Load(trixie.connect, clients=20, lifetime_seconds=1, pause_seconds=0.05) as load:
        for backlog in (200, 100):
            code, output = trixie.configure(
                pgbouncer_processes=processes, pgbouncer_settings={"listen_backlog": backlog}
            )
            assert code == 0, output[-2000:]
            assert "action: restart" in output
            time.sleep(1)
    print(dict(load.counts))
    assert load.errors == []
    assert load.counts["transactions"] > 1000
    units = trixie.host.check_output("systemctl list-units --plain --no-legend 'pgbouncer@*'")
    assert len(units.splitlines()) == processes


def test_client_that_stays_is_waited_for_until_the_deadline(trixie: Pooler) -> None:
    """Its transaction ends in peace; then the connection is closed."""
    processes = {"pgbouncer_processes": 2, "pgbouncer_drain_seconds": 3}
    assert trixie.configure(**processes)[0] == 0
    sleeper = trixie.connect()
    results = []

    def transaction() -> None:
        with sleeper.transaction():
            results.append(sleeper.execute("SELECT 1 FROM pg_sleep(10)").fetchone())

    thread = threading.Thread(target=transaction)
    thread.start()
    code, output = trixie.configure(**processes, pgbouncer_settings={"listen_backlog": 90})
    thread.join()
    assert code == 0, output[-2000:]
    assert results == [(1,)]
    with pytest.raises(psycopg.OperationalError):
        sleeper.execute("SELECT 1")


def test_change_of_the_number_of_processes_loses_no_client(trixie: Pooler) -> None:
    with Load(trixie.connect, clients=20, lifetime_seconds=1) as load:
        for processes in (4, 1, 4):
            code, output = trixie.configure(pgbouncer_processes=processes)
            assert code == 0, output[-2000:]
    assert load.errors == []


def test_several_processes_are_refused_without_peering(poolers: dict[str, Pooler]) -> None:
    bookworm = poolers["bookworm1"]
    before = bookworm.state()
    code, output = bookworm.configure(pgbouncer_processes=2)
    assert code != 0
    assert "needs PgBouncer 1.19.0, the host has 1.18.0" in output
    assert bookworm.state() == before

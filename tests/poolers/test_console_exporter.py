"""The Prometheus exporter, on four processes of Debian 13 and one of Debian 12."""

import contextlib
import re
import time

import psycopg
from conftest import Pooler
from controller import resolve

PORT = "9127"
GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"


def scrape(pooler: Pooler) -> dict[str, float]:
    """Return {metric with its labels: value}, as Prometheus on the host itself would read it."""
    url = f"http://127.0.0.1:{PORT}/metrics"
    lines = pooler.host.check_output("python3 -c %s %s", GET, url).splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line and not line.startswith("#")
    }


def total(metrics: dict[str, float], name: str, database: str) -> float:
    """Add a metric of a database up over the processes."""
    wanted = re.compile(rf'{name}{{process="\d+",database="{database}".*}}')
    return sum(value for key, value in metrics.items() if wanted.fullmatch(key))


def test_every_process_is_there(pooler: Pooler) -> None:
    numbers = pooler.host.check_output("ls /run/pgbouncer").split()
    metrics = scrape(pooler)
    up = {key: value for key, value in metrics.items() if key.startswith("pgbouncer_up")}
    assert up == {f'pgbouncer_up{{process="{number}"}}': 1.0 for number in numbers}
    for number in numbers:
        size = f'pgbouncer_databases_pool_size{{process="{number}",database="shop"}}'
        assert metrics[size] > 0


def test_transactions_are_counted(pooler: Pooler) -> None:
    name = "pgbouncer_stats_sql_transactions_pooled_total"
    before = total(scrape(pooler), name, "shop")
    for _ in range(3):
        with pooler.connect() as connection:
            connection.execute("SELECT 1")
    assert total(scrape(pooler), name, "shop") >= before + 3


def test_its_user_may_look_and_not_touch(pooler: Pooler) -> None:
    console = (
        "sudo -u {} psql -XAtq -h /run/pgbouncer/1 -p 6432 -U pgbouncer-exporter -c '{}' {}".format
    )
    user = "pgbouncer-exporter"
    assert "PgBouncer" in pooler.host.check_output(console(user, "SHOW VERSION", "pgbouncer"))
    refused = pooler.host.run(console(user, "PAUSE", "pgbouncer"))
    assert "admin access needed" in refused.stderr
    other = pooler.host.run(console("nobody", "SHOW VERSION", "pgbouncer"))
    assert "unix socket login rejected" in other.stderr
    database = pooler.host.run(console(user, "SELECT 1", "shop"))
    assert database.rc != 0


def test_it_runs_as_its_own_user_on_loopback(pooler: Pooler) -> None:
    pid = pooler.host.check_output("systemctl show -P MainPID pgbouncer-exporter")
    assert pooler.host.check_output(f"ps -o user:32= -p {pid}") == "pgbouncer-exporter"
    listening = pooler.host.check_output(f"ss -Hltn sport = :{PORT}")
    assert f"127.0.0.1:{PORT} " in listening
    assert len(listening.splitlines()) == 1


def test_connections_past_the_pooler_are_counted(pooler: Pooler) -> None:
    server = resolve(pooler.name, host="database_host")[pooler.name]["host"]
    metric = 'pgbouncer_direct_connections{user="nobody"}'
    assert metric not in scrape(pooler)
    login = "sudo -u nobody env PGPASSWORD=%s psql -h %s -U shop -c 'SELECT pg_sleep(4)' shop"
    pooler.host.check_output(
        f"{login} >/dev/null 2>&1 </dev/null & sleep 2", pooler.password, server
    )
    assert scrape(pooler)[metric] == 1.0


def pids(pooler: Pooler) -> dict[str, str]:
    """Return {process: the number of its operating system process}."""
    numbers = pooler.host.check_output("ls /run/pgbouncer").split()
    show = "systemctl show -P MainPID pgbouncer@%s"
    return {number: pooler.host.check_output(show, number) for number in numbers}


def kills(pooler: Pooler) -> dict[str, float]:
    found = scrape(pooler).items()
    return {key: value for key, value in found if key.startswith("pgbouncer_watchdog_kills_total")}


def test_a_hung_process_is_killed_and_counted(pooler: Pooler) -> None:
    """By the watchdog; systemd starts it again, and the others are not touched."""
    before, counted = pids(pooler), kills(pooler)
    pooler.host.check_output("kill -STOP %s", before["1"])
    end = time.monotonic() + 30
    while kills(pooler) == counted and time.monotonic() < end:
        time.sleep(0.5)
    first = 'pgbouncer_watchdog_kills_total{process="1"}'
    assert kills(pooler) == {**counted, first: counted[first] + 1}
    pooler.host.check_output(
        "timeout 20 sh -c 'until systemctl -q is-active pgbouncer@1; do :; done'"
    )
    after = pids(pooler)
    assert after["1"] not in (before["1"], "0")
    assert {**after, "1": ""} == {**before, "1": ""}
    with pooler.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_process_that_waits_for_the_journal_is_left_alone(pooler: Pooler) -> None:
    """As in a long rotation: PgBouncer waits until its log is read, and then goes on."""
    before = pids(pooler)
    pooler.host.check_output("systemctl kill -s STOP systemd-journald")
    try:
        end = time.monotonic() + 8
        while time.monotonic() < end:
            with contextlib.suppress(psycopg.OperationalError):
                pooler.connect().close()
    finally:
        pooler.host.check_output("systemctl kill -s CONT systemd-journald")
    pooler.connect().close()
    assert pids(pooler) == before

"""The Prometheus exporter, on four processes of Debian 13 and one of Debian 12."""

import re

from conftest import Pooler

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

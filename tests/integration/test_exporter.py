"""The Prometheus exporter, where the inventory has pgbouncer_exporter_enabled."""

import re

import pytest
from conftest import Application, resolve

INVENTORY_HOST = "flask1"


@pytest.fixture(scope="module")
def host(applications: dict[str, Application]) -> Application:
    """The application on the host whose pooler the tests ask."""
    return next(a for a in applications.values() if a.inventory_host == INVENTORY_HOST)


@pytest.fixture(scope="module")
def port() -> str:
    return str(
        resolve(INVENTORY_HOST, port="pgbouncer_exporter_port | default(9127)")[INVENTORY_HOST][
            "port"
        ]
    )


GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"


def scrape(host: Application, port: str) -> dict[str, float]:
    """Return {metric with its labels: value}, as Prometheus on the host itself would read it."""
    url = f"http://127.0.0.1:{port}/metrics"
    lines = host.host.check_output("python3 -c %s %s", GET, url).splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line and not line.startswith("#")
    }


def total(metrics: dict[str, float], name: str, database: str) -> float:
    """Add a metric of a database up over the processes."""
    wanted = re.compile(rf'{name}{{process="\d+",database="{database}".*}}')
    return sum(value for key, value in metrics.items() if wanted.fullmatch(key))


def test_every_process_is_there(host: Application, port: str) -> None:
    numbers = host.host.check_output("ls /run/pgbouncer").split()
    metrics = scrape(host, port)
    up = {key: value for key, value in metrics.items() if key.startswith("pgbouncer_up")}
    assert up == {f'pgbouncer_up{{process="{number}"}}': 1.0 for number in numbers}
    for number in numbers:
        size = f'pgbouncer_databases_pool_size{{process="{number}",database="{host.name}"}}'
        assert metrics[size] > 0


def test_transactions_are_counted(host: Application, port: str) -> None:
    name = "pgbouncer_stats_sql_transactions_pooled_total"
    before = total(scrape(host, port), name, host.name)
    for _ in range(3):
        host.psql(host.name, "SELECT 1", host="127.0.0.1", port="6432")
    assert total(scrape(host, port), name, host.name) >= before + 3


def test_its_user_may_look_and_not_touch(host: Application) -> None:
    console = (
        "sudo -u {} psql -XAtq -h /run/pgbouncer/1 -p 6432 -U pgbouncer-exporter -c '{}' {}".format
    )
    user = "pgbouncer-exporter"
    assert "PgBouncer" in host.host.check_output(console(user, "SHOW VERSION", "pgbouncer"))
    refused = host.host.run(console(user, "PAUSE", "pgbouncer"))
    assert "admin access needed" in refused.stderr
    other = host.host.run(console("nobody", "SHOW VERSION", "pgbouncer"))
    assert "unix socket login rejected" in other.stderr
    database = host.host.run(console(user, "SELECT 1", host.name))
    assert database.rc != 0


def test_it_runs_as_its_own_user_on_loopback(host: Application, port: str) -> None:
    pid = host.host.check_output("systemctl show -P MainPID pgbouncer-exporter")
    assert host.host.check_output(f"ps -o user:32= -p {pid}") == "pgbouncer-exporter"
    listening = host.host.check_output(f"ss -Hltn sport = :{port}")
    assert f"127.0.0.1:{port} " in listening
    assert len(listening.splitlines()) == 1

"""Poolers on hosts of their own: where they listen, whom they let in, what they count for."""

import time

import psycopg
import pytest
from conftest import Pooler
from controller import ansible, connect, dropped, resolve
from testinfra.host import Host


@pytest.fixture(scope="module")
def application() -> Host:
    fact = resolve("shop", connection="ansible_connection", container="ansible_host")["db2"]
    return connect("db2", fact["connection"], fact["container"])


def test_application_is_given_every_pooler() -> None:
    poolers = "(hostvars | poolkit.poolkit.fleet(groups)).hosts.db2.poolers"
    run = ansible(
        *("ansible", "db2", "-m", "ansible.builtin.debug", "-a"),
        f"msg={{{{ {poolers} | map(attribute='host') | join(',') }}}}",
    )
    fact = resolve("pgbouncer", address="private_address")
    assert ",".join(fact[host]["address"] for host in ("trixie1", "bookworm1")) in run.stdout


def test_application_reaches_each_pooler(
    pooler: Pooler, application: Host, superuser_sql: object
) -> None:
    fact = resolve("db2", password="app_database_password")["db2"]
    url = f"host={pooler.address} port=6432 user=shop dbname=shop"
    command = ["env", f"PGPASSWORD={fact['password']}", "psql", "-XAtc", "SELECT 1", url]
    assert application.check_output(" ".join(["%s"] * len(command)), *command) == "1"


def test_pooler_that_sends_nothing_is_passed_over(application: Host) -> None:
    """Packets to the first pooler are dropped; connect_timeout is the role's default."""
    fact = resolve("pgbouncer", address="private_address")
    password = resolve("db2", password="app_database_password")["db2"]["password"]
    hosts = ",".join(fact[host]["address"] for host in ("trixie1", "bookworm1"))
    url = f"host={hosts} port=6432 user=shop dbname=shop connect_timeout=2"
    psql = ["env", f"PGPASSWORD={password}", "psql", "-XAtc", r"\echo :HOST", url]
    container = resolve("db2", container="ansible_host")["db2"]["container"]
    with dropped(container, "OUTPUT", "-p", "tcp", "-d", fact["trixie1"]["address"]):
        start = time.monotonic()
        said = application.check_output(" ".join(["%s"] * len(psql)), *psql)
        assert time.monotonic() - start < 4
    assert said == fact["bookworm1"]["address"]


def test_other_hosts_are_refused(pooler: Pooler) -> None:
    """The controller is no host of the application."""
    with pytest.raises(psycopg.OperationalError, match=r"login rejected|no authentication method"):
        pooler.connect()


def test_it_listens_on_loopback_and_its_own_address(pooler: Pooler) -> None:
    lines = pooler.host.check_output("ss -Hltn 'sport = :6432'").splitlines()
    found = sorted(line.split()[3] for line in lines)
    assert found == ["127.0.0.1:6432", f"{pooler.address}:6432"]


def test_budget_counts_every_pooler() -> None:
    """2 poolers of 10 + 2, a stand-in for each, 8 past them from one host; the limit is given."""
    run = ansible("ansible-playbook", "ansible/playbooks/plan.yml")
    assert run.returncode == 0, run.stdout[-2000:]
    (row,) = [line.split() for line in run.stdout.splitlines() if line.strip().startswith("shop ")]
    assert row[-5:] == ["24", "24", "8", "85", "5"]

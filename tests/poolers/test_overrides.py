"""Settings for all, for a database and for a user reach the running process."""

import psycopg
import pytest
from conftest import Pooler


def test_settings_of_the_section(pooler: Pooler) -> None:
    live = pooler.settings()
    assert live["default_pool_size"] == "7"
    assert live["idle_transaction_timeout"] == "30"
    assert live["tcp_keepidle"] == "60"
    assert live["admin_users"] == "ops, oncall"


def test_settings_of_a_database(pooler: Pooler) -> None:
    databases = {row["name"]: row for row in pooler.console("SHOW DATABASES")}
    shop, reports = databases["shop"], databases["reports"]
    assert (shop["pool_size"], shop["pool_mode"], shop["max_connections"]) == ("3", "session", "4")
    assert (reports["database"], reports["pool_size"]) == ("shop", "2")


def test_pool_size_of_a_database_holds(pooler: Pooler) -> None:
    """Three transactions run, the fourth waits for one of them."""
    connections = [pooler.connect() for _ in range(4)]
    try:
        for connection in connections[:3]:
            connection.execute("BEGIN")
        with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
            connections[3].execute("SELECT 1")
    finally:
        for connection in connections:
            connection.close()


def test_mode_of_a_user_wins_over_the_databases(pooler: Pooler) -> None:
    """In session mode the three idle clients would hold all three server connections."""
    connections = [pooler.connect() for _ in range(6)]
    try:
        for connection in connections:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        for connection in connections:
            connection.close()


def test_other_database_is_reached_under_its_own_name(pooler: Pooler) -> None:
    with pooler.connect(dbname="reports") as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("shop",)


def test_rule_of_the_inventory_comes_first(pooler: Pooler) -> None:
    """The host's own loopback is rejected, although the application's rule would let it in."""
    run = pooler.host.run(
        "psql -XAt 'host=127.0.0.1 port=6432 user=shop dbname=shop' -c 'SELECT 1'"
    )
    assert run.rc == 2
    assert "login rejected" in run.stderr

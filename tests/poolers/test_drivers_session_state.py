"""Session state stands on the roles: database.yml declares it, the poolers' clients see it at once.

The tests run in their order, with clients that connect before anything is declared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Pooler
from controller import ansible

SCHEMA = "warehouse"
LOCK_TIMEOUT = "700ms"
SETTINGS = {"search_path": [SCHEMA, "public"], "statement_timeout": "1234ms"}
DECLARED = {"search_path": f"{SCHEMA}, public", "statement_timeout": "1234ms"}
Clients = dict[str, psycopg.Connection]
Owner = Callable[[], psycopg.Connection]


def playbook(name: str, *arguments: str, settings: dict | None = SETTINGS) -> str:
    """Run a playbook with app_database_settings; return its output in one line."""
    variables = {"app_database_settings": settings, "app_migration_lock_timeout": LOCK_TIMEOUT}
    given = ["-e", json.dumps(variables)] if settings else []
    run = ansible("ansible-playbook", f"ansible/playbooks/{name}.yml", "-v", *given, *arguments)
    output = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode == 0, output[-3000:]
    return output


def changed(output: str) -> dict[str, int]:
    """Return the number of changed tasks by host."""
    return {host: int(n) for host, n in re.findall(r"(\S+) : ok=\d+ changed=(\d+)", output)}


def seen(clients: Clients) -> list[dict[str, str]]:
    """Return what each client's session has of SETTINGS."""
    return [
        {name: client.execute(f"SHOW {name}").fetchone()[0] for name in SETTINGS}
        for client in clients.values()
    ]


def limits(connection: psycopg.Connection) -> tuple[str, str]:
    return connection.execute(
        "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    ).fetchone()


def backends(clients: Clients) -> list[int]:
    """Return the clients' server connections; each has one of its pooler's to itself here."""
    return [c.execute("SELECT pg_backend_pid()").fetchone()[0] for c in clients.values()]


@pytest.fixture(scope="module")
def clients(poolers: dict[str, Pooler]) -> Iterator[Clients]:
    """A client of each pooler, connected before the settings are declared and until the end."""
    connections = {name: pooler.connect() for name, pooler in poolers.items()}
    yield connections
    for connection in connections.values():
        connection.close()


@pytest.fixture(scope="module")
def before(clients: Clients) -> list[dict[str, str]]:
    """What the clients saw before the settings were declared."""
    return seen(clients)


@pytest.fixture(scope="module")
def declared(
    clients: Clients, before: list[dict[str, str]], superuser_sql: Callable[..., str]
) -> Iterator[str]:
    """database.yml's output with the settings; at the end they are taken back."""
    yield playbook("database")
    playbook("database", settings=None)
    superuser_sql(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    assert seen(clients) == before


def test_check_mode_tells_and_changes_nothing(
    clients: Clients, before: list[dict], owner: Owner
) -> None:
    with owner() as connection:
        assert limits(connection) == ("5s", "15min")  # the role's defaults
    assert before == [{"search_path": '"$user", public', "statement_timeout": "0"}] * 2
    servers = backends(clients)
    output = playbook("database", "--check")
    assert changed(output) == {"db2": 1, "trixie1": 1, "bookworm1": 1}
    assert (seen(clients), backends(clients)) == (before, servers)


def test_settings_reach_clients_that_stay_connected(clients: Clients, declared: str) -> None:
    assert seen(clients) == [DECLARED, DECLARED]
    assert changed(declared) == {"db2": 1, "trixie1": 1, "bookworm1": 1}


def test_second_run_changes_nothing(clients: Clients, declared: str) -> None:
    servers = backends(clients)
    assert changed(playbook("database")) == {"db2": 0, "trixie1": 0, "bookworm1": 0}
    assert backends(clients) == servers


def test_statement_that_takes_longer_is_ended(clients: Clients, declared: str) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
        clients["trixie1"].execute("SELECT pg_sleep(3)")


def test_schema_is_open_to_the_application_and_not_its_own(
    clients: Clients, owner: Owner, declared: str
) -> None:
    """The owner's migrations make their tables there without naming it."""
    with owner() as connection:
        connection.execute("CREATE TABLE parcels (id serial PRIMARY KEY, label text)")
    for client in clients.values():
        client.execute("INSERT INTO parcels (label) VALUES ('first')")
        assert client.execute("UPDATE parcels SET label = 'second'").rowcount == 1
        assert client.execute(f"SELECT label FROM {SCHEMA}.parcels").fetchone() == ("second",)
        client.execute("DELETE FROM parcels")
        for schema in (SCHEMA, "public"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                client.execute(f"CREATE TABLE {schema}.mine (id integer)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute("CREATE SCHEMA mine")


def test_tables_in_public_are_listed_and_moved_on_demand(
    clients: Clients, owner: Owner, declared: str
) -> None:
    def schema() -> str:
        with owner() as connection:
            row = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'strays'")
            return row.fetchone()[0]

    with owner() as connection:
        connection.execute("CREATE TABLE public.strays (id serial PRIMARY KEY)")
        connection.execute("INSERT INTO public.strays DEFAULT VALUES")
    try:
        listed = playbook("public_tables")
        assert "shop has 1 objects in the schema public of shop and not in warehouse" in listed
        assert "table strays" in listed
        assert (changed(listed), schema()) == ({"db2": 0}, "public")

        moved = playbook("public_tables", "-e", "move_public_tables=true")
        assert (changed(moved), schema()) == ({"db2": 1}, SCHEMA)
        for client in clients.values():
            assert client.execute("SELECT count(*) FROM strays").fetchone() == (1,)

        after = playbook("public_tables", "-e", "move_public_tables=true")
        assert "WARNING" not in after
        assert changed(after) == {"db2": 0}
    finally:
        with owner() as connection:
            connection.execute("DROP TABLE strays")


def test_owner_has_the_migrations_limits(owner: Owner, declared: str) -> None:
    with owner() as connection, owner() as other:
        assert limits(connection) == (LOCK_TIMEOUT, "15min")
        assert connection.execute("SHOW search_path").fetchone() == (DECLARED["search_path"],)
        connection.execute("CREATE TABLE held (id integer)")
        try:
            with other.transaction():
                other.execute("LOCK TABLE held")
                with pytest.raises(psycopg.errors.LockNotAvailable, match="lock timeout"):
                    connection.execute("ALTER TABLE held ADD COLUMN label text")
        finally:
            connection.execute("DROP TABLE held")


def test_owner_has_a_session_of_its_own(owner: Owner, declared: str) -> None:
    """What migrations need and a transaction-mode pooler cannot give."""
    with owner() as connection, owner() as other:
        assert connection.execute("SELECT pg_try_advisory_lock(4711)").fetchone() == (True,)
        connection.execute("CREATE TABLE indexed (id integer)")
        try:
            connection.execute("CREATE INDEX CONCURRENTLY indexed_id ON indexed (id)")
            (valid,) = connection.execute(
                "SELECT indisvalid FROM pg_index WHERE indexrelid = 'indexed_id'::regclass"
            ).fetchone()
            assert valid
        finally:
            connection.execute("DROP TABLE indexed")
        assert other.execute("SELECT pg_try_advisory_lock(4711)").fetchone() == (False,)
        assert connection.execute("SELECT pg_advisory_unlock(4711)").fetchone() == (True,)
        assert other.execute("SELECT pg_try_advisory_lock(4711)").fetchone() == (True,)

"""The settings fragments and the drivers below them, through a pooler in transaction mode.

Each case has two worker processes with five clients each, on three server connections: a statement
or cursor that outlives its transaction is missing on the next server connection, or in the way
there. The fallback of the URL refuses, so what answers is the pooler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import workers
from conftest import Pooler

from plugins.filter.quoting import pg_uri

DJANGO = "examples/django/config/database.py"
FASTAPI = "examples/fastapi/app/engine.py"
FLASK = "examples/flask/app/database.py"
ASYNCPG = "docs/settings/sqlalchemy_asyncpg.py"
PSYCOPG2 = "docs/settings/flask_psycopg2.py"

# What docs/strategies.md says: DATABASE_POOL_SIZE and DATABASE_CONNECTION_MAX_AGE_SECONDS.
PGBOUNCER, NOPOOL = (5, 60), (0, 0)
DJANGO_WSGI = (0, 60)


@pytest.fixture(scope="module", autouse=True)
def rows(superuser_sql: Callable[..., str]) -> Iterator[None]:
    """A table of the owner's with 200 000 rows of 100 bytes."""
    table = workers.ROWS
    superuser_sql(
        f"SET ROLE shop_owner; DROP TABLE IF EXISTS {table};"
        f"CREATE TABLE {table} (id integer PRIMARY KEY, label text NOT NULL);"
        f"INSERT INTO {table} SELECT id, lpad(id::text, 96) FROM generate_series(1, 200000) AS id"
    )
    yield
    superuser_sql(f"DROP TABLE {table}")


@pytest.fixture(scope="module", autouse=True)
def few_server_connections(poolers: dict[str, Pooler]) -> Iterator[None]:
    """Where each client finds a server connection, PgBouncer mostly lends it the one of before."""
    sizes = {name: pooler.settings()["default_pool_size"] for name, pooler in poolers.items()}
    for pooler in poolers.values():
        pooler.console("SET default_pool_size = 3")
        pooler.console("RECONNECT shop")
    yield
    for name, pooler in poolers.items():
        pooler.console(f"SET default_pool_size = {sizes[name]}")


@pytest.fixture
def clean(pooler: Pooler) -> Iterator[Pooler]:
    """A pooler whose server connections are new at the end: a test leaves statements on them."""
    yield pooler
    pooler.console("RECONNECT shop")


@pytest.fixture
def untracked(clean: Pooler) -> Iterator[Pooler]:
    """A pooler that keeps no track of prepared statements, as every one before 1.21."""
    tracked = clean.settings().get("max_prepared_statements")
    if tracked is not None:
        assert tracked == "200"
        clean.console("SET max_prepared_statements = 0")
    yield clean
    if tracked is not None:
        clean.console(f"SET max_prepared_statements = {tracked}")


def environment(
    pooler: Pooler,
    strategy: tuple[int, int],
    direct: tuple[str, int] = ("127.0.0.1", 1),
    transaction_pooling: str = "1",
) -> dict[str, str]:
    """Return what the role app would tell an application."""
    pool_size, max_age = strategy
    parameters = {"connect_timeout": 2, "application_name": "shop"}

    def url(*hosts: tuple[str, int]) -> str:
        return pg_uri("shop", pooler.password, "shop", hosts, parameters)

    return {
        "DATABASE_URL": url((pooler.address, 6432), ("127.0.0.1", 1)),
        "DATABASE_DIRECT_URL": url(direct),
        "DATABASE_POOL_SIZE": str(pool_size),
        "DATABASE_CONNECTION_MAX_AGE_SECONDS": str(max_age),
        "DATABASE_TRANSACTION_POOLING": transaction_pooling,
    }


@pytest.mark.parametrize(
    ("fragment", "strategy"),
    [
        pytest.param(DJANGO, DJANGO_WSGI, id="django-wsgi-pgbouncer"),
        pytest.param(DJANGO, PGBOUNCER, id="django-asgi-pgbouncer"),
        pytest.param(DJANGO, NOPOOL, id="django-pgbouncer_nopool"),
        pytest.param(FASTAPI, PGBOUNCER, id="fastapi-pgbouncer"),
        pytest.param(FASTAPI, NOPOOL, id="fastapi-pgbouncer_nopool"),
        pytest.param(FLASK, PGBOUNCER, id="flask-pgbouncer"),
        pytest.param(FLASK, NOPOOL, id="flask-pgbouncer_nopool"),
        pytest.param(ASYNCPG, PGBOUNCER, id="asyncpg-pgbouncer"),
        pytest.param(ASYNCPG, NOPOOL, id="asyncpg-pgbouncer_nopool"),
        pytest.param(PSYCOPG2, PGBOUNCER, id="psycopg2-pgbouncer"),
        pytest.param(PSYCOPG2, NOPOOL, id="psycopg2-pgbouncer_nopool"),
    ],
)
def test_fragment_is_right_through_a_pooler(
    pooler: Pooler, fragment: str, strategy: tuple[int, int]
) -> None:
    assert workers.errors(workers.requests, environment(pooler, strategy), fragment) == []


@pytest.mark.parametrize("fragment", [DJANGO, FASTAPI, FLASK, ASYNCPG])
def test_fragment_that_is_told_of_no_pooler_fails(clean: Pooler, fragment: str) -> None:
    """So the test above would notice a fragment that ignores DATABASE_TRANSACTION_POOLING.

    A cursor is lost on every version; prepared statements are kept apart from 1.21 on.
    """
    told = environment(clean, PGBOUNCER, transaction_pooling="0")
    messages = workers.errors(workers.requests, told, fragment)
    if fragment != DJANGO and clean.version() >= (1, 21):
        assert messages == []
        return
    words = "cursor" if fragment == DJANGO else "prepared statement"
    assert any(words in message for message in messages), messages


PREPARING = pytest.mark.parametrize(
    ("job", "arguments"),
    [(workers.psycopg_transactions, (0,)), (workers.asyncpg_transactions, ())],
    ids=["psycopg, prepare_threshold 0", "asyncpg, defaults"],
)


@PREPARING
def test_prepared_statements_work_with_the_default_of_1_24(
    trixie: Pooler, job: Callable[..., list[str]], arguments: tuple
) -> None:
    assert workers.errors(job, environment(trixie, NOPOOL), *arguments) == []


@PREPARING
def test_prepared_statements_fail_where_they_are_not_tracked(
    untracked: Pooler, job: Callable[..., list[str]], arguments: tuple
) -> None:
    """On 1.18, and on 1.24 with max_prepared_statements 0."""
    messages = workers.errors(job, environment(untracked, NOPOOL), *arguments)
    assert any("prepared statement" in message for message in messages), messages


def test_psycopg_that_prepares_nothing_needs_no_tracking(untracked: Pooler) -> None:
    told = environment(untracked, NOPOOL)
    assert workers.errors(workers.psycopg_transactions, told, None) == []


def test_django_streams_in_bounded_memory_past_the_pooler(
    trixie: Pooler, postgres: tuple[str, int]
) -> None:
    """200 000 rows: the alias `direct` reads 2000 at a time, the pooled one fetches all first."""
    told = environment(trixie, DJANGO_WSGI, direct=postgres)
    grown = {}
    for alias in ("default", "direct"):
        ((count, grown[alias]),) = workers.run(workers.django_stream, told, DJANGO, alias)
        assert count == 200_000
    assert grown["direct"] < 8 * 2**20, grown
    assert grown["default"] > 40 * 2**20, grown


def test_asyncpg_takes_no_tls_on_a_socket(pooler: Pooler, tmp_path: Path) -> None:
    """With the sslmode that its fallback needs: the pooler takes no TLS."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, asks = await asyncio.open_connection(pooler.address, 6432)
        await asyncio.gather(pass_on(reader, asks), pass_on(answers, writer))

    async def ask() -> str:
        async with await asyncio.start_unix_server(serve, tmp_path / ".s.PGSQL.6432"):
            connection = await asyncpg.connect(
                host=[str(tmp_path), "192.0.2.1"],
                port=[6432, 5432],
                user="shop",
                database="shop",
                password=pooler.password,
                ssl="verify-full",
                statement_cache_size=0,
            )
            answer = await connection.fetchval("SELECT current_user")
            connection.terminate()
            return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGSSLROOTCERT", "/etc/ssl/certs/ca-certificates.crt")
        assert asyncio.run(ask()) == "shop"

"""The settings fragments hand each driver what the environment says, under every strategy.

The real frameworks and drivers load the fragments. Where a connection matters, they log in to a
listener that speaks just enough of PostgreSQL's protocol to read a login.
"""

from __future__ import annotations

import asyncio
import io
import runpy
import socket
import struct
import threading
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import flask
import pytest
import sqlalchemy
from django.conf import settings as django_settings
from django.db.utils import ConnectionHandler
from flask_sqlalchemy import SQLAlchemy

ROOT = Path(__file__).resolve().parents[2]
DJANGO = "examples/django/config/database.py"
FASTAPI = "examples/fastapi/app/engine.py"
FLASK = "examples/flask/app/database.py"
ASYNCPG = "docs/settings/sqlalchemy_asyncpg.py"
PSYCOPG2 = "docs/settings/flask_psycopg2.py"
FRAGMENTS = (DJANGO, FASTAPI, FLASK, ASYNCPG, PSYCOPG2)
SQLALCHEMY = FRAGMENTS[1:]

PRINTABLE = "".join(map(chr, range(32, 127)))
PASSWORDS = [PRINTABLE, PRINTABLE[::-1], "a+b%41", "'\\' ", "?host=other&port=1", "@/:#"]
POOLED_URL = (
    "postgresql://shop:secret@/shop?host=127.0.0.1,db1&port=6432,5432"
    "&connect_timeout=2&application_name=shop"
)
DIRECT_URL = (
    "postgresql://shop:secret@db1:5432/shop?connect_timeout=2&application_name=shop&sslmode=require"
)

# What the role app writes: DATABASE_URL, DATABASE_POOL_SIZE,
# DATABASE_CONNECTION_MAX_AGE_SECONDS, DATABASE_TRANSACTION_POOLING.
STRATEGIES = {
    "pgbouncer": (POOLED_URL, "5", "60", "1"),
    "pgbouncer_nopool": (POOLED_URL, "0", "0", "1"),
    "native": (DIRECT_URL, "5", "3600", "0"),
    "managed": (DIRECT_URL, "5", "60", "1"),
    "direct": (DIRECT_URL, "0", "0", "0"),
    "django, WSGI": (POOLED_URL, "0", "60", "1"),  # pgbouncer and managed there
}


def load(
    fragment: str,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    pool_size: str = "0",
    max_age: str = "0",
    transaction_pooling: str = "1",
) -> dict[str, Any]:
    """Return the names that a fragment defines under an environment."""
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_DIRECT_URL", DIRECT_URL)
    monkeypatch.setenv("DATABASE_POOL_SIZE", pool_size)
    monkeypatch.setenv("DATABASE_CONNECTION_MAX_AGE_SECONDS", max_age)
    monkeypatch.setenv("DATABASE_TRANSACTION_POOLING", transaction_pooling)
    return runpy.run_path(str(ROOT / fragment))


def django_connection(names: dict[str, Any], alias: str = "default") -> Any:
    if not django_settings.configured:
        django_settings.configure(USE_TZ=True)
    return ConnectionHandler(names["DATABASES"])[alias]


def sqlalchemy_engine(names: dict[str, Any]) -> sqlalchemy.Engine:
    """Return the engine of a fragment; for Flask the one that Flask-SQLAlchemy makes of it."""
    if "engine" in names:
        return names["engine"].sync_engine
    app = flask.Flask("shop")
    app.config.update({name: value for name, value in names.items() if name.isupper()})
    db = SQLAlchemy(app)
    with app.app_context():
        return db.engine


def driver_arguments(engine: sqlalchemy.Engine) -> dict[str, Any]:
    """Return what SQLAlchemy calls the driver's connect() with."""

    class Stop(Exception):
        pass

    seen: dict[str, Any] = {}

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def stop(dialect: Any, record: Any, args: Any, arguments: dict[str, Any]) -> None:
        seen.update(arguments)
        raise Stop

    with pytest.raises(Stop):
        engine.raw_connection()
    return seen


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_has_less_than_20_lines_of_code(fragment: str) -> None:
    text = (ROOT / fragment).read_text()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in silent and not token.string.startswith('"""') and token.string
        for line in range(token.start[0], token.end[0] + 1)
    }
    assert 10 < len(code) < 20, sorted(code)
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(
    ("strategy", "pool", "max_age", "server_side_cursors"),
    [
        ("django, WSGI", None, 60, False),
        ("pgbouncer", {"max_size": 5, "max_lifetime": 60}, 0, False),
        ("pgbouncer_nopool", None, 0, False),
        ("native", {"max_size": 5, "max_lifetime": 3600}, 0, True),
        ("managed", {"max_size": 5, "max_lifetime": 60}, 0, False),
        ("direct", None, 0, True),
    ],
)
def test_django(
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    pool: dict[str, int] | None,
    max_age: int,
    server_side_cursors: bool,
) -> None:
    names = load(DJANGO, monkeypatch, *STRATEGIES[strategy])
    connection = django_connection(names)
    assert connection.settings_dict["CONN_MAX_AGE"] == max_age
    assert connection.settings_dict["CONN_HEALTH_CHECKS"] is True
    assert connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] is not server_side_cursors
    parameters = connection.get_connection_params()
    assert parameters["prepare_threshold"] is None
    if pool is None:
        assert connection.pool is None
    else:  # as psycopg_pool took it
        assert connection.pool.max_size == pool["max_size"]
        assert connection.pool.max_lifetime == pool["max_lifetime"]
        assert connection.pool.min_size == 1
        assert connection.pool.timeout <= 10
        assert connection.pool._check is not None
        del connection._connection_pools["default"]  # Django keeps them for the process

    direct = django_connection(names, "direct")
    assert direct.pool is None
    assert direct.settings_dict["CONN_MAX_AGE"] == 0
    assert not direct.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
    assert direct.get_connection_params()["host"] == "db1"
    assert direct.get_connection_params()["sslmode"] == "require"


def test_django_takes_a_pool_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = django_connection(load(DJANGO, monkeypatch, POOLED_URL, "1", "60"))
    assert (connection.pool.min_size, connection.pool.max_size) == (1, 1)
    del connection._connection_pools["default"]


@pytest.mark.parametrize("fragment", SQLALCHEMY)
@pytest.mark.parametrize(
    ("strategy", "size", "max_age", "prepares"),
    [
        ("pgbouncer", 5, 60, False),
        ("pgbouncer_nopool", 0, 0, False),
        ("native", 5, 3600, True),
        ("managed", 5, 60, False),
        ("direct", 0, 0, True),
    ],
)
def test_sqlalchemy(
    monkeypatch: pytest.MonkeyPatch,
    fragment: str,
    strategy: str,
    size: int,
    max_age: int,
    prepares: bool,
) -> None:
    engine = sqlalchemy_engine(load(fragment, monkeypatch, *STRATEGIES[strategy]))
    if size:
        assert isinstance(engine.pool, sqlalchemy.QueuePool)
        assert (engine.pool.size(), engine.pool._max_overflow) == (size, 0)
        assert (engine.pool._recycle, engine.pool._pre_ping) == (max_age, True)
        assert engine.pool.timeout() <= 10
    else:
        assert isinstance(engine.pool, sqlalchemy.NullPool)

    arguments = driver_arguments(engine)
    if fragment in (FASTAPI, FLASK):
        assert arguments.get("prepare_threshold", "psycopg's default") == (
            "psycopg's default" if prepares else None
        )
    if fragment == ASYNCPG:
        caches = {name: size for name, size in arguments.items() if name.endswith("cache_size")}
        unnamed = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        assert caches == ({} if prepares else unnamed)
        assert arguments["timeout"] == 2
        direct = STRATEGIES[strategy][0] == DIRECT_URL
        assert arguments["ssl"] == ("require" if direct else "prefer")


class LoginReader:
    """Listens like PostgreSQL, asks for the password in clear text, and refuses the login."""

    def __init__(self) -> None:
        self.logins: list[dict[str, str]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed: the test is over
                return
            with client, client.makefile("rb") as stream:
                self._refuse(client, stream)

    def _refuse(self, client: socket.socket, stream: io.BufferedReader) -> None:
        while True:
            length, code = struct.unpack("!II", stream.read(8))
            if code == 3 << 16:  # StartupMessage
                break
            client.sendall(b"N")  # neither TLS nor GSSAPI
        fields = stream.read(length - 8).decode().split("\0")
        client.sendall(struct.pack("!cII", b"R", 8, 3))  # AuthenticationCleartextPassword
        _, length = struct.unpack("!cI", stream.read(5))
        password = stream.read(length - 4).decode().removesuffix("\0")
        names_and_values = dict(zip(fields[::2], fields[1::2], strict=False))
        self.logins.append({**names_and_values, "password": password})
        error = b"SFATAL\0VFATAL\0C28P01\0Mrefused by the test\0\0"
        client.sendall(struct.pack("!cI", b"E", len(error) + 4) + error)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def server() -> Iterator[LoginReader]:
    reader = LoginReader()
    yield reader
    reader.close()


def log_in(fragment: str, names: dict[str, Any]) -> None:
    if fragment == DJANGO:
        django_connection(names).connect()
    elif "engine" in names:

        async def connect() -> None:
            async with names["engine"].connect():
                pass

        asyncio.run(connect())
    else:
        sqlalchemy_engine(names).connect()


def one_host(password: str, port: int) -> str:
    return f"postgresql://shop:{quote(password, safe='')}@127.0.0.1:{port}/items"


def two_hosts(password: str, port: int) -> str:
    """Return a URL whose first host refuses: nothing listens on port 1."""
    login = f"postgresql://shop:{quote(password, safe='')}@/items"
    return f"{login}?host=127.0.0.1,127.0.0.1&port=1,{port}"


@pytest.mark.parametrize("fragment", FRAGMENTS)
@pytest.mark.parametrize("url", [one_host, two_hosts])
def test_the_login_arrives(
    monkeypatch: pytest.MonkeyPatch,
    server: LoginReader,
    fragment: str,
    url: Callable[[str, int], str],
) -> None:
    for password in PASSWORDS:
        server.logins.clear()
        address = url(password, server.port)
        address += "&" if "?" in address else "?"
        address += "connect_timeout=2&application_name=shop%20web&sslmode=prefer"
        with pytest.raises(Exception, match="refused by the test"):
            log_in(fragment, load(fragment, monkeypatch, address))
        (login, *_) = server.logins
        expected = {
            "user": "shop",
            "database": "items",
            "application_name": "shop web",
            "password": password,
        }
        assert {name: login[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("example", "importer"),
    [
        (DJANGO, "config/settings.py"),
        (FASTAPI, "app/main.py"),
        (FASTAPI, "app/database.py"),
        (FLASK, "app/__init__.py"),
    ],
)
def test_the_examples_use_their_fragments(example: str, importer: str) -> None:
    module = ".".join(Path(example).with_suffix("").parts[-2:])
    source = (ROOT / Path(*Path(example).parts[:2]) / importer).read_text()
    assert f"from {module} import " in source or f'from_object("{module}")' in source
    assert "DATABASE_" not in source

"""The settings fragments hand each driver what the environment says, under every strategy.

The real frameworks and drivers load the fragments. Where a connection matters, they log in to a
listener that speaks just enough of PostgreSQL's protocol to read a login.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import runpy
import select
import socket
import ssl
import struct
import subprocess
import threading
import time
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
from sqlalchemy.ext.asyncio import create_async_engine

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
def test_a_fragment_stays_short(fragment: str) -> None:
    text = (ROOT / fragment).read_text()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in silent and not token.string.startswith('"""') and token.string
        for line in range(token.start[0], token.end[0] + 1)
    }
    assert 10 < len(code) < 50, sorted(code)
    assert len(text.splitlines()) <= 80


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
        # The connection is checked without a query, in test_a_connection_is_checked_by_its_socket.
        assert (engine.pool._recycle, engine.pool._pre_ping) == (max_age, False)
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


class Driver:
    """A driver's connection, as far as the fragments ask it; the other end is `peer`."""

    def __init__(self, host: str, port: int) -> None:
        self.socket, self.peer = socket.socketpair()
        self.info = self
        self.host, self.port, self._addr = host, port, (host, port)
        self.fileno = self.socket.fileno

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def is_closed(self) -> bool:
        """What asyncpg's protocol has seen of its own accord."""
        return self.closed or bool(select.select([self.socket], [], [], 0)[0])


class Record:
    """SQLAlchemy's record of a pooled connection."""

    def __init__(self, driver_connection: Driver) -> None:
        self.driver_connection, self.info = driver_connection, {}


def events(names: dict[str, Any]) -> list[tuple[Callable, str]]:
    """Return what a fragment has SQLAlchemy call at a connection's events."""
    options = names["options"]() if "options" in names else names["pool"]
    return options["pool_events"]


def is_kept(fragment: str, names: dict[str, Any], driver: Driver, seconds: float = 0) -> bool:
    """Tell whether the next request, so many seconds after the login, gets the connection."""
    if fragment == DJANGO:
        connection = django_connection(names)
        connection.connection, connection.close_at = driver, time.monotonic() + 60
        names["note_the_way"](connection)
        expired = time.monotonic() + seconds > connection.close_at
        return connection.is_usable() and not expired
    record = Record(driver)
    for act, event in events(names):
        if event == "connect":
            act(None, record)
    record.info["until"] -= seconds
    try:
        for act, event in events(names):
            if event == "checkout":
                act(None, record, None)
    except sqlalchemy.exc.DisconnectionError:
        return False
    return True


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_connection_is_checked_by_its_socket(
    monkeypatch: pytest.MonkeyPatch, fragment: str
) -> None:
    """A query for each request would cost more, and hang where the server does."""
    names = load(fragment, monkeypatch, POOLED_URL, "0", "60")
    driver = Driver("127.0.0.1", 6432)
    assert is_kept(fragment, names, driver)
    driver.peer.close()
    assert not is_kept(fragment, names, driver)
    driver.socket.close()
    assert not is_kept(fragment, names, driver)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_traffic_returns_to_the_pooler(monkeypatch: pytest.MonkeyPatch, fragment: str) -> None:
    """Connections past it last 5 to 10 s, each as long as chance wills."""
    names = load(fragment, monkeypatch, POOLED_URL, "0", "60")
    kept = [is_kept(fragment, names, Driver("db1", 5432), 7.5) for _ in range(60)]
    assert 5 < sum(kept) < 55
    assert is_kept(fragment, names, Driver("db1", 5432), 4.9)
    assert not is_kept(fragment, names, Driver("db1", 5432), 10.1)
    assert is_kept(fragment, names, Driver("127.0.0.1", 6432), 30)
    # A strategy without poolers has one host, and nothing to return to.
    names = load(fragment, monkeypatch, DIRECT_URL, "0", "60")
    assert is_kept(fragment, names, Driver("db1", 5432), 30)


def test_djangos_pool_lets_a_connection_past_the_pooler_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django makes a wrapper of it for each request, and the pool keeps it: its age is its own."""
    names = load(DJANGO, monkeypatch, POOLED_URL, "5", "60")
    reset = names["DATABASES"]["default"]["OPTIONS"]["pool"]["reset"]
    past, pooled = Driver("db1", 5432), Driver("127.0.0.1", 6432)
    for driver in (past, past, pooled):
        is_kept(DJANGO, names, driver)
    assert 4 < past.until - time.monotonic() < 10
    past.close, pooled.close = past.socket.close, pooled.socket.close
    reset(past)
    assert not past.closed
    past.until = time.monotonic() - 1
    for driver in (past, pooled):
        reset(driver)
    assert (past.closed, pooled.closed) == (True, False)


def test_other_databases_of_a_django_project_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = load(DJANGO, monkeypatch, POOLED_URL, "0", "60")
    names["DATABASES"]["other"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    with django_connection(names, "other").cursor() as cursor:
        assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_two_poolers_without_a_fallback_are_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = POOLED_URL.replace("127.0.0.1,db1&port=6432,5432", "p1,p2&port=6432,6432")
    for fragment in FRAGMENTS:
        names = load(fragment, monkeypatch, tier, "0", "60")
        assert is_kept(fragment, names, Driver("p2", 6432), 30), fragment


def test_further_databases_have_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """app_databases: REPORTS_DATABASE_URL is Django's alias, and Flask-SQLAlchemy's bind."""
    url = POOLED_URL.replace("/shop?", "/shop_reports?")
    monkeypatch.setenv("REPORTS_DATABASE_URL", url)
    monkeypatch.setenv("REPORTS_DATABASE_DIRECT_URL", DIRECT_URL.replace("db1", "db2"))
    monkeypatch.setenv("LEGACY_DATABASE_URL", "mysql://an/application's own")
    names = load(DJANGO, monkeypatch, POOLED_URL, "0", "60")
    assert list(names["DATABASES"]) == ["default", "reports", "direct"]
    reports = names["DATABASES"]["reports"]
    assert reports == {**names["DATABASES"]["default"], "NAME": "shop_reports"}
    connection = django_connection(names, "reports")
    connection.close_at = time.monotonic() + 60
    connection.connection = Driver("db2", 5432)
    names["note_the_way"](connection)
    assert connection.close_at < time.monotonic() + 10.1
    # One that is lost says nothing of another database's connections.
    connection.connection.peer.close()
    assert not connection.is_usable()
    assert is_kept(DJANGO, names, Driver("127.0.0.1", 6432))

    names = load(FLASK, monkeypatch, POOLED_URL, "3", "60")
    app = flask.Flask("shop")
    app.config.update({name: value for name, value in names.items() if name.isupper()})
    db = SQLAlchemy(app)
    with app.app_context():
        engines = db.engines
    assert set(engines) == {None, "reports"}
    assert engines["reports"].pool.size() == 3
    first, second = (driver_arguments(engines[bind]) for bind in (None, "reports"))
    own = {"dbname": "shop_reports", "context": second["context"]}
    assert second == {**first, **own}

    names = load(FASTAPI, monkeypatch, POOLED_URL, "3", "60")
    arguments = names["options"]("REPORTS_")["connect_args"]
    assert arguments == {**names["options"]()["connect_args"], "dbname": "shop_reports"}


SSL_REQUEST = 80877103


class LoginReader:
    """Listens like PostgreSQL, asks for the password in clear text, and refuses the login."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.logins: list[dict[str, Any]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed: the test is over
                return
            with client, contextlib.suppress(ssl.SSLError, OSError, struct.error):
                self._refuse(client)

    def _refuse(self, client: socket.socket) -> None:
        while True:
            # No more than the request: what follows may be TLS.
            length, code = struct.unpack("!II", client.recv(8, socket.MSG_WAITALL))
            if code == 3 << 16:  # StartupMessage
                break
            if code == SSL_REQUEST and self.tls:
                client.sendall(b"S")
                client = self.tls.wrap_socket(client, server_side=True)
                length, code = struct.unpack("!II", client.recv(8))
                break
            client.sendall(b"N")  # neither TLS nor GSSAPI
        stream = client.makefile("rb")
        fields = stream.read(length - 8).decode().split("\0")
        client.sendall(struct.pack("!cII", b"R", 8, 3))  # AuthenticationCleartextPassword
        _, length = struct.unpack("!cI", stream.read(5))
        password = stream.read(length - 4).decode().removesuffix("\0")
        names_and_values = dict(zip(fields[::2], fields[1::2], strict=False))
        encrypted = isinstance(client, ssl.SSLSocket)
        self.logins.append({**names_and_values, "password": password, "encrypted": encrypted})
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


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with own.crt and own.key, which name localhost alone, and other.crt."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("own", "other"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=db1"),
                *("-addext", "subjectAltName=DNS:localhost"),
                *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"),
            ],
            check=True,
            capture_output=True,
        )
    return folder


@pytest.fixture
def tls_server(authorities: Path) -> Iterator[LoginReader]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authorities / "own.crt", authorities / "own.key")
    reader = LoginReader(context)
    yield reader
    reader.close()


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_verify_full_verifies(
    monkeypatch: pytest.MonkeyPatch, tls_server: LoginReader, authorities: Path, fragment: str
) -> None:
    for host, authority, error in (
        ("localhost", "own", "refused by the test"),
        ("127.0.0.1", "own", "does not match|not valid for|doesn't match"),
        ("localhost", "other", "certificate verify failed"),
    ):
        url = f"postgresql://shop:secret@{host}:{tls_server.port}/items?connect_timeout=2"
        url += f"&sslmode=verify-full&sslrootcert={authorities}/{authority}.crt"
        monkeypatch.setenv("PGSSLROOTCERT", "")  # put back after the test, whoever sets it
        with pytest.raises(Exception, match=error):
            log_in(fragment, load(fragment, monkeypatch, url))
    assert [login["encrypted"] for login in tls_server.logins] == [True]


@pytest.mark.parametrize(
    ("host", "authority", "error"),
    [
        ("localhost", "own", "refused by the test"),
        ("127.0.0.1", "own", "not valid for"),
        ("localhost", "other", "certificate verify failed"),
    ],
)
def test_url_with_asyncpgs_scheme_verifies(
    monkeypatch: pytest.MonkeyPatch,
    tls_server: LoginReader,
    authorities: Path,
    host: str,
    authority: str,
    error: str,
) -> None:
    """As the role writes it, with PGSSLROOTCERT beside it (test_app_templates)."""
    monkeypatch.setenv("PGSSLROOTCERT", f"{authorities}/{authority}.crt")
    url = f"postgresql+asyncpg://shop:secret@{host}:{tls_server.port}/items?ssl=verify-full"
    with pytest.raises(Exception, match=error):
        log_in(ASYNCPG, {"engine": create_async_engine(url)})


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_fallback_is_encrypted_and_not_verified(
    monkeypatch: pytest.MonkeyPatch, tls_server: LoginReader, fragment: str
) -> None:
    """One sslmode holds for every host of a URL, and the pooler's is plain."""
    with pytest.raises(Exception, match="refused by the test"):
        log_in(fragment, load(fragment, monkeypatch, two_hosts("secret", tls_server.port)))
    assert tls_server.logins[0]["encrypted"] is True


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

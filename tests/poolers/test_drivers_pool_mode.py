"""Pool mode session: each client has a server connection of its own; the way there and back.

The tests run in their order, with three clients of each pooler that stay connected.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator

import psycopg
import pytest
from conftest import Pooler
from controller import ansible
from load import Load

Clients = dict[str, list[psycopg.Connection]]


def deploy(poolers: dict[str, Pooler], **variables: object) -> None:
    """Run pgbouncer.yml for both poolers, under clients that notice errors."""
    arguments = ("-v", "-e", json.dumps(variables))
    with contextlib.ExitStack() as stack:
        clients = [Load(pooler.connect, 4, pause_seconds=0.02) for pooler in poolers.values()]
        for load in clients:
            stack.enter_context(load)
        run = ansible("ansible-playbook", "ansible/playbooks/pgbouncer.yml", *arguments)
    assert run.returncode == 0, run.stdout[-3000:]
    assert run.stdout.count("  action: reload") >= 2, run.stdout[-3000:]
    for load in clients:
        assert (load.errors, load.counts["connects"]) == ([], 4)


def entry(pooler: Pooler) -> dict[str, str]:
    (row,) = [row for row in pooler.console("SHOW DATABASES") if row["name"] == "shop"]
    return row


def value(client: psycopg.Connection, expression: str) -> object:
    return client.execute(f"SELECT {expression}").fetchone()[0]


def timeout(client: psycopg.Connection) -> object:
    return value(client, "current_setting('statement_timeout')")


def backend(client: psycopg.Connection) -> object:
    return value(client, "pg_backend_pid()")


@pytest.fixture(scope="module")
def session(poolers: dict[str, Pooler]) -> Iterator[Clients]:
    """The poolers in session mode; in transaction mode a client has left a SET behind."""
    clients = {name: [pooler.connect() for _ in range(3)] for name, pooler in poolers.items()}
    for name in poolers:
        clients[name][0].execute("SET statement_timeout = '777ms'")
        assert timeout(clients[name][1]) == "777ms"
    deploy(poolers, app_pool_mode="session", app_workers=2, app_framework="flask")
    yield clients
    for client in itertools.chain(*clients.values()):
        client.close()
    if any(entry(pooler)["pool_mode"] == "session" for pooler in poolers.values()):
        deploy(poolers)


@pytest.fixture(scope="module")
def back(poolers: dict[str, Pooler], session: Clients) -> Clients:
    """The poolers in transaction mode again; of session mode, the first clients have state left."""
    for name, (first, *_) in session.items():
        first.execute("SET statement_timeout = '888ms'")
        first.execute("SELECT pg_advisory_lock(hashtext(%s))", [name])
    deploy(poolers)
    return session


def test_pool_holds_every_client(pooler: Pooler, session: Clients) -> None:
    """2 worker processes and a deployment's stand-in, with 5 connections each."""
    text = pooler.host.file("/etc/pgbouncer/pgbouncer.ini").content_string
    (line,) = [line for line in text.splitlines() if line.startswith("shop = host")]
    assert line.endswith("pool_mode='session' pool_size='15'")
    assert (entry(pooler)["pool_mode"], entry(pooler)["pool_size"]) == ("session", "15")


def test_client_keeps_its_server_connection(pooler: Pooler, session: Clients) -> None:
    clients = session[pooler.name]
    assert {timeout(client) for client in clients} == {"0"}  # not the SET of before
    backends = [backend(client) for client in clients]
    assert len(set(backends)) == 3
    clients[0].execute("SET statement_timeout = '888ms'")
    clients[0].execute("CREATE TEMPORARY TABLE kept AS SELECT 1 AS id")
    for _ in range(3):
        assert [backend(client) for client in clients] == backends
        assert [timeout(client) for client in clients] == ["888ms", "0", "0"]
    assert value(clients[0], "id FROM kept") == 1


def test_clients_share_again_and_find_no_state(pooler: Pooler, back: Clients) -> None:
    assert entry(pooler)["pool_mode"] in ("", "transaction")
    assert entry(pooler)["pool_size"] == "10"
    clients = back[pooler.name]
    for client in clients:  # leaves the server connection that it had for itself
        client.execute("SELECT 1")
    assert len({backend(client) for client in clients for _ in range(3)}) == 1
    for client in clients:  # all at once, on all server connections that there are
        client.execute("BEGIN")
        assert timeout(client) == "0"
        assert value(client, "to_regclass('pg_temp.kept')") is None
    assert value(clients[0], f"pg_try_advisory_xact_lock(hashtext('{pooler.name}'))") is True
    for client in clients:
        client.execute("COMMIT")

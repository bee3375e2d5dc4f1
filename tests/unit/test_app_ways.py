"""Which ways an application uses, from this machine's own connections."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugins.module_utils import tcp_connections
from plugins.modules import app_ways

PSQL = """#!/bin/sh
echo "$3: $2" >> "${0%/*}/asked"
case $3 in
    *port=6433*) echo 'FATAL: password authentication failed' >&2; exit 2;;
    *service=shop_direct*) echo 'off|2026-11-27 05:00:00';;
    *port=6434*) echo 'on|';;
    *) echo 'off|';;
esac
"""


@pytest.fixture
def listeners() -> Iterator[dict[str, int]]:
    """A pooler with two connections of this user, and PostgreSQL with one over IPv4 in IPv6."""
    opened, ports = [], {}
    for name, count in (("pooler", 2), ("server", 1)):
        listener = socket.create_server(("127.0.0.1", 0))
        ports[name] = listener.getsockname()[1]
        opened.append(listener)
        for _ in range(count):
            opened.append(socket.create_connection(("127.0.0.1", ports[name])))
    yield ports
    for each in opened:
        each.close()


@pytest.fixture
def look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_module: Callable[..., dict]
) -> Callable[..., dict]:
    (tmp_path / "psql").write_text(PSQL)
    (tmp_path / "psql").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def run(ports: dict[str, int], **given: object) -> dict:
        usual = {
            "user": getpass.getuser(),
            "poolers": [["localhost", ports["pooler"]]],
            "pooler_service": "shop",
            "direct": [["127.0.0.1", ports["server"]]],
            "direct_service": "shop_direct",
            "service_file": "/services",
            "password_file": "/passwords",
        }
        return run_module(app_ways, **{**usual, **given})

    return run


def test_connections_are_counted_by_their_way(
    look: Callable[..., dict], listeners: dict[str, int], tmp_path: Path
) -> None:
    found = look(listeners)
    assert (found["pooled"], found["direct"]) == (2, 1)
    assert found["since"] == "2026-11-27 05:00:00"
    assert found["refused"] == []
    asked = (tmp_path / "asked").read_text()
    assert "client_port IN (" in asked


def test_those_of_other_users_do_not_count(
    look: Callable[..., dict], listeners: dict[str, int]
) -> None:
    found = look(listeners, user="nobody" if os.getuid() == 0 else "root")
    assert (found["pooled"], found["direct"], found["since"]) == (0, 0, "2026-11-27 05:00:00")
    assert look(listeners, user="no-such-user")["direct"] == 0


def test_a_way_that_is_refused_is_told(
    look: Callable[..., dict], listeners: dict[str, int]
) -> None:
    """psycopg goes on to the next host after a wrong password: nobody would notice."""
    found = look(listeners, poolers=[["127.0.0.1", 6433]])
    assert found["refused"] == [
        "PgBouncer at 127.0.0.1:6433 does not let the application in: "
        f"FATAL: password authentication failed{app_ways.AUTHENTICATION_HINT}"
    ]


def test_a_server_that_takes_no_writes_is_told(
    look: Callable[..., dict], listeners: dict[str, int]
) -> None:
    """After a failover a pooler may go on with the server that was demoted."""
    (said,) = look(listeners, poolers=[["127.0.0.1", 6434]])["refused"]
    assert said.startswith("the PostgreSQL behind 127.0.0.1:6434 takes no writes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0100007F:1920", ("127.0.0.1", 6432)),
        ("00000000000000000000000001000000:1538", ("::1", 5432)),
        ("0000000000000000FFFF00000100007F:1538", ("127.0.0.1", 5432)),
    ],
)
def test_addresses_of_the_kernel(text: str, expected: tuple[str, int]) -> None:
    """As a little-endian machine writes them; the tests run on no other."""
    assert tcp_connections.address_of(text) == expected


def test_name_that_does_not_resolve_has_no_address() -> None:
    assert tcp_connections.addresses([["no.such.host.invalid", "5432"]]) == set()

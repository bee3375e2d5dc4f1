"""Which cause is named for what poolers and PostgreSQL tell."""

from __future__ import annotations

import pytest

from plugins.filter.diagnosis import diagnosis, diagnosis_lines

POOLER = {
    "port": 6432,
    "processes": 1,
    "error": "",
    "paused": False,
    "databases": [{"name": "shop", "paused": "0", "disabled": "0"}],
    "pools": [],
    "config": {"max_client_conn": "500"},
    "journal": [],
    "kills": 0,
}
SERVER = {
    "error": "",
    "backends": [],
    "max_connections": 97,
    "limits": {"shop": 24},
    "read_only": False,
    "hidden": 0,
    "prepared": [],
}
WAITING = {"database": "shop", "user": "shop", "cl_active": "2", "cl_waiting": "3", "maxwait": "4"}
WAITING |= {"sv_active": "5", "sv_used": "0", "sv_login": "0"}


def backend(pid: int, *blocked_by: int, **more: object) -> dict:
    row = {"pid": pid, "usename": "shop", "datname": "shop", "application_name": "web"}
    row |= {"state": "active", "transaction_seconds": 0, "state_seconds": 0, "command": "SELECT"}
    return {**row, "blocked_by": list(blocked_by), **more}


def causes(pooler: dict | None = None, **server: object) -> list[str]:
    found = diagnosis({"web1": POOLER | (pooler or {})}, SERVER | server)
    assert all(row["command"] and row["page"].startswith("docs/") for row in found)
    return [row["cause"] for row in found]


def test_nothing_is_found_where_all_is_well() -> None:
    assert causes(backends=[backend(1), backend(2, state="idle", state_seconds=900)]) == []
    assert "Nothing was found" in diagnosis_lines([])[0]


@pytest.mark.parametrize(
    ("pooler", "server", "cause"),
    [
        ({"pools": [WAITING]}, {}, "the pool is too small"),
        (
            {"pools": [WAITING]},
            {"backends": [backend(1, transaction_seconds=20)]},
            "a long query keeps a connection of the pool",
        ),
        (
            {"pools": [WAITING]},
            {"backends": [backend(1, state="idle in transaction", state_seconds=20)]},
            "a transaction is open and idle",
        ),
        ({}, {"backends": [backend(1, transaction_seconds=301)]}, "a transaction is old"),
        ({"paused": True}, {}, "the pooler on web1 is paused"),
        ({"databases": [{"name": "shop", "paused": "1"}]}, {}, "the pooler on web1 is paused"),
        ({"databases": [{"name": "shop", "disabled": "1"}]}, {}, "refuses new clients of shop"),
        ({"error": "no running PgBouncer"}, {}, "the pooler on web1 does not answer"),
        (
            {"pools": [{**WAITING, "cl_active": "449", "maxwait": "0"}]},
            {},
            "nearly all the clients",
        ),
        ({"kills": 2}, {}, "the watchdog has killed silent processes on web1"),
        ({}, {"backends": [backend(n) for n in range(24)]}, "its CONNECTION LIMIT"),
        (
            {},
            {"backends": [backend(n, usename="x") for n in range(90)]},
            "nearly all the connections",
        ),
        ({}, {"read_only": True}, "PostgreSQL takes no writes"),
        ({}, {"hidden": 3}, "PostgreSQL hides what others do"),
        (
            {},
            {"prepared": [{"gid": "g", "owner": "o", "database": "d", "seconds": 99}]},
            "a prepared transaction was left",
        ),
        ({}, {"error": "connection refused"}, "PostgreSQL does not answer"),
    ],
)
def test_cause(pooler: dict, server: dict, cause: str) -> None:
    (found,) = causes(pooler, **server)
    assert cause in found


LINES = {
    "C-0x55: shop/ann@10.0.0.1:4 closing because: SASL authentication failed": "a wrong password",
    'C-0x1: shop/shop@1.2.3.4:5 pooler error: password authentication failed for user "x"': (
        "a wrong password"
    ),
    "C-0x55: (nodb)/(nouser)@10.0.0.1:4 pooler error: no more connections allowed "
    "(max_client_conn)": "max_client_conn is reached",
    "S-0x1: shop/shop@1.2.3.4:5432 server login failed: FATAL sorry, too many clients already": (
        "refuses the pooler's logins"
    ),
    "C-0x1: shop/shop@1.2.3.4:5 pooler error: query_wait_timeout": "got no server connection",
    "C-0x1: (nodb)/ann@1.2.3.4:5 pooler error: no such database: shp": "does not have",
    "S-0x1: shop/shop@1.2.3.4:5432 closing because: connect failed (age=0s)": "not be reached",
}


@pytest.mark.parametrize("line", LINES)
def test_cause_of_a_line_of_the_log(line: str) -> None:
    (found,) = causes({"journal": [line, line]})
    assert LINES[line] in found
    (row,) = diagnosis({"web1": POOLER | {"journal": [line, line]}}, SERVER)
    assert row["evidence"][0].startswith("2 times")


def test_the_head_of_a_queue_is_named() -> None:
    """3 waits for 2, which waits for 1: ending 1 helps them both."""
    rows = [
        backend(1, state="idle in transaction", state_seconds=2, command="LOCK"),
        backend(2, 1, command="ALTER", transaction_seconds=9),
        backend(3, 2, transaction_seconds=8),
    ]
    (found,) = diagnosis({"web1": POOLER | {"pools": [WAITING]}}, SERVER | {"backends": rows})
    assert found["pid"] == 1
    assert found["command"].endswith("diagnose.yml -e terminate=1")
    assert "2 wait behind it, the longest since 9 s: 1 x ALTER, 1 x SELECT" in found["evidence"][1]


def test_a_pause_explains_those_who_wait() -> None:
    assert len(causes({"paused": True, "pools": [WAITING]})) == 1


def test_other_columns_are_left_alone() -> None:
    """SHOW POOLS of PgBouncer 1.18 has no sv_being_canceled, 1.24 has more."""
    assert causes({"pools": [{"database": "shop", "user": "shop", "cl_waiting": "0"}]}) == []

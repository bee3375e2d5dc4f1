"""The trial of an application through a pooler of its own: its file, its questions, its verdict."""

from __future__ import annotations

import json

import pytest

from plugins.module_utils.pgbouncer_text import parse_connstr, parse_ini
from plugins.module_utils.refused import Refused
from plugins.module_utils.session_trial import STATE, WORDS, left, problems, state_sql, trial_ini
from plugins.modules import session_trial

LIVE = """[databases]
shop = host='db' port='5432' dbname='shop''s' pool_mode='session' pool_size='9' password='a b'
other = host='db'

[users]
shop = max_user_connections=3

[peers]
1 = host=/run/pgbouncer/1 port=6432

[pgbouncer]
auth_file = /etc/pgbouncer/userlist.txt
auth_hba_file = /etc/pgbouncer/pg_hba.conf
auth_type = hba
default_pool_size = 10
listen_addr = 10.0.0.1
listen_port = 6432
max_client_conn = 5
max_db_connections = 3
max_prepared_statements = 200
pool_mode = session
query_timeout = 4.5
reserve_pool_size = 2
server_lifetime = 5
server_reset_query_always = 1
server_tls_sslmode = verify-full
so_reuseport = 1
"""


@pytest.mark.parametrize(("mode", "opened"), [("session", "0"), ("transaction", "4")])
def test_trial_is_the_live_pooler_with_an_address_and_pools_of_its_own(
    mode: str, opened: str
) -> None:
    sections = parse_ini(trial_ini(LIVE, ["shop"], "/run/trial", 6439, mode, 4))
    assert set(sections) == {"databases", "pgbouncer"}
    assert {name: parse_connstr(entry) for name, entry in sections["databases"].items()} == {
        "shop": {"host": "db", "port": "5432", "dbname": "shop's", "password": "a b"}
    }
    assert sections["pgbouncer"] == {
        "auth_file": "/etc/pgbouncer/userlist.txt",
        "auth_hba_file": "/etc/pgbouncer/pg_hba.conf",
        "auth_type": "hba",
        "max_prepared_statements": "200",
        "query_timeout": "4.5",
        "server_tls_sslmode": "verify-full",
        "listen_addr": "127.0.0.1",
        "listen_port": "6439",
        "unix_socket_dir": "/run/trial",
        "pool_mode": mode,
        "default_pool_size": "4",
        "min_pool_size": opened,
        "reserve_pool_size": "0",
        "server_round_robin": "1",
        "server_lifetime": "86400",
        "server_idle_timeout": "0",
    }


def test_database_without_an_entry_is_an_error() -> None:
    with pytest.raises(KeyError, match="reports"):
        trial_ini(LIVE, ["reports"], "/run/trial", 6439, "session", 4)


def test_question_names_custom_settings_alone() -> None:
    assert "current_setting('app.tenant', true)" in state_sql(["app.tenant"])
    assert all(query in state_sql([]) for query in STATE.values())
    for name in ("tenant", "a.b'); DROP TABLE t --", ""):
        with pytest.raises(ValueError, match="custom setting"):
            state_sql([name])


NEW = {"pid": 1, "settings": {"TimeZone": "UTC", "DateStyle": "ISO"}, "custom": {"app.a": ""}}


def state(**kept: object) -> dict:
    return json.loads(json.dumps({**NEW, **dict.fromkeys(STATE), **kept}))


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({}, {}),
        # What PgBouncer gives each server connection anew.
        ({"settings": {"TimeZone": "Europe/Paris", "application_name": "x"}}, {}),
        ({"settings": {"work_mem": "5MB"}}, {"settings": ["work_mem = 5MB"]}),
        ({"custom": {"app.a": "1"}}, {"custom": ["app.a = 1"]}),
        ({"custom": {"app.a": ""}}, {}),
        ({"locks": ["42", "1, 2"]}, {"locks": ["1, 2", "42"]}),
        ({"channels": ["jobs"]}, {"channels": ["jobs"]}),
        ({"role": ["reader"]}, {"role": ["reader"]}),
    ],
)
def test_what_is_left(kept: dict, expected: dict) -> None:
    assert left(NEW, [state(), state(**kept)]) == expected


def test_what_was_there_before_is_not_the_applications() -> None:
    before = state(settings={"search_path": "a"}, locks=["1"], custom={"app.a": "x"})
    assert left(before, [before]) == {}
    assert left(before, [state(settings={"search_path": "b"})]) == {"settings": ["search_path = b"]}


def test_connections_are_put_together() -> None:
    kept = left(NEW, [state(locks=["1"]), state(locks=["2"]), state(locks=["1"], tables=["t"])])
    assert kept == {"locks": ["1", "2"], "tables": ["t"]}


@pytest.mark.parametrize(
    ("session", "transaction", "said"),
    [
        (0, 0, ""),
        (0, 1, "succeeds in session mode and fails with 1 in transaction mode"),
        (2, 2, "fails with 2 in session mode as well"),
        (2, 0, "fails with 2 in session mode as well"),
    ],
)
def test_exit_codes(session: int, transaction: int, said: str) -> None:
    found = problems({"session": session, "transaction": transaction}, {})
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_every_kind_of_state_has_its_reason_and_remedy() -> None:
    assert set(WORDS) == {*STATE, "custom"}
    for kind in WORDS:
        (said,) = problems({"session": 0, "transaction": 0}, {kind: ["a", "b"]})
        assert " a, b on a server connection: " in said
        assert "Instead: " in said


def test_variables_of_the_application_are_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = []

    def stop(argument_spec: dict, **_: object) -> None:
        specs.append(argument_spec)
        raise InterruptedError

    monkeypatch.setattr(session_trial, "UnloggedModule", stop)
    with pytest.raises(InterruptedError):
        session_trial.main()
    assert specs[0]["secret_environment"]["no_log"] is True


def test_host_with_an_older_program_is_refused(monkeypatch, tmp_path) -> None:
    old = tmp_path / "poolkit-run"
    old.write_text("--owner")
    monkeypatch.setattr(session_trial, "RUN", str(old))
    with pytest.raises(Refused, match="deploy shop once more"):
        session_trial.trial({"name": "shop"})

"""The pure parts of the configuration transaction; tests/integration/test_pgbouncer.py runs it."""

import pgbouncer_config
import pytest
from ansible.module_utils import pgbouncer_text

INI = """; made by Ansible
[databases]
shop = host='db1' port='5432' dbname='it''s' pool_size='7'

[users]
shop = max_user_connections=3

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 6432
pool_mode = transaction
query_wait_timeout = 10
auth_file = /etc/pgbouncer/userlist.txt
unix_socket_dir = /var/run/postgresql
"""


def rows(**changes: str) -> dict:
    """Return what a running process shows, in PgBouncer 1.24's columns."""

    def show(what: str) -> dict[str, dict[str, str]]:
        changeable = {
            "resolv_conf": "no",
            "listen_port": "no",
            "listen_addr": "no",
            "unix_socket_dir": "no",
        }
        parsed = pgbouncer_text.parse_ini(INI)
        if what == "CONFIG":
            values = {**parsed["pgbouncer"], "resolv_conf": "", "unix_socket_mode": "511"}
            defaults = {"resolv_conf": "", "unix_socket_mode": "0777"}
            return {
                name: {
                    "value": changes.get(name, value),
                    "default": defaults.get(name, "other"),
                    "changeable": changeable.get(name, "yes"),
                }
                for name, value in values.items()
            }
        if what == "DATABASES":
            row = {"host": "db1", "port": "5432", "database": "it's", "pool_size": "7"}
            row |= {"force_user": changes.get("force_user", "")}
            row |= {k: v for k, v in changes.items() if k in row}
            names = ["shop", "pgbouncer", *filter(None, [changes.get("extra")])]
            return {name: dict(row) for name in names}
        return {"shop": {"max_user_connections": changes.get("limit", "3")}}

    return {what: show(what) for what in ("CONFIG", "DATABASES", "USERS")}


def drift(**changes: str) -> list[str]:
    return pgbouncer_text.drift(pgbouncer_text.parse_ini(INI), rows(**changes))


def test_parsing() -> None:
    sections = pgbouncer_text.parse_ini(INI)
    assert sections["pgbouncer"]["pool_mode"] == "transaction"
    assert pgbouncer_text.parse_connstr(sections["databases"]["shop"]) == {
        "host": "db1",
        "port": "5432",
        "dbname": "it's",
        "pool_size": "7",
    }


def test_equal_process_has_no_drift() -> None:
    assert drift() == []
    assert drift(query_wait_timeout="10.0") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool_mode": "session"}, "pool_mode is 'session' and should be 'transaction'"),
        ({"query_wait_timeout": "120"}, "query_wait_timeout is '120' and should be '10'"),
        ({"resolv_conf": "/old"}, "resolv_conf is '/old' and should be ''"),
        ({"unix_socket_mode": "448"}, "unix_socket_mode is '448' and should be '0777'"),
        ({"pool_size": "9"}, "database shop: pool_size is '9' and should be '7'"),
        ({"host": "db2"}, "database shop: host is 'db2'"),
        ({"extra": "old"}, "database old is still there"),
        ({"force_user": "root"}, "database shop: the forced user is 'root'"),
        ({"limit": "4"}, "user shop: max_user_connections is '4' and should be '3'"),
    ],
)
def test_drift_is_named(changes: dict, words: str) -> None:
    assert any(words in statement for statement in drift(**changes))


def test_restart_is_asked_for_by_the_process_itself() -> None:
    sections = pgbouncer_text.parse_ini(INI)
    assert pgbouncer_text.restart_only(sections, rows(pool_mode="session")) == []
    assert pgbouncer_text.restart_only(sections, rows(listen_port="1")) == ["listen_port"]
    assert pgbouncer_text.restart_only(sections, rows(resolv_conf="/old")) == ["resolv_conf"]
    assert pgbouncer_text.restart_only(sections, rows(force_user="u")) == ["databases.shop.user"]


def test_setting_that_a_reload_keeps_needs_a_restart() -> None:
    sections = pgbouncer_text.parse_ini(INI)
    kept = pgbouncer_text.kept_by_reload
    assert kept(sections, rows()) == []
    assert kept(sections, rows(resolv_conf="/old")) == ["resolv_conf"]
    assert kept(sections, rows(resolv_conf="/old", pool_mode="session")) == []


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        (INI, {"": "transaction"}),
        (INI.replace("pool_mode = transaction\n", ""), {"": "session"}),
        (
            INI.replace("dbname=", "pool_mode='session' dbname="),
            {"": "transaction", "databases.shop": "session"},
        ),
        (
            INI.replace("max_user", "pool_mode=statement max_user"),
            {"": "transaction", "users.shop": "statement"},
        ),
    ],
    ids=["all", "default", "database", "user"],
)
def test_pool_modes(text: str, modes: dict) -> None:
    assert pgbouncer_text.pool_modes(pgbouncer_text.parse_ini(text)) == modes


def test_changed_names() -> None:
    before = pgbouncer_text.parse_ini(INI)
    after = pgbouncer_text.parse_ini(INI.replace("= 10", "= 11").replace("shop = max", "x = max"))
    assert pgbouncer_text.changed_names(before, after) == [
        "pgbouncer.query_wait_timeout",
        "users.shop",
        "users.x",
    ]


def test_trial_has_no_address_and_its_own_files() -> None:
    trial = pgbouncer_text.trial_config(INI, {"/etc/pgbouncer/userlist.txt": "/run/t/userlist"})
    settings = pgbouncer_text.parse_ini(trial)["pgbouncer"]
    assert (settings["listen_addr"], settings["unix_socket_dir"]) == ("", "")
    assert settings["auth_file"] == "/run/t/userlist"
    assert settings["listen_port"] == "6432"


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("2026 UTC [1] LOG fd limit\n2026 UTC [1] FATAL nowhere to listen on", None),
        ("2026 UTC [1] FATAL cannot load config file", "FATAL cannot load config file"),
        (
            "x [1] WARNING could not parse hba config line 2\nx [1] FATAL nowhere to listen on",
            "WARNING could not parse hba config line 2",
        ),
        ("", "it printed nothing"),
        ("x [1] ERROR /run/t/u:3 broken", "ERROR /etc/u:3 broken"),
    ],
)
def test_trials_verdict(output: str, error: str | None) -> None:
    assert pgbouncer_text.trial_error(output, {"/etc/u": "/run/t/u"}) == error


def test_diff_hides_a_clear_text_password() -> None:
    line = "shop = host=db1 password='it''s me' user=x\nblog = password=abc host=db1"
    hidden = pgbouncer_config.CLEAR_PASSWORD.sub("password=***", line)
    assert hidden == "shop = host=db1 password=*** user=x\nblog = password=*** host=db1"


def test_process_file_goes_on_in_the_shared_one() -> None:
    path = "/etc/pgbouncer/pgbouncer.ini"
    text = pgbouncer_config.process_ini(path, 2, (1, 24, 1))
    sections = pgbouncer_text.parse_ini(text, {path: INI})
    assert sections["pgbouncer"]["peer_id"] == "2"
    assert sections["pgbouncer"]["unix_socket_dir"] == "/run/pgbouncer/2"
    assert sections["pgbouncer"]["pool_mode"] == "transaction"
    assert "peer_id" not in pgbouncer_config.process_ini(path, 1, (1, 18, 0))
    trial = pgbouncer_text.trial_config(text, {path: "/run/t/0-pgbouncer.ini"})
    assert "%include /run/t/0-pgbouncer.ini" in trial


def test_processes_are_told_by_their_files() -> None:
    names = ("process-10.ini", "process-2.ini", "pgbouncer.ini", "process-x.ini")
    files = {f"/etc/pgbouncer/{name}": "" for name in names} | {
        "/etc/pgbouncer/process-3.ini": None
    }
    assert pgbouncer_config.Transaction.numbers(files) == [2, 10]

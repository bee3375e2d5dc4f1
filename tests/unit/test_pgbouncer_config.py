"""The pure parts of the configuration transaction, and how a served certificate is read."""

import contextlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.module_utils import (
    pgbouncer_configuration,
    pgbouncer_process,
    pgbouncer_report,
    pgbouncer_text,
    pgbouncer_tls,
    pgbouncer_trial,
)
from plugins.module_utils.refused import Refused
from plugins.modules import pgbouncer_config

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
    hidden = pgbouncer_report.CLEAR_PASSWORD.sub("password=***", line)
    assert hidden == "shop = host=db1 password=*** user=x\nblog = password=*** host=db1"


@pytest.mark.parametrize("missing", ["pgbouncer", "its user"])
def test_check_mode_shows_the_files_of_a_first_deployment(
    tmp_path: Path,
    run_module: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    installed = missing != "pgbouncer"
    monkeypatch.setattr(
        pgbouncer_config, "pgbouncer_path", lambda: "/usr/sbin/pgbouncer" if installed else None
    )
    (tmp_path / "pgbouncer.ini").write_text("old = 1\n")
    done = run_module(
        pgbouncer_config,
        True,
        config={"path": str(tmp_path / "pgbouncer.ini"), "content": "new = 1\n"},
        files=[{"path": str(tmp_path / "hba"), "content": "host all\n"}],
        secret_files=[{"path": str(tmp_path / "users"), "content": '"shop" "word"\n'}],
        processes=2,
        user="no-such-user",
    )
    assert (done["changed"], done["action"], len(done["processes"])) == (True, "start", 2)
    told, processes, config, hba, users = done["diff"]
    assert "is not there yet" in told["prepared"]
    assert processes["prepared"] == "process 1: start\nprocess 2: start\n"
    assert config["prepared"].startswith(f"{tmp_path}/pgbouncer.ini is replaced")
    assert (hba["before"], hba["after"]) == ("", "host all\n")
    assert users == {"prepared": f"{tmp_path}/users differs (its content is secret)\n"}
    assert not (tmp_path / "hba").exists()


def test_difference_shows_no_secret_of_an_old_file() -> None:
    key, ini = "/etc/pgbouncer/tls/server.key", "/etc/pgbouncer/pgbouncer.ini"
    before = {key: "PRIVATE", ini: "auth_ldap_options = ldapbindpasswd=hunter2"}
    after = {key: None, ini: "auth_type = hba"}
    (gone, changed) = pgbouncer_report.shown(before, after, set(), foreign=False)
    assert gone == {"prepared": f"{key} is removed\n"}
    assert changed["after"] == "auth_type = hba"
    shown = pgbouncer_report.shown(before, after, set(), foreign=True)
    assert "PRIVATE" not in str(shown)
    assert "hunter2" not in str(shown)


@pytest.mark.parametrize("check", [True, False])
def test_check_mode_only_warns_of_the_servers_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: bool
) -> None:
    """In the same check postgres.yml has not given the server its new one."""
    warnings: list[str] = []
    ini, own = str(tmp_path / "pgbouncer.ini"), str(tmp_path / "process-1.ini")
    files = {
        ini: "[databases]\nshop = host=db1\n[pgbouncer]\nserver_tls_sslmode = verify-full\n",
        own: f"%include {ini}\n",
    }
    candidate = pgbouncer_configuration.Configuration(ini, files)
    monkeypatch.setattr(pgbouncer_trial, "server_tls_error", lambda *_: "db1:5432: self-signed")
    monkeypatch.setattr(candidate, "access_problems", lambda _: [])
    monkeypatch.setattr(pgbouncer_trial.tempfile, "mkdtemp", lambda **_: str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(pgbouncer_trial.os, "chown", lambda *_: None)
    said = SimpleNamespace(stdout="x [1] FATAL nowhere to listen on")
    monkeypatch.setattr(pgbouncer_trial.subprocess, "run", lambda *_, **__: said)
    if check:
        pgbouncer_trial.try_candidate(candidate, "root", 5, warnings.append)
        assert "PgBouncer would refuse db1:5432: self-signed, unless" in warnings[0]
    else:
        with pytest.raises(Refused, match="db1:5432: self-signed"):
            pgbouncer_trial.try_candidate(candidate, "root", 5)


def test_process_file_goes_on_in_the_shared_one() -> None:
    path = "/etc/pgbouncer/pgbouncer.ini"
    text = pgbouncer_configuration.process_ini(path, 2, (1, 24, 1))
    sections = pgbouncer_text.parse_ini(text, {path: INI})
    assert sections["pgbouncer"]["peer_id"] == "2"
    assert sections["pgbouncer"]["unix_socket_dir"] == "/run/pgbouncer/2"
    assert sections["pgbouncer"]["pool_mode"] == "transaction"
    assert "peer_id" not in pgbouncer_configuration.process_ini(path, 1, (1, 18, 0))
    trial = pgbouncer_text.trial_config(text, {path: "/run/t/0-pgbouncer.ini"})
    assert "%include /run/t/0-pgbouncer.ini" in trial


def test_processes_are_told_by_their_files() -> None:
    names = ("process-10.ini", "process-2.ini", "pgbouncer.ini", "process-x.ini")
    files = {f"/etc/pgbouncer/{name}": "" for name in names} | {
        "/etc/pgbouncer/process-3.ini": None
    }
    path = "/etc/pgbouncer/pgbouncer.ini"
    assert pgbouncer_configuration.Configuration(path, files).numbers == [2, 10]


def test_only_a_line_feed_ends_a_line() -> None:
    """As in PgBouncer; otherwise the proof would read other settings than the process."""
    text = "[pgbouncer]\nlisten_addr = 127.0.0.1\x85auth_type = any\r\npool_mode = session\n"
    settings = pgbouncer_text.parse_ini(text)["pgbouncer"]
    assert settings == {"listen_addr": "127.0.0.1\x85auth_type = any", "pool_mode": "session"}
    assert len(pgbouncer_text.trial_config(text, {}).split("\n")) == len(text.split("\n"))


def test_what_is_stated_twice_is_named() -> None:
    text = "%include /a\nauth_type = hba\n[users]\nshop = pool_mode=session\n"
    included = {"/a": "[databases]\nshop = host=db1\n[pgbouncer]\nauth_type = any\nx = 1\n"}
    assert pgbouncer_text.repeated_names(text, included) == ["pgbouncer.auth_type"]
    assert pgbouncer_text.repeated_names(INI) == []


@pytest.mark.parametrize(
    ("listen_addr", "sockets", "problems"),
    [
        ("127.0.0.1, 10.0.0.5", {"127.0.0.1", "10.0.0.5"}, []),
        ("127.0.0.1, 10.0.0.5", {"127.0.0.1"}, ["does not listen on 10.0.0.5"]),
        (
            "127.0.0.1",
            {"127.0.0.1", "0.0.0.0"},
            ["listens on 0.0.0.0, which listen_addr does not name"],
        ),
        (
            "127.0.0.1",
            {"0.0.0.0"},
            [
                "does not listen on 127.0.0.1",
                "listens on 0.0.0.0, which listen_addr does not name",
            ],
        ),
        ("127.0.0.1", set(), ["does not listen on 127.0.0.1"]),
        ("", {"::1"}, ["listens on ::1, which listen_addr does not name"]),
        ("", set(), []),
        ("*", {"0.0.0.0", "::"}, []),
        ("0:0::1", {"::1"}, []),
        ("localhost", {"127.0.0.1"}, []),
        ("localhost", {"10.0.0.5"}, None),
        ("pooler.invalid", {"10.0.0.5"}, []),
        ("pooler.invalid", set(), ["does not listen on pooler.invalid"]),
    ],
)
def test_sockets_are_those_of_listen_addr(
    listen_addr: str, sockets: set[str], problems: list[str] | None
) -> None:
    found = pgbouncer_process.listening_problems(listen_addr, sockets)
    assert found == problems if problems is not None else len(found) == 2


def test_sockets_of_the_unit_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = """LISTEN 0 128 127.0.0.1:6432 0.0.0.0:* cgroup:/system.slice/pgbouncer@1.service
LISTEN 0 128 [fe80::1]%eth0:6432 [::]:* cgroup:/system.slice/pgbouncer@1.service
LISTEN 0 128 *:7000 *:* cgroup:/system.slice/pgbouncer@1.service
LISTEN 0 128 10.0.0.5:6432 0.0.0.0:* cgroup:/system.slice/pgbouncer@2.service
"""
    done = subprocess.CompletedProcess([], 0, shown, "")
    monkeypatch.setattr(pgbouncer_process.subprocess, "run", lambda *_, **__: done)
    process = pgbouncer_process.Process(1, "pgbouncer", 1)
    assert process.misheard("127.0.0.1, fe80::1%eth0", "6432") == [
        "pgbouncer@1.service listens on 0.0.0.0, ::, which listen_addr does not name (port 6432)",
        "pgbouncer@1.service listens on port 7000 (port 6432)",
    ]


def test_console_is_asked_over_the_newest_socket(tmp_path: Path) -> None:
    """The last by name may be the one that a crash left on the old port."""
    for name, moment in ((".s.PGSQL.6433", 100), (".s.PGSQL.6432", 200)):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / name))
        os.utime(tmp_path / name, (moment, moment))
    (tmp_path / ".s.PGSQL.9.lock").touch()
    (tmp_path / ".s.PGSQL.9").touch()
    process = pgbouncer_process.Process(1, "pgbouncer", 1)
    process.socket_directory = tmp_path
    arguments = process.console().psql
    assert arguments[arguments.index("-p") + 1] == "6432"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key in one file; nobody's authority signed it."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=pooler"]
    command += ["-keyout", str(path), "-out", str(path.with_name("server.crt"))]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_name("server.crt").read_text())
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Callable[[ssl.TLSVersion, ssl.VerifyMode], int]]:
    """Start a server that speaks PostgreSQL's first message and TLS of one version."""
    listeners = []

    def start(version: ssl.TLSVersion, verify: ssl.VerifyMode) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.load_verify_locations(certificate.with_name("server.crt"))
        context.minimum_version = context.maximum_version = version
        context.verify_mode = verify
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                plain.recv(8)
                plain.sendall(b"S")
                with context.wrap_socket(plain, server_side=True) as secure:
                    secure.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        return listener.getsockname()[1]

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("verify", [ssl.CERT_NONE, ssl.CERT_REQUIRED])
def test_served_certificate_is_read(
    certificate: Path, tls_server: Callable, version: ssl.TLSVersion, verify: ssl.VerifyMode
) -> None:
    """Also from a server that asks for a client certificate, which ends TLS 1.2's handshake."""
    expected = ssl.PEM_cert_to_DER_cert(certificate.with_name("server.crt").read_text())
    port = tls_server(version, verify)
    assert pgbouncer_tls.served_certificate("127.0.0.1", port) == expected


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_server_that_asks_for_a_certificate_is_verified(
    certificate: Path, tls_server: Callable, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    port = tls_server(version, ssl.CERT_REQUIRED)
    own = str(certificate.with_name("server.crt"))
    assert pgbouncer_tls.server_tls_error("127.0.0.1", port, own, full=False) is None
    port = tls_server(version, ssl.CERT_REQUIRED)
    other = "/etc/ssl/certs/ca-certificates.crt"
    error = pgbouncer_tls.server_tls_error("127.0.0.1", port, other, full=False)
    assert "self-signed certificate" in error

"""The defaults: what a pooler beside its application is, and what it lets in."""

import re

import psycopg
import pytest
from conftest import Pooler


def test_query_goes_through_the_pooler(pooler: Pooler) -> None:
    with pooler.connect() as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("shop",)
        (row,) = [row for row in pooler.console("SHOW CLIENTS") if row["database"] == "shop"]
        assert row["user"] == "shop"


@pytest.mark.parametrize(
    "parameters",
    [
        {"password": "wrong"},
        {"user": "shop_owner"},
        {"user": "postgres"},
        {"dbname": "postgres"},
        {"user": "pgbouncer", "dbname": "pgbouncer"},
    ],
    ids=["password", "owner", "superuser", "database", "console"],
)
def test_others_are_refused(pooler: Pooler, parameters: dict) -> None:
    words = "login rejected|no such user|no such database|SASL authentication failed"
    words += "|no authentication method is found|not allowed"
    with pytest.raises(psycopg.OperationalError, match=words):
        pooler.connect(**parameters)


def test_user_list_holds_no_clear_text(pooler: Pooler) -> None:
    text = pooler.host.file("/etc/pgbouncer/userlist.txt").content_string
    assert re.fullmatch(r'"shop" "SCRAM-SHA-256\$4096:[^"]+"\n', text)


def test_files_are_the_services_alone(pooler: Pooler) -> None:
    for name in ("pgbouncer.ini", "process-1.ini", "userlist.txt", "pg_hba.conf"):
        file = pooler.host.file(f"/etc/pgbouncer/{name}")
        assert (file.user, file.group, file.mode) == ("root", "pgbouncer", 0o640), name


def test_process_runs_sandboxed_as_a_user_of_its_own(pooler: Pooler) -> None:
    shown = pooler.host.check_output("systemd-analyze security --no-pager pgbouncer@1.service")
    exposure = float(re.search(r"exposure level for pgbouncer@1.service: ([\d.]+)", shown).group(1))
    assert exposure <= 2.0
    pid = pooler.host.check_output("systemctl show -P MainPID pgbouncer@1")
    assert pooler.host.check_output(f"stat -c %U /proc/{pid}") == "pgbouncer"


def test_distributions_unit_stays_away(pooler: Pooler) -> None:
    """A package upgrade restarts pgbouncer.service: it must not exist."""
    state = pooler.host.run("systemctl is-enabled pgbouncer.service").stdout.strip()
    assert state == "masked"
    assert pooler.host.service("pgbouncer.target").is_enabled
    assert pooler.host.service("pgbouncer@1.service").is_enabled


def test_it_listens_only_where_told(pooler: Pooler) -> None:
    lines = pooler.host.check_output("ss -Hltn 'sport = :6432'").splitlines()
    assert sorted(line.split()[3] for line in lines) == [
        "127.0.0.1:6432",
        f"{pooler.address}:6432",
    ]


def test_open_files_are_what_the_limits_need(pooler: Pooler) -> None:
    """500 clients, 12 server connections twice and 100 more stay under the least, 1024."""
    pid = pooler.host.check_output("systemctl show -P MainPID pgbouncer@1")
    limits = pooler.host.check_output(f"cat /proc/{pid}/limits")
    assert int(re.search(r"Max open files\s+(\d+)", limits).group(1)) >= 1024


def test_log_is_whole_in_the_journal_over_a_rotation(pooler: Pooler) -> None:
    """200 refused logins leave 200 lines, although the journal is rotated in between."""
    start = pooler.host.check_output("date '+%Y-%m-%d %H:%M:%S'")
    for number in range(200):
        with pytest.raises(psycopg.OperationalError):
            pooler.connect(user=f"nobody{number}")
        if number == 100:
            pooler.host.check_output("journalctl --rotate")
    log = pooler.host.check_output(f"journalctl -u pgbouncer@1 --since '{start}' -o cat")
    assert len(set(re.findall(r"nobody\d+", log))) == 200


def test_crashed_process_comes_back(pooler: Pooler) -> None:
    pid = pooler.host.check_output("systemctl show -P MainPID pgbouncer@1")
    pooler.host.check_output(f"kill -KILL {pid}")
    pooler.host.check_output(
        "timeout 10 sh -c 'until systemctl -q is-active pgbouncer@1 && "
        f'test "$(systemctl show -P MainPID pgbouncer@1)" != {pid}; do sleep 0.1; done\''
    )
    with pooler.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_login_by_operating_system_user(restored: Pooler) -> None:
    """Over the unix socket, without a password; the name must be the role's."""
    restored.host.check_output("id shop || useradd --system --no-create-home shop")
    code, output = restored.configure(pgbouncer_socket_auth_method="peer")
    assert code == 0, output[-2000:]
    assert "holds the passwords of the applications in clear text" in output
    query = "sudo -u {} psql -XAt -h /run/pgbouncer/1 -p 6432 -U shop -c 'SELECT current_user' shop"
    assert restored.host.check_output(query.format("shop")) == "shop"
    assert restored.host.run(query.format("nobody")).rc != 0

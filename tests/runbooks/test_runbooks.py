"""Every runbook under traffic with writes, as its page says: also killed, and run again."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from conftest import FILES, Site, client
from controller import ROOT, Run, resolve
from pytest import MonkeyPatch

NEW = "rotated: p@ss/w%rd '\"\\ é"


def held(site: Site) -> bool:
    """Say whether some pooler holds queries, or will be released by its timer."""
    for name, host in site.hosts.items():
        timer = host.run("systemctl is-active poolkit-pgbouncer-release.timer")
        # PgBouncer 1.18 has no SHOW STATE; a pause of everything is one of each database.
        databases = site.table(name, "DATABASES")
        if timer.rc == 0 or any(row["paused"] == "1" for row in databases):
            return True
    return False


def may_log_in(
    site: Site, password: str, port: int, host: str = "127.0.0.1", user: str = "django"
) -> bool:
    """Say whether a role gets in from web3: at its pooler, or at PostgreSQL."""
    word = password.replace("'", "'\\''")
    command = f"PGPASSWORD='{word}' psql -XAtqc 'SELECT 1' -h {host} -p {port} -U {user} django"
    return site.hosts["web3"].run(command).rc == 0


def owners(site: Site) -> list[bool]:
    """Say for each host whether what is there logs in as the owner."""
    command = f"PGSERVICEFILE={FILES}.pg_service.conf PGPASSFILE={FILES}.pgpass psql -XAtqc %s %s"
    words = ("SELECT 1", "service=django_owner")
    return [host.run(command, *words).rc == 0 for host in site.hosts.values()]


def test_passwords_are_rotated(site: Site) -> None:
    """Killed when the server has the new password and not yet every pooler."""
    old, owner = site.password(), "owner's: new"
    site.variables |= {"app_database_password": NEW, "app_database_owner_password": owner}
    check = site.follow("rotate_password", "Check")
    assert "get the password of the inventory: django, django_owner" in check.output
    assert set(check.changed.values()) == {0}
    left_out = site.play("rotate_password", "--limit", "web3")
    assert left_out.code != 0 and "db5, db6, web4 would be left out" in left_out.output
    with site.rehearsal("change passwords, killed once", pause_seconds=0.05):
        site.cut_off("Change the pooler", "rotate_password", times=2)
        refused = site.play("plan")
        assert refused.code != 0
        assert "Run ansible/playbooks/rotate_password.yml again" in refused.output
        site.follow("rotate_password", "Action")
    for port, host in ((6432, "127.0.0.1"), (5432, "poolkit-test-db5")):
        assert may_log_in(site, NEW, port, host)
        assert not may_log_in(site, old, port, host)
    assert may_log_in(site, owner, 5432, "poolkit-test-db5", "django_owner")
    assert owners(site) == [True, True]
    assert site.rows("SELECT count(*) FROM pg_roles WHERE rolname = 'django_rotation'") == ["0"]
    again = site.follow("rotate_password", "Proof")
    assert set(again.changed.values()) == {0}
    assert "Every role has the password of the inventory" in again.output


def test_postgresql_is_restarted(site: Site) -> None:
    """Killed in the pause first: nobody is held for longer than the hold."""
    start = site.rows("SELECT pg_postmaster_start_time()")
    check = site.follow("restart_database", "Check")
    assert check.changed["db5"] > 0
    assert site.rows("SELECT pg_postmaster_start_time()") == start and not held(site)
    with site.rehearsal("restart PostgreSQL, killed in the pause"):
        site.cut_off("Restart PostgreSQL", "restart_database", hold_seconds=8)
        assert held(site)
        end = time.monotonic() + 14
        while held(site) and time.monotonic() < end:
            time.sleep(0.5)
        assert not held(site)
    with site.rehearsal("restart PostgreSQL with an upgrade"):
        site.follow("restart_database", "Action", upgrade=True)
    assert site.rows("SELECT pg_postmaster_start_time()") != start
    assert not held(site)
    for host in site.hosts:
        # The values of the file are back.
        settings = {row["key"]: row["value"] for row in site.table(host, "CONFIG")}
        assert settings["query_wait_timeout"] == "4"
    site.follow("restart_database", "Proof")


def test_a_transaction_that_does_not_end_stops_the_restart(site: Site) -> None:
    start = site.rows("SELECT pg_postmaster_start_time()")
    queries = "SELECT pg_sleep(5); " * 9
    action = "restart PostgreSQL, refused by a long transaction"
    with client(site, f"BEGIN; {queries}"), site.rehearsal(action):
        run = site.play("restart_database", hold_seconds=10)
    assert run.code != 0
    assert "still busy: django as django" in run.output
    assert site.rows("SELECT pg_postmaster_start_time()") == start
    assert not held(site)


def test_poolers_connect_anew(site: Site) -> None:
    def backends() -> set[str]:
        return set(site.rows("SELECT pid FROM pg_stat_activity WHERE usename = 'django'"))

    before = backends()
    with site.rehearsal("lead the poolers to a new primary, killed once"):
        site.cut_off("Wait until each of them was replaced", "reconnect")
        run = site.follow("failover", "Action")
        assert "server connections, to" in run.output
        assert not before & backends()
    site.follow("failover", "Proof")


def test_a_server_that_takes_no_writes_is_seen(site: Site) -> None:
    site.rows("ALTER DATABASE django SET default_transaction_read_only = on")
    try:
        site.follow("failover", "Action")
        answers = site.readiness()
        assert {answer["database"] for answer in answers.values()} == {"error"}
        assert "read-only" in answers["web3"]["reason"]
        check = site.follow("failover", "Check")
        assert "takes no writes" in check.output and "server connections, to" in check.output
    finally:
        site.rows("ALTER DATABASE django RESET default_transaction_read_only", "postgres")
        site.play("reconnect")
    assert {answer["database"] for answer in site.readiness().values()} == {"ok"}


def test_pgbouncer_is_upgraded(site: Site) -> None:
    """A package of the same program with a higher version: the package changes, the process too."""
    show = "systemctl show -P MainPID pgbouncer@1"
    before = {name: host.check_output(show) for name, host in site.hosts.items()}
    versions = {name: site.newer_package(name) for name in site.hosts}
    site.follow("upgrade_pgbouncer", "Check")
    assert {name: host.check_output(show) for name, host in site.hosts.items()} == before
    with site.rehearsal("upgrade PgBouncer 1.24, killed once", hosts=["web3"], pause_seconds=0.05):
        site.cut_off("Apply the configuration", "upgrade_pgbouncer", "--limit", "web3")
        run = site.play("upgrade_pgbouncer", "--limit", "web3")
        assert run.code == 0, run.output[-3000:]
    # Debian 12's 1.18 cannot wait for its clients: docs/runbooks/upgrade_pgbouncer.md.
    with site.rehearsal("upgrade PgBouncer 1.18", hosts=["web4"], may_fail=4, pause_seconds=0.05):
        run = site.follow("upgrade_pgbouncer", "Action")
    assert run.changed["web3"] == 0 < run.changed["web4"]
    log = site.hosts["web3"].check_output("journalctl -u 'pgbouncer@*' --since -5min -o cat")
    assert "waiting for all clients disconnect" in log and "Killing" not in log
    for name, host in site.hosts.items():
        shown = host.check_output("dpkg-query -W -f '${Version}' pgbouncer")
        assert shown == versions[name]
        assert host.check_output(show) != before[name]
    site.wait_for_pooler()
    site.follow("upgrade_pgbouncer", "Proof")


def test_a_setting_that_opens_a_hole_is_refused(site: Site) -> None:
    """And a rule of one's own that does is named, in the preflight and in the status."""
    run = site.play(
        "pgbouncer", "--limit", "web3", pgbouncer_settings={"max_packet_size": 2**31 + 1}
    )
    assert run.code != 0
    assert "CVE-2026-107348" in run.output
    rule = {"type": "host", "database": "all", "user": "ann", "address": "192.0.2.0/24"}
    run = site.play(
        *("pgbouncer", "--check", "--limit", "web3"),
        pgbouncer_hba_rules=[{**rule, "method": "scram-sha-256"}],
    )
    assert "WARNING: web3: CVE-2026-107350" in run.output
    assert "CVE-2026-107350" not in site.status()


def test_certificates_are_renewed(site: Site) -> None:
    def serial() -> str:
        connect = "openssl s_client -starttls postgres -connect poolkit-test-db5:5432 </dev/null"
        return site.database.check_output(f"{connect} 2>/dev/null | openssl x509 -noout -serial")

    before = serial()
    site.follow("certificates", "Check")
    assert site.play("certificates", certificates_renew=True).code == 0
    with site.rehearsal("renew certificates, killed once"):
        site.cut_off("Apply the configuration", "postgres")
        site.follow("certificates", "Action")
    assert serial() != before
    site.follow("certificates", "Proof")


def default_pool_size(site: Site) -> str:
    shown = {row["key"]: row["value"] for row in site.table("web3", "CONFIG")}
    return shown["default_pool_size"]


def test_pools_are_changed(site: Site) -> None:
    """The next deployment of all reduces it again: test_what_was_lost_is_made_again."""
    site.variables["pgbouncer_settings"] = {"default_pool_size": 6, "reserve_pool_size": 1}
    check = site.follow("pools", "Check")
    assert "default_pool_size = 6" in check.output and default_pool_size(site) == "5"
    with site.rehearsal("grow a pool"):
        site.follow("pools", "Action")
    assert default_pool_size(site) == "6"
    assert "Nothing was found" in site.follow("pools", "Proof").output
    del site.variables["pgbouncer_settings"]


def test_what_was_lost_is_made_again(site: Site) -> None:
    files = "pgbouncer/pgbouncer.ini pgbouncer/userlist.txt poolkit/django/app.env"
    assert default_pool_size(site) == "6"
    with site.rehearsal("restore after a mistake, reduce the pool"):
        site.hosts["web3"].check_output(f"cd /etc && rm {files}")
        check = site.follow("restore", "Check")
        assert "the pooler does not have what the inventory says" in check.output
        site.follow("restore", "Action")
    assert default_pool_size(site) == "5"
    site.wait_for_pooler()
    site.follow("restore", "Proof")


def test_database_moves_to_another_server(
    site: Site, monkeypatch: MonkeyPatch, tmp_path: Path
) -> None:
    """From PostgreSQL 15 to 17 and back. Killed in the copy, and once the old server is closed."""
    password = resolve("db5", password="database_admin_password")["db5"]["password"]
    monkeypatch.setenv("PGPASSWORD", password)
    old, new = "poolkit-test-db5", "poolkit-test-db6"
    given = {"database_old_host": old, "database_host": new}

    def follow(section: str, old: str, new: str) -> Run:
        copy = tmp_path / "copy.sh"
        copy.write_text(f"#!/bin/sh\nexec {ROOT}/tests/runbooks/copy.sh {old} {new}\n")
        copy.chmod(0o755)
        words = (f"OLD={old}", f"NEW={new}", f"copy.sh={os.path.relpath(copy, ROOT)}")
        return site.follow("move_database", section, *words)

    follow("Check", old, new)
    with site.rehearsal("move to another server, refused"):
        with client(site, "SELECT 1;", owner=True):
            refused = site.play("move_database", copy_command="true", **given)
        assert refused.code != 0 and "Connected past the poolers: django_owner" in refused.output
        lacking = site.play("move_database", copy_command="true", **given)
        assert lacking.code != 0 and "table public.items is missing" in lacking.output
        assert "Nothing moved" in lacking.output
    assert not held(site)
    with site.rehearsal("move from PostgreSQL 15 to 17, killed in the copy"):
        copy = f"tests/runbooks/copy.sh {old} {new}"
        cut_off = {"copy_command": copy, "hold_seconds": 15, **given}
        site.cut_off("Copy the databases", "move_database", **cut_off)
        follow("Action", old, new)
        site.database = site.servers["db6"]
    assert not held(site)
    moved_on = site.play("plan")
    assert moved_on.code != 0 and f"was moved to {new}:5432" in moved_on.output
    site.variables["database_host"] = new
    site.follow("move_database", "Proof")
    again = site.play("move_database", copy_command="true", **given)
    assert again.code == 0 and set(again.changed.values()) == {0}
    del site.variables["database_host"]
    # What waits longer than the hold fails until somebody runs it again, as the page says.
    back = {"database_old_host": new, "database_host": old}
    copy = f"tests/runbooks/copy.sh {new} {old}"
    action = "move back to 15, killed when the old server was closed"
    with site.rehearsal(action, may_fail=sys.maxsize):
        after = "Look whether the queries are held"
        site.cut_off(after, "move_database", copy_command=copy, **back)
        follow("Action", new, old)
        site.database = site.servers["db5"]
    assert not held(site)
    assert site.status() == ""


def test_a_host_is_drained_and_comes_back(site: Site) -> None:
    site.follow("hosts", "Check", "HOST=web4")
    alone = site.play("drain_host", "--check")
    assert alone.code != 0 and "django has no other host" in alone.output
    site.wait_for_pooler()
    with site.rehearsal("drain a host, killed once", hosts=["web3"]):
        site.cut_off("Stop them", "drain_host", "--limit", "web4")
        site.follow("hosts", "Action", "HOST=web4")
    site.follow("hosts", "Proof")


def test_an_application_is_removed(site: Site) -> None:
    words = ("NAME=django",)
    site.follow("remove_application", "Check", *words)
    refused = site.play("remove_application", app="django", drop_database="other")
    assert refused.code != 0 and "Nothing was removed" in refused.output
    everything = {"drop_database": "django", "remove_state": True}
    site.cut_off("Remove its accounts", "remove_application", app="django", **everything)
    run = site.play("remove_application", app="django", **everything)
    assert run.code == 0, run.output[-3000:]
    assert not held(site)
    left = site.follow("remove_application", "Proof", *words)
    # Then it is taken out of the inventory.
    closed = site.play("postgres", "-i", "molecule/runbooks/inventory/servers.yml")
    assert closed.code == 0, closed.output[-3000:]
    assert "django" not in site.database.check_output("cat /etc/postgresql/*/main/pg_hba.conf")
    assert set(left.changed.values()) == {0}
    for host in site.hosts.values():
        assert not host.file("/srv/django").exists
        assert not host.file("/etc/poolkit/django").exists
        assert host.run("id django").rc != 0
        assert "django" not in host.check_output("ls /etc/systemd/system")
    shown = "SELECT count(*) FROM pg_database WHERE datname = 'django'"
    assert site.database.check_output(f'sudo -u postgres psql -XAtqc "{shown}"') == "0"
    # The deployment brings it back.
    run = site.play("site")
    assert run.code == 0, run.output[-3000:]
    assert "Nothing was found" in site.follow("diagnose", "Proof").output

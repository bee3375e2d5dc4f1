"""The audit of an application: what it finds on a host, and that it leaves nothing there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import Site
from testinfra.host import Host

NEEDS_A_SESSION = """
import os, psycopg
connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
for statement in (
    "SET work_mem = '5MB'",
    "SET timezone = 'Europe/Paris'",
    "SELECT set_config('app.tenant', 'acme', false)",
    "SELECT pg_advisory_lock(42)",
    "LISTEN jobs",
    "CREATE TEMPORARY TABLE leftover (a int)",
    "PREPARE named AS SELECT 1",
    "BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT 1; COMMIT",
):
    connection.execute(statement)
assert connection.execute("SELECT pg_advisory_unlock(42)").fetchone() == (True,), "not my lock"
"""
NEEDS_NONE = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("SET LOCAL work_mem = '5MB'")
    connection.execute("SELECT pg_advisory_xact_lock(42)")
    connection.execute("CREATE TEMPORARY TABLE gone (a int) ON COMMIT DROP")
    connection.execute("SELECT set_config('app.tenant', 'acme', true)")
"""


@pytest.fixture
def host(site: Site) -> Host:
    return next(iter(site.hosts.values()))


def kept(host: Host) -> str:
    """Return what an audit could change or leave on a host."""
    return host.check_output(
        "cat /etc/pgbouncer/* /etc/poolkit/django/* | sha256sum; readlink /srv/django/current; "
        "find /run /tmp -maxdepth 1 -name '*poolkit*' | sort; "
        "systemctl list-units --all --plain --no-legend '*audit-*' 'django-run-*'; "
        "ss -Htln sport = :6439; systemctl show -P ExecMainStartTimestamp pgbouncer@1 django"
    )


def python(code: str) -> str:
    """Return the command that runs a program of several lines: what it says has no single quote."""
    return "python -c '" + code.replace("'", "'\"'\"'") + "'"


def test_application_that_needs_a_session(site: Site, host: Host, tmp_path: Path) -> None:
    """Its source tells some of it, and its run the rest; what the pooler carries is left alone."""
    source = tmp_path / "jobs.py"
    source.write_text("cursor.execute(\"SELECT set_config('app.tenant', %s, false)\", [tenant])\n")
    before = kept(host)
    run = site.play(
        "audit", app="django", command=python(NEEDS_A_SESSION), app_source=str(tmp_path)
    )
    assert run.code != 0
    assert "jobs.py:1: session-setting" in run.output
    assert "succeeds in session mode and fails with 1 in transaction mode" in run.output
    assert "AssertionError: not my lock" in run.output
    for words in (
        "the settings work_mem = 5MB on a server connection",
        "the settings app.tenant = acme on",
        "the advisory locks 42 on",
        "LISTEN on jobs on",
        "the temporary tables leftover on",
        "the prepared statements named on",
        "the cursors WITH HOLD held on",
    ):
        assert words in run.output, run.output[-6000:]
    assert "Paris" not in run.output.partition("problems:")[2]
    assert "django is not safe for transaction mode: 9 reasons" in run.output
    assert site.password() not in run.output
    assert kept(host) == before


def test_application_that_needs_none(site: Site, host: Host) -> None:
    before = kept(host)
    run = site.play("audit", app="django", command=python(NEEDS_NONE))
    assert run.code == 0, run.output[-3000:]
    assert set(run.changed.values()) == {0}
    assert "problems: []" in run.output
    assert kept(host) == before


def test_audit_that_is_cut_off_leaves_nothing(site: Site, host: Host) -> None:
    before = kept(host)
    site.cut_off("Try the command in both modes", "audit", app="django", command="sleep 2")
    end = time.monotonic() + 20
    while kept(host) != before:
        assert time.monotonic() < end, kept(host)
        time.sleep(0.5)


def test_taken_port_is_named(site: Site) -> None:
    run = site.play("audit", app="django", command="manage.py check", audit_port=6432)
    assert run.code != 0
    assert "port 6432 of 127.0.0.1: Address already in use. Set another audit_port" in run.output

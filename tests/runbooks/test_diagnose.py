"""diagnose.yml names real causes, and its command ends one."""

from __future__ import annotations

import re
import time

from conftest import Site, client


def test_causes_are_named(site: Site) -> None:
    """A lock queue, found and ended by the command that is printed."""
    with (
        client(site, "BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE;", owner=True),
        client(site, "SELECT count(*) FROM items;"),
    ):
        time.sleep(2)
        run = site.follow("diagnose", "Check")
        assert "a transaction holds locks that others wait for" in run.output
        (pid,) = set(re.findall(r"diagnose.yml -e terminate=(\d+)", run.output))
        assert set(run.changed.values()) == {0}
        refused = site.play("diagnose", terminate=1)
        assert refused.code != 0 and "Nothing was ended" in refused.output
        assert site.rows(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == ["1"]
        ended = site.follow("diagnose", "Action", f"PID={pid}")
        assert ended.code == 0
        assert site.rows(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == ["0"]


def test_poolers_and_server_that_do_not_serve(site: Site) -> None:
    """Paused, a wrong password, and PostgreSQL away: each is named while the others are there."""
    wrong = "PGPASSWORD=wrong psql -h 127.0.0.1 -p 6432 -U django django -c 'SELECT 1'"
    site.hosts["web4"].run(wrong)
    site.console("web3", "PAUSE")
    try:
        site.database.check_output("systemctl stop postgresql")
        run = site.play("diagnose")
    finally:
        site.database.check_output("systemctl start postgresql")
        site.console("web3", "RESUME")
    assert run.code == 0, run.output[-3000:]
    assert "PostgreSQL does not answer the administrator" in run.output
    assert "the pooler on web3 is paused" in run.output
    assert "somebody logs in at the pooler with a wrong password" in run.output
    assert "django, in the log of web4" in run.output
    site.wait_for_pooler()

"""The command-line programs' own logic."""

from pathlib import Path

import status
import test_summary

POOLS = (
    "database,user,cl_active,cl_waiting,cl_active_cancel_req,sv_active,sv_idle,sv_being_canceled\n"
    "shop,shop,3,1,9,2,4,9\n"
    "other,other,100,0,0,50,0,0\n"
)


def test_connections_of_one_database_without_cancel_requests() -> None:
    assert status.connections(POOLS, "shop") == (4, 6)


def test_silent_pooler_has_no_counts() -> None:
    assert status.connections("", "shop") is None


def row(code: int, path: str, pooled: bool = True) -> dict:
    return {
        "pooled": pooled,
        "application": "shop",
        "host": "web1",
        "address": "127.0.0.1",
        "port": 8000,
        "status": code,
        "readiness": {"path": path},
        "pools": POOLS,
        "database": "shop",
    }


def test_only_the_pooled_path_counts_as_healthy() -> None:
    assert status.table([row(200, "pooler")])[1] is True
    assert status.table([row(200, "pooler"), row(200, "direct")])[1] is False
    assert status.table([row(503, "pooler")])[1] is False
    assert status.table([row(200, "pooler"), {"host": "web2"}])[1] is False
    assert status.table([row(200, "direct", pooled=False)])[1] is True
    assert status.table([])[1] is False


def test_silent_host_is_reported() -> None:
    output = {
        "plays": [
            {"tasks": [{"task": {"name": "app : Report"}, "hosts": {"a": {"msg": {"x": 1}}}}]}
        ],
        "stats": {"a": {}, "b": {"unreachable": 1}},
    }
    assert status.reports(output) == [{"host": "a", "x": 1}, {"host": "b"}]


def test_summary_adds_up(tmp_path: Path) -> None:
    suite = (
        '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'
    )
    (tmp_path / "a.xml").write_text(suite.format(10, 1, 1, 2))
    (tmp_path / "b.xml").write_text(suite.format(5, 0, 0, 0))
    assert test_summary.counts([tmp_path / "a.xml", tmp_path / "b.xml"]) == (11, 2, 2)

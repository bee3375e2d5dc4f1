"""The command-line programs' own logic."""

import io
import shutil
import subprocess
from pathlib import Path

import pytest
import status
import test_summary
import yaml
from collection import COLLECTION
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]

COLUMNS = (
    "database,user,cl_active,cl_waiting,cl_active_cancel_req,sv_active,sv_idle,sv_being_canceled"
)


def pools(*lines: str) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS.split(","), line.split(","), strict=True)) for line in lines]


POOLS = pools("shop,shop,3,1,9,2,4,9", "other,other,100,0,0,50,0,0")


def test_connections_of_one_database_without_cancel_requests() -> None:
    assert status.connections(POOLS, "shop") == (4, 6)


def test_connections_of_every_process_add_up() -> None:
    assert status.connections(POOLS + pools("shop,shop,10,0,0,5,0,0"), "shop") == (14, 11)


def test_every_process_of_a_host_is_asked_and_no_failure_is_lost() -> None:
    tasks = yaml.safe_load((ROOT / "roles/app/tasks/status.yml").read_text())
    ask, report = tasks[1], tasks[-1]
    assert ask[f"{COLLECTION}.pgbouncer_admin"] == {"command": "show", "what": "POOLS"}
    told = report["ansible.builtin.debug"]["msg"]
    assert f"{ask['register']}.rows" in told["pools"]
    assert f"{ask['register']}.msg" in told["pooler_error"]


def test_silent_pooler_has_no_counts() -> None:
    assert status.connections([], "shop") is None


def test_advisory_is_told_once_with_its_poolers() -> None:
    poolers = [
        {"host": "web1", "advisories": ["CVE-1: a", "CVE-2: b"]},
        {"host": "web2", "advisories": ["CVE-2: b"]},
        {"host": "web3"},
    ]
    assert status.exposures(poolers) == ["web1: CVE-1: a", "web1, web2: CVE-2: b"]


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
        "pooler_error": "",
        "database": "shop",
        "direct": 0,
        "direct_since": "",
        "refused": [],
    }


def test_only_the_pooled_path_counts_as_healthy() -> None:
    assert status.table([row(200, "pooler")])[1] is True
    assert status.table([row(200, "pooler"), row(200, "direct")])[1] is False
    assert status.table([row(503, "pooler")])[1] is False
    assert status.table([row(200, "pooler"), {"host": "web2"}])[1] is False
    assert status.table([row(200, "direct", pooled=False)])[1] is True
    assert status.table([])[1] is False


def test_application_that_nobody_sees_at_its_pooler_is_named() -> None:
    """One that falls back to sqlite answers 200 as well."""
    idle = {**row(200, "pooler"), "readiness": {}, "pools": pools("shop,shop,0,0,0,0,0,0")}
    assert "has no connection to its pooler" in status.unseen(idle)
    for other in (
        {"pools": POOLS},
        {"readiness": {"path": "pooler"}},
        {"pooled": False},
        {"pooler_error": "process 2: no answer"},
        {"status": 503},
        {"pools": []},  # of another host
    ):
        assert status.unseen({**idle, **other}) == ""
    assert status.unseen({"host": "web2"}) == ""


def test_connections_past_the_pooler_are_told_with_their_age() -> None:
    since = {"direct": 3, "direct_since": "2026-11-27 05:00:00"}
    view, healthy = status.table([{**row(200, "pooler"), **since}])
    assert healthy  # an export may go past the pooler by design
    assert list(view.columns[7].cells) == ["3, since 2026-11-27 05:00:00"]


def test_way_that_is_refused_is_unhealthy_though_the_application_serves() -> None:
    """psycopg goes past a pooler with a wrong password, and serves."""
    assert status.table([{**row(200, "pooler"), "refused": ["PgBouncer at …"]}])[1] is False
    assert status.table([{**row(200, "pooler"), "uncounted": "has 30"}])[1] is False


def test_process_that_does_not_answer_is_no_small_number() -> None:
    view, healthy = status.table([{**row(200, "pooler"), "pooler_error": "process 2: no answer"}])
    assert not healthy
    assert list(view.columns[5].cells) == ["no answer"]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        ["path"],
        "pooler",
        None,
        5,
        {"path": None, "reason": {"a": 1}},
        {"path": ["pooler"], "reason": 3},
        {"path": "x" * 10**6, "reason": "[/red]\x1b[31m\n" * 10**5},
    ],
    ids=lambda answer: str(answer)[:20],
)
def test_odd_answer_of_an_application_is_one_line(answer: object) -> None:
    view, healthy = status.table([{**row(503, "pooler"), "readiness": answer}])
    assert not healthy
    console = Console(file=io.StringIO(), width=2000)
    console.print(view)
    assert len(console.file.getvalue().strip().splitlines()) == 3
    assert "\x1b" not in console.file.getvalue()


def test_silent_host_is_reported() -> None:
    output = {
        "plays": [
            {"play": {"name": "Derive"}, "tasks": [{"hosts": {"c": {"changed": False}}}]},
            {
                "play": {"name": status.APPLICATIONS},
                "tasks": [
                    {"hosts": {"a": {}, "b": {"unreachable": True, "msg": "no route"}}},
                    {"hosts": {"a": {"msg": {"x": 1}}}},
                ],
            },
        ],
    }
    assert status.reports(output, status.APPLICATIONS) == [
        {"host": "a", "x": 1},
        {"host": "b", "error": "no route"},
    ]
    assert status.reports(output, status.POOLERS) == []


def test_pooler_that_differs_is_named() -> None:
    same = {"differs": False, "settings": [], "reasons": [], "problems": [], "error": ""}
    poolers = [
        {"host": "a", **same},
        {"host": "b", **same, "differs": True, "settings": ["pgbouncer.max_client_conn"]},
        {"host": "c", **same, "differs": True, "problems": ["pgbouncer@1 does not run"]},
        {"host": "d", **same, "error": "it is locked"},
        {"host": "silent"},
    ]
    b, c, d, silent = status.differences(poolers)
    assert b.startswith("b: the pooler does not have what the inventory says (pgbouncer.max_client")
    assert "(pgbouncer@1 does not run)" in c
    assert d == "d: the pooler cannot be compared with the inventory: it is locked"
    assert "PostgreSQL does not answer" in silent


def test_summary_adds_up(tmp_path: Path) -> None:
    suite = (
        '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'
    )
    (tmp_path / "a.xml").write_text(suite.format(10, 1, 1, 2))
    (tmp_path / "b.xml").write_text(suite.format(5, 0, 0, 0))
    assert test_summary.counts([tmp_path / "a.xml", tmp_path / "b.xml"]) == (11, 2, 2)


def test_links_that_came_as_text_are_links_again(tmp_path: Path) -> None:
    """As in a zip archive; a file that is no link is left alone."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "ansible/plugins").mkdir(parents=True)
    folder = tmp_path / ".collections/ansible_collections/a/b"
    folder.mkdir(parents=True)
    (tmp_path / "plugins").write_text("ansible/plugins")
    (folder / "plugins").write_text("../../../../ansible/plugins")
    (folder / "galaxy.yml").write_text("namespace: a\nname: b\n")
    subprocess.run(
        ["sh", "scripts/venv.sh"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHON": "false"}
    )
    assert (tmp_path / "plugins").is_symlink()
    assert (folder / "plugins").resolve() == tmp_path / "ansible/plugins"
    assert (folder / "galaxy.yml").read_text() == "namespace: a\nname: b\n"

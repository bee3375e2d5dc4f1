"""Each way to the database is tried as the application, and the first refusal is explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.modules import app_login

GIVEN = {
    **{"host": "web1", "database": "shop", "user": "shop_user", "sslmode": "verify-full"},
    **{"poolers": [["127.0.0.1", 6432], ["::1", "6433"]], "pooler_service": "shop"},
    **{"direct": [["db1", 5432]], "direct_service": "shop_direct"},
    **{"service_file": "/services", "password_file": "/passwords"},
    **{"settings": ["statement_timeout", "it's"]},
}
POOLER, SECOND, DIRECT = (
    "host=127.0.0.1 port=6432 service=shop",
    "host=::1 port=6433 service=shop",
    "host=db1 port=5432 service=shop_direct",
)

# Takes a way's answer from a file: exit code, standard output, standard error.
PSQL = """#!/usr/bin/env python3
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
options, query, way = sys.argv[1:]
with (folder / "asked").open("a") as asked:
    print(json.dumps([options, query, way, os.environ["PGSERVICEFILE"], os.environ["PGPASSFILE"]]),
          file=asked)
code, out, error = json.loads((folder / "answers").read_text()).get(way, [0, "a=1, b=2\\n", ""])
sys.stdout.write(out)
sys.stderr.write(error)
sys.exit(code)
"""


@pytest.fixture
def log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_module: Callable[..., dict]
) -> Callable[..., dict]:
    """Run the module with a psql that answers as the test says, by conninfo."""
    (tmp_path / "psql").write_text(PSQL)
    (tmp_path / "psql").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def run(answers: dict[str, list], check: bool = False, **given: object) -> dict:
        (tmp_path / "answers").write_text(json.dumps(answers))
        return run_module(app_login, check, **{**GIVEN, **given})

    return run


def asked(folder: Path) -> list[list[str]]:
    path = folder / "asked"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_way_is_tried_the_poolers_first(log_in: Callable[..., dict], tmp_path: Path) -> None:
    found = log_in({DIRECT: [0, "a=1, b=2\n", "psql: a warning\n"]})
    assert found["changed"] is False
    assert found["settings"] == [
        {"address": address, "settings": "a=1, b=2"}
        for address in ("127.0.0.1:6432", "::1:6433", "db1:5432")
    ]
    query = (
        "SELECT string_agg(name || '=' || setting, ', ' ORDER BY name) FROM pg_settings WHERE name "
        "IN ('statement_timeout', 'it''s')"
    )
    expected = ["-XAtqc", query]
    files = ["/services", "/passwords"]
    assert asked(tmp_path) == [[*expected, way, *files] for way in (POOLER, SECOND, DIRECT)]


def test_no_settings_are_asked_for() -> None:
    assert app_login.question([]).endswith("WHERE name IN (NULL)")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {
                POOLER: [2, "", "psql: error: FATAL:  no such user\n\tIs it there?\n"],
                DIRECT: [2, "", "psql: error: timeout expired\n"],
            },
            "web1: PgBouncer refuses the role shop_user of the database shop at 127.0.0.1:6432: "
            "psql: error: FATAL: no such user Is it there?; db1:5432: psql: error: timeout "
            "expired. Check the group pgbouncer and app_database_password, then run "
            "ansible/playbooks/database.yml and ansible/playbooks/pgbouncer.yml",
        ),
        (
            {DIRECT: [2, "", "psql: error: SSL error: certificate verify failed\n"]},
            "web1: PostgreSQL refuses the role shop_user of the database shop at db1:5432: psql: "
            "error: SSL error: certificate verify failed. app_database_sslmode is verify-full "
            "(database_sslmode): give a database_host that PostgreSQL's certificate names, and in "
            "database_ca_file the authority that signed it",
        ),
        (
            {SECOND: [0, "a=1\n", ""]},
            "web1: the role shop_user has other settings through PgBouncer than it has directly "
            "(a=1, b=2): ::1:6433: a=1. These connections are older than the change: have them "
            "replaced with ansible pgbouncer -b -m poolkit.poolkit.pgbouncer_admin -a "
            "'command=reconnect database=shop'",
        ),
    ],
)
def test_refusal(log_in: Callable[..., dict], answers: dict, message: str) -> None:
    found = log_in(answers)
    assert (found["failed"], found["msg"]) == (True, message)


def test_refusal_goes_before_other_settings(log_in: Callable[..., dict]) -> None:
    found = log_in({POOLER: [0, "a=1\n", ""], SECOND: [2, "", "psql: error: closed\n"]})
    assert "refuses the role" in found["msg"]


def test_poolers_alone_are_compared_with_nothing(log_in: Callable[..., dict]) -> None:
    """Without app_database_fallback_enabled the application has no other way."""
    found = log_in({POOLER: [0, "a=1\n", ""]}, direct=[])
    assert [way["settings"] for way in found["settings"]] == ["a=1", "a=1, b=2"]


def test_database_alone_is_compared_with_nothing(log_in: Callable[..., dict]) -> None:
    assert len(log_in({}, poolers=[])["settings"]) == 1


def test_check_mode_asks_nothing(log_in: Callable[..., dict], tmp_path: Path) -> None:
    assert log_in({POOLER: [2, "", ""]}, check=True)["skipped"]
    assert asked(tmp_path) == []


def test_psql_that_is_not_there(
    log_in: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "PgBouncer refuses the role shop_user" in log_in({})["msg"]
    assert "No such file or directory: 'psql'" in log_in({})["msg"]

"""docs/timeouts.md: its bold relations are refused where they are broken, its defaults are true."""

from __future__ import annotations

import re

import pytest
import yaml
from applications_page import ROOT

from plugins.filter.application import app_errors
from plugins.plugin_utils.pools import role_settings

GIVEN = {
    "strategy": "pgbouncer",
    "framework": "django",
    "database_url": "",
    "database_direct_url": "",
    "database_sslmode": "prefer",
    "database_ca_file": "",
    "database_settings": {},
    "environment_names": {},
    "workers": 2,
    "serial": 1,
    "resource_limits": {},
    "timeout_seconds": 30,
    "connect_timeout_seconds": 2,
    "hosts": 2,
    "poolers": 1,
    "query_wait_timeout_seconds": 4,
    "migration_command": [],
    "migration_pending_command": [],
}


def test_the_defaults_and_the_settings_of_the_page_are_accepted() -> None:
    page = (ROOT / "docs/timeouts.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    settings = yaml.safe_load(block)["app_database_settings"]
    assert app_errors(GIVEN) == []
    assert app_errors({**GIVEN, "database_settings": settings}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"connect_timeout_seconds": 15}, "2 hosts x app_connect_timeout_seconds 15"),
        ({"query_wait_timeout_seconds": 30}, "(query_wait_timeout)"),
        ({"database_settings": {"statement_timeout": "30s"}}, "statement_timeout is 30s"),
        ({"database_settings": {"transaction_timeout": 30000}}, "transaction_timeout is 30000"),
        ({"database_settings": {"statement_timeout": "5 sec"}}, "'5 sec' is no time"),
        (
            {"database_settings": {"idle_in_transaction_session_timeout": "8 seconds"}},
            "idle_in_transaction_session_timeout: '8 seconds' is no time",
        ),
        ({"connect_timeout_seconds": 0}, "app_connect_timeout_seconds is 0, which would wait"),
        ({"query_wait_timeout_seconds": 0}, "query_wait_timeout is 0 in pgbouncer_settings"),
    ],
)
def test_a_broken_relation_is_refused(change: dict, words: str) -> None:
    (error,) = app_errors({**GIVEN, **change})
    assert words in error


def test_the_table_has_the_defaults() -> None:
    rows = re.findall(r"^\| .* \|$", (ROOT / "docs/timeouts.md").read_text(), re.MULTILINE)
    defaults = yaml.safe_load((ROOT / "roles/app/defaults/main.yml").read_text())
    found = 0
    for row in rows:
        _, variable, default, _ = (cell.strip(" |") for cell in row.strip("|").split(" | "))
        if named := re.match(r"`(app_\w+)`", variable):
            assert default.startswith(f"`{defaults[named[1]]}`"), row
            found += 1
        elif "query_wait_timeout" in variable:
            assert default == f"`{role_settings()['query_wait_timeout']}`"
    assert found == 8

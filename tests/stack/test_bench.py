"""The benchmark, as small as it can be, on these hosts: a command that nobody runs rots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from controller import ROOT

STRATEGIES = ("no query", "pgbouncer", "native")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    output = tmp_path_factory.mktemp("bench") / "result"
    command = [sys.executable, ROOT / "scripts/bench.py", "stack", "--quick", "--only", "flask"]
    command += ["--requests", "200", "--strategies", *STRATEGIES, "--output", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<svg" in Path(f"{output}.html").read_text()
    return json.loads(Path(f"{output}.json").read_text())["rows"]


def test_every_request_is_answered(rows: list[dict]) -> None:
    assert {row["strategy"] for row in rows} == set(STRATEGIES)
    for row in rows:
        assert (row["requests"], row["errors"]) == (200, {}), row


def test_the_pooler_passes_queries_on(rows: list[dict]) -> None:
    queries = {row["strategy"]: row["pooler_queries_per_request"] for row in rows}
    assert queries["pgbouncer"] >= 1
    assert queries["no query"] < 0.1
    assert queries["native"] < 0.1


def test_the_inventorys_strategy_is_back(rows: list[dict]) -> None:
    status = subprocess.run(
        [sys.executable, ROOT / "scripts/status.py", "--json", "--limit", "flask*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    (row,) = json.loads(status.stdout)["applications"]
    assert row["readiness"]["path"] == "pooler", status.stderr

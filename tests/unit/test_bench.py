"""The benchmark's own arithmetic and messages; the scenario `stack` runs it on real hosts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bench
import pytest
from benchmark import load, pool, report, stack
from rich.console import Console

HEAD = "response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset"


def rows(*answers: tuple[float, str, float]) -> list[dict[str, str]]:
    """Rows of `hey -o csv`: (seconds, status, offset)."""
    return [
        {"response-time": str(seconds), "status-code": status, "offset": str(offset)}
        for seconds, status, offset in answers
    ]


def test_summary_of_a_load() -> None:
    found = load.summary(rows((0.01, "200", 0), (0.03, "200", 1.97), (0.5, "503", 1)), 4, False)
    assert found["requests"] == 3
    assert found["requests_per_second"] == 1.0  # two good ones in two seconds
    assert (found["p50_ms"], found["p99_ms"], found["max_ms"]) == (10, 30, 30)
    assert found["errors"] == {"503": 1, "no answer": 1}


def test_what_was_not_made_is_no_error() -> None:
    found = load.summary(rows((0.01, "200", 0)), 5000, cut=True)
    assert (found["errors"], found["cut"]) == ({}, True)


def test_load_without_an_answer_has_no_times() -> None:
    found = load.summary([], 2, False)
    assert (found["requests_per_second"], found["max_ms"]) == (0.0, 0.0)
    assert found["errors"] == {"no answer": 2}


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.95, 4), (0.25, 1), (1.0, 4)])
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert load.percentile([1, 2, 3, 4], share) == value


def hey(folder: Path, status: str) -> None:
    """A generator that answers at once."""
    program = folder / "hey"
    program.write_text(f"#!/bin/sh\necho '{HEAD}'\necho '0.01,0,0,0,0,0,{status},0'\n")
    program.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(bench.sys, "argv", ["bench.py"])
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(bench.sys, "argv", ["bench.py", *arguments])
    return bench.main()


def test_missing_generator_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(path))
    assert run(monkeypatch, "http", "--url", "http://127.0.0.1:1/") == 2
    assert "hey is not installed" in capsys.readouterr().err


def test_answer_that_is_not_2xx_stops_before_the_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hey(path, "404")
    output = path / "result"
    code = run(monkeypatch, "http", "--url", "http://127.0.0.1:1/", "--output", str(output))
    assert code == 2
    assert "does not answer with 2xx, but with: 404" in capsys.readouterr().err
    assert not list(path.glob("result*"))


def test_urls_are_measured_in_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hey(path, "200")
    words = ["http", "--url", "http://a/", "--url", "http://b/", "--rounds", "2"]
    words += ["--requests", "1", "--concurrency", "1", "--output", str(path / "result")]
    assert run(monkeypatch, *words) == 0
    result = report.read(path / "result.json")
    assert [row["name"] for row in result["rows"]] == ["http://a/", "http://b/"] * 2
    assert "<svg" in (path / "result.html").read_text()


def test_interrupted_run_keeps_what_was_measured(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hey(path, "200")
    made = []

    def interrupted(*given: object) -> dict:
        made.append(given)
        if len(made) == 3:
            raise KeyboardInterrupt
        return load.load(*given)

    monkeypatch.setattr(bench, "load", interrupted)
    words = ["http", "--url", "http://a/", "--requests", "1", "--concurrency", "1"]
    assert run(monkeypatch, *words, "--output", str(path / "result")) == 130
    assert len(report.read(path / "result.json")["rows"]) == 2


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_number_that_measures_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "http", "--url", "http://a/", "--rounds", number)


def test_password_of_an_endpoint_is_refused() -> None:
    with pytest.raises(load.Unusable, match=r"db:5432/shop: leave the password out") as caught:
        pool.check("postgresql://shop:hidden@db:5432/shop")
    assert "hidden" not in str(caught.value)


def test_silent_endpoint_is_named() -> None:
    with pytest.raises(load.Unusable, match=r"127\.0\.0\.1:1/shop: "):
        pool.check("postgresql://shop@127.0.0.1:1/shop")


def test_strategies_take_turns() -> None:
    app = stack.Application("django", "django1", "poolkit-django1", 8000, "poolkit-db1")
    found = list(stack.plan([app], 2, list(stack.STRATEGIES), [50, 200]))
    first = [row["strategy"] for row in found if row["round"] == 1]
    names = list(stack.STRATEGIES)
    assert list(dict.fromkeys(first)) == names
    second = [row["strategy"] for row in found if row["round"] == 2]
    assert list(dict.fromkeys(second)) == [*names[1:], names[0]]
    assert [row["round"] for row in found] == sorted(row["round"] for row in found)
    paths = {(row["path"], row["concurrency"]) for row in found if row["strategy"] == "direct"}
    assert paths == {("/ping-db", 50), ("/ping-db", 200), ("/items", 50)}


def row(strategy: str, rate: float, number: int = 1, **errors: int) -> dict:
    return {
        **{"name": "django", "path": "/ping-db", "concurrency": 50, "strategy": strategy},
        **{"round": number, "requests": 100, "requests_per_second": rate, "errors": errors},
        **{"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "max_ms": 4.0, "cut": False},
        **{"connections": [1, 2], "connections_peak": 2, "connections_mean": 1.5},
        **{"pooler_queries_per_request": 1.0, "pooler_wait_ms_per_request": 0.0},
        "cpu_ms_per_request": {"application": 1.0, "pgbouncer": 0.1, "postgresql": 0.2},
    }


def result(*measured: dict) -> dict:
    started = "2026-11-27T10:00:00+00:00"
    return {"schema": 1, "started": started, "settings": {}, "versions": {}, "rows": [*measured]}


def shown(view: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_rounds_become_medians_with_their_spread() -> None:
    rounds = [row("direct", rate, n, **{"500": n}) for n, rate in enumerate((80, 20, 90))]
    (cell,) = report.medians(rounds).values()
    assert (cell["requests_per_second"], cell["spread"]) == (80, (20, 90))
    assert report.share(cell) == "1.0 % (500)"  # 3 of 300
    assert "20-90" in shown(report.table(result(*rounds)))


def test_two_results_are_compared() -> None:
    text = shown(report.comparison(result(row("native", 50)), result(row("native", 100))))
    assert re.search(r"native\s+50\.0\s+100\.0\s+2\.00", text)


def test_one_client_is_told_in_sentences() -> None:
    ways = [
        {"way": "pgbouncer", "query_us": 170.4, "login_ms": 2.66},
        {"way": "direct", "query_us": 117.0, "login_ms": 8.3},
    ]
    found = {"one_client": {"name": "shop", "ways": ways, "scram_key_ms": 0.58}}
    pooler, direct, scram = report.one_client(found)
    assert pooler == "One client of shop, pgbouncer: a query 170 µs (+53 µs), a login 2.7 ms"
    assert "(+0 µs)" in direct
    assert scram.startswith("Of each login, 0.6 ms")
    assert report.one_client({}) == []


def test_page_needs_nothing_else() -> None:
    text = report.page(result(row("pgbouncer", 900), row('<b>"', 80)))
    assert text.count("<svg") == 2  # throughput and connections
    # In the colour of the text, for light and dark screens alike.
    assert "currentColor" in text
    assert report.TEXT not in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}'])
def test_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(load.Unusable, match="is no result"):
        report.read(tmp_path / "x.json")


def test_result_is_plain_json(tmp_path: Path) -> None:
    kept = bench.Rows(tmp_path / "r", {"requests": 1})
    kept.append(row("direct", 1))
    assert json.loads((tmp_path / "r.json").read_text())["rows"][0]["strategy"] == "direct"

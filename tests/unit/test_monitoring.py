"""Alert rules and dashboard name metrics and labels that the exporter has; promtool tries them.

tests/unit/files/monitoring/pgbouncer-alerts.test.yml has when each alert fires, and when it does
not; tests/runbooks/test_alerts.py lets a real Prometheus see real faults.
"""

from __future__ import annotations

import html
import itertools
import json
import re
import subprocess
from pathlib import Path

import dashboard_picture
import pgbouncer_exporter
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "templates/monitoring/pgbouncer-alerts.yml"
CASES = Path(__file__).parent / "files/monitoring/pgbouncer-alerts.test.yml"
DASHBOARD = json.loads((ROOT / "templates/monitoring/pgbouncer-dashboard.json").read_text())
PAGE = (ROOT / "docs/monitoring.md").read_text()

RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
TESTS = yaml.safe_load(CASES.read_text())["tests"]
PANELS = DASHBOARD["panels"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
OF_A_SCRAPE = {"job", "instance"}
"""The labels that Prometheus adds."""


def labels() -> dict[str, set[str]]:
    """Return {metric: its labels}, for the exporter's metrics and Prometheus' own `up`."""
    keys = {"POOLS": ["database", "user"], "DATABASES": ["name"], "STATS": ["database"]}
    parts = []
    for what, columns in pgbouncer_exporter.COLUMNS.items():
        if what in keys:
            header = [*keys[what], *columns]
            parts.append(",".join(header) + "\n" + ",".join("1" for _ in header) + "\n")
        else:
            parts.append("key,value\n" + "".join(f"{name},1\n" for name in columns))
    found = pgbouncer_exporter.samples("1", "\n".join(parts))
    found += pgbouncer_exporter.kills("/nonexistent", "1")
    found.append(("direct_connections", {"user": "shop"}, 1.0))
    found.append(("certificate_not_after_seconds", {"file": "/etc/pgbouncer/tls/a.crt"}, 1.0))
    names = {
        f"pgbouncer_{metric}": {label for label, value in own.items() if value}
        for metric, own, _ in found
    }
    return {"up": set(), **names}


LABELS = labels()


def metrics(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    without_texts = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:pgbouncer_\w+|up)\b", without_texts))


def matched(expression: str) -> list[tuple[str, set[str]]]:
    """Return each metric of an expression with the labels that its braces name."""
    selectors = re.findall(r"\b(pgbouncer_\w+|up)\b(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r'(\w+)\s*(?:=|!)~?\s*"', braces))) for name, braces in selectors]


def series(text: str) -> tuple[str, dict[str, str]]:
    """Return the metric and the labels of a series in the notation of promtool."""
    return text.partition("{")[0], dict(re.findall(r'(\w+)="([^"]*)"', text))


def firing(test: dict) -> list[set[str]]:
    """Return the alerts that a test expects to fire, at each of its moments."""
    return [
        {series(sample["labels"])[1]["alertname"] for sample in moment["exp_samples"]}
        for moment in test["promql_expr_test"]
    ]


def test_the_labels_are_the_exporters() -> None:
    assert LABELS["pgbouncer_up"] == {"process"}
    assert LABELS["pgbouncer_watchdog_kills_total"] == {"process"}
    assert LABELS["pgbouncer_pools_client_maxwait_seconds"] == {"process", "database", "user"}
    assert LABELS["pgbouncer_databases_paused"] == {"process", "database"}
    assert LABELS["pgbouncer_paused"] == LABELS["pgbouncer_used_clients"] == {"process"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rule_names_metrics_and_labels_that_exist(rule: dict) -> None:
    named = metrics(rule["expr"])
    assert (ROOT / rule["annotations"]["runbook"]).exists()
    assert named and named <= LABELS.keys(), named - LABELS.keys()
    for metric, selected in matched(rule["expr"]):
        assert selected <= LABELS[metric] | OF_A_SCRAPE, metric
    first, *others = (LABELS[metric] for metric in re.findall(r"pgbouncer_\w+|up", rule["expr"]))
    joined = {
        label
        for group in re.findall(r"\bon \(([^)]*)\)", rule["expr"])
        for label in group.split(", ")
    }
    assert joined <= first.union(*others) | OF_A_SCRAPE
    told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert told <= first | OF_A_SCRAPE | (others[-1] if " or " in rule["expr"] else set())
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}


def test_every_alert_fires_once_and_is_silent_at_the_moment_before() -> None:
    fired = set()
    for test in TESTS:
        for before, now in itertools.pairwise(firing(test)):
            fired |= now - before
        assert any(not moment for moment in firing(test)), test["name"]
    assert fired == {rule["alert"] for rule in RULES}


def test_the_cases_have_the_labels_of_real_scrapes() -> None:
    for text in (one["series"] for test in TESTS for one in test["input_series"]):
        metric, own = series(text)
        assert own.keys() == LABELS[metric] | OF_A_SCRAPE, text


def test_the_page_has_every_alert_its_severity_and_where_to_look() -> None:
    found = re.findall(
        r"^\| `(\w+)` \| .+ \| (\w+) \| \[[^]]+\]\(([^)#]*)[^)]*\).* \|$", PAGE, re.MULTILINE
    )
    rows = {alert: (severity, f"docs/{page or 'monitoring.md'}") for alert, severity, page in found}
    assert rows == {
        rule["alert"]: (rule["labels"]["severity"], rule["annotations"]["runbook"])
        for rule in RULES
    }


def test_panels_are_whole_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS) >= 15
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        place = panel["gridPos"]
        assert place["x"] in range(24 - place["w"] + 1)
        cells = itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
        fresh = set(cells)
        assert not fresh & taken, panel["title"]
        taken |= fresh


def test_the_dashboard_takes_the_data_source_that_its_user_chooses() -> None:
    assert VARIABLES["DS_PROMETHEUS"]["type"] == "datasource"
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    queried = [variable for variable in VARIABLES.values() if variable["type"] == "query"]
    targets = [target for _, target in TARGETS]
    assert all(part["datasource"] == source for part in [*PANELS, *targets, *queried])
    assert {variable["name"] for variable in queried} == {"instance", "database", "user"}


@pytest.mark.parametrize("title, target", TARGETS, ids=lambda value: str(value)[:30])
def test_panel_names_metrics_and_labels_that_exist(title: str, target: dict) -> None:
    expression = target["expr"]
    named = metrics(expression)
    assert named and named <= LABELS.keys(), named - LABELS.keys()
    for metric, selected in matched(expression):
        assert "instance" in selected, "the panel does not follow the variable"
        assert selected <= LABELS[metric] | OF_A_SCRAPE, metric
    used = set(re.findall(r'"\$(\w+)"', expression))
    assert used <= VARIABLES.keys()
    kept = [set(group.split(", ")) for group in re.findall(r"by \(([^)]*)\)", expression)]
    shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    of_all = set.union(*(LABELS[metric] for metric in named)) | OF_A_SCRAPE
    assert shown <= (kept[0] if kept else of_all)
    assert all(group <= of_all for group in kept)


def test_the_panels_show_what_the_alerts_watch() -> None:
    shown = set().union(*(metrics(target["expr"]) for _, target in TARGETS))
    watched = set().union(*(metrics(rule["expr"]) for rule in RULES))
    assert watched - shown == {"up"}


def test_variables_are_replaced_as_all_of_their_values() -> None:
    values = {"instance": ["web1:9127", "10.0.0.1:9127"], "database": []}
    text = 'rate(a{instance=~"$instance",database=~"$database"}[$__rate_interval])'
    assert dashboard_picture.fill(text, values, "20s") == (
        r'rate(a{instance=~"web1:9127|10\\.0\\.0\\.1:9127",database=~""}[20s])'
    )


@pytest.mark.parametrize(
    "value, unit, decimals, text",
    [
        (0.0123, "s", None, "12.3 ms"),
        (4.5, "s", None, "4.5 s"),
        (0.918, "percentunit", 1, "91.8%"),
        (29.6, "d", 0, "30 days"),
        (480.0, "ops", None, "480 ops/s"),
        (0.0, "short", None, "0"),
    ],
)
def test_a_number_is_shown_with_its_unit(
    value: float, unit: str, decimals: int | None, text: str
) -> None:
    assert dashboard_picture.show(value, unit, decimals) == text


def test_a_threshold_counts_from_its_value_on() -> None:
    steps = [{"color": "red", "value": None}, {"color": "green", "value": 30}]
    colors = dashboard_picture.COLORS
    assert dashboard_picture.color(29.9, steps) == colors["red"]
    assert dashboard_picture.color(30, steps) == colors["green"]


def test_the_picture_has_every_panel(tmp_path: Path) -> None:
    """With what it asked for; where nothing comes, it says so."""
    asked = []

    def ask(target: dict) -> list[dashboard_picture.Series]:
        asked.append(target)
        if "certificate" in target["expr"]:
            return []
        return [("web1:9127", [1e9, 1e9 + 15, 1e9 + 30], [3.0, float("nan"), 4.0])]

    path = tmp_path / "a.svg"
    dashboard_picture.save(dashboard_picture.draw(DASHBOARD, ask), path)
    assert asked == [target for _, target in TARGETS]
    text = html.unescape(path.read_text())
    assert all(panel["title"] in text for panel in PANELS)
    assert text.count(">No data<") == 2


@pytest.fixture(scope="module")
def promtool() -> str:
    """The path of promtool, which the first run downloads."""
    done = subprocess.run([ROOT / "scripts/promtool.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.playbooks
def test_promtool_takes_the_rules(promtool: str) -> None:
    done = run(promtool, "check", "rules", "--lint-fatal", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


@pytest.mark.playbooks
def test_alerts_fire_when_they_are_meant_to(promtool: str) -> None:
    done = run(promtool, "test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.playbooks
def test_the_panels_expressions_parse(promtool: str, tmp_path: Path) -> None:
    rules = [
        {
            "record": f"panel:{number}",
            "expr": re.sub(r"\$(__\w+)", "1m", target["expr"]).replace("$", ""),
        }
        for number, (_, target) in enumerate(TARGETS)
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = run(promtool, "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr

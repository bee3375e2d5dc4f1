"""The page for people, and the exit codes of status; a browser opens it in the scenario stack."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report
import sample_fleet
import status

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def page(fleet: dict, problems: tuple[str, ...] = ()) -> str:
    rows, poolers = fleet["applications"], fleet["poolers"]
    return status.page(rows, poolers, fleet["budget"], problems, "inventories/mine", NOW)


class Reader(HTMLParser):
    """Collects what a browser would make of a page: open elements, attributes, text."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.elements.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


FLEETS = {
    "beside": sample_fleet.beside(3),
    "tier": sample_fleet.tier(40, 3),
    "hostile": sample_fleet.hostile(),
    "silent": sample_fleet.silent(),
    "mixed": sample_fleet.mixed(),
}


@pytest.fixture(params=FLEETS)
def fleet(request: pytest.FixtureRequest) -> dict:
    return FLEETS[request.param]


def test_page_is_well_formed_and_asks_nobody(fleet: dict) -> None:
    text = page(fleet, ("web1: a problem",))
    found = Reader(text)
    assert found.open == []
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "section", "div", "h1"}
    allowed |= {"h2", "p", "ul", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th"}
    allowed |= {"td", "span", "svg", "g", "rect", "text", "path"}
    assert set(found.elements) <= allowed  # no script, link, img, iframe, a
    assert not {name for name, _ in found.attributes} & {"src", "href", "style", "onload"}
    assert "url(" not in text and "@import" not in text
    assert "web1: a problem" in found.text


def test_every_text_is_escaped() -> None:
    text = page(FLEETS["hostile"], (sample_fleet.ODD,))
    assert "<script" not in text
    assert sample_fleet.ODD in Reader(text).text


def test_page_tells_what_the_fleet_has() -> None:
    found = Reader(page(FLEETS["beside"])).text
    for words in (
        *("inventories/mine", "2026-11-28 12:00:00 UTC", "3 of 3", "web1", "Nothing to repair"),
        *("30 connections may be open at once, 67 of 97 are left", "5 are open now"),
        *("1.24.1-1+deb13u2", "debian 13", "17.12", "CVE-1: a fault", "server.crt"),
        *("0123456789ab", "2026-11-28 08:00:00", "ba9876543210"),
    ):
        assert words in found, words


def test_silent_hosts_are_told() -> None:
    found = Reader(page(FLEETS["silent"])).text
    assert "0 of 2" in found
    assert "no: the host does not answer (no route to web2)" in found
    assert "Nothing to repair" not in found
    assert "Not known: no host could tell" in found


def test_path_is_told_in_words() -> None:
    direct = sample_fleet.beside(1)
    direct["applications"][0] |= {"readiness": {"path": "direct"}, "direct": 3}
    found = Reader(page(direct)).text
    assert "3 direct" in found
    assert "not as it should be, path direct" in found


def test_only_what_the_page_is_for_gets_into_it() -> None:
    """What an application answers may hold anything, and so may what later reports add."""
    fleet = sample_fleet.beside(2)
    for row in fleet["applications"]:
        row["readiness"] |= {"password": "SECRET", "dsn": "postgres://shop:SECRET@db1/shop"}
        row["environment"] = {"APP_SECRET_KEY": "SECRET"}
    for pooler in fleet["poolers"]:
        pooler["userlist"] = "SECRET"
    fleet["budget"]["password"] = "SECRET"
    text = page(fleet)
    assert "web1" in text
    assert "SECRET" not in text


def overlap(boxes: list[dict]) -> list[tuple]:
    tops = sorted((box["y"], box["host"]) for box in boxes)
    return [
        (one, two) for one, two in itertools.pairwise(tops) if two[0] - one[0] < report.BOX_HEIGHT
    ]


def test_boxes_of_the_picture_do_not_overlap(fleet: dict) -> None:
    picture = report.topology(fleet["applications"], fleet["poolers"], status.path_of)
    for boxes in (picture["applications"], picture["poolers"]):
        assert overlap(boxes) == []
        assert all(0 <= box["y"] <= picture["height"] - report.BOX_HEIGHT for box in boxes)
    assert len(picture["applications"]) == len(fleet["applications"])
    tops = {box["y"] for box in picture["poolers"]}
    assert {line["to"] for line in picture["lines"] if line["kind"] == "first"} <= tops


def test_ways_of_a_tier() -> None:
    fleet = sample_fleet.tier(4, 2)
    picture = report.topology(fleet["applications"], fleet["poolers"], status.path_of)
    first = [line for line in picture["lines"] if line["kind"] == "first"]
    assert len(first) == 8
    assert sum(line["taken"] for line in first) == 4
    assert [box["host"] for box in picture["poolers"]] == ["pool1", "pool2"]


def run(
    fleet: dict, monkeypatch: pytest.MonkeyPatch, *options: str, output: str | None = None
) -> int:
    """Run status.py, with what ansible-playbook would print for a fleet."""
    plays = [
        {
            "play": {"name": name},
            "tasks": [{"hosts": {row["host"]: {"msg": row} for row in rows}}],
        }
        for name, rows in (
            (status.APPLICATIONS, fleet["applications"]),
            (status.POOLERS, fleet["poolers"]),
            (status.BUDGET, [{"host": "web1", **fleet["budget"]}]),
        )
    ]
    text = json.dumps({"plays": plays}) if output is None else output
    done = subprocess.CompletedProcess([], 0, text, "")
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    monkeypatch.setattr(sys, "argv", ["status.py", *options])
    code = status.main()
    assert ("ask_server=true" in commands[0]) == ("--report" in options)
    assert commands[0].count("--inventory") == options.count("-i") + options.count("--inventory")
    return code


def test_exit_codes_for_cron(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sample_fleet.beside(2), monkeypatch) == 0
    ended = sample_fleet.beside(2)
    ended["poolers"][1]["certificates"] = [sample_fleet.certificate("2020-01-01T00:00:00Z")]
    capsys.readouterr()
    assert run(ended, monkeypatch) == 1
    assert "web2: the certificate of /etc/pgbouncer/tls/server.crt" in capsys.readouterr().err
    differs = sample_fleet.beside(2)
    differs["poolers"][0]["differs"] = True
    assert run(differs, monkeypatch) == 1
    past = sample_fleet.beside(2)
    past["applications"][0]["readiness"] = {"path": "direct"}
    assert run(past, monkeypatch) == 1
    assert run({"applications": [], "poolers": [], "budget": {}}, monkeypatch) == 2
    assert run(sample_fleet.beside(2), monkeypatch, output="no JSON") == 2


def test_json_and_page_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.html"
    options = ("--json", "--report", str(path), "-i", "one", "--inventory", "two")
    assert run(sample_fleet.beside(2), monkeypatch, *options) == 0
    told = capsys.readouterr()
    assert json.loads(told.out).keys() == {"applications", "poolers", "budget"}
    assert f"Wrote {path}" in told.err
    assert "2 of 2" in path.read_text()
    assert "Inventory one, two, read at" in path.read_text()

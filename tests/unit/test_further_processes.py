"""An application's workers and schedules, with a stand-in for systemd."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from plugins.module_utils import further_processes
from plugins.module_utils.further_processes import Processes
from plugins.module_utils.refused import Refused


class Systemd:
    """Units that run since a number of starts; one in `crashing` is started again by systemd."""

    def __init__(self) -> None:
        self.called: list[tuple[str, ...]] = []
        self.crashing: set[str] = set()
        self.refusing: set[str] = set()
        self.asked = 0

    def systemctl(self, *arguments: str) -> CompletedProcess[str]:
        self.called.append(arguments)
        code = int(bool(self.refusing & set(arguments)))
        return CompletedProcess(arguments, code, "", "Failed to start")

    def properties(self, unit: str, _: str) -> dict[str, str]:
        self.asked += 1
        moment = str(self.asked) if unit in self.crashing else "1"
        return {"ActiveState": "active", "ExecMainStartTimestampMonotonic": moment}


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """On a host with a worker, a schedule, and units that are others'."""
    for name, text in {
        "shop.worker.service": "[Unit]\nX-Poolkit=shop\n",
        "shop.timer-x.service": "[Unit]\nX-Poolkit=shop\n",
        "shop.timer-x.timer": "[Unit]\nX-Poolkit=shop\n",
        "shop.backup.service": "[Unit]\nDescription=the operator's own\n",
        "shop.backup.timer": "[Unit]\nDescription=the operator's own\n",
        "shop.service": "[Unit]\nX-Poolkit=shop\n",
        "shop-b.worker.service": "[Unit]\nX-Poolkit=shop-b\n",
    }.items():
        (tmp_path / name).write_text(text)
    found = Systemd()
    monkeypatch.setattr(further_processes, "UNITS", tmp_path)
    monkeypatch.setattr(further_processes, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(further_processes, "properties", found.properties)
    monkeypatch.setattr(further_processes, "log_end", lambda *_, **__: "ImportError: queue")
    monkeypatch.setattr(further_processes, "systemctl", found.systemctl)
    return found


@pytest.fixture
def shop(systemd: Systemd, tmp_path: Path) -> Processes:
    (tmp_path / "config").mkdir()
    return Processes("shop", tmp_path / "config")


def test_units_of_an_application(shop: Processes) -> None:
    names = ["shop.timer-x.service", "shop.timer-x.timer", "shop.worker.service"]
    assert [path.name for path in shop.files()] == names
    timed = (["shop.worker.service"], ["shop.timer-x.timer"], ["shop.timer-x.service"])
    assert shop.units() == timed


def test_workers_start_together_and_timers_last(shop: Processes, systemd: Systemd) -> None:
    shop.start()
    assert systemd.called == [
        ("daemon-reload",),
        ("enable", "--quiet", "shop.worker.service"),
        ("restart", "shop.worker.service"),
        ("enable", "--now", "--quiet", "shop.timer-x.timer"),
    ]


def test_worker_that_does_not_stay_up_is_refused(shop: Processes, systemd: Systemd) -> None:
    """And nothing of its release runs at its time."""
    systemd.crashing.add("shop.worker.service")
    with pytest.raises(Refused, match=r"shop\.worker\.service does not stay up: .*ImportError"):
        shop.start()
    assert not any("shop.timer-x.timer" in call for call in systemd.called)


def test_timer_that_does_not_start_is_refused(shop: Processes, systemd: Systemd) -> None:
    systemd.refusing.add("shop.timer-x.timer")
    with pytest.raises(Refused, match=r"shop\.timer-x\.timer does not start: Failed to start"):
        shop.start()


def test_all_stop_and_the_timers_first(shop: Processes, systemd: Systemd) -> None:
    shop.stop()
    assert systemd.called == [
        ("disable", "--now", "--quiet", "shop.timer-x.timer", "shop.worker.service"),
        ("stop", "shop.timer-x.service"),
    ]


def test_without_any_nothing_is_asked(systemd: Systemd, tmp_path: Path) -> None:
    blog = Processes("blog", tmp_path)
    blog.start()
    blog.stop()
    blog.keep("aaa", {Path("/etc/systemd/system/blog.service"): "[Unit]"}, {"aaa"})
    assert blog.reasons([]) == []
    assert (systemd.called, systemd.asked, blog.kept()) == ([], 0, {})
    assert not (tmp_path / ".processes.json").exists()


def test_each_release_keeps_its_own(shop: Processes, tmp_path: Path) -> None:
    worker = tmp_path / "shop.worker.service"
    shop.keep("aaa", {worker: "old", Path("/etc/poolkit/shop/app.env"): "SECRET"}, {"aaa"})
    shop.keep("bbb", {}, {"aaa", "bbb"})
    assert shop.kept() == {"aaa": {str(worker): "old"}, "bbb": {}}
    shop.keep("ccc", {worker: "new"}, {"bbb", "ccc"})
    assert shop.kept() == {"bbb": {}, "ccc": {str(worker): "new"}}


def test_reasons(shop: Processes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states = {
        "shop.worker.service": {
            **{"ActiveState": "failed", "UnitFileState": "disabled"},
            "ActiveEnterTimestamp": "Mon 2001-01-01 00:00:00.000000 UTC",
        },
        "shop.timer-x.timer": {
            **{"ActiveState": "active", "UnitFileState": "enabled"},
            "ActiveEnterTimestamp": "Fri 2099-01-01 00:00:00.000000 UTC",
        },
    }
    monkeypatch.setattr(further_processes, "properties", lambda unit, _: states[unit])
    (tmp_path / "app.env").touch()
    assert shop.reasons([str(tmp_path / "app.env")]) == [
        "shop.worker.service is not active",
        "shop.worker.service is not enabled",
        f"{tmp_path}/shop.worker.service is newer than shop.worker.service",
        f"{tmp_path}/app.env is newer than shop.worker.service",
    ]

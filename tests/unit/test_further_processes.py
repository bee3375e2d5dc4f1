"""An application's workers and schedules, with a stand-in for systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.module_utils import further_processes
from plugins.module_utils.further_processes import Processes
from plugins.module_utils.refused import Refused


class Systemd:
    """Units that run since a number of starts; one in `crashing` is started again by systemd."""

    def __init__(self) -> None:
        self.called: list[tuple[str, ...]] = []
        self.crashing: set[str] = set()
        self.asked = 0

    def run(self, *arguments: str) -> None:
        self.called.append(arguments)

    def properties(self, unit: str, _: str) -> dict[str, str]:
        self.asked += 1
        moment = str(self.asked) if unit in self.crashing else "1"
        return {"ActiveState": "active", "ExecMainStartTimestampMonotonic": moment}


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """On a host with a worker, a schedule, and units that are others'."""
    for name in (
        *("shop.worker.service", "shop.tidy.service", "shop.tidy.timer"),
        *("shop.service", "shop-next.service", "shop-b.worker.service", "shop.socket"),
    ):
        (tmp_path / name).touch()
    found = Systemd()
    monkeypatch.setattr(further_processes, "UNITS", tmp_path)
    monkeypatch.setattr(further_processes, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(further_processes, "properties", found.properties)
    monkeypatch.setattr(further_processes, "log_end", lambda *_, **__: "ImportError: queue")
    monkeypatch.setattr(further_processes, "systemctl", lambda *call: found.called.append(call))
    return found


def test_units_of_an_application(systemd: Systemd, tmp_path: Path) -> None:
    processes = Processes("shop")
    names = ["shop.tidy.service", "shop.tidy.timer", "shop.worker.service"]
    assert [path.name for path in processes.files()] == names
    assert processes.units() == (["shop.worker.service"], ["shop.tidy.timer"])
    own = [path.name for path in sorted(tmp_path.iterdir()) if processes.own(path)]
    assert own == names
    assert not processes.own(Path("/etc/poolkit/shop.worker.service"))


def test_workers_start_together_and_schedules_by_their_timer(systemd: Systemd) -> None:
    Processes("shop").start(systemd.run)
    assert systemd.called == [
        ("daemon-reload",),
        ("enable", "--quiet", "shop.worker.service", "shop.tidy.timer"),
        ("restart", "shop.worker.service", "shop.tidy.timer"),
    ]


def test_worker_that_does_not_stay_up_is_refused(systemd: Systemd) -> None:
    systemd.crashing.add("shop.worker.service")
    with pytest.raises(Refused, match=r"shop\.worker\.service does not stay up: .*ImportError"):
        Processes("shop").start(systemd.run)


def test_without_any_nothing_is_asked(systemd: Systemd) -> None:
    Processes("blog").start(systemd.run)
    assert Processes("blog").reasons([]) == []
    assert (systemd.called, systemd.asked) == ([], 0)


def test_reasons(systemd: Systemd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states = {
        "shop.worker.service": {
            **{"ActiveState": "failed", "UnitFileState": "disabled"},
            "ActiveEnterTimestamp": "Mon 2001-01-01 00:00:00.000000 UTC",
        },
        "shop.tidy.timer": {
            **{"ActiveState": "active", "UnitFileState": "enabled"},
            "ActiveEnterTimestamp": "Fri 2099-01-01 00:00:00.000000 UTC",
        },
    }
    monkeypatch.setattr(further_processes, "properties", lambda unit, _: states[unit])
    (tmp_path / "app.env").touch()
    assert Processes("shop").reasons([str(tmp_path / "app.env")]) == [
        "shop.worker.service is not active",
        "shop.worker.service is not enabled",
        f"{tmp_path}/shop.worker.service is newer than shop.worker.service",
        f"{tmp_path}/app.env is newer than shop.worker.service",
    ]


def test_stopped_for_good(systemd: Systemd, tmp_path: Path) -> None:
    Processes("shop").stop(tmp_path / "shop.tidy.timer")
    assert systemd.called == [("disable", "--now", "--quiet", "shop.tidy.timer")]

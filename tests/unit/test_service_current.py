"""When a service must read its files again, by the times on the host."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.modules import service_current


def test_timestamp_has_microseconds() -> None:
    text = "Fri 2026-11-20 10:43:43.250000 UTC"
    assert service_current.timestamp(text) == 1795171423.25


@pytest.mark.parametrize("text", ["", "n/a"])
def test_a_service_that_never_started(text: str) -> None:
    assert service_current.timestamp(text) == 0.0


@pytest.mark.parametrize(
    ("active", "unit_time", "list_time", "expected"),
    [
        (False, 1, 1, "start"),
        (True, 1, 1, "none"),
        (True, 150, 1, "restart"),
        (True, 1, 150, "none"),  # reloaded at 200
        (True, 1, 250, "reload"),
        (True, 150, 250, "restart"),
    ],
)
def test_decision(
    tmp_path: Path, active: bool, unit_time: int, list_time: int, expected: str
) -> None:
    """Started at 100, reloaded at 200."""
    unit, userlist = tmp_path / "unit", tmp_path / "userlist"
    for path, moment in ((unit, unit_time), (userlist, list_time)):
        path.touch()
        os.utime(path, (moment, moment))
    missing = str(tmp_path / "missing")
    action, newer = service_current.decide(active, [str(unit), missing], [str(userlist)], 100, 200)
    assert action == expected
    assert newer == {"restart": [str(unit)], "reload": [str(userlist)]}.get(expected, [])


@pytest.mark.parametrize(
    ("check", "restart", "reload", "expected"),
    [
        (True, True, True, "restart"),
        (True, False, True, "reload"),
        (True, False, False, "none"),
        (False, True, True, "none"),  # a run that has written the files sees their times
    ],
)
def test_check_mode_foresees_what_files_need_that_it_has_not_written(
    run_module: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
    check: bool,
    restart: bool,
    reload: bool,
    expected: str,
) -> None:
    state = {"ActiveState": "active", "UnitFileState": "enabled"}
    monkeypatch.setattr(service_current, "properties", lambda *_: state)
    done = run_module(
        service_current, check, name="shop", restart_changed=restart, reload_changed=reload
    )
    assert (done["action"], done["changed"]) == (expected, expected != "none")

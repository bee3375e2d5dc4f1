"""A deployment that was overtaken by another one leaves the other hosts to it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.modules import app_overtaken


@pytest.fixture
def go_on(tmp_path: Path, run_module: Callable[..., dict]) -> Callable[..., dict]:
    """Run the module for the release r1."""

    def run(check: bool = False) -> dict:
        given = {"host": "web2", "first_host": "web1", "root": str(tmp_path), "release": "r1"}
        return run_module(app_overtaken, check, **given)

    return run


def test_own_release_is_no_reason_to_stop(go_on: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("releases/r1")
    said = go_on()
    assert (said["changed"], said.get("failed")) == (False, None)


def test_release_of_another_deployment(go_on: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tmp_path / "releases/r2")
    assert go_on()["msg"] == (
        "web2: another deployment has put r2 on web1 meanwhile; this one (r1) stops here and "
        "leaves the other hosts to it. Should they differ when both have ended, deploy once more"
    )
    assert go_on(check=True)["skipped"]


def test_release_that_is_gone(go_on: Callable[..., dict]) -> None:
    assert go_on()["failed"]

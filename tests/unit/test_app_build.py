"""A release's own build steps: who runs them, what is kept, what a failure says."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.module_utils import build_unit, command_output, locking
from plugins.module_utils.static_files import keep_others
from plugins.modules import app_build

ME = pwd.getpwuid(os.geteuid()).pw_name
ENVIRONMENT = 'SECRET="hunter22"\n'


@pytest.fixture
def built(
    tmp_path: Path, run_module: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict]:
    """Run the module; a stand-in for systemd-run executes the command itself, unconfined."""
    (tmp_path / "releases").mkdir()
    (tmp_path / "venvs").mkdir()
    (tmp_path / "pip.env").write_text('NPM_TOKEN="t0ken-of-npm"\n')
    monkeypatch.setattr(command_output, "DIRECTORY", tmp_path / "log")
    monkeypatch.setattr(build_unit, "systemctl", lambda *call: run.stopped.append(call))
    monkeypatch.setattr(build_unit, "properties", lambda *_: {"Transient": run.transient})
    original = subprocess.run

    def systemd_run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        run.commands.append(command)
        first = next(n for n, word in enumerate(command) if n and not word.startswith("--"))
        folder = next(w for w in command if w.startswith("--property=WorkingDirectory="))
        words = [word.replace("$$", "$") for word in command[first:]]
        # The virtual environment's PATH, in which these tests have no Python.
        assert words[0] == "/usr/bin/env"
        assert any(f"PATH={folder.rpartition('=')[2]}/.venv/bin:" in word for word in words)
        words = [word for word in words if not word.startswith("PATH=")]
        path = f"{tmp_path}/programs:{os.environ['PATH']}"
        environment = {"PATH": path, "STATIC_ROOT": run.static_root}
        where = folder.rpartition("=")[2]
        return original(words, **options, cwd=where, env=environment)

    monkeypatch.setattr(app_build.subprocess, "run", systemd_run)

    def run(
        release: str = "aaa", *, check: bool = False, unpacked: bool = True, **given: object
    ) -> dict:
        folder = tmp_path / "releases" / release
        folder.mkdir(exist_ok=True)
        if unpacked:  # as release.yml does
            (folder / ".poolkit-release").write_text("python3")
        arguments = {
            **{"name": "shop", "root": str(tmp_path), "release": str(folder)},
            **{"build_user": ME, "build_environment_file": str(tmp_path / "pip.env")},
            **{"user": ME, "secret_environment": ENVIRONMENT, **given},
        }
        return run_module(app_build, check=check, **arguments)

    run.commands, run.stopped, run.transient, run.static_root = [], [], "no", ""
    return run


def test_commands_run_in_their_order_as_the_builder(built: Callable, tmp_path: Path) -> None:
    commands = ["echo $((1 + 1)) > made", "cat made > copy; chmod 777 copy; ln -s /etc/passwd link"]
    assert built(commands=commands)["changed"] is True
    release = tmp_path / "releases/aaa"
    assert (release / "copy").read_text() == "2\n"
    assert (release / "copy").stat().st_mode & 0o777 == 0o755
    for command in built.commands:
        assert "--unit=shop-build" in command
        assert f"--property=User={ME}" in command
        assert f"--property=EnvironmentFile={tmp_path}/pip.env" in command
        assert f"--property=ReadWritePaths=-{release}" in command
        assert "hunter22" not in str(command)
    assert built(commands=commands)["changed"] is False
    assert len(built.commands) == 2


def test_failed_command_is_run_again(built: Callable, tmp_path: Path) -> None:
    done = built(commands=["true", "echo 'npm error missing script: build'; exit 3"])
    assert done["failed"]
    assert "app_build_commands: \"echo 'npm error" in done["msg"]
    assert "exit code 3: npm error missing script: build" in done["msg"]
    assert f"{tmp_path}/log/shop-steps.log" in done["msg"]
    # The role unpacks a release without its marker anew.
    assert not (tmp_path / "releases/aaa/.poolkit-release").exists()
    assert built(commands=["touch made"])["changed"] is True
    assert (tmp_path / "releases/aaa/made").exists()


def test_a_command_cannot_say_that_it_was_built(built: Callable, tmp_path: Path) -> None:
    """Its own marks go, also where it fails; the list would tell root which files to link."""
    (tmp_path / "releases/aaa").mkdir()
    lie = 'echo \'{"root": "../../..", "files": ["etc/shadow"]}\' > .poolkit-static'
    lies = f"{lie}; mkdir .poolkit-built; touch .poolkit-release"
    assert built(commands=[f"{lies}; exit 1"])["failed"]
    assert not (tmp_path / "releases/aaa/.poolkit-built").exists()
    assert not (tmp_path / "releases/aaa/.poolkit-static").exists()
    assert not (tmp_path / "releases/aaa/.poolkit-release").exists()


def test_release_that_cannot_be_built_is_removed(django: Callable, tmp_path: Path) -> None:
    """What its commands have left would be in the way of the next run, or in its release."""
    commands = ["mkdir public; touch broken"]
    assert django("aaa", commands=commands)["failed"]
    assert list((tmp_path / "releases").glob("*aaa")) == []
    # One that serves, from before there were build steps, stays.
    (tmp_path / "releases/bbb").mkdir()
    (tmp_path / "current").symlink_to("releases/bbb")
    assert django("bbb", commands=commands)["failed"]
    assert (tmp_path / "releases/bbb/manage.py").exists()


def test_build_that_was_cut_off_is_cleared_away(built: Callable, tmp_path: Path) -> None:
    """Without its marker, root would unpack into files that the builder may still own."""
    release = tmp_path / "releases/aaa"
    release.mkdir()
    assert built(clean=True)["changed"] is False  # the fixture has unpacked it
    (release / "left").touch()
    (release / ".poolkit-release").unlink()
    built.transient = "yes"
    assert built(clean=True, unpacked=False)["changed"] is True
    assert list(release.iterdir()) == []
    assert built.stopped == [("stop", "shop-build.service")]
    assert built(clean=True, unpacked=False)["changed"] is False
    with locking.lock(tmp_path / "venvs/.lock", 0):
        done = built(clean=True, unpacked=False, lock_timeout_seconds=0)
    assert "another run on this host did not end" in done["msg"]


def test_tokens_of_the_index_are_in_no_output(built: Callable, tmp_path: Path) -> None:
    done = built(commands=["cat ../../pip.env; exit 1"])
    assert done["failed"]
    assert "t0ken-of-npm" not in str(done)
    assert "t0ken-of-npm" not in (tmp_path / "log/shop-steps.log").read_text()


def test_two_runs_take_turns(built: Callable, tmp_path: Path) -> None:
    with locking.lock(tmp_path / "venvs/.lock", 0):
        done = built(commands=["touch made"], lock_timeout_seconds=0)
    assert "another run on this host did not end" in done["msg"]
    assert not (tmp_path / "releases/aaa/made").exists()


def test_check_mode_runs_nothing(built: Callable, tmp_path: Path) -> None:
    assert built(check=True, commands=["touch made"])["changed"] is True
    assert built.commands == []
    assert not (tmp_path / "releases/aaa/.poolkit-built").exists()


MANAGE = """#!/bin/sh
case "$2" in
  shell) echo "3 objects imported"; echo "poolkit: STATIC_ROOT $STATIC_ROOT" ;;
  collectstatic) [ ! -e broken ] || { echo "OSError: hunter22"; exit 1; }
    cp -r assets/. "$STATIC_ROOT" ;;
esac
"""


@pytest.fixture
def django(built: Callable, tmp_path: Path) -> Callable[..., dict]:
    """Collect for a release with these files; its python is a stand-in for manage.py."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/python").write_text(MANAGE)
    (tmp_path / "programs/python").chmod(0o755)

    def run(release: str, root: str = "static", *files: str, **given: object) -> dict:
        folder = tmp_path / "releases" / release
        (folder / "assets").mkdir(parents=True, exist_ok=True)
        (folder / "manage.py").touch()
        for name in files:
            path = folder / "assets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(release)
        built.static_root = root if root.startswith("/") or not root else str(folder / root)
        return built(release, collectstatic=True, **given)

    return run


def test_files_of_earlier_releases_stay_beside_the_new_ones(
    django: Callable, tmp_path: Path
) -> None:
    assert django("aaa", "static", "app.1.css", "admin/base.css")["static_files"] == 2
    assert django("bbb", "static", "app.2.css", "admin/base.css")["kept_static_files"] == 1
    # What bbb has only kept is aaa's; while aaa is on the host, ccc has it as well.
    done = django("ccc", "static", "app.3.css")
    assert (done["static_files"], done["kept_static_files"]) == (1, 3)
    static = tmp_path / "releases/ccc/static"
    names = ["admin/base.css", "app.1.css", "app.2.css", "app.3.css"]
    assert sorted(str(p.relative_to(static)) for p in static.rglob("*.css")) == names
    assert (static / "admin/base.css").read_text() == "bbb"
    # One that takes the place of a later release gets that one's files, and keeps its own.
    first = tmp_path / "releases/aaa"
    assert keep_others(first) == 2
    assert keep_others(first) == 0
    static = first / "static"
    assert sorted(str(p.relative_to(static)) for p in static.rglob("*.css")) == names
    assert (static / "admin/base.css").read_text() == "aaa"


def test_root_of_the_static_files_may_not_lead_out(django: Callable, tmp_path: Path) -> None:
    django("aaa", "static", "app.1.css")
    django("bbb", "static", "app.2.css")
    first = tmp_path / "releases/aaa"
    (first / "static").rename(tmp_path / "elsewhere")
    (first / "static").symlink_to(tmp_path / "elsewhere")
    assert keep_others(first) == 0
    assert not (tmp_path / "elsewhere/app.2.css").exists()
    (first / ".poolkit-static").write_text("no JSON")
    assert keep_others(first) == 0


def test_without_static_root_nothing_is_collected(django: Callable) -> None:
    done = django("aaa", "", "app.css")
    assert (done["changed"], done["static_root"]) == (True, "")


def test_static_root_elsewhere_is_refused(django: Callable, tmp_path: Path) -> None:
    done = django("aaa", str(tmp_path / "www"), "app.css")
    assert done["failed"]
    assert f"STATIC_ROOT is {tmp_path}/www, outside of the release" in done["msg"]
    assert not (tmp_path / "www").exists()


def test_static_root_through_a_link_is_refused(django: Callable, tmp_path: Path) -> None:
    """A command may have made it: root would give the files behind it away."""
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "releases/aaa").mkdir()
    (tmp_path / "releases/aaa/static").symlink_to(tmp_path / "other")
    assert "outside of the release" in django("aaa", "static", "app.css")["msg"]
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o700


def test_root_links_nothing_behind_a_link(django: Callable, tmp_path: Path) -> None:
    """What collects may leave one: a file of an earlier release would be put where it leads."""
    django("aaa", "static", "sub/evil", "plain.css")
    (tmp_path / "other").mkdir()
    (tmp_path / "releases/bbb/assets").mkdir(parents=True)
    (tmp_path / "releases/bbb/assets/sub").symlink_to(tmp_path / "other")
    assert django("bbb", "static", "new.css")["kept_static_files"] == 1
    assert list((tmp_path / "other").iterdir()) == []


def test_file_in_the_place_of_a_directory(django: Callable) -> None:
    django("aaa", "static", "app/x.js", "y.js")
    done = django("bbb", "static", "app")
    assert (done["static_files"], done["kept_static_files"]) == (1, 1)


def test_run_that_was_cut_off_leaves_the_others_alone(django: Callable, tmp_path: Path) -> None:
    """Its links are dropped before anything changes owner or content."""
    django("aaa", "static", "app.1.css")
    static = tmp_path / "releases/bbb/static"
    static.mkdir(parents=True)
    os.link(tmp_path / "releases/aaa/static/app.1.css", static / "app.1.css")
    done = django("bbb", "static", "app.2.css")
    assert (done["static_files"], done["kept_static_files"]) == (1, 1)
    listed = json.loads((tmp_path / "releases/bbb/.poolkit-static").read_text())
    assert listed == {"root": "static", "files": ["app.2.css"]}


def test_release_without_manage_py_collects_nothing(built: Callable) -> None:
    assert built(collectstatic=True)["static_files"] == 0
    assert built.commands == []


def test_a_list_of_a_source_leads_nowhere_else(django: Callable, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter22")
    old = tmp_path / "releases/old"
    (old / "static").mkdir(parents=True)
    (old / "static/link").symlink_to(secret)
    names = ["../../../secret", "link"]
    (old / ".poolkit-static").write_text(json.dumps({"root": "static", "files": names}))
    (old / ".poolkit-built").touch()
    assert django("aaa", "static", "app.css")["kept_static_files"] == 0


def test_secrets_are_in_no_message(django: Callable, built: Callable, tmp_path: Path) -> None:
    (tmp_path / "releases/aaa").mkdir()
    (tmp_path / "releases/aaa/broken").touch()
    done = django("aaa", "static", "app.css")
    assert done["failed"]
    assert "collectstatic failed" in done["msg"]
    assert "hunter22" not in str(done)
    assert "hunter22" not in (tmp_path / "log/shop-steps.log").read_text()
    assert "hunter22" not in str(built.commands)

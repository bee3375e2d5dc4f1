"""The build of a virtual environment: who runs what, what root takes over, what a failure says."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.module_utils import build_unit, command_output
from plugins.modules import app_venv

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def built(
    tmp_path: Path, run_module: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict]:
    """Run the module with a stand-in for systemd-run; `built.commands` are what it got."""
    release, venvs = tmp_path / "release", tmp_path / "venvs"
    release.mkdir()
    (release / "requirements.txt").write_text("shop @ git+https://t0ken@git.example.com/shop\n")
    venvs.mkdir()
    (tmp_path / "pip.env").write_text(
        'PIP_INDEX_URL="https://me:hunter2@pypi.example.com/simple"\n'
        f'PIP_CACHE_DIR="{tmp_path}/cache"\n'
    )
    monkeypatch.setattr(command_output, "DIRECTORY", tmp_path / "log")
    monkeypatch.setattr(build_unit, "systemctl", lambda *call: run.stopped.append(call))
    monkeypatch.setattr(build_unit, "properties", lambda *_: {"Transient": run.transient})

    def run(said: str = "", code: int = 0, leaves: Callable = lambda _: None, **given) -> dict:
        def systemd_run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            run.commands.append(command)
            leaves(venvs / "py3")
            return subprocess.CompletedProcess(command, code, said, None)

        monkeypatch.setattr(app_venv.subprocess, "run", systemd_run)
        arguments = {
            "name": "shop",
            "release": str(release),
            "venv": str(venvs / "py3"),
            "requirements": "requirements.txt",
            "python": "python3",
            "user": ME,
            "environment_file": str(tmp_path / "pip.env"),
            **given,
        }
        return run_module(app_venv, **arguments)

    run.commands, run.stopped, run.transient = [], [], "no"
    return run


def test_built_once_and_linked(built: Callable[..., dict], tmp_path: Path) -> None:
    done = built()
    assert (done["changed"], done["built"], done["linked"]) == (True, True, True)
    assert (tmp_path / "release/.venv").readlink() == tmp_path / "venvs/py3"
    assert (tmp_path / "venvs/.lock").stat().st_mode & 0o777 == 0o600
    done = built()
    assert (done["changed"], len(built.commands)) == (False, 1)


def test_check_mode_tells_and_builds_nothing(built: Callable[..., dict], tmp_path: Path) -> None:
    done = built(check=True)
    assert (done["changed"], done["built"], done["linked"]) == (True, True, True)
    assert built.commands == []
    assert list((tmp_path / "venvs").iterdir()) == []
    built()
    assert built(check=True)["changed"] is False


def test_who_builds(built: Callable[..., dict], tmp_path: Path) -> None:
    """Nothing of the build runs as root, and no secret is an argument."""
    built(python="/opt/my python/bin/python")
    (command,) = built.commands
    assert command[0] == "systemd-run"
    assert "--unit=shop-build" in command
    assert f"--property=User={ME}" in command
    assert f"--property=EnvironmentFile={tmp_path}/pip.env" in command
    assert "--property=NoNewPrivileges=yes" in command
    assert "/opt/my python/bin/python" in command
    assert f"--requirement={tmp_path}/release/requirements.txt" in command
    assert f"--cache-dir={tmp_path}/cache/{ME}-{os.geteuid()}" in command
    assert "hunter2" not in " ".join(command)
    assert [word.replace("$$", "") for word in command if "$" in word.replace("$$", "")] == []


def test_script_passes_its_words(tmp_path: Path) -> None:
    """As /bin/sh gets it from systemd, which undoubles the $."""
    python = tmp_path / "my python"
    python.write_text(
        '#!/bin/sh\necho "$@"\n'
        '[ "$3" != venv ] || { mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; }\n'
    )
    python.chmod(0o755)
    words = [str(python), str(tmp_path / "v"), "--requirement=a b", "--cache-dir=c"]
    done = subprocess.run(
        ["/bin/sh", "-c", app_venv.SCRIPT, "build", *words], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        f"-I -m venv {tmp_path}/v",
        "-I -m pip install --disable-pip-version-check --no-input --requirement=a b --cache-dir=c",
    ]


def hostile(venv: Path) -> None:
    """What a package may leave."""
    (venv / "bin").mkdir()
    (venv / "bin/tool").touch(0o755)
    (venv / "bin/tool").chmod(0o6777)
    (venv / "module.py").touch(0o600)
    (venv / "private").mkdir(0o700)
    (venv / "private/x").touch(0o666)
    os.mkfifo(venv / "private/pipe")
    (venv / "link").symlink_to("/etc/shadow")
    (venv / "directory").symlink_to("/etc")
    (venv / ".complete").symlink_to(venv.parent / "made-through-a-link")


def test_what_a_package_leaves_is_handed_over(built: Callable[..., dict], tmp_path: Path) -> None:
    before = Path("/etc/shadow").stat().st_mode
    assert built(leaves=hostile)["changed"] is True
    venv = tmp_path / "venvs/py3"
    modes = {
        str(path.relative_to(venv)): oct(path.lstat().st_mode & 0o7777)
        for path in venv.rglob("*")
        if not path.is_symlink()
    }
    assert modes == {
        "bin": "0o755",
        "bin/tool": "0o755",
        "module.py": "0o644",
        "private": "0o755",
        "private/x": "0o644",
        ".complete": "0o644",
    }
    assert Path("/etc/shadow").stat().st_mode == before
    assert stat.S_ISREG((venv / ".complete").lstat().st_mode)
    assert not (tmp_path / "venvs/made-through-a-link").exists()


def test_mark_of_the_build_itself_does_not_count(
    built: Callable[..., dict], tmp_path: Path
) -> None:
    """A run was cut off before root took the environment over."""
    venv = tmp_path / "venvs/py3"
    venv.mkdir()
    (venv / ".complete").symlink_to("/etc/hostname")
    assert app_venv.complete(venv) is False
    assert built()["built"] is True
    assert app_venv.complete(venv) is True


def test_failed_build_leaves_nothing_but_its_output(
    built: Callable[..., dict], tmp_path: Path
) -> None:
    said = "\n".join(
        [
            *(f"line {number}" for number in range(100)),
            "src/x.c:1:10: fatal error: libpq-fe.h: No such file or directory",
            "error: command '/usr/bin/x86_64-linux-gnu-gcc' failed with exit code 1",
            *(f"Looking in https://me:hunter2@pypi.example.com/simple {n}" for n in range(30)),
            "fatal: could not read Password for 'https://t0ken@git.example.com'",
            "x" * 5000,
            "ERROR: Failed building wheel for psycopg2",
        ]
    )
    done = built(said, 1, hostile)
    message = done["msg"].splitlines()
    assert message[0] == (
        "shop: the virtual environment cannot be built: "
        "src/x.c:1:10: fatal error: libpq-fe.h: No such file or directory"
    )
    assert "install the -dev package" in message[1]
    assert message[2] == "The output ends with:"
    assert message[-2] == "ERROR: Failed building wheel for psycopg2"
    path = tmp_path / "log/shop-build.log"
    assert message[-1].endswith(str(path))
    assert len(message) == 24
    assert len(done["msg"]) < 5000
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "line 0" in path.read_text()
    assert "hunter2" not in path.read_text() + done["msg"]
    assert "t0ken" not in path.read_text() + done["msg"]
    assert "git.example.com" in path.read_text()
    assert "pypi.example.com" in done["msg"]
    assert not (tmp_path / "venvs/py3").exists()
    assert not (tmp_path / "release/.venv").exists()


@pytest.mark.parametrize(
    ("said", "line", "advice"),
    [
        ("error: command 'gcc' failed: No such file or directory", 0, "build-essential"),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: 'x86_64-linux-gnu-gcc'",
            0,
            "no compiler",
        ),
        ("noise\nsrc/a.c:3:1: fatal error: Python.h: No such file or directory", 1, "python3-dev"),
        ("noise\n  Error: pg_config executable not found.\nERROR: x", 1, "psycopg2-binary"),
        (
            "WARNING: Retrying (Retry(total=4, ...)) after NewConnectionError('...')\n"
            "ERROR: Could not find a version that satisfies the requirement flask==3\n"
            "ERROR: No matching distribution found for flask==3",
            0,
            "does not reach the package index",
        ),
        (
            "ERROR: Ignored the following versions that require a different python version: 9 "
            "Requires-Python >=3.14\nERROR: No matching distribution found for flask==9",
            1,
            "app_python",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement flask==99\n"
            "ERROR: No matching distribution found for flask==99",
            1,
            "The index has no such version",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", 0, "lock"),
        ("OSError: [Errno 28] No space left on device", 0, "Make room"),
        ("Error: ensurepip is not available", 0, "python3.N-venv"),
        (
            "Exception: you need a C compiler to build uWSGI\nERROR: Failed to build uwsgi",
            0,
            "no compiler",
        ),
        ("ERROR: Failed building wheel for a\nerror: metadata of b is broken", 1, ""),
        ("Killed", None, ""),
    ],
)
def test_what_matters_comes_first(
    built: Callable[..., dict], said: str, line: int | None, advice: str
) -> None:
    message = built(said, 1)["msg"].removeprefix("shop: the virtual environment cannot be built: ")
    first, second, *_ = message.splitlines()
    assert first == ("The output ends with:" if line is None else said.splitlines()[line].strip())
    assert advice in second
    assert second.startswith("The output") is (not advice) or line is None


def test_build_of_a_run_that_was_cut_off_is_ended(
    built: Callable[..., dict], tmp_path: Path
) -> None:
    """And no service of another application, whose name may be the same."""
    built()
    assert built.stopped == []
    built.transient = "yes"
    built(venv=str(tmp_path / "venvs/py4"))
    assert built.stopped == [("stop", "shop-build.service")]


def test_missing_user_is_named(built: Callable[..., dict]) -> None:
    assert built(user="nobody-of-this-name")["msg"] == (
        "shop: there is no user nobody-of-this-name on this host"
    )


def test_another_run_is_waited_for(built: Callable[..., dict], tmp_path: Path) -> None:
    with app_venv.lock(tmp_path / "venvs/.lock", 0):
        done = built(lock_timeout_seconds=0)
    assert "did not end in 0 s" in done["msg"]
    assert built.commands == []

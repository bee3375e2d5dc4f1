"""Files that are replaced at once, alone and through the module host_files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugins.module_utils import text_files
from plugins.module_utils.locking import lock
from plugins.modules import host_files


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """No umask: a file that is made with a wider mode shows it."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o644])
def test_mode_is_never_wider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """From the moment the file is made: root's alone, until it has its owner."""
    seen: list[tuple[str, int]] = []

    def look(step: str) -> None:
        (partial,) = (path for path in tmp_path.iterdir() if path.name.startswith("."))
        seen.append((step, partial.stat().st_mode & 0o7777))

    def watch(module: object, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: object, **options: object) -> object:
            look(name)
            return original(*arguments, **options) if name != "chown" else None

        monkeypatch.setattr(module, name, watched)

    for module, name in ((os, "fdopen"), (os, "fsync"), (shutil, "chown"), (Path, "replace")):
        watch(module, name)
    text_files.write(tmp_path / "secret", "text", mode, "somebody")
    assert seen == [("fdopen", 0o600), ("fsync", 0o600), ("chown", 0o600), ("replace", mode)]
    assert (tmp_path / "secret").stat().st_mode & 0o7777 == mode


def test_owner_comes_before_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []
    monkeypatch.setattr(shutil, "chown", lambda _, user, group: owners.append((user, group)))
    text_files.write(tmp_path / "secret", "text", 0o400, "shop")
    text_files.write(tmp_path / "secret", "other", 0o600)
    assert owners == [("shop", "shop")]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(OSError, match="No space left"):
        text_files.write(path, "new", 0o600)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f".file.{os.getpid()}").write_text("half")
    text_files.write(tmp_path / "file", "new", 0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"a\r\nb\r\n", b"latin-1: \xe9\n", "é\n".encode(), b""])
def test_bytes_come_back(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    text = text_files.read(tmp_path / "a")
    assert text is not None
    text_files.write(tmp_path / "b", text, 0o600)
    assert (tmp_path / "b").read_bytes() == content


def test_no_file_has_no_text(tmp_path: Path) -> None:
    assert text_files.read(tmp_path / "none") is None


def test_difference(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a\n")
    assert text_files.difference(path, "a\n") == ""
    shown = text_files.difference(path, "b\n")
    assert shown == f"--- before: {path}\n+++ after: {path}\n@@ -1 +1 @@\n-a\n+b\n"
    assert text_files.difference(path, "b\n", True) == f"{path} differs (its content is secret)\n"
    assert text_files.difference(tmp_path / "new", "a\n").endswith("+a\n")


# The module. The files are those of whoever runs the tests: its owner is not asked for.


@pytest.fixture
def put(
    tmp_path: Path, run_module: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict]:
    def same_mode(path: Path, mode: int, _: str | None) -> bool:
        return path.exists() and path.stat().st_mode & 0o7777 == mode

    monkeypatch.setattr(host_files, "same_owner", same_mode)

    def run(**parameters: object) -> dict:
        given = {
            "directories": [str(tmp_path / "etc/shop")],
            "files": [{"path": str(tmp_path / "etc/shop/service.conf"), "content": "[shop]\n"}],
            "secret_files": [{"path": str(tmp_path / "etc/shop/env"), "content": "PW=secret-1\n"}],
        }
        return run_module(host_files, **{**given, **parameters})

    return run


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_mode & 0o7777
        for path in directory.rglob("*")
    }


def test_module_puts_everything_there(tmp_path: Path, put: Callable[..., dict]) -> None:
    os.umask(0o077)
    done = put()
    assert done["changed"] is True
    assert modes(tmp_path) == {
        "etc": 0o755,
        "etc/shop": 0o755,
        "etc/shop/service.conf": 0o644,
        "etc/shop/env": 0o600,
    }
    assert done["paths"] == [
        str(tmp_path / name) for name in ("etc/shop", "etc/shop/service.conf", "etc/shop/env")
    ]
    assert (tmp_path / "etc/shop/env").read_text() == "PW=secret-1\n"
    assert "secret-1" not in str(done)
    diff = [entry["prepared"] for entry in done["diff"]]
    assert diff[0] == f"{tmp_path}/etc/shop is not there yet\n"
    assert "+[shop]" in diff[1]
    again = put()
    assert (again["changed"], again["paths"], again["diff"]) == (False, [], [])


def test_directories_of_a_user_and_programs(
    tmp_path: Path, put: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = []
    monkeypatch.setattr(shutil, "chown", lambda path, *whose: owners.append((str(path), *whose)))
    given = {
        "user": "shop",
        "user_directories": [str(tmp_path / "state/media")],
        "programs": [{"path": str(tmp_path / "run"), "content": "#!/bin/sh\n"}],
    }
    assert put(check=True, **given)["changed"] is True
    assert not (tmp_path / "state").exists()
    assert put(**given)["changed"] is True
    assert owners == [(str(tmp_path / "state/media"), "shop", "shop")]
    assert modes(tmp_path).items() >= {"state": 0o755, "state/media": 0o750, "run": 0o755}.items()
    (tmp_path / "state/media/cat").touch(0o600)
    assert put(**given)["changed"] is False
    assert (tmp_path / "state/media/cat").stat().st_mode & 0o777 == 0o600


def test_module_puts_a_mode_right(tmp_path: Path, put: Callable[..., dict]) -> None:
    put()
    (tmp_path / "etc/shop/env").chmod(0o644)
    assert put()["paths"] == [str(tmp_path / "etc/shop/env")]
    assert (tmp_path / "etc/shop/env").stat().st_mode & 0o7777 == 0o600


def test_module_changes_nothing_in_check_mode(tmp_path: Path, put: Callable[..., dict]) -> None:
    done = put(check=True)
    assert (done["changed"], len(done["paths"])) == (True, 3)
    assert list(tmp_path.iterdir()) == []


def test_file_of_another_owner_is_read_only(
    tmp_path: Path, put: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = []
    monkeypatch.setattr(shutil, "chown", lambda path, user, group: owners.append((user, group)))
    secret = {"path": str(tmp_path / "pgpass"), "content": "x", "owner": "shop"}
    put(secret_files=[secret])
    assert owners == [("shop", "shop")]
    assert (tmp_path / "pgpass").stat().st_mode & 0o7777 == 0o400


def test_plain_file_of_another_owner_is_for_its_group(
    tmp_path: Path, put: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's access rules: no secret, so that --diff shows them, and not for everybody."""
    monkeypatch.setattr(shutil, "chown", lambda path, user, group: None)
    path = tmp_path / "pg_hba.conf"
    done = put(files=[{"path": str(path), "content": "a rule", "owner": "postgres"}])
    assert path.stat().st_mode & 0o7777 == 0o640
    assert "+a rule" in str(done["diff"])


@pytest.mark.parametrize("parameter", ["files", "secret_files"])
def test_file_without_content_is_refused(put: Callable[..., dict], parameter: str) -> None:
    done = put(**{parameter: [{"path": "/nonexistent/x"}]})
    assert done["failed"] is True
    assert f"missing required arguments: content found in {parameter}" in done["msg"]


def test_lock_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whoever can open a lock file can hold it; what an earlier version left is mended."""
    for name, before in (("new", None), ("old", 0o644)):
        path = tmp_path / name
        if before:
            path.touch(before)
        with lock(path, 0):
            assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"), lock(tmp_path / "link", 0):
        pass
    assert not (tmp_path / "elsewhere").exists()

"""The archive of an application's source: reproducible, complete, and refused with a reason."""

import io
import os
import tarfile
from pathlib import Path

import pytest
import source_archive


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    (root / "shop").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "requirements.txt").write_text("gunicorn==27.0.1\n")
    (root / "manage.py").write_text("#!/usr/bin/env python3\n")
    (root / "manage.py").chmod(0o755)
    (root / "shop/__init__.py").write_text("")
    (root / ".git/config").write_text("private")
    (root / "shop/x.pyc").write_text("compiled")
    return root


def packed(root: Path) -> bytes:
    return source_archive.pack(root, source_archive.source_files(root, [".git", "*.pyc"]))


def test_archive_holds_the_source_and_ends_with_the_marker(source: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(source))) as archive:
        members = archive.getmembers()
    assert [(m.name, m.mode) for m in members] == [
        ("shop", 0o755),
        ("manage.py", 0o755),
        ("requirements.txt", 0o644),
        ("shop/__init__.py", 0o644),
        (source_archive.MARKER, 0o644),
    ]


def test_equal_source_gives_equal_bytes(source: Path) -> None:
    before = packed(source)
    os.utime(source / "manage.py", (1, 1))
    (source / "requirements.txt").chmod(0o600)
    (source / ".git/config").write_text("changed")
    assert packed(source) == before
    (source / "shop/__init__.py").write_text("VERSION = 2\n")
    assert packed(source) != before


def test_good_source_is_accepted(source: Path) -> None:
    packages = ["gunicorn", "uvicorn-worker"]
    (source / "requirements.txt").write_text("gunicorn==27.0.1\nUvicorn_Worker[x] == 0.4\n")
    assert source_archive.source_error(source, "requirements.txt", ["manage.py"], packages) is None


@pytest.mark.parametrize(
    ("requirements", "files", "words"),
    [
        ("missing.txt", [], "has no missing.txt"),
        ("requirements.txt", ["alembic.ini"], "has no alembic.ini"),
        ("empty.txt", [], "does not list gunicorn"),
        ("other.txt", [], "refers to other files ('-r base.txt')"),
    ],
)
def test_unusable_source_is_refused(
    source: Path, requirements: str, files: list[str], words: str
) -> None:
    (source / "empty.txt").write_text("gunicorn-other==1\n")
    (source / "other.txt").write_text("gunicorn==1\n-r base.txt\n")
    error = source_archive.source_error(source, requirements, files, ["gunicorn"])
    assert error
    assert words in error
    assert "app_source" in error


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    error = source_archive.source_error(tmp_path / "nowhere", "requirements.txt", [], [])
    assert error == f"app_source: there is no directory {tmp_path}/nowhere on the controller"


def test_linked_directory_is_refused(source: Path) -> None:
    (source / "linked").symlink_to(source / "shop")
    with pytest.raises(OSError, match="linked links to a directory"):
        packed(source)

"""Text files that are replaced at once, with their owner and mode."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
from pathlib import Path


def read(path: Path) -> str | None:
    """Return a file's text, or None where there is none; write() gives back the same bytes."""
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return None


def write(
    path: Path,
    content: str,
    mode: int,
    owner: str | int | None = None,
    group: str | int | None = None,
) -> None:
    """Replace a file at once: a reader sees the old text or the new one, and never another mode.

    owner: a user, whose group of the same name gets the file as well where no group is given; None
    leaves root's.
    """
    partial = stage(path, content, mode, owner, group)
    try:
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def stage(
    path: Path,
    content: str,
    mode: int,
    owner: str | int | None = None,
    group: str | int | None = None,
) -> Path:
    """Write a file's new text beside it, hidden; return its path. What replaces it needs no space.

    Raises OSError with the file's name, also where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content.encode(errors="surrogateescape"))
            stream.flush()
            os.fsync(stream.fileno())
        if owner is not None:
            shutil.chown(partial, owner, owner if group is None else group)
        partial.chmod(mode)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return partial


def difference(path: Path, content: str, secret: bool = False) -> str:
    """Return the change of a file for --diff, a note where its content is secret; "" for none."""
    before = read(path)
    if before == content:
        return ""
    if secret:
        return f"{path} differs (its content is secret)\n"
    return "".join(
        difflib.unified_diff(
            (before or "").splitlines(True),
            content.splitlines(True),
            f"before: {path}",
            f"after: {path}",
        )
    )


def same_owner(path: Path, mode: int, owner: str | None) -> bool:
    """Say whether a path has this mode and owner."""
    with contextlib.suppress(KeyError, FileNotFoundError):
        return path.stat().st_mode & 0o7777 == mode and path.owner() == (owner or "root")
    return False

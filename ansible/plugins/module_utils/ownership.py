"""Who owns a tree of files: the user who makes it, then root."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path


def _everything(tree: Path) -> Iterator[str]:
    yield str(tree)
    for folder, folders, names in os.walk(tree):
        yield from (f"{folder}/{name}" for name in (*folders, *names))


def give_to(tree: Path, account: pwd.struct_passwd) -> None:
    """Make everything in a tree a user's. A link is not followed."""
    for path in _everything(tree):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def hand_over(tree: Path) -> None:
    """Make everything in a tree root's, readable by all and writable by nobody else.

    The modes are set anew, so that no setuid bit stays and no access control list grants more. A
    link is not followed; what is neither file, directory nor link goes.
    """
    uid, gid = os.geteuid(), os.getegid()
    for path in list(_everything(tree)):
        mode = os.lstat(path).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            Path(path).unlink()
            continue
        os.chown(path, uid, gid, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            runs = stat.S_ISDIR(mode) or mode & 0o111
            Path(path).chmod(0o755 if runs else 0o644)

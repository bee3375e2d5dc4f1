"""What marks an application's virtual environment, and its release, as built to the end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

COMPLETE = ".complete"
"""Root's file in an environment that was built to its end and handed over."""


BUILT = ".poolkit-built"
"""Root's file in a release whose own build steps were run to their end."""

MARKER = ".poolkit-release"
"""The last member of a release's archive: a release that has it was unpacked to its end.

It holds the name of the interpreter and the build's commands: with others the same source is
another release.
"""

STATIC = ".poolkit-static"
"""Root's list of what a release has collected itself: {root, files}, relative to the release."""


def complete(venv: Path) -> bool:
    """Say whether root has taken the environment over; the user's own file does not count."""
    return _made_by_root(venv / COMPLETE)


def built(release: Path) -> bool:
    """Say whether a release's own build steps were run; a file of its source does not count."""
    return _made_by_root(release / BUILT)


def _made_by_root(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()

"""What marks an application's virtual environment as built to its end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

COMPLETE = ".complete"
"""Root's file in an environment that was built to its end and handed over."""


def complete(venv: Path) -> bool:
    """Say whether root has taken the environment over; the user's own file does not count."""
    try:
        status = os.lstat(venv / COMPLETE)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()

"""What systemd reports of a service, and which files it has not read yet."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timezone


def systemctl(*arguments: str, timeout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run systemctl and return what it printed; never raises for its exit code.

    timeout: seconds; raises subprocess.TimeoutExpired after them.
    """
    command = ["systemctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def properties(unit: str, names: str) -> dict[str, str]:
    """Return properties of a unit by name; names: comma separated, as of `systemctl show`."""
    shown = systemctl("show", unit, "--timestamp=us+utc", f"--property={names}")
    return dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)


def timestamp(text: str) -> float:
    """Return seconds since the epoch of `systemctl show --timestamp=us+utc`; 0 for "never"."""
    if not text or text == "n/a":
        return 0.0
    _, rest = text.split(" ", 1)  # the name of the day
    moment = datetime.strptime(rest.removesuffix(" UTC"), "%Y-%m-%d %H:%M:%S.%f")
    return moment.replace(tzinfo=timezone.utc).timestamp()  # noqa: UP017, Python 3.11 has UTC


def newer_than(files: list[str], moment: float) -> list[str]:
    """Return the files that exist and were written after a moment; of a link, the link itself."""
    return [path for path in files if os.path.lexists(path) and os.lstat(path).st_mtime > moment]


def log_end(unit: str, lines: int = 20, since: float = 0.0) -> str:
    """Return the last lines of a unit's log, written after a moment (seconds since the epoch)."""
    command = ["journalctl", "-u", unit, "-n", str(lines), "-o", "cat", "--no-pager"]
    command += [f"--since=@{since:.3f}"] if since else []
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return done.stdout.strip()

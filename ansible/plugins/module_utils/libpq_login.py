"""One way to the database, tried with psql and libpq's own files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

ANSWER_SECONDS = 15
"""More than connect_timeout and query_wait_timeout take; psql itself would wait without end."""


def log_in(way: Mapping[str, str], query: str, environment: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether a way to the database is open, and the query's answer or psql's words.

    way: {service}, and {host, port} for others than the service's own.
    """
    conninfo = " ".join(
        f"{name}={way[name]}" for name in ("host", "port", "service") if name in way
    )
    try:
        done = subprocess.run(
            ["psql", "-XAtqc", query, conninfo],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {ANSWER_SECONDS} s"
    except OSError as error:
        return False, str(error)
    if done.returncode == 0:
        return True, done.stdout.strip()
    return False, " ".join((done.stderr + done.stdout).split())

"""What a value of the inventory is: its kind, for messages, since it may be a secret; a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KINDS = (
    (bool, "a boolean"),
    (int | float, "a number"),
    (str, "text"),
    (Mapping, "a mapping"),
    (list | tuple, "a list"),
)


SERIAL = r"[1-9]\d*|([1-9]\d?|100)%"
"""How app_serial and pgbouncer_serial look: a number of hosts, or a share of them."""

WORKERS = r"auto|[1-9]\d*"
"""How app_workers looks."""

SERVER_TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout")
"""What PostgreSQL bounds itself, as long as it does not hang."""

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
"""PostgreSQL's units of time; a number without one is milliseconds for the time-outs."""


def kind_of(value: Any) -> str:
    """Return what a value is, in the words of YAML: `a number`, `text`, `null`."""
    return next((words for types, words in KINDS if isinstance(value, types)), "null")


def seconds(value: Any) -> float:
    """Return a time-out of PostgreSQL in seconds; raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?\s*", str(value))
    if not found:
        raise ValueError(f"{value!r} is no time: give a number and one of {', '.join(UNITS)}")
    return float(found[1]) * UNITS[found[2] or "ms"]

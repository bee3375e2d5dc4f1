"""How PgBouncer's version is read, and what each version means to poolkit, by name.

Which version knows which setting is in roles/pgbouncer/files/settings.yml.
"""

from __future__ import annotations

import re

Version = tuple[int, ...]
"""(1, 24, 1)."""

PEERS = (1, 19)
"""First with peer_id and [peers]: a process passes a cancel request on to the right peer."""

STATE = (1, 19)
"""First with SHOW STATE, which tells whether the whole process is paused."""

DRAINS = (1, 23)
"""First in which SIGTERM waits for clients."""

OPTIONS_LOOP = ((1, 20), (1, 26, 1))
"""First with CVE-2026-107349, and first without it: a startup parameter `options` in a loop."""


def parse(text: str) -> Version:
    """Return the numbers of a version: of a package (`1.24.1-1+deb13u2`), of SHOW VERSION or of
    `pgbouncer --version` (`PgBouncer 1.24.1`). Raises ValueError for any other text.
    """
    match = re.search(r"(?:^|PgBouncer )(\d+(?:\.\d+)*)", text)
    if not match:
        raise ValueError(f"{text!r} is no PgBouncer version")
    return tuple(int(part) for part in match.group(1).split("."))


def written(version: Version) -> str:
    """Return a version with its three numbers as people write it: `1.19.0` for (1, 19)."""
    return ".".join(str(number) for number in (*version, 0, 0)[:3])

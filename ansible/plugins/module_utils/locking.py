"""A lock file that two runs on one host take in turn."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path


class Locked(Exception):
    """Another run keeps the lock."""


@contextlib.contextmanager
def lock(path: Path, seconds: int) -> Iterator[None]:
    """Hold a lock file; raises Locked when another run keeps it for so many seconds.

    Only its owner can open it: whoever may read a file can also lock it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(descriptor, 0o600)  # an earlier version made it readable for everyone
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Locked(
                        f"another run on this host did not end in {seconds} s ({path} is locked): "
                        "wait for it, then run this again"
                    ) from None
                time.sleep(0.2)
        yield

"""What a host had before poolkit: the package's own service, and perhaps somebody's PgBouncer."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .pgbouncer_files import Files
from .pgbouncer_foreign import UNITS, foreign_pooler, keep, masked
from .pgbouncer_process import systemctl
from .refused import Refused
from .text_files import read

SERVICE = "pgbouncer.service"
"""The distribution's single unit. As a link to /dev/null it stays away from our processes."""


class Distribution:
    """How to put poolkit in the place of what the host had, and how to hand the host back.

    state: what that needs, as a run that was killed leaves it to the next one: the text of an own
    unit under the distribution's name, whether it was active, {folder: (uid, gid, mode)}, whether
    the host was somebody else's (foreign), and the folder where its files are kept, "" for none.
    """

    def __init__(self, config: Path, files: Files, earlier: Mapping[str, Any]) -> None:
        self.config = config
        self.files = files
        self.mask = UNITS / SERVICE
        self.replaced = masked(UNITS)
        self.foreign = foreign_pooler(config, UNITS)
        """What somebody else configured, in words; "" where nobody has."""
        self.state = {
            "unit": None if self.mask.is_symlink() else read(self.mask),
            "active": systemctl("is-active", SERVICE).returncode == 0,
            "folders": {str(path): files.owner(path) for path in files.folders()},
            "foreign": bool(self.foreign),
            "kept": "",
            **earlier,
        }

    def keep_foreign(self) -> None:
        """Copy the files of somebody else, who may want them back."""
        if self.foreign:
            self.state["kept"] = str(keep(self.config, UNITS))

    def replace(self) -> None:
        """Stop the distribution's service for good, once."""
        if self.replaced:
            return
        systemctl("stop", SERVICE)
        self.mask.unlink(missing_ok=True)
        self.mask.symlink_to("/dev/null")
        self.replaced = True

    def restore_folders(self) -> None:
        """Give the folders back to whose they were; what was kept of a take-over is not needed."""
        for path, (uid, gid, mode) in self.state["folders"].items():
            with contextlib.suppress(FileNotFoundError):
                os.chown(path, uid, gid)
                Path(path).chmod(mode)
        if kept := self.state["kept"]:
            shutil.rmtree(kept, ignore_errors=True)

    def restore(self) -> None:
        """Hand the service back as it was; raise Refused where it does not start."""
        self.mask.unlink(missing_ok=True)
        if self.state["unit"] is not None:
            self.files.write({str(self.mask): self.state["unit"]})
        systemctl("daemon-reload")
        if self.state["active"]:
            done = systemctl("start", SERVICE)
            if done.returncode:
                raise Refused(f"systemctl start {SERVICE} failed: {done.stderr.strip()}")
        self.restore_folders()

"""The change of a host's PgBouncer as one transaction: all of it is proved, or undone."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from .pgbouncer_configuration import Configuration
from .pgbouncer_distribution import Distribution
from .pgbouncer_files import Files, old
from .pgbouncer_foreign import PENDING
from .pgbouncer_pooler import Change, Pooler, disabled, running
from .pgbouncer_process import installed_version, systemctl
from .pgbouncer_report import shown, told
from .pgbouncer_text import changed_names
from .pgbouncer_trial import try_candidate
from .refused import Refused
from .text_files import read, write
from .unlogged_module import UnloggedModule

ACTIONS = ("none", "stop", "reload", "restart", "start")
"""From the least to the most that was done; a run reports the most."""


def kept_by(pending: Path) -> dict[str, Any]:
    """Return {files, owners, distribution} of a run that was killed; {} where there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        kept = json.loads(pending.read_text())
        if {"files", "owners", "distribution"} <= set(kept):
            return kept
    return {}


class Transaction:
    """The live files and processes of a host, and the change that is being made to them."""

    def __init__(self, module: UnloggedModule) -> None:
        self.module = module
        version = installed_version()
        after = Configuration.of(module.params, version)
        self.files = Files(after.directory, module.params["user"])
        # Holds the old files from before the swap until the proof: a run that was killed between is
        # caught up by the next one, and can still be undone by it.
        self.pending = after.directory / PENDING
        kept = kept_by(self.pending)
        # What is no longer wanted, and what the killed run may have removed.
        after = after.without([*self.files.own_paths(), *kept.get("files", {})])
        on_disk = {path: read(Path(path)) for path in after.files}
        before, self.owners = on_disk, self.files.owners(after.files)
        if kept:
            before = {path: kept["files"].get(path) for path in after.files}
            self.owners = {path: tuple(owner) for path, owner in kept["owners"].items()}
        self.change = Change(
            before=Configuration(after.path, before),
            on_disk=Configuration(after.path, on_disk),
            after=after,
        )
        self.distribution = Distribution(Path(after.path), self.files, kept.get("distribution", {}))
        self.pooler = Pooler(self.change, self.files, version, module.params)

    def run(self) -> dict[str, Any]:
        """Carry the change out; return the module's result or raise Refused with the reason."""
        start = time.monotonic()
        before, after = self.change.before, self.change.after
        names = changed_names(before.sections(1), after.sections(1))
        self.refuse_foreign()
        check = self.module.check_mode
        if not check:
            self.files.remove_left_overs(after.files, self.pending)
        touched = self.touched()
        needs = self.pooler.needs(same_files=not touched)
        if not touched and not needs:
            return self.result(False, names, start)
        params, warn = self.module.params, self.module.warn if check else None
        try_candidate(after, params["user"], params["timeout_seconds"], warn)
        if check:
            self.pooler.done = self.forecast(needs, touched)
            return self.result(True, names, start)
        self.swap()
        try:
            self.apply(after, before)
        except Exception as error:  # whatever it was, half a change must not stay
            self.restore(error)
        self.finish()
        return self.result(True, names, start)

    def refuse_foreign(self) -> None:
        if self.distribution.foreign and not self.module.params["take_over"]:
            raise Refused(
                f"poolkit did not configure the PgBouncer of this host: {self.distribution.foreign}"
                ". take_over replaces it and keeps its files"
            )

    def touched(self) -> bool:
        """Tell whether a file has to be written."""
        after = self.change.after
        return (
            self.change.before.files != after.files
            or self.pending.exists()
            or not self.distribution.replaced
            or bool(disabled(after.numbers))
            or not self.files.right_modes(after.present, self.owners)
        )

    def forecast(self, needs: list[dict[str, Any]], touched: bool) -> list[dict[str, Any]]:
        """Return what the run would do to each process: what it needs, a reload at the least."""
        numbers = self.change.after.numbers if touched else ()
        found = {n: {"process": n, "action": "reload", "seconds": 0.0} for n in numbers}
        found |= {need["process"]: need for need in needs}
        return [found[number] for number in sorted(found)]

    def swap(self) -> None:
        """Put the new files in place of the old ones, all or none; raise OSError when none is."""
        resumed = self.pending.exists()
        self.distribution.keep_foreign()
        try:
            kept = {"files": self.change.before.files, "owners": self.owners}
            kept["distribution"] = self.distribution.state
            write(self.pending, json.dumps(kept), 0o600)
            self.files.close_folders()
            self.files.write(self.change.after.files, keep_old=True)
        except BaseException as error:
            if not in_place(self.change.on_disk):
                if isinstance(error, Exception):  # the next run undoes one that is killed here
                    self.restore(error)
            elif not resumed:
                self.distribution.restore_folders()
                self.pending.unlink(missing_ok=True)
            raise

    def apply(self, wanted: Configuration, others: Configuration) -> None:
        """Make the host take the files that are in place instead of others."""
        self.distribution.replace()
        systemctl("daemon-reload")
        self.pooler.apply(wanted, others)

    def finish(self) -> None:
        """Forget the old files: the change is proved, or undone."""
        for path in self.change.after.files:
            old(path).unlink(missing_ok=True)
        self.pending.unlink()

    def restore(self, error: Exception) -> None:
        """Put the old files back, prove that they serve again, and fail with the reason."""
        before, state = self.change.before, self.distribution.state
        was_ours = bool(before.numbers) and not state["foreign"]
        try:
            if was_ours:
                self.files.write(before.files)
                self.apply(before, self.change.after)
            else:
                self.restore_distribution()
        except Exception as second:  # the first reason must not get lost
            if not self.serves_before():
                reasons = dict.fromkeys([str(error), str(second)])
                self.module.fail_json(
                    msg=f"{'. '.join(reasons)}. The old configuration does not serve again: mend "
                    "this, then run it again; the next run can still go back.",
                    restored=False,
                )
        self.finish()
        serves = was_ours or state["active"]
        what = "The old configuration" if was_ours else "What the host had before"
        self.module.fail_json(
            msg=f"{error}. {what} is back{' and serves' if serves else ''}.", restored=serves
        )

    def restore_distribution(self) -> None:
        """Hand a host that had no poolkit configuration back as it was."""
        for number in running():
            self.pooler.process(number).control("stop")
        self.files.write(self.change.before.files, self.owners)
        self.distribution.restore()

    def serves_before(self) -> bool:
        """Tell whether the old files are in place and every process of theirs has them."""
        before = self.change.before
        with contextlib.suppress(Refused, OSError):
            if before.numbers and in_place(before) and not self.distribution.state["foreign"]:
                return not any(self.pooler.problems(number, before) for number in before.numbers)
        return False

    def result(self, changed: bool, names: list[str], start: float) -> dict[str, Any]:
        pooler, state = self.pooler, self.distribution.state
        before, after = self.change.before.files, self.change.after.files
        secret = {file["path"] for file in self.module.params["secret_files"]}
        actions = [done["action"] for done in pooler.done] or ["none"]
        return {
            "changed": changed,
            "action": max(actions, key=ACTIONS.index),
            "processes": pooler.done,
            "settings": names,
            "restart_reason": pooler.reasons,
            "problems": pooler.problems_found,
            "seconds": round(time.monotonic() - start, 2),
            "kept_files": state["kept"] if changed else "",
            "diff": [
                *told(pooler.done, pooler.reasons, pooler.problems_found),
                *shown(before, after, secret, state["foreign"]),
            ],
        }


def in_place(configuration: Configuration) -> bool:
    """Tell whether the disk has exactly these files."""
    return all(read(Path(path)) == text for path, text in configuration.files.items())

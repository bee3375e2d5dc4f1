"""All PgBouncer processes of a host, which take a configuration one after the other."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pgbouncer_configuration import UNIT, Configuration, process_ini
from .pgbouncer_files import Files
from .pgbouncer_process import Process, systemctl
from .pgbouncer_proof import problems, restart_reasons, stale_certificate
from .pgbouncer_text import NEUTRAL_USER, kept_by_reload, pool_modes
from .pgbouncer_version import DRAINS, Version
from .refused import Refused

TARGET = "pgbouncer.target"
"""What starts the processes at boot."""


def running() -> list[int]:
    """Return the numbers of the processes that run, or try to."""
    shown = systemctl(
        *("list-units", "--plain", "--no-legend", "--state=active,activating,reloading"),
        "pgbouncer@*.service",
    )
    found = re.findall(r"^pgbouncer@(\d+)\.service", shown.stdout, re.MULTILINE)
    return sorted({int(number) for number in found})


def disabled(numbers: Iterable[int]) -> list[str]:
    """Return the units that would not start at boot; is-enabled itself is content with one."""
    units = [TARGET, *(f"pgbouncer@{number}.service" for number in numbers)]
    shown = systemctl("is-enabled", *units).stdout.split()
    states = shown + ["missing"] * (len(units) - len(shown))
    return [unit for unit, state in zip(units, states, strict=False) if state != "enabled"]


def enable(numbers: Iterable[int]) -> None:
    """Have the processes started at boot; raise Refused where systemd does not take that."""
    if units := disabled(numbers):
        done = systemctl("enable", "--quiet", *units)
        if done.returncode:
            raise Refused(f"systemctl enable {' '.join(units)} failed: {done.stderr}")


@dataclass(frozen=True)
class Change:
    """The files of a host before a change, now, and after it."""

    before: Configuration
    """What an undo goes back to: what is on the disk, or was before a run that was killed."""
    on_disk: Configuration
    after: Configuration

    def starts_differently(self) -> bool:
        """Tell whether a process may have been started by another unit than it would be now."""
        return UNIT in self.after.files and not (
            self.after.same_unit(self.before) and self.after.same_unit(self.on_disk)
        )


class Pooler:
    """The processes, and what was done to them.

    done: {process, action, seconds} of each. reasons: why a reload does not suffice.
    problems_found: where processes differed from files that stay. Methods raise
    Refused with what a process or systemd said.
    """

    def __init__(
        self, change: Change, files: Files, version: Version, params: Mapping[str, Any]
    ) -> None:
        self.change = change
        self.files = files
        self.version = version
        self.user = params["user"]
        self.timeout = params["timeout_seconds"]
        self.drain_seconds = params["drain_seconds"]
        self.done: list[dict[str, Any]] = []
        self.reasons: list[str] = []
        self.problems_found: list[str] = []

    def process(self, number: int) -> Process:
        return Process(number, self.user, self.timeout)

    def explain(self, reasons: Iterable[str]) -> None:
        self.reasons = sorted({*self.reasons, *reasons})

    def note(self, number: int, action: str, start: float) -> None:
        seconds = round(time.monotonic() - start, 2)
        self.done.append({"process": number, "action": action, "seconds": seconds})

    def needs(self, same_files: bool) -> list[dict[str, Any]]:
        """Return what the processes need, apart from a reload for changed files.

        same_files: whether no file is written, so that a process must have passed the proof.
        """
        wanted = self.change.after.numbers
        needed = dict.fromkeys(sorted(set(running()) - set(wanted)), "stop")
        needed |= {number: self.need(number, same_files) for number in wanted}
        return [
            {"process": number, "action": action, "seconds": 0.0}
            for number, action in needed.items()
            if action
        ]

    def need(self, number: int, same_files: bool) -> str:
        """Return what one process needs; "" where it may stay as it is."""
        after = self.change.after
        process = self.process(number)
        if not process.running():
            self.problems_found.append(f"{process.unit} does not run")
            return "start"
        if reasons := self.restart_reasons(process, after):
            self.explain(reasons)
            return "restart"
        if not same_files:
            return ""
        # A limit is raised once the candidate was tried.
        wrong = problems(process, after, after, raise_limit=False)
        if number == 1 and (stale := stale_certificate(after)):
            wrong.append(stale)
        self.problems_found += [f"{process.unit}: {problem}" for problem in wrong]
        return "reload" if wrong else ""

    def restart_reasons(self, process: Process, wanted: Configuration) -> list[str]:
        return restart_reasons(process, wanted, self.change.starts_differently())

    def problems(self, number: int, wanted: Configuration) -> list[str]:
        return problems(self.process(number), wanted, self.change.after)

    def prove(self, number: int, wanted: Configuration) -> None:
        """Wait until a process has the configuration and listens; raise Refused otherwise."""
        deadline = time.monotonic() + self.timeout
        process = self.process(number)
        while found := self.problems(number, wanted):
            # What a reload did not change stays; only a process that is starting needs patience.
            starting = "no socket" in found[0] or "refused" in found[0]
            if time.monotonic() > deadline or (process.running() and not starting):
                raise Refused("the running process differs: " + "; ".join(found))
            time.sleep(0.2)

    def apply(self, wanted: Configuration, others: Configuration) -> None:
        """Make the processes take the files that are in place instead of others, one by one."""
        serving = running()
        # New ones first: another process must take the clients of one that is replaced.
        for number in sorted(wanted.numbers, key=lambda number: (number in serving, number)):
            start = time.monotonic()
            action = self.apply_to(self.process(number), wanted, others)
            self.prove(number, wanted)
            self.note(number, action, start)
        for number in sorted(set(running()) - set(wanted.numbers)):
            start = time.monotonic()
            self.remove(self.process(number))
            self.note(number, "stop", start)
        if problem := stale_certificate(wanted):
            raise Refused(problem)
        enable(wanted.numbers)
        systemctl("start", TARGET)

    def apply_to(self, process: Process, wanted: Configuration, others: Configuration) -> str:
        """Make one process take the files; return what was done."""
        if not process.running():
            process.control("start")
            return "start"
        reasons = self.restart_reasons(process, wanted)
        if not process.has_open_files(wanted.open_files):
            reasons.append("LimitNOFILE")
        if not reasons:
            reasons = self.reload(process, wanted, others)
        if not reasons:
            return "reload"
        self.explain(reasons)
        self.replace(process, wanted)
        return "restart"

    def reload(self, process: Process, wanted: Configuration, others: Configuration) -> list[str]:
        """Reload a process; return the settings that it keeps all the same."""
        number, sections = process.number, wanted.sections(process.number)
        known = others.users(number) | self.change.on_disk.users(1)
        removed = sorted(known - wanted.users(number))
        # PgBouncer resets a server connection only when a client leaves it in pool mode session:
        # one in use while the mode changes would hand its state to the next client. Once only: a
        # second RECONNECT would end a login that the first one caused.
        changes_mode = pool_modes(others.sections(number)) != pool_modes(sections)
        commands = ["RECONNECT", "RELOAD"] if changes_mode else ["RELOAD"]
        if removed:
            # A user whose line is gone keeps its limits: give it a neutral line first.
            lines = "\n".join(f"{user} = {NEUTRAL_USER}" for user in removed)
            self.files.write({wanted.path: f"[users]\n{lines}\n{wanted.text}"})
            process.ask(*commands)
            commands = ["RELOAD"]
            self.files.write({wanted.path: wanted.text})
        process.ask(*commands)
        return kept_by_reload(sections, process.rows())

    def replace(self, process: Process, wanted: Configuration) -> None:
        """Restart a process; where the version allows, without cutting a client off."""
        try:
            drains = min(self.version, process.version()) >= DRAINS
        except Refused:
            drains = False
        if not drains:  # an older one, or one that hangs
            process.control("restart")
            return
        stand_in = self.stand_in(process, wanted)
        try:
            process.drain(self.drain_seconds)
            process.control("start")
        except Refused:
            process.control("restart")
        self.prove(process.number, wanted)
        if stand_in:
            self.remove(stand_in)

    def stand_in(self, process: Process, wanted: Configuration) -> Process | None:
        """Start a second process beside a lone one; return it, and None where another runs."""
        others = [number for number in running() if number != process.number]
        if any(self.process(number).running() for number in others):
            return None
        second = self.process(1 if process.number == 2 else 2)
        text = process_ini(wanted.path, second.number, self.version)
        own = {wanted.process_path(second.number): text}
        self.files.write(own)
        second.control("start")
        self.prove(second.number, Configuration(wanted.path, {**wanted.files, **own}))
        return second

    def remove(self, process: Process) -> None:
        """End a process for good; without its file systemd does not start it again."""
        Path(self.change.after.process_path(process.number)).unlink(missing_ok=True)
        with contextlib.suppress(Refused):  # one that does not answer is only stopped
            if process.running() and process.version() >= DRAINS:
                process.drain(self.drain_seconds)
        process.control("stop")
        systemctl("disable", "--quiet", process.unit)

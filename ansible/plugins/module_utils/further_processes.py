"""The further processes of an application on this host: workers, and commands with a schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .refused import Refused
from .service_state import log_end, newer_than, properties, systemctl, timestamp

UNITS = Path("/etc/systemd/system")
SETTLE_SECONDS = 3.0
"""So long a worker has to stay up after its start."""


class Processes:
    """Their units are NAME.PROCESS.service, and NAME.PROCESS.timer for one with a schedule.

    No name of an application has a dot, so that no other application's units are among them.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def files(self) -> list[Path]:
        """Return the unit files that are on the host."""
        found = [*UNITS.glob(f"{self.name}.*.service"), *UNITS.glob(f"{self.name}.*.timer")]
        return sorted(found)

    def own(self, path: Path) -> bool:
        """Say whether a file is a unit of theirs: the application's own are NAME.service and so."""
        return path.parent == UNITS and path.stem.startswith(f"{self.name}.")

    def units(self) -> tuple[list[str], list[str]]:
        """Return (workers, timers): what runs always, and what starts something at its time."""
        names = [path.name for path in self.files()]
        timers = [name for name in names if name.endswith(".timer")]
        timed = {name.replace(".timer", ".service") for name in timers}
        return [name for name in names if name not in timed and name not in timers], timers

    def reasons(self, read_at_start: list[str]) -> list[str]:
        """Return why they do not yet run as their files say.

        read_at_start: files that a worker reads when it starts, beside its unit.
        """
        found = []
        workers, timers = self.units()
        for unit in (*workers, *timers):
            state = properties(unit, "ActiveState,UnitFileState,ActiveEnterTimestamp")
            if state.get("ActiveState") not in ("active", "reloading"):
                found.append(f"{unit} is not active")
            if state.get("UnitFileState") != "enabled":
                found.append(f"{unit} is not enabled")
            files = [str(UNITS / unit), *(read_at_start if unit in workers else [])]
            started = timestamp(state.get("ActiveEnterTimestamp", ""))
            found += [f"{path} is newer than {unit}" for path in newer_than(files, started)]
        return found

    def start(self, run: Callable[..., None]) -> None:
        """Start them all anew with the release that serves; raise Refused where one does not stay.

        run: systemctl, which raises Refused. systemd stops and starts them at the same time, each
        old one before the new one: two never work on the same queue.
        """
        workers, timers = self.units()
        if not workers and not timers:
            return
        run("daemon-reload")
        run("enable", "--quiet", *workers, *timers)
        since = time.time() - 1
        run("restart", *workers, *timers)
        begun = {unit: self._start_of(unit) for unit in workers}
        if workers:
            time.sleep(SETTLE_SECONDS)
        for unit in workers:
            if not begun[unit] or self._start_of(unit) != begun[unit]:
                raise Refused(
                    f"{unit} does not stay up: its log ends with: {log_end(unit, since=since)}"
                )

    def _start_of(self, unit: str) -> str:
        """Return when a unit's process was started; "" where it does not run."""
        state = properties(unit, "ActiveState,ExecMainStartTimestampMonotonic")
        running = state.get("ActiveState") == "active"
        return state.get("ExecMainStartTimestampMonotonic", "") if running else ""

    def stop(self, path: Path) -> None:
        """Stop a unit for good, before its file goes."""
        systemctl("disable", "--now", "--quiet", path.name)

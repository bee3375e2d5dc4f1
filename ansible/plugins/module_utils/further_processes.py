"""The further processes of an application on this host: workers, and commands with a schedule."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from .refused import Refused
from .service_state import log_end, newer_than, properties, systemctl, timestamp
from .text_files import read, write

UNITS = Path("/etc/systemd/system")
SETTLE_SECONDS = 3.0
"""So long a worker has to stay up after its start."""


class Processes:
    """Their units are NAME.PROCESS.service, and NAME.PROCESS.timer for one with a schedule.

    Only units with the role's mark count: an operator may have some of the same form.
    """

    def __init__(self, name: str, config: Path) -> None:
        self.name = name
        self.mark = f"\nX-Poolkit={name}\n"
        self.kept_file = config / ".processes.json"

    def form(self, path: Path) -> bool:
        """Say whether a file has the form of their names; no application's name has a dot."""
        return path.parent == UNITS and path.stem.startswith(f"{self.name}.")

    def files(self) -> list[Path]:
        """Return their unit files that are on the host."""
        found = [*UNITS.glob(f"{self.name}.*.service"), *UNITS.glob(f"{self.name}.*.timer")]
        return sorted(path for path in found if self.mark in (read(path) or ""))

    def units(self) -> tuple[list[str], list[str], list[str]]:
        """Return (workers, timers, timed): what runs always, what starts something, and that."""
        names = [path.name for path in self.files()]
        timers = [name for name in names if name.endswith(".timer")]
        timed = [name.removesuffix(".timer") + ".service" for name in timers]
        workers = [name for name in names if name not in timers and name not in timed]
        return workers, timers, timed

    def kept(self) -> dict[str, dict[str, str]]:
        """Return {release: {path: text}} of the releases that were found ready."""
        return json.loads(read(self.kept_file) or "{}")

    def keep(self, release: str, wanted: Mapping[Path, str], releases: Iterable[str]) -> None:
        """Write down a release's units, for going back to it. releases: those on the host."""
        before = self.kept()
        found = {name: units for name, units in before.items() if name in releases}
        found[release] = {str(path): text for path, text in wanted.items() if self.form(path)}
        if found != before and (before or any(found.values())):
            write(self.kept_file, json.dumps(found), 0o600)

    def reasons(self, read_at_start: list[str]) -> list[str]:
        """Return why they do not yet run as their files say.

        read_at_start: files that a worker reads when it starts, beside its unit.
        """
        found = []
        workers, timers, _ = self.units()
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

    def stop(self) -> None:
        """Stop them all, timers first; each has its own time to end. None starts by itself."""
        workers, timers, timed = self.units()
        if workers or timers:
            systemctl("disable", "--now", "--quiet", *timers, *workers)
            systemctl("stop", *timed)

    def start(self) -> None:
        """Start what is on the host; raise Refused where a worker does not stay up.

        A timer comes last, so that nothing of a release that is refused runs at its time.
        """
        workers, timers, _ = self.units()
        if not workers and not timers:
            return
        since = time.time() - 1
        systemctl("daemon-reload")
        if workers:
            systemctl("enable", "--quiet", *workers)
            systemctl("restart", *workers)
            begun = {unit: self._start_of(unit) for unit in workers}
            time.sleep(SETTLE_SECONDS)
            for unit in workers:
                if not begun[unit] or self._start_of(unit) != begun[unit]:
                    raise Refused(
                        f"{unit} does not stay up: its log ends with: {log_end(unit, since=since)}"
                    )
        for unit in timers:
            done = systemctl("enable", "--now", "--quiet", unit)
            if done.returncode:
                raise Refused(f"{unit} does not start: {done.stderr.strip()}")

    def _start_of(self, unit: str) -> str:
        """Return when a unit's process was started; "" where it does not run."""
        state = properties(unit, "ActiveState,ExecMainStartTimestampMonotonic")
        running = state.get("ActiveState") == "active"
        return state.get("ExecMainStartTimestampMonotonic", "") if running else ""

"""A pause that ends by itself: a timer of systemd on the host resumes the processes.

The timer is set before the pause, so whatever becomes of the run that has asked for it, or of the
way to the host, no query waits for longer.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Sequence

from .pgbouncer_console import Console, Unusable
from .refused import Refused
from .service_state import properties, systemctl

UNIT = "poolkit-pgbouncer-release"
CATCH_UP_SECONDS = 5
"""After a pause, for what has waited: the time-outs of the file count from when it was asked."""


def begin(consoles: Sequence[Console], seconds: int, user: str) -> None:
    """Let the processes resume by themselves after so many seconds, and let queries wait as long.

    Whoever waits since a run that was killed goes first, so that nobody waits for two pauses.
    user: of the service. Raises Refused.
    """
    if active():
        for console in consoles:
            with contextlib.suppress(Refused, Unusable):  # what is wrong, the pause will tell
                console.change("RESUME", CATCH_UP_SECONDS)
        # No reload: after one, PgBouncer 1.18 lets nobody in before it has a server connection.
        wait_for_clients(consoles)
    # Its service may be about to reload, which would bring the short time-outs back.
    systemctl("stop", f"{UNIT}.timer", f"{UNIT}.service")

    def on_each(command: str) -> str:
        return "; ".join(shlex.join([*console.psql, "-c", command]) for console in consoles)

    script = f"{on_each('RESUME')}; sleep {CATCH_UP_SECONDS}; {on_each('RELOAD')}"
    command = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", f"--uid={user}"]
    command += [f"--on-active={seconds}s", "--timer-property=AccuracySec=100ms"]
    done = subprocess.run([*command, "/bin/sh", "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"the timer that ends the pause cannot be set: {done.stderr.strip()}")
    for console in consoles:
        wait = seconds + CATCH_UP_SECONDS
        console.ask(f"SET query_wait_timeout = {wait}", "SET query_timeout = 0")


def wait_for_clients(consoles: Sequence[Console]) -> None:
    """Wait until no client waits, CATCH_UP_SECONDS at most."""
    deadline = time.monotonic() + CATCH_UP_SECONDS
    for console in consoles:
        with contextlib.suppress(Refused, Unusable):
            while time.monotonic() < deadline and any(
                row["cl_waiting"] != "0" for row in console.show("POOLS")
            ):
                time.sleep(0.2)


def active() -> bool:
    """Tell whether a pause is under way."""
    return properties(f"{UNIT}.timer", "ActiveState").get("ActiveState") == "active"


def end(consoles: Sequence[Console]) -> None:
    """Bring the file's time-outs back once nobody waits."""
    if active():
        wait_for_clients(consoles)
        for console in consoles:
            with contextlib.suppress(Refused):
                console.ask("RELOAD")
        systemctl("stop", f"{UNIT}.timer")

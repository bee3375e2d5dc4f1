#!/usr/bin/python3
"""Kill a PgBouncer process that no longer answers; systemd starts it again.

Arguments: the directory with the processes' sockets, how many processes there are, their port,
the seconds between two questions, how many silent answers in a row are too many, and the directory
for the counts. Process N is asked over N/.s.PGSQL.PORT with an SSLRequest. PgBouncer's event loop
answers it with one byte, before any login: no database is needed, no client limit counts, and the
log stays empty. Whatever comes is an answer, a closed connection as well. A process that is not
listening, because it starts, drains or ends, is systemd's business and never killed.

A silent process that computes, or waits for disk, processor or journal, is busy: it has BUSY_FACTOR
times as long. Needs PgBouncer's own user, whose processes it may end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SSL_REQUEST = struct.pack("!II", 8, 80877103)
"""PostgreSQL's protocol, message formats: length and code."""

LOG_WAITS = ("unix_", "sock_alloc_send", "pipe_w")
"""How the kernel's places begin where a process waits until somebody reads what it has written.

PgBouncer writes its log to journald, and waits while that is busy itself, as in a long rotation: no
new process would fare better. The names are those of /proc/PID/wchan.
"""

BUSY_FACTOR = 10
"""How much longer a busy process may be silent."""

PAUSE_SECONDS = 30.0
"""From one kill to the next of the same process: what a new one does not cure, ten do not."""


class NotListening(Exception):
    """There is no process behind the socket."""


def peer(connection: socket.socket) -> int:
    """Return the number of the process that listens at the other end of a unix socket."""
    size = struct.calcsize("3i")
    options = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", options)[0]


def working(stat: str) -> tuple[bool, int]:
    """Return (whether it waits for disk or processor, its clock ticks) of /proc/PID/stat."""
    values = stat.rpartition(")")[2].split()
    return values[0] in ("D", "R"), int(values[11]) + int(values[12])


@dataclass
class Watch:
    """One process, and what is known of it. Times are monotonic seconds."""

    path: str
    interval: float
    threshold: int
    pid: int = 0
    handle: int = -1
    """Keeps the number from being another process's by the time that it is killed."""
    silent: int = 0
    """Silent answers in a row."""
    idle: int = 0
    """The last of them between which the process did nothing."""
    ticks: int = 0
    killed: float = field(default=float("-inf"))

    def ask(self) -> bool:
        """Tell whether the process answers; raise NotListening where none listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self.interval)
            try:
                connection.connect(self.path)
                self.remember(peer(connection))
                connection.sendall(SSL_REQUEST)
                connection.recv(1)
            except (TimeoutError, BlockingIOError):  # the latter: nobody takes the connections
                return False
            except (ConnectionResetError, BrokenPipeError):
                return True
            except OSError as error:
                raise NotListening from error
        return True

    def remember(self, pid: int) -> None:
        if pid == self.pid:
            return
        self.forget()
        with contextlib.suppress(OSError):  # it has just ended
            self.handle = os.pidfd_open(pid)
            self.pid = pid

    def forget(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
        self.pid, self.handle = 0, -1
        self.answered()

    def answered(self) -> None:
        self.silent = self.idle = self.ticks = 0

    def look(self) -> None:
        """Count one silent answer, and whether the process has worked since the last one."""
        self.silent += 1
        try:
            waits, ticks = working(Path(f"/proc/{self.pid}/stat").read_text())
        except OSError:
            return
        works = waits or self.waits_for_its_log() or (self.silent > 1 and ticks > self.ticks)
        self.idle = 0 if works else self.idle + 1
        self.ticks = ticks

    def waits_for_its_log(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/wchan").read_text().startswith(LOG_WAITS)
        except OSError:
            return False

    def reason_to_kill(self, now: float) -> str | None:
        """Return why the process is to be killed; None while it may go on."""
        if not self.pid or now - self.killed < PAUSE_SECONDS:
            return None
        if self.idle >= self.threshold:
            return f"no answer for {self.silent * self.interval:g} s, and it does nothing"
        if self.silent >= self.threshold * BUSY_FACTOR:
            return f"no answer for {self.silent * self.interval:g} s, though it is busy"
        return None

    def kill(self, now: float) -> None:
        self.killed = now
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        self.forget()


def count(path: Path) -> None:
    """Add one to the number in a file, which the exporter reads."""
    number = int(path.read_text()) if path.exists() else 0
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{number + 1}\n")
    fresh.replace(path)


def watch(number: int, one: Watch, counts: Path) -> None:
    """Ask one process for ever. Prints what it does: the journal is the log."""
    while True:
        started = time.monotonic()
        try:
            if one.ask():
                one.answered()
            else:
                one.look()
        except NotListening:
            one.forget()
        name = f"process {number} (pid {one.pid})"
        if reason := one.reason_to_kill(time.monotonic()):
            print(f"killed {name}: {reason}", file=sys.stderr, flush=True)
            one.kill(time.monotonic())
            count(counts / str(number))
        elif one.silent == one.threshold:
            print(f"{name} is silent, and busy or just started", file=sys.stderr, flush=True)
        time.sleep(max(0.0, started + one.interval - time.monotonic()))


def end(failure: threading.ExceptHookArgs) -> None:
    """End the program where the watch of one process failed: systemd starts it again."""
    print(f"cannot watch: {failure.exc_value!r}", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    threading.excepthook = end
    os.close(os.pidfd_open(os.getpid()))  # fails here where the kernel or a container has none
    directory, processes, port, interval, threshold, counts = sys.argv[1:]
    watches = []
    for number in range(1, int(processes) + 1):
        one = Watch(f"{directory}/{number}/.s.PGSQL.{port}", float(interval), int(threshold))
        watches.append(threading.Thread(target=watch, args=(number, one, Path(counts))))
    for thread in watches:
        thread.start()


if __name__ == "__main__":
    main()

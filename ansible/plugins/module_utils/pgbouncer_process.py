"""One PgBouncer process: the unit pgbouncer@N.service, and what it does when asked."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from . import service_state
from .pgbouncer_console import (
    PATH,
    RUNTIME_DIRECTORY,
    Console,
    Denied,
    Table,
    TimedOut,
    newest_socket,
)
from .pgbouncer_text import Rows
from .pgbouncer_version import Version, parse
from .refused import Refused


def systemctl(*arguments: str, timeout: int = 150) -> subprocess.CompletedProcess[str]:
    """Run systemctl; the default time is more than systemd's own 90 s for a stop."""
    try:
        return service_state.systemctl(*arguments, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Refused(f"systemctl {' '.join(arguments)} did not end in {timeout} s") from None


def pgbouncer_path() -> str | None:
    """Return the path of the installed binary."""
    return shutil.which("pgbouncer", path=PATH)


def installed_version() -> Version:
    """Return the version of the installed binary."""
    done = subprocess.run(
        ["pgbouncer", "--version"], capture_output=True, text=True, env={"PATH": PATH}
    )
    try:
        return parse(done.stdout)
    except ValueError:
        raise Refused(f"pgbouncer --version printed {done.stdout + done.stderr!r}") from None


def plain_address(text: str) -> str:
    """Return an IP address in its one spelling, without brackets and scope; other text as it is."""
    address = text.strip("[]").partition("%")[0].strip("[]")
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return text


def listening_problems(listen_addr: str, sockets: set[str]) -> list[str]:
    """Return where a process listens, and where it does not, against its listen_addr.

    sockets: the addresses that it listens on, as plain_address() gives them. A name counts as heard
    when one of its addresses is, and when it cannot be resolved now.
    """
    allowed: set[str] = set()
    deaf = []
    for part in (part.strip() for part in listen_addr.split(",") if part.strip()):
        if part == "*":
            wanted = {"0.0.0.0", "::"}  # noqa: S104 (compared, not bound)
        else:
            try:
                found = socket.getaddrinfo(part, None, type=socket.SOCK_STREAM)
                wanted = {plain_address(entry[4][0]) for entry in found}
            except OSError:  # no reason to end a process that serves
                wanted = set(sockets)
        allowed |= wanted
        deaf += [part] if not wanted & sockets else []
    found = [f"does not listen on {', '.join(deaf)}"] if deaf else []
    if more := sorted(sockets - allowed):
        found.append(f"listens on {', '.join(more)}, which listen_addr does not name")
    return found


class Process:
    """pgbouncer@N.service. Every method raises Refused with what the process or systemd said."""

    def __init__(self, number: int, user: str, timeout: int) -> None:
        self.number = number
        self.user = user
        self.timeout = timeout
        self.unit = f"pgbouncer@{number}.service"
        self.socket_directory = RUNTIME_DIRECTORY / str(number)

    def property(self, name: str) -> str:
        return systemctl("show", "--timestamp=us+utc", "-P", name, self.unit).stdout.strip()

    def running(self) -> bool:
        return self.property("ActiveState") in ("active", "reloading")

    def pid(self) -> int:
        return int(self.property("MainPID") or 0)

    def log(self) -> str:
        """Return the last lines of the process's log."""
        return service_state.log_end(self.unit, lines=5)

    def control(self, verb: str) -> None:
        done = systemctl(verb, self.unit)
        if done.returncode:
            raise Refused(f"systemctl {verb} {self.unit} failed: {self.log() or done.stderr}")

    def console(self) -> Console:
        """Return the admin console; raise Refused where the process has no socket."""
        socket = newest_socket(self.socket_directory)
        if not socket:
            raise Refused(f"{self.unit} has no socket in {self.socket_directory}: {self.log()}")
        return Console(self.number, socket, self.user)

    def ask(self, *commands: str) -> list[Table]:
        """Return the rows of each admin command; raise Refused when one is refused."""
        asked = ", ".join(commands)
        try:
            return self.console().ask(*commands, seconds=self.timeout)
        except TimedOut:
            raise Refused(f"{self.unit} did not answer {asked} in time") from None
        except Denied as error:
            raise Refused(f"{self.unit} refused {asked}: {error.said}") from None

    def rows(self) -> Rows:
        """Return what the process shows of its CONFIG, DATABASES and USERS, by name."""
        keys = {"CONFIG": "key", "DATABASES": "name", "USERS": "name"}
        answers = self.ask(*(f"SHOW {what}" for what in keys))
        return {
            what: {row[key]: row for row in answer}
            for (what, key), answer in zip(keys.items(), answers, strict=True)
        }

    def older_than(self, path: str) -> bool:
        """Tell whether a file was put in place after the process started, as a package does."""
        started = service_state.timestamp(self.property("ExecMainStartTimestamp"))
        return bool(started) and Path(path).stat().st_ctime > started

    def version(self) -> Version:
        """Return the version of the running process, which a package upgrade leaves as it was."""
        return self.console().version(self.timeout)

    def has_open_files(self, wanted: int, change: bool = True) -> bool:
        """Raise the process's limit where it is lower; tell whether it now has what it needs."""
        pid = self.pid()
        try:
            soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        except (PermissionError, ProcessLookupError):
            line = re.search(r"Max open files\s+(\d+)", Path(f"/proc/{pid}/limits").read_text())
            soft = int(line.group(1)) if line else 0
        if soft >= wanted or not change:
            return soft >= wanted
        with contextlib.suppress(PermissionError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, wanted))
            return True
        return False

    def drain(self, seconds: int) -> None:
        """End the process without cutting a client off: it stops listening and waits for clients.

        After `seconds` it waits for transactions only. Needs PgBouncer 1.23 and another process on
        the same port for new clients. The console stays open meanwhile: a process that shuts down
        accepts no new one.
        """
        pid = self.pid()
        deadline = time.monotonic() + seconds
        with self.console().session(self.timeout) as ask:
            with contextlib.suppress(EOFError, BrokenPipeError):
                ask("SHOW VERSION")  # the console is connected before the process stops listening
            self.terminate()
            with contextlib.suppress(EOFError, BrokenPipeError, KeyError):
                wait_for_clients(ask, deadline)
        self.wait_for_end(pid)

    def terminate(self) -> None:
        systemctl("kill", "--signal=SIGTERM", self.unit)

    def wait_for_end(self, pid: int) -> None:
        """Wait until a process that was told to end, and has no client left, is gone.

        A second signal ends what another console, or a process that does not answer, would hold up.
        """
        second, end = time.monotonic() + 2, time.monotonic() + self.timeout
        while self.pid() == pid and pid:
            if second and time.monotonic() > second:
                self.terminate()
                second = 0.0
            if time.monotonic() > end:
                raise Refused(f"{self.unit} (process {pid}) did not end after its clients left")
            time.sleep(0.05)

    def misheard(self, listen_addr: str, port: str) -> list[str]:
        """Return a statement where the process listens elsewhere than it should, or not at all."""
        shown = subprocess.run(["ss", "-Hltn", "--cgroup"], capture_output=True, text=True).stdout
        own = [line.split()[3] for line in shown.splitlines() if f"/{self.unit}" in line]
        heard = {plain_address(local.rpartition(":")[0]) for local in own}
        heard |= {"0.0.0.0", "::"} if "*" in heard else set()  # noqa: S104 (one socket for both)
        found = listening_problems(listen_addr, heard - {"*"})
        ports = sorted({local.rpartition(":")[2] for local in own} - {port})
        if ports:
            found.append(f"listens on port {', '.join(ports)}")
        return [f"{self.unit} {problem} (port {port})" for problem in found]


def wait_for_clients(ask: Callable[[str], Table], deadline: float) -> None:
    """Wait until a process that ends has no client; after the deadline for transactions only."""
    while any(row["database"] != "pgbouncer" for row in ask("SHOW CLIENTS")):
        if time.monotonic() > deadline:
            ask("PAUSE")  # lets no transaction begin and waits for those that run
            # After a WAIT_CLOSE it answers at once: see that none is left.
            while any(row["state"] == "active" for row in ask("SHOW SERVERS")):
                time.sleep(0.2)
            return
        time.sleep(0.2)

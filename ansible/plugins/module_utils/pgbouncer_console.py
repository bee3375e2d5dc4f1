"""The one client of PgBouncer's admin console: psql, over the unix socket of a process."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pwd
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pgbouncer_version import STATE, Version, parse
from .refused import Refused

RUNTIME_DIRECTORY = Path("/run/pgbouncer")
"""Process N has its unix socket in N/ below it."""

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for on a host, whatever the caller's environment says."""

ANSWER_SECONDS = 5
"""How long a process may take for what never blocks: a login, a SHOW, a RESUME."""

MARK = "poolkit-end-of-answer"
"""What psql prints between two answers."""

IN_THAT_STATE = re.compile(r"already suspended/paused|is not paused", re.IGNORECASE)
"""How PgBouncer refuses PAUSE and RESUME of what is in that state."""

Table = list[dict[str, str]]
"""Rows of an answer, as {column: value}; every value is text."""

Socket = tuple[str, str]
"""(directory, port) of a unix socket."""


class TimedOut(Refused):
    """The console took a command and did not finish it in time."""


class Denied(Refused):
    """psql failed: the console refused a command, or is not there. said: psql's own words."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(reason)
        self.said = said


class Unusable(OSError):
    """psql cannot be run as the service's user on this host, whatever the process does."""


@dataclass(frozen=True)
class State:
    """What decides whether a command would change anything."""

    paused: bool | None
    """Whether the whole process is paused; None where the version does not say."""
    databases: Mapping[str, Mapping[str, str]]
    """Rows of SHOW DATABASES by name, the admin console's own left out."""
    connections: Mapping[str, tuple[int, int]]
    """(clients, servers) by database."""


def rows(text: str) -> Table:
    """Return the rows of `psql --csv`."""
    return list(csv.DictReader(io.StringIO(text)))


def newest_socket(directory: Path) -> Socket | None:
    """Return the console's socket in a process's directory; its name ends in the port.

    A process that died without its clean-up leaves a socket behind, on the old port perhaps.
    """
    sockets = [path for path in directory.glob(".s.PGSQL.*[0-9]") if path.is_socket()]
    newest = max(sockets, key=lambda path: path.stat().st_mtime, default=None)
    return (str(directory), newest.suffix[1:]) if newest else None


def find_sockets(directory: str, process: int | None) -> dict[int, Socket]:
    """Return {process: socket}, of one process or of all; raise Refused where there is none."""
    number = "*" if process is None else process
    newest = {path: newest_socket(path) for path in Path(directory).glob(str(number))}
    found = {
        int(path.name): socket
        for path, socket in newest.items()
        if socket and path.name.isdecimal()
    }
    if not found:
        raise Refused(
            f"no running PgBouncer: there is no socket {directory}/{number}/.s.PGSQL.*; "
            f"look at: systemctl status 'pgbouncer@{number}'"
        )
    return dict(sorted(found.items()))


def connections(pools: Table) -> dict[str, tuple[int, int]]:
    """Return (clients, servers) by database from SHOW POOLS, whose columns differ by version."""
    found: dict[str, tuple[int, int]] = {}
    for row in pools:
        clients, servers = found.get(row["database"], (0, 0))
        clients += sum(int(v) for k, v in row.items() if k.startswith("cl_"))
        servers += sum(int(v) for k, v in row.items() if k.startswith("sv_"))
        found[row["database"]] = (clients, servers)
    return found


class Console:
    """The admin console of one process, as the service's own user, who needs no password."""

    def __init__(self, process: int, socket: Socket, user: str) -> None:
        self.process = process
        self.user = user
        self.psql = ["psql", "-X", "-q", "--csv", "-h", socket[0], "-p", socket[1]]
        self.psql += ["-U", "pgbouncer", "-d", "pgbouncer", "-v", "ON_ERROR_STOP=1"]

    def identity(self) -> dict[str, Any]:
        """Return what subprocess needs to run psql as the service's user."""
        owner = pwd.getpwnam(self.user)
        environment = {"PATH": PATH, "PGCONNECT_TIMEOUT": str(ANSWER_SECONDS)}
        return {
            "user": owner.pw_uid,
            "group": owner.pw_gid,
            "extra_groups": [],
            "env": {**environment, "PGCLIENTENCODING": "UTF8"},
            "cwd": "/",
        }

    def ask(self, *commands: str, seconds: float = ANSWER_SECONDS) -> list[Table]:
        """Return the rows of each command; raise TimedOut, Denied, or Unusable with the reason."""
        words = [word for each in commands for word in ("-c", each, "-c", f"\\echo {MARK}")]
        asked = ", ".join(commands)
        try:
            done = subprocess.run(
                [*self.psql, *words],
                capture_output=True,
                encoding="utf-8",
                errors="replace",  # an application_name may be in any encoding
                timeout=max(seconds, 0.1),
                **self.identity(),
            )
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{asked} did not end in time") from None
        except PermissionError:
            raise Unusable(f"cannot become {self.user}: become root first") from None
        except FileNotFoundError:
            raise Unusable("there is no psql on this host: install postgresql-client") from None
        said = " ".join(done.stderr.split())
        if done.returncode == 1:
            raise Denied(f"{asked} was refused: {said}", done.stderr.strip())
        if done.returncode:
            reason = f"{said}; look at: systemctl status pgbouncer@{self.process}"
            raise Denied(reason, done.stderr.strip())
        return [rows(answer) for answer in done.stdout.split(f"{MARK}\n")[: len(commands)]]

    def show(self, what: str, seconds: float = ANSWER_SECONDS) -> Table:
        """Return the rows of a SHOW; raises as ask() does."""
        (answer,) = self.ask(f"SHOW {what}", seconds=seconds)
        return answer

    def version(self, seconds: float = ANSWER_SECONDS) -> Version:
        """Return the version of the running process, which a package upgrade leaves as it was.

        (0,) where it names none; raises as ask() does.
        """
        (row,) = self.show("VERSION", seconds)
        try:
            return parse(row["version"])
        except ValueError:
            return (0,)

    def state(self) -> State:
        """Return the state of the process and of its databases; raises as ask() does."""
        paused = None
        if self.version() >= STATE:
            values = {row["key"]: row["value"] for row in self.show("STATE")}
            paused = values["active"] == "no"
        databases = {row["name"]: row for row in self.show("DATABASES")}
        counts = connections(self.show("POOLS"))
        for found in (databases, counts):
            found.pop("pgbouncer", None)  # the console itself
        return State(paused, databases, counts)

    def change(self, command: str, seconds: float) -> bool:
        """Send a command that changes the state; tell whether it was not in that state."""
        try:
            self.ask(command, seconds=seconds)
        except Denied as error:
            if command.startswith(("PAUSE", "RESUME")) and IN_THAT_STATE.search(str(error)):
                return False
            raise
        return True

    @contextlib.contextmanager
    def session(self, seconds: float) -> Iterator[Callable[[str], Table]]:
        """Keep the console open; give a function that returns the rows of a command.

        It raises EOFError or BrokenPipeError when the process is gone, and EOFError when an answer
        takes more than so many seconds.
        """
        with subprocess.Popen(
            self.psql,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            **self.identity(),
        ) as psql:

            def ask(command: str) -> Table:
                psql.stdin.write(f"{command};\n\\echo {MARK}\n".encode())
                return rows(answer_of(psql, time.monotonic() + seconds))

            try:
                yield ask
            finally:
                psql.kill()


def answer_of(psql: subprocess.Popen[bytes], deadline: float) -> str:
    """Return what psql prints up to MARK; raise EOFError at its end, and at the deadline."""
    text, end = b"", f"{MARK}\n".encode()
    while not text.endswith(end):
        wait = deadline - time.monotonic()
        if wait < 0 or not select.select([psql.stdout], [], [], wait)[0]:
            raise EOFError
        part = os.read(psql.stdout.fileno(), 65536)
        if not part:
            raise EOFError
        text += part
    return text.decode(errors="replace").removesuffix(f"{MARK}\n")

"""One PgBouncer process: the unit pgbouncer@N.service and its admin console."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import resource
import select
import shutil
import subprocess
import time
from pathlib import Path

from ansible.module_utils import service_state

RUNTIME_DIRECTORY = Path("/run/pgbouncer")
"""Process N has its unix socket in N/ below it."""

MARK = "poolkit-end-of-answer"
"""What psql prints between two answers."""

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """The candidate cannot be used, or the process does not do what it says."""


def systemctl(*arguments: str, timeout: int = 150) -> subprocess.CompletedProcess[str]:
    """Run systemctl; the default time is more than systemd's own 90 s for a stop."""
    try:
        return service_state.systemctl(*arguments, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Refused(f"systemctl {' '.join(arguments)} did not end in {timeout} s") from None


def installed_version() -> tuple[int, ...]:
    """Return the version of the installed binary, (1, 24, 1)."""
    done = subprocess.run(
        ["pgbouncer", "--version"], capture_output=True, text=True, env={"PATH": PATH}
    )
    match = re.search(r"PgBouncer (\d+)\.(\d+)\.(\d+)", done.stdout)
    if not match:
        raise Refused(f"pgbouncer --version printed {done.stdout + done.stderr!r}")
    return tuple(int(part) for part in match.groups())


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

    def psql(self) -> list[str]:
        """Return psql's arguments for the admin console; the socket's name tells the port."""
        sockets = sorted(self.socket_directory.glob(".s.PGSQL.*[0-9]"))
        if not sockets:
            raise Refused(f"{self.unit} has no socket in {self.socket_directory}: {self.log()}")
        port = sockets[-1].name.rsplit(".", 1)[1]
        arguments = ["psql", "-X", "-q", "--csv", "-h", str(self.socket_directory), "-p", port]
        return [*arguments, "-U", "pgbouncer", "-d", "pgbouncer", "-v", "ON_ERROR_STOP=1"]

    def environment(self) -> dict[str, str]:
        return {"PATH": PATH, "PGCONNECT_TIMEOUT": "5"}

    def ask(self, *commands: str) -> list[list[dict[str, str]]]:
        """Return the rows of each admin command; raise Refused when one is refused."""
        arguments = self.psql()
        for command in commands:
            arguments += ["-c", command, "-c", f"\\echo {MARK}"]
        try:
            done = subprocess.run(
                arguments,
                user=self.user,
                env=self.environment(),
                capture_output=True,
                text=True,
                errors="replace",  # an application_name may be in any encoding
                timeout=self.timeout,
                cwd="/",
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"{self.unit} did not answer {', '.join(commands)} in time") from None
        if done.returncode:
            raise Refused(f"{self.unit} refused {', '.join(commands)}: {done.stderr.strip()}")
        answers = done.stdout.split(f"{MARK}\n")[: len(commands)]
        return [list(csv.DictReader(io.StringIO(answer))) for answer in answers]

    def rows(self) -> dict[str, dict[str, dict[str, str]]]:
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

    def version(self) -> tuple[int, ...]:
        """Return the version of the running process, which a package upgrade leaves as it was."""
        ((row,),) = self.ask("SHOW VERSION")
        match = re.search(r"(\d+)\.(\d+)\.(\d+)", row["version"])
        return tuple(int(part) for part in match.groups()) if match else (0,)

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
        """End the process without cutting a client off: it stops to listen and waits for clients.

        After `seconds` it waits for transactions only. Needs PgBouncer 1.23 and another process on
        the same port for new clients. The console stays open meanwhile: a process that shuts down
        accepts no new one.
        """
        pid = self.pid()
        deadline = time.monotonic() + seconds
        console = subprocess.Popen(
            self.psql(),
            user=self.user,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )

        def ask(command: str) -> list[dict[str, str]]:
            """Return the rows; raise EOFError when the process is gone or takes too long."""
            os.write(console.stdin.fileno(), f"{command};\n\\echo {MARK}\n".encode())
            end, text = time.monotonic() + self.timeout, b""
            while not text.endswith(f"{MARK}\n".encode()):
                wait = end - time.monotonic()
                if wait < 0 or not select.select([console.stdout], [], [], wait)[0]:
                    raise EOFError
                part = os.read(console.stdout.fileno(), 65536)
                if not part:
                    raise EOFError
                text += part
            answer = text.decode(errors="replace").removesuffix(f"{MARK}\n")
            return list(csv.DictReader(io.StringIO(answer)))

        with contextlib.suppress(EOFError, BrokenPipeError):
            ask("SHOW VERSION")  # the console is connected before the process stops to listen
        systemctl("kill", "--signal=SIGTERM", self.unit)
        with contextlib.suppress(EOFError, BrokenPipeError, KeyError):
            while any(row["database"] != "pgbouncer" for row in ask("SHOW CLIENTS")):
                if time.monotonic() > deadline:
                    ask("PAUSE")  # lets no transaction begin and waits for those that run
                    # After a WAIT_CLOSE it answers at once: see that none is left.
                    while any(row["state"] == "active" for row in ask("SHOW SERVERS")):
                        time.sleep(0.2)
                    break
                time.sleep(0.2)
        console.kill()
        console.wait()
        # No client is left, or the time is over: a second signal ends what another console, or a
        # process that does not answer, would hold up.
        second, end = time.monotonic() + 2, time.monotonic() + self.timeout
        while self.pid() == pid and pid:
            if second and time.monotonic() > second:
                systemctl("kill", "--signal=SIGTERM", self.unit)
                second = 0.0
            if time.monotonic() > end:
                raise Refused(f"{self.unit} (process {pid}) did not end after its clients left")
            time.sleep(0.05)

    def deaf(self, listen_addr: str, port: str) -> list[str]:
        """Return a statement when the process does not listen where it should."""
        if not listen_addr:
            return []
        sockets = subprocess.run(
            ["ss", "-Hltn", "--cgroup", f"sport = :{port}"], capture_output=True, text=True
        ).stdout
        own = [line for line in sockets.splitlines() if f"/{self.unit}" in line]
        addresses = [part.strip() for part in listen_addr.split(",")]
        literal = [address for address in addresses if re.fullmatch(r"[0-9.]+", address)]
        deaf = [a for a in literal if not any(f" {a}:{port} " in line for line in own)]
        if own and not deaf:
            return []
        return [f"{self.unit} does not listen on {', '.join(deaf) or 'any address'}:{port}"]


def pgbouncer_path() -> str | None:
    """Return the path of the installed binary."""
    return shutil.which("pgbouncer", path=PATH)

#!/usr/bin/python
"""Make an application serve a release, as one transaction."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_release
short_description: Make an application serve a release, as one transaction
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Tries the release with the new files on a private unix socket, with one worker, while the old
    one goes on serving; only then swaps the files and the link `current`, restarts the service and
    asks it again. When that fails, the old files and release are put back and asked as well.
  - Its further processes, the units NAME.*.service and NAME.*.timer among the files, stop before
    the swap and start when the service is ready. One that does not stay up fails the release.
    Those that the files no longer have go. Each release comes back with the ones that it had.
  - The listening socket is systemd's, so no connection is refused. While the service restarts, the
    unit NAME-next.service stands in for it with one worker on the same socket.
  - Where the service runs this release with these files, it is only asked whether it is ready; the
    times on the host decide, so a run that was interrupted is caught up. A swap that was
    interrupted is undone first.
  - Where a message quotes the log, the values of the application's environment are left out.
  - Check mode changes nothing, and does not wait for another run either.
  - Two runs at once on a host wait for each other.
options:
  name:
    description: The application. Its units are NAME.service, NAME.socket and NAME-next.service.
    type: str
    required: true
  root:
    description: Directory with releases/ and venvs/; gets the links current and next, and history.
    type: path
    required: true
  config_directory:
    description: Directory of the files that are tried out under next/ in it.
    type: path
    required: true
  release:
    description:
      - Name of a directory in releases/, or `previous` for the one that served before.
      - With `current` the release that serves is only asked, as it was when it was found ready, and
        `serving` is what it answers. That never fails and takes no lock.
    type: str
    required: true
  files:
    description:
      - Files without secrets, as a list of {path, content}, the units among them. Without
        NAME.service the units on the host stay, as for a rollback.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file goes.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
  secret_files:
    description:
      - Files that their owner alone may read (root's 0600, another user's 0400), as a list of
        {path, content, owner}; their content appears in no output.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file goes.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
      owner:
        description: Its owner; root where left out.
        type: str
  rollback:
    description:
      - Whether this goes back, as `previous` always does. The release that served is marked in the
        history, so that going back once more goes further; the target is asked as it was when it
        served.
    type: bool
    default: false
  absent:
    description: Files of an earlier configuration, removed when the release serves without them.
    type: list
    elements: path
    default: []
  address:
    description: The {host, port} that NAME.socket listens on, as the health check reaches it.
    type: dict
    required: true
    suboptions:
      host:
        description: An IP address or a name.
        type: str
        required: true
      port:
        description: A TCP port.
        type: int
        required: true
  health_path:
    description: Path that answers 200 when the application can serve.
    type: str
    default: /readyz
  health_headers:
    description: Headers of the health check.
    type: dict
    default: {}
  health_timeout_seconds:
    description: How long a release may take to become ready, each time it is asked.
    type: int
    default: 30
  releases_kept:
    description: Releases that stay on the host for a rollback, the one that serves included.
    type: int
    default: 5
  lock_timeout_seconds:
    description: How long to wait for another run on this host.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Go back
  poolkit.poolkit.app_release:
    name: shop
    root: /srv/shop
    config_directory: /etc/poolkit/shop
    release: previous
    address: {host: 127.0.0.1, port: 8000}
"""

RETURN = r"""
release:
  description: The release that serves, or would in check mode.
  type: str
  returned: success
previous:
  description: The release that served before.
  type: str
  returned: success
reasons:
  description: Why something had to be done, such as the files that differ.
  type: list
  elements: str
  returned: success
releases:
  description: The releases that are on the host.
  type: list
  elements: str
  returned: always, once the application is on the host
body:
  description: The answer of the health check, at most 4000 characters.
  type: str
  returned: success, not in check mode
path:
  description: The value of `path` in it, where it is a JSON object; null otherwise.
  type: str
  returned: success, not in check mode
serving:
  description: What serves and what it answers, as part of a sentence.
  type: str
  returned: with the release `current`
  sample: "30e3c8b1f2d4 goes on serving"
seconds:
  description: Time that the trial, the restart and both together took.
  type: dict
  returned: when something was done
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..module_utils.command_output import clipped
from ..module_utils.further_processes import Processes
from ..module_utils.libpq_login import log_in
from ..module_utils.locking import Locked, lock
from ..module_utils.refused import Refused
from ..module_utils.secret_values import hide, of_environment
from ..module_utils.service_state import log_end, newer_than, properties, systemctl, timestamp
from ..module_utils.static_files import keep_others
from ..module_utils.text_files import difference, read, same_owner, write
from ..module_utils.unlogged_module import UnloggedModule

RUN = Path("/run")
STAGED = ("app.env", "gunicorn.conf.py", "pg_service.conf", "pgpass", "database_ca.crt")
"""Files of the configuration that a release under trial has its own copies of."""
RETRY_SECONDS = 0.1
ENDED = "its process ended"
ANSWERED_SECONDS = 0.5
"""How long to wait after an answer that is not 200."""
WITHDRAWN = " withdrawn"
"""End of a line of the history: a rollback went back from this release."""
UNSERVED_SECONDS = 3600
"""Age at which a release that was built and never served is removed."""
REDIRECTED = (
    "Where an application redirects to HTTPS: app_health_headers: {X-Forwarded-Proto: https}; "
    "where it redirects to a login, another app_health_path."
)
PLAIN_URL = (
    "What reads the URL knows no lists of hosts, or hands its parameters on: "
    "app_environment_names: {DATABASE_URL: plain_url}, or other names of its parts "
    "(docs/databases.md, Readers of the URL)."
)
HINTS = {
    "unsupported startup parameter: connect_timeout": PLAIN_URL,
    "unexpected keyword argument 'connect_timeout'": PLAIN_URL,
    "valid URL, empty host": PLAIN_URL,
    "invalid literal for int() with base 10": (
        "If that is the database's port, it is a list because of the fallback: "
        "app_environment_names: {DATABASE_URL: plain_url}, or app_database_fallback_enabled: false "
        "(docs/databases.md)."
    ),
    "Read-only file system": (
        "The application may write to app_state_directories alone (docs/files-and-commands.md)."
    ),
    "Invalid HTTP_HOST header": (
        "The health check has to name a host that is allowed: app_health_headers: {Host: …}."
    ),
    "status 301": REDIRECTED,
    "status 302": REDIRECTED,
    "prepared statement": (
        "In transaction mode the driver must not prepare statements by itself (docs/strategies.md, "
        "and the settings of docs/applications.md), or app_pool_mode: session."
    ),
    "permission denied for table": (
        "The table belongs to somebody else: ansible/playbooks/database.yml names such tables "
        "(docs/databases.md)."
    ),
    "unsupported startup parameter": (
        "The application asks for a setting in its connection options, which a pooler refuses: "
        "declare it in app_database_settings and take it out of the options."
    ),
    "no more connections allowed": (
        "The pooler has more clients than max_client_conn: raise it in pgbouncer_settings."
    ),
    "too many connections for role": (
        "PostgreSQL's CONNECTION LIMIT of the role is reached: ansible/playbooks/plan.yml shows "
        "it, ansible/playbooks/database.yml sets it after a change."
    ),
}
"""What to do about words in an application's answer or log; the first that is there counts."""
MESSAGE_CHARACTERS = 2000
"""Of each line of a message: an application may log a whole request in one."""
ANSWER_SECONDS = 6.0
"""How long one health check may take; the examples' /readyz answers within 5 s."""
STILL_SECONDS = 3.0
"""How long the release that serves is asked for a 200, where another one has failed."""


def explained(error: Exception) -> str:
    """Return an error as text; one that we did not foresee with its name."""
    return (
        str(error) if isinstance(error, (Refused, Locked)) else f"{type(error).__name__}: {error}"
    )


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
) -> tuple[int, str]:
    """Return (status, body) of a GET; raises OSError or HTTPException."""
    with contextlib.closing(connection):
        connection.request("GET", path, headers={**headers, "Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(65536).decode(errors="replace")


def point(link: Path, target: str | None) -> None:
    """Make a symbolic link point to a target at once; None removes it."""
    if target is None:
        link.unlink(missing_ok=True)
        return
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)


def attributes_of(path: Path) -> tuple[int, int, int]:
    """Return mode, user id and group id of a file that is there, as write() takes them."""
    status = path.stat()
    return status.st_mode & 0o7777, status.st_uid, status.st_gid


def previous_release(history: list[str], current: str | None, present: set[str]) -> str | None:
    """Return the newest release that served before the current one and is still on the host.

    history: its lines; a release that a rollback has withdrawn does not count.
    """
    served = (line for line in reversed(history) if not line.endswith(WITHDRAWN))
    return next((name for name in served if name != current and name in present), None)


def kept_releases(history: list[str], number: int) -> list[str]:
    """Return the lines of the releases that stay: the last that served, each once, newest last."""
    lines: dict[str, str] = {}
    for line in reversed(history):
        lines.setdefault(line.split()[0], line)
    return list(lines.values())[: max(number, 1)][::-1]


def answered_path(body: str) -> str | None:
    """Return the path to the database that a health check's answer names, as the examples do."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    return answer.get("path") if isinstance(answer, dict) else None


@dataclass(frozen=True)
class Health:
    """Where and how a release is asked whether it is ready."""

    address: dict[str, Any]
    path: str
    headers: dict[str, str]


class Application:
    """An application on this host: its units, links and files."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.name: str = parameters["name"]
        self.service = f"{self.name}.service"
        self.socket = f"{self.name}.socket"
        self.next = f"{self.name}-next.service"
        self.root = Path(parameters["root"])
        self.config = Path(parameters["config_directory"])
        self.processes = Processes(self.name, self.config)
        self.backup = self.config / ".undo.json"
        self.history_file = self.root / "history"
        self.health_file = self.config / ".health.json"
        self.stand_in = RUN / f"systemd/system/{self.next}.d/stand-in.conf"
        # Mode and owner (a user, whose group gets the file as well; None is root) of each file.
        self.attributes: dict[Path, tuple[int, str | None]] = {
            **{Path(file["path"]): (0o644, None) for file in parameters["files"]},
            **{
                Path(file["path"]): (0o400 if file["owner"] else 0o600, file["owner"])
                for file in parameters["secret_files"]
            },
        }
        self.wanted = {
            Path(file["path"]): file["content"]
            for file in parameters["files"] + parameters["secret_files"]
        }
        address = parameters["address"]
        headers = {name: str(value) for name, value in parameters["health_headers"].items()}
        if "host" not in map(str.lower, headers):
            host = address["host"]
            headers["Host"] = f"{f'[{host}]' if ':' in host else host}:{address['port']}"
        self.health = Health(address, parameters["health_path"], headers)
        self.timeout: int = parameters["health_timeout_seconds"]

    def take_processes_of(self, release: str) -> None:
        """Want the units of the further processes that a release had when it served."""
        for name, text in self.processes.kept().get(release, {}).items():
            self.wanted[Path(name)] = text
            self.attributes[Path(name)] = (0o644, None)

    # What is there.

    def unwanted(self) -> list[Path]:
        """Return the units of further processes that go."""
        return [path for path in self.processes.files() if path not in self.wanted]

    def current(self) -> str | None:
        link = self.root / "current"
        return link.readlink().name if link.is_symlink() else None

    def history(self) -> list[str]:
        return (read(self.history_file) or "").splitlines()

    def releases(self) -> set[str]:
        return {path.name for path in (self.root / "releases").glob("[!.]*")}

    def health_checks(self) -> dict[str, dict[str, Any]]:
        """Return how each release was asked when it was found ready."""
        return json.loads(read(self.health_file) or "{}")

    def active(self, unit: str) -> bool:
        return properties(unit, "ActiveState").get("ActiveState") in ("active", "reloading")

    def secrets(self) -> set[str]:
        """Return the values of the application's environment, the old one and the new one."""
        path = self.config / "app.env"
        texts = (read(path), self.wanted.get(path))
        headers = {
            value
            for name, value in self.health.headers.items()
            if re.search("auth|cookie|token|key|secret", name, re.IGNORECASE)
        }
        return headers.union(*(of_environment(text) for text in texts if text))

    def differing(self) -> list[Path]:
        """Return the files whose text, mode or owner is not the wanted one."""
        return [
            path
            for path, text in self.wanted.items()
            if read(path) != text or not same_owner(path, *self.attributes[path])
        ]

    def stale_socket(self) -> bool:
        """Return whether systemd does not listen, or not yet as the socket's unit demands."""
        state = properties(self.socket, "ActiveState,ActiveEnterTimestamp,FragmentPath")
        if state.get("ActiveState") != "active":
            return True
        started = timestamp(state.get("ActiveEnterTimestamp", ""))
        return bool(newer_than([state.get("FragmentPath", "")], started))

    def reasons(self, release: str) -> list[str]:
        """Return why the service does not yet run this release with these files."""
        found = [f"{path} differs" for path in self.differing()]
        if self.current() != release:
            found.append(f"{self.current() or 'no release'} serves")
        state = properties(self.service, "ActiveState,UnitFileState,ActiveEnterTimestamp")
        for unit in (self.service, self.socket):
            if not self.active(unit):
                found.append(f"{unit} is not active")
            if properties(unit, "UnitFileState").get("UnitFileState") != "enabled":
                found.append(f"{unit} is not enabled")
        read_at_start = [
            str(path)
            for path in self.wanted
            if path.name != self.next and not self.processes.form(path)
        ]
        read_at_start += [
            str(self.root / "current"),
            str(self.root / "releases" / release / ".venv"),
        ]
        started = timestamp(state.get("ActiveEnterTimestamp", ""))
        found += [
            f"{path} is newer than the process" for path in newer_than(read_at_start, started)
        ]
        if self.active(self.next):
            found.append(f"{self.next} was left running")
        environment = str(self.config / "app.env")
        found += self.processes.reasons([environment, str(self.root / "current")])
        found += [f"{path} is no longer wanted" for path in self.unwanted()]
        return found

    # What is done.

    def systemctl(self, *arguments: str) -> None:
        since = time.time() - 1
        done = systemctl(*arguments)
        if done.returncode:
            unit = arguments[-1]
            raise Refused(
                f"systemctl {' '.join(arguments)} failed: {done.stderr.strip()}. "
                f"The log of {unit} ends with: {log_end(unit, since=since)}"
            )

    def answer(self, unit: str, health: Health, seconds: float) -> tuple[bool, str]:
        """Ask a unit until it is ready, for so many seconds.

        Return whether it is, and its answer or what it said last.
        """
        deadline = time.monotonic() + seconds
        private = RUN / unit.removesuffix(".service") / "http.sock"
        said = "no answer"
        while time.monotonic() < deadline:
            try:
                connection = (
                    UnixConnection(private, ANSWER_SECONDS)
                    if unit == self.next
                    else http.client.HTTPConnection(**health.address, timeout=ANSWER_SECONDS)
                )
                status, body = ask(connection, health.path, health.headers)
                if status == 200:
                    return True, body
                said = f"status {status}, {body.strip()[:500]}"
                # It runs, and says why it is not ready, perhaps in its log as well.
                time.sleep(ANSWERED_SECONDS)
            except (OSError, http.client.HTTPException) as error:
                said = f"{type(error).__name__}: {error}"
            if unit == self.next and not self.active(unit):
                return False, ENDED
            time.sleep(RETRY_SECONDS)
        return False, said

    def wait_until_ready(self, unit: str) -> str:
        """Ask a unit until it is ready and return its answer; raises Refused with its log."""
        since = time.time() - self.timeout
        ready, said = self.answer(unit, self.health, self.timeout)
        if ready:
            return said
        log = log_end(unit, since=since)
        hints = [hint for words, hint in HINTS.items() if words in said + log][:1]
        limit = "" if said == ENDED else f" within {self.timeout} s"
        raise Refused(
            f"{self.health.path} did not answer 200{limit}: {said}. "
            + " ".join([*hints, f"The log of {unit} ends with: {log}"])
        )

    def serving(self) -> str:
        """Return what serves and what it answers, as part of a sentence; raises nothing.

        It is asked as it was when it was found ready: the address may have changed since.
        """
        release = self.current()
        if not release or not self.active(self.service):
            return "nothing serves"
        known = self.health_checks().get(release)
        health = Health(**known) if known else self.health
        ready, said = self.answer(self.service, health, min(STILL_SECONDS, self.timeout))
        if ready:
            return f"{release} goes on serving{self.refused_logins()}"
        return (
            f"{release} RUNS BUT IS NOT READY ({health.path}: {said}). Its requests may fail until "
            "something is done, for instance because the database password that it has was changed "
            "before this"
        )

    def refused_logins(self) -> str:
        """Return what keeps the service from a new connection to its database; "" for nothing.

        Its pool may answer for a while from connections that are older than a changed password.
        """
        names = {"PGSERVICEFILE": "pg_service.conf", "PGPASSFILE": "pgpass"}
        files = {variable: self.config / name for variable, name in names.items()}
        if not all(path.exists() for path in files.values()):
            return ""
        environment = {variable: str(path) for variable, path in files.items()}
        is_open, said = log_in({"service": self.name}, "SELECT 1", environment)
        return "" if is_open else f", BUT GETS NO NEW CONNECTION to its database: {said}"

    def wait_for_worker(self, unit: str) -> None:
        """Wait until a worker of the unit takes requests: gunicorn.conf.py leaves a file then."""
        deadline = time.monotonic() + self.timeout
        mark = RUN / unit.removesuffix(".service") / "ready"
        while not mark.exists():
            if time.monotonic() > deadline or not self.active(unit):
                raise Refused(f"{unit} does not start: {log_end(unit)}")
            time.sleep(RETRY_SECONDS)

    def try_out(self, release: str) -> None:
        """Run the release with the new files on a private socket until it is ready."""
        stage = self.config / "next"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o755)
        for name in STAGED:
            path = self.config / name
            text = self.wanted.get(path, read(path))
            if text is None:
                continue
            if name in ("app.env", "pg_service.conf"):  # they name the others
                for other in STAGED:
                    text = text.replace(f"{self.config}/{other}", f"{stage}/{other}")
            write(stage / name, text, *(self.attributes.get(path) or attributes_of(path)))
        point(self.root / "next", f"releases/{release}")
        unit = next((path for path in self.wanted if path.name == self.next), None)
        if unit and read(unit) != self.wanted[unit]:
            write(unit, self.wanted[unit], 0o644)
        self.stand_in.unlink(missing_ok=True)
        self.systemctl("daemon-reload")
        self.systemctl("restart", self.next)
        self.wait_until_ready(self.next)

    def stand_in_for_the_service(self) -> None:
        """Let the tried release take requests with one worker while the service restarts."""
        write(self.stand_in, f"[Service]\nSockets={self.socket}\n", 0o644)
        self.systemctl("daemon-reload")
        self.systemctl("restart", self.next)
        self.wait_for_worker(self.next)

    def forget_trial(self) -> None:
        """End the trial or stand-in, and remove what it left."""
        systemctl("stop", self.next)
        systemctl("reset-failed", self.next)
        self.stand_in.unlink(missing_ok=True)
        (self.root / "next").unlink(missing_ok=True)
        shutil.rmtree(self.config / "next", ignore_errors=True)

    def remember(self) -> None:
        """Write down the files and the release that serve, for undo(): also of a later run."""
        files = {
            str(path): {"text": read(path), "attributes": attributes_of(path)}
            if path.exists()
            else None
            for path in (*self.wanted, *self.unwanted())
        }
        write(self.backup, json.dumps({"files": files, "release": self.current()}), 0o600)

    def undo(self) -> str | None:
        """Put the files and the release back that remember() wrote down; return that release.

        The service is not restarted.
        """
        old = json.loads(self.backup.read_text())
        if self.current() and not old["release"]:
            # While the units are there: systemctl knows no others.
            systemctl("disable", "--now", "--quiet", self.socket, self.service)
        for name, file in old["files"].items():
            path = Path(name)
            if file is None:
                path.unlink(missing_ok=True)
            elif not path.exists() or (
                [read(path), *attributes_of(path)] != [file["text"], *file["attributes"]]
            ):
                write(path, file["text"], *file["attributes"])
        if self.current() != old["release"]:
            release = old["release"]
            point(self.root / "current", f"releases/{release}" if release else None)
        self.backup.unlink()
        return old["release"]

    def recover(self) -> None:
        """Undo what an interrupted run left, also in a process that runs it already."""
        self.processes.stop()
        paths = [*json.loads(self.backup.read_text())["files"], str(self.root / "current")]
        release = self.undo()
        state = properties(self.service, "ActiveEnterTimestamp")
        started = timestamp(state.get("ActiveEnterTimestamp", ""))
        if release and self.active(self.service) and newer_than(paths, started):
            # The release that is about to be deployed may be the way out where this fails.
            with contextlib.suppress(Refused):
                self.restart()
        self.forget_trial()
        if release:
            with contextlib.suppress(Refused):
                self.processes.start()

    def swap(self, release: str) -> None:
        """Write the files and the link, while no further process runs."""
        self.processes.stop()
        for path in self.unwanted():
            path.unlink()
        for path in self.differing():
            write(path, self.wanted[path], *self.attributes[path])
        if self.current() != release:
            point(self.root / "current", f"releases/{release}")

    def restart(self) -> None:
        """Restart the service; a changed listening socket with it, which closes connections."""
        self.systemctl("daemon-reload")
        self.systemctl("enable", "--quiet", self.socket, self.service)
        if self.stale_socket():
            self.systemctl("stop", self.socket, self.service)
            self.systemctl("start", self.socket)
        self.systemctl("restart", self.service)
        self.wait_for_worker(self.service)

    def note_health(self, release: str) -> None:
        """Write down how the release was found ready, for going back to it."""
        known = self.health_checks()
        checks = {name: check for name, check in known.items() if name in self.releases()}
        checks[release] = asdict(self.health)
        if checks != known:
            write(self.health_file, json.dumps(checks), 0o600)

    def clean(self, number: int, before: str | None, release: str, rollback: bool) -> None:
        """Note the release, and remove old ones and the virtual environments that none uses.

        before: the release that served until now, which an interrupted run may not have noted.
        """
        present = self.releases()
        left = f"{before}{WITHDRAWN}" if rollback and before != release else before
        lines = [line for line in (*self.history(), left, release) if line]
        lines = [line for line in lines if line.split()[0] in present]
        kept = kept_releases(lines, number)
        write(self.history_file, "\n".join(kept) + "\n", 0o644)
        served = {line.split()[0] for line in lines}
        for left_over in (self.root / "releases").glob(".*"):  # of a run that was cut off
            shutil.rmtree(left_over, ignore_errors=True)
        for name in present - {line.split()[0] for line in kept}:
            path = self.root / "releases" / name
            # A young one that has not served yet may be about to, in another deployment.
            if name in served or time.time() - path.stat().st_mtime > UNSERVED_SECONDS:
                # Half a release must not be taken for a whole one.
                shutil.rmtree(path.rename(path.with_name(f".{name}")), ignore_errors=True)
        with contextlib.suppress(Locked), lock(self.root / "venvs/.lock", 0):
            # Another deployment builds one while it holds this lock; the next run cleans up then.
            used = {
                link.readlink().name
                for link in (self.root / "releases").glob("*/.venv")
                if link.is_symlink()
            }
            for venv in (self.root / "venvs").glob("[!.]*"):
                if venv.is_dir() and venv.name not in used:
                    shutil.rmtree(venv, ignore_errors=True)

    def deploy(self, release: str) -> dict[str, Any]:
        """Try, switch, prove; on failure undo, prove and raise Refused. Return body and seconds."""
        begin = time.monotonic()
        serving = self.active(self.service)
        # Also those of a later release that this one takes the place of.
        with contextlib.suppress(OSError):
            keep_others(self.root.resolve() / "releases" / release)
        self.remember()
        try:
            self.try_out(release)
        except Exception as error:
            # What cannot be undone now is undone by the next run.
            with contextlib.suppress(Exception):
                self.forget_trial()
            with contextlib.suppress(Exception):
                self.undo()
            raise Refused(
                f"the release {release} was tried out and refused; {self.serving()}. "
                f"The trial: {explained(error)}"
            ) from None
        tried = time.monotonic()
        try:
            self.swap(release)
            if serving and not self.stale_socket():
                self.stand_in_for_the_service()
            self.restart()
            self.forget_trial()
            body = self.wait_until_ready(self.service)
            self.processes.start()
        except Exception as error:
            why = explained(error)
            raise Refused(f"the release {release} failed: {why} {self.go_back()}") from None
        self.backup.unlink()
        end = time.monotonic()
        seconds = {"trial": tried - begin, "switch": end - tried, "total": end - begin}
        return {"body": body, "seconds": {key: round(value, 2) for key, value in seconds.items()}}

    def go_back(self) -> str:
        """Serve what served before; return what became of it, as a sentence. Raises nothing."""
        processes = ""
        try:
            self.processes.stop()
            release = self.undo()
            if release in self.health_checks():
                self.health = Health(**self.health_checks()[release])
            if release:
                self.restart()
            # Before the service is asked: the stand-in would answer in its place.
            self.forget_trial()
            if not release:
                self.systemctl("daemon-reload")
                return "No release served before: the service is stopped."
            try:
                self.processes.start()
            except Refused as error:
                processes = f" Not all of it: {error}"
            self.wait_until_ready(self.service)
            return f"The release {release} serves again.{processes}"
        except Exception as error:
            with contextlib.suppress(Exception):
                self.forget_trial()
            return f"The previous release could not be restored: {explained(error)}{processes}"


def main() -> None:
    os.umask(0o022)  # the service's user reads what this makes; write() knows the secret files
    file = {"path": {"type": "path", "required": True}}
    plain = {**file, "content": {"type": "str", "required": True}}
    secret = {
        **file,
        "content": {"type": "str", "required": True, "no_log": True},
        "owner": {"type": "str"},
    }
    address = {"host": {"type": "str", "required": True}, "port": {"type": "int", "required": True}}
    module = UnloggedModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "config_directory": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "dict", "default": [], "options": plain},
            "secret_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": secret,
                "no_log": False,
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "rollback": {"type": "bool", "default": False},
            "address": {"type": "dict", "required": True, "options": address},
            "health_path": {"type": "str", "default": "/readyz"},
            "health_headers": {"type": "dict", "default": {}},
            "health_timeout_seconds": {"type": "int", "default": 30},
            "releases_kept": {"type": "int", "default": 5},
            "lock_timeout_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    application = Application(module.params)
    # Ansible prints the parameters with a result, and a header may be a login.
    module.params["health_headers"] = sorted(module.params["health_headers"])
    release = module.params["release"]
    if release == "current":
        text = hide(application.serving(), application.secrets())
        module.exit_json(changed=False, release=application.current(), serving=text)
    first = not application.config.is_dir()
    if first and (release == "previous" or not module.check_mode):
        module.fail_json(
            msg=f"{application.name}: there is no {application.config} on this host: deploy the "
            "application first, ansible/playbooks/app.yml"
        )
    guard = (
        contextlib.nullcontext()
        if module.check_mode
        else lock(application.config / ".lock", module.params["lock_timeout_seconds"])
    )
    try:
        with guard:
            interrupted = application.backup.exists()
            if interrupted and not module.check_mode:
                application.recover()
            before = application.current()
            rollback = release == "previous" or module.params["rollback"]
            state = {"previous": before, "releases": sorted(application.releases())}
            if release == "previous":
                release = previous_release(application.history(), before, application.releases())
                if release is None:
                    module.fail_json(
                        msg=f"{application.name}: no release but {before or 'none'} has served on "
                        "this host: there is nothing to go back to",
                        **state,
                    )
            elif release not in application.releases() and not module.check_mode:
                raise Refused(
                    f"there is no release {release} in {application.root}/releases: another "
                    "deployment may have cleaned up, run this again"
                )
            if rollback and release in application.health_checks():
                known = application.health_checks()[release]
                application.health = replace(
                    application.health, path=known["path"], headers=known["headers"]
                )
            public = {Path(file["path"]) for file in module.params["files"]}
            if application.service not in {path.name for path in public}:
                application.take_processes_of(release)
            reasons = ["an earlier run was interrupted"] if interrupted else []
            reasons += ["first deployment"] if first else []
            reasons += application.reasons(release)
            result = {"release": release, "reasons": reasons, **state}
            texts = (difference(p, t, p not in public) for p, t in application.wanted.items())
            left_over = [path for path in map(Path, module.params["absent"]) if path.exists()]
            texts = [*texts, *(f"{path} is no longer wanted\n" for path in left_over)]
            # A text that differs is shown; a mode, an owner, the link or the service is told.
            texts = ["".join(f"{application.name}: {reason}\n" for reason in reasons), *texts]
            result["diff"] = [{"prepared": text} for text in texts if text]
            if reasons and not module.check_mode:
                result |= application.deploy(release)
                application.clean(module.params["releases_kept"], before, release, rollback)
            elif not module.check_mode:
                result["body"] = application.wait_until_ready(application.service)
            if not module.check_mode:
                application.note_health(release)
                if application.wanted:
                    application.processes.keep(release, application.wanted, application.releases())
                result["path"] = answered_path(result["body"])
                result["body"] = hide(result["body"], application.secrets())[:4000]
                for path in left_over:
                    path.unlink()
    except (Refused, Locked, OSError) as error:
        text = clipped(hide(explained(error), application.secrets()), MESSAGE_CHARACTERS)
        module.fail_json(msg=f"{application.name}: {text}")
    module.exit_json(changed=bool(reasons or left_over), **result)


if __name__ == "__main__":
    main()

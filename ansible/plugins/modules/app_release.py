#!/usr/bin/python
"""Make an application serve a release, as one transaction."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.locking import Locked, lock
from ansible.module_utils.secret_values import hide, of_environment
from ansible.module_utils.service_state import (
    log_end,
    newer_than,
    properties,
    systemctl,
    timestamp,
)
from ansible.module_utils.text_files import difference, read, write

DOCUMENTATION = r"""
---
module: app_release
short_description: Make an application serve a release, as one transaction
description:
  - Tries the release with the new files on a private unix socket, with one worker, while the old
    one goes on serving; only then swaps the files and the link `current`, restarts the service and
    asks it again. When that fails, the old files and release are put back and asked as well.
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
    description: Name of a directory in releases/, or `previous` for the one that served before.
    type: str
    required: true
  files:
    description:
      - Files without secrets, as a list of {path, content}, the units among them. Left out, the
        ones on the host stay, as for a rollback.
    type: list
    elements: dict
    default: []
  secret_files:
    description:
      - Files that root alone may read, as a list of {path, content}; their content appears in no
        output.
    type: list
    elements: dict
    default: []
  absent:
    description: Files of an earlier configuration, removed when the release serves without them.
    type: list
    elements: path
    default: []
  address:
    description: The {host, port} that NAME.socket listens on, as the health check reaches it.
    type: dict
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
  app_release:
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
body:
  description: The answer of the health check.
  type: str
  returned: success, not in check mode
seconds:
  description: Time that the trial, the restart and both together took.
  type: dict
  returned: when something was done
"""

RUN = Path("/run")
RETRY_SECONDS = 0.1
UNSERVED_SECONDS = 3600
"""Age at which a release that was built and never served is removed."""
HINTS = {
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
"""What to do about words in an application's log."""
ANSWER_SECONDS = 6.0
"""How long one health check may take; the examples' /readyz answers within 5 s."""


class Refused(Exception):
    """The release cannot serve; the message says why."""


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
        return answer.status, answer.read(4000).decode(errors="replace")


def point(link: Path, target: str | None) -> None:
    """Make a symbolic link point to a target at once; None removes it."""
    if target is None:
        link.unlink(missing_ok=True)
        return
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)


def previous_release(history: list[str], current: str | None, present: set[str]) -> str | None:
    """Return the newest release that served before the current one and is still on the host."""
    return next((name for name in reversed(history) if name != current and name in present), None)


def kept_releases(history: list[str], number: int) -> list[str]:
    """Return the releases that stay: the last ones that served, each once, the newest last."""
    newest_first = list(dict.fromkeys(reversed(history)))
    return newest_first[: max(number, 1)][::-1]


class Application:
    """An application on this host: its units, links and files."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.name: str = parameters["name"]
        self.service = f"{self.name}.service"
        self.socket = f"{self.name}.socket"
        self.next = f"{self.name}-next.service"
        self.root = Path(parameters["root"])
        self.config = Path(parameters["config_directory"])
        self.backup = self.config / ".undo.json"
        self.history_file = self.root / "history"
        self.stand_in = RUN / f"systemd/system/{self.next}.d/stand-in.conf"
        self.modes = {
            Path(file["path"]): mode
            for kind, mode in (("files", 0o644), ("secret_files", 0o600))
            for file in parameters[kind]
        }
        self.wanted = {
            Path(file["path"]): file["content"]
            for file in parameters["files"] + parameters["secret_files"]
        }
        self.address = parameters["address"]
        self.path: str = parameters["health_path"]
        self.headers = {name: str(value) for name, value in parameters["health_headers"].items()}
        if "host" not in map(str.lower, self.headers):
            host = self.address["host"]
            self.headers["Host"] = f"{f'[{host}]' if ':' in host else host}:{self.address['port']}"
        self.timeout: int = parameters["health_timeout_seconds"]

    # What is there.

    def current(self) -> str | None:
        link = self.root / "current"
        return link.readlink().name if link.is_symlink() else None

    def history(self) -> list[str]:
        return (read(self.history_file) or "").split()

    def releases(self) -> set[str]:
        directory = self.root / "releases"
        return {path.name for path in directory.iterdir()} if directory.is_dir() else set()

    def active(self, unit: str) -> bool:
        return properties(unit, "ActiveState").get("ActiveState") in ("active", "reloading")

    def secrets(self) -> set[str]:
        """Return the values of the application's environment, the old one and the new one."""
        path = self.config / "app.env"
        texts = (read(path), self.wanted.get(path))
        return set().union(*(of_environment(text) for text in texts if text))

    def differing(self) -> list[Path]:
        """Return the files whose text or mode is not the wanted one."""
        return [
            path
            for path, text in self.wanted.items()
            if read(path) != text or path.stat().st_mode & 0o7777 != self.modes[path]
        ]

    def stale_socket(self) -> bool:
        """Say whether systemd does not listen, or not yet as the socket's unit says."""
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
        read_at_start = [str(path) for path in self.wanted if path.name != self.next]
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

    def wait_until_ready(self, unit: str) -> str:
        """Ask a unit until it is ready and return its answer; raises Refused with its log."""
        since = time.time() - self.timeout
        deadline = time.monotonic() + self.timeout
        private = RUN / unit.removesuffix(".service") / "http.sock"
        said = "no answer"
        while time.monotonic() < deadline:
            try:
                connection = (
                    UnixConnection(private, ANSWER_SECONDS)
                    if unit == self.next
                    else http.client.HTTPConnection(**self.address, timeout=ANSWER_SECONDS)
                )
                status, body = ask(connection, self.path, self.headers)
                if status == 200:
                    return body
                said = f"status {status}, {body.strip()[:500]}"
            except (OSError, http.client.HTTPException) as error:
                said = f"{type(error).__name__}: {error}"
            if unit == self.next and not self.active(unit):
                break
            time.sleep(RETRY_SECONDS)
        log = log_end(unit, since=since)
        hints = [hint for words, hint in HINTS.items() if words in said + log]
        raise Refused(
            f"{self.path} did not answer 200 within {self.timeout} s: {said}. "
            + " ".join([*hints, f"The log of {unit} ends with: {log}"])
        )

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
        for name in ("app.env", "gunicorn.conf.py"):
            path = self.config / name
            text = self.wanted[path] if path in self.wanted else read(path) or ""
            write(stage / name, text, self.modes.get(path, 0o600 if name == "app.env" else 0o644))
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
            str(path): {"text": read(path), "mode": path.stat().st_mode & 0o7777}
            if path.exists()
            else None
            for path in self.wanted
        }
        write(self.backup, json.dumps({"files": files, "release": self.current()}), 0o600)

    def undo(self) -> str | None:
        """Put the files and the release back that remember() wrote down; return that release."""
        old = json.loads(self.backup.read_text())
        if self.current() and not old["release"]:
            # While the units are there: systemctl knows no others.
            systemctl("disable", "--now", "--quiet", self.socket, self.service)
        for name, file in old["files"].items():
            path = Path(name)
            if file is None:
                path.unlink(missing_ok=True)
            elif read(path) != file["text"] or path.stat().st_mode & 0o7777 != file["mode"]:
                write(path, file["text"], file["mode"])
        if self.current() != old["release"]:
            release = old["release"]
            point(self.root / "current", f"releases/{release}" if release else None)
        self.backup.unlink()
        return old["release"]

    def swap(self, release: str) -> None:
        """Write the files and the link."""
        for path in self.differing():
            write(path, self.wanted[path], self.modes[path])
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

    def clean(self, number: int, before: str | None, release: str) -> None:
        """Note the release, and remove old ones and the virtual environments that none uses.

        before: the release that served until now, which an interrupted run may not have noted.
        """
        history = [name for name in (*self.history(), before, release) if name in self.releases()]
        kept = kept_releases(history, number)
        write(self.history_file, "\n".join(kept) + "\n", 0o644)
        for name in self.releases() - set(kept):
            path = self.root / "releases" / name
            # A young one that has not served yet may be about to, in another deployment.
            if name in history or time.time() - path.stat().st_mtime > UNSERVED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        used = {
            link.readlink().name
            for link in (self.root / "releases").glob("*/.venv")
            if link.is_symlink()
        }
        with contextlib.suppress(Locked), lock(self.root / "venvs/.lock", 0):
            # Another deployment builds one while it holds this lock; the next run cleans up then.
            for venv in (self.root / "venvs").glob("[!.]*"):
                if venv.is_dir() and venv.name not in used:
                    shutil.rmtree(venv, ignore_errors=True)

    def deploy(self, release: str) -> dict[str, Any]:
        """Try, switch, prove; on failure undo, prove and raise Refused. Return body and seconds."""
        begin = time.monotonic()
        serving = self.active(self.service)
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
                f"the release {release} was tried out and refused, {self.current() or 'nothing'} "
                f"goes on serving: {explained(error)}"
            ) from None
        tried = time.monotonic()
        try:
            self.swap(release)
            if serving and not self.stale_socket():
                self.stand_in_for_the_service()
            self.restart()
            self.forget_trial()
            body = self.wait_until_ready(self.service)
        except Exception as error:
            why = explained(error)
            raise Refused(f"the release {release} failed: {why} {self.go_back()}") from None
        self.backup.unlink()
        end = time.monotonic()
        seconds = {"trial": tried - begin, "switch": end - tried, "total": end - begin}
        return {"body": body, "seconds": {key: round(value, 2) for key, value in seconds.items()}}

    def go_back(self) -> str:
        """Serve what served before; return what became of it, as a sentence. Raises nothing."""
        try:
            release = self.undo()
            if release:
                self.restart()
            # Before the service is asked: the stand-in would answer in its place.
            self.forget_trial()
            if not release:
                self.systemctl("daemon-reload")
                return "No release served before: the service is stopped."
            self.wait_until_ready(self.service)
            return f"The release {release} serves again."
        except Exception as error:
            with contextlib.suppress(Exception):
                self.forget_trial()
            return f"GOING BACK FAILED AS WELL: {explained(error)}"


def main() -> None:
    os.umask(0o022)  # the service's user reads what this makes; write() knows the secret files
    file = {"path": {"type": "path", "required": True}}
    plain = {**file, "content": {"type": "str", "required": True}}
    secret = {**file, "content": {"type": "str", "required": True, "no_log": True}}
    address = {"host": {"type": "str", "required": True}, "port": {"type": "int", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "config_directory": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "dict", "default": [], "options": plain},
            "secret_files": {"type": "list", "elements": "dict", "default": [], "options": secret},
            "absent": {"type": "list", "elements": "path", "default": []},
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
    release = module.params["release"]
    if not application.config.is_dir():
        if module.check_mode and release != "previous":
            reasons = ["first deployment"]
            module.exit_json(changed=True, release=release, previous=None, reasons=reasons)
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
                application.undo()
            before = application.current()
            if release == "previous":
                release = previous_release(application.history(), before, application.releases())
                if release is None:
                    raise Refused(
                        f"no release but {before or 'none'} has served on this host: there is "
                        "nothing to go back to"
                    )
            elif release not in application.releases() and not module.check_mode:
                raise Refused(
                    f"there is no release {release} in {application.root}/releases: another "
                    "deployment may have cleaned up, run this again"
                )
            reasons = ["an earlier run was interrupted"] if interrupted else []
            reasons += application.reasons(release)
            result = {"release": release, "previous": before, "reasons": reasons}
            public = {Path(file["path"]) for file in module.params["files"]}
            texts = (difference(p, t, p not in public) for p, t in application.wanted.items())
            left_over = [path for path in map(Path, module.params["absent"]) if path.exists()]
            texts = [*texts, *(f"{path} is no longer wanted\n" for path in left_over)]
            result["diff"] = [{"prepared": text} for text in texts if text]
            if reasons and not module.check_mode:
                result |= application.deploy(release)
                application.clean(module.params["releases_kept"], before, release)
            elif not module.check_mode:
                result["body"] = application.wait_until_ready(application.service)
            if not module.check_mode:
                for path in left_over:
                    path.unlink()
    except (Refused, Locked, OSError) as error:
        text = hide(explained(error), application.secrets())
        module.fail_json(msg=f"{application.name}: {text}")
    module.exit_json(changed=bool(reasons or left_over), **result)


if __name__ == "__main__":
    main()

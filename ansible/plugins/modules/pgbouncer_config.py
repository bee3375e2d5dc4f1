#!/usr/bin/python
"""Apply a whole PgBouncer configuration as one transaction."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.locking import Locked, lock
from ansible.module_utils.pgbouncer_process import (
    PATH,
    Process,
    Refused,
    installed_version,
    pgbouncer_path,
    systemctl,
)
from ansible.module_utils.pgbouncer_text import (
    NEUTRAL_USER,
    Rows,
    Sections,
    changed_names,
    drift,
    kept_by_reload,
    parse_connstr,
    parse_ini,
    pool_modes,
    restart_only,
    trial_config,
    trial_error,
)
from ansible.module_utils.text_files import read, write

DOCUMENTATION = r"""
---
module: pgbouncer_config
short_description: Apply a whole PgBouncer configuration as one transaction
description:
  - Tries the candidate with the installed binary, swaps the files, reloads or restarts process by
    process, reads the result back from each and, when anything is off, puts the old files back.
  - PgBouncer itself has no check option, and a reload that fails leaves it half on its defaults
    (upstream issue 1482).
  - A reload is used wherever it suffices; the process's own SHOW CONFIG says which settings need a
    restart. The limits of a user whose line was removed are reset, which a reload alone does not do
    (upstream issue 1594).
  - A restart waits for clients where PgBouncer is 1.23 or later. The process stops to listen and
    waits up to drain_seconds for its clients to leave, then for their transactions, while another
    takes the new ones; a lone process is stood in for by a second one meanwhile. A connect that
    falls into the moment when it stops to listen has to be tried again. Older versions finish the
    running transactions, then close the connections.
  - Each process is a unit pgbouncer@N.service with its socket in /run/pgbouncer/N. The
    distribution's pgbouncer.service is stopped and masked, so that a package upgrade restarts
    nothing; the next run of this module replaces processes of the old binary.
  - Two runs at once wait for each other. Check mode tries the candidate and changes nothing.
options:
  config:
    description: The file that all processes share, as {path, content}; it ends in [pgbouncer].
    type: dict
    required: true
  files:
    description: Further files without secrets, units included, as a list of {path, content}.
    type: list
    elements: dict
    default: []
  secret_files:
    description: Files with secrets (user list, private keys); their content appears in no output.
    type: list
    elements: dict
    default: []
  processes:
    description: How many processes share the port.
    type: int
    default: 1
  user:
    description:
      - Operating system user of the processes; it reads the files and the admin console.
      - Made as a system user where it is missing.
    type: str
    default: pgbouncer
  timeout_seconds:
    description: How long a start, a reload and the proof may each take.
    type: int
    default: 20
  drain_seconds:
    description: How long a process that ends waits for its clients; then for transactions only.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Apply the configuration
  pgbouncer_config:
    config:
      path: /etc/pgbouncer/pgbouncer.ini
      content: "{{ lookup('ansible.builtin.template', 'pgbouncer.ini.j2') }}"
    secret_files:
      - path: /etc/pgbouncer/userlist.txt
        content: "{{ lookup('ansible.builtin.template', 'userlist.txt.j2') }}"
    processes: 2
"""

RETURN = r"""
action:
  description: What was done, or would be in check mode. One of none, reload, restart, start.
  type: str
  returned: success
processes:
  description: What was done to each process, as {process, action, seconds}.
  type: list
  elements: dict
  returned: success
settings:
  description: Names of the settings, databases and users that changed, as section.name.
  type: list
  elements: str
  returned: success
restart_reason:
  description: Settings that a reload cannot change, and other reasons for a restart.
  type: list
  elements: str
  returned: success
seconds:
  description: How long the change and its proof took.
  type: float
  returned: success
restored:
  description: Whether the old configuration serves again, proved like the new one.
  type: bool
  returned: failure after the files were swapped
"""

ACTIONS = ("none", "stop", "reload", "restart", "start")
"""From the least to the most that was done; a run reports the most."""

UNITS = Path("/etc/systemd/system")
MASK = UNITS / "pgbouncer.service"
"""Linked to /dev/null: the distribution's single unit stays away from our processes."""

DRAINS_SINCE = (1, 23)
"""First version in which SIGTERM waits for clients."""

PEERS_SINCE = (1, 19)
"""First version with peer_id."""

CLEAR_PASSWORD = re.compile(r"password\s*=\s*('(?:[^']|'')*'|\S+)")
"""What a file from before poolkit may hold, and a diff must not show."""

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's protocol: the message that asks for TLS, answered by S or N."""


def process_ini(config_path: str, number: int, version: tuple[int, ...]) -> str:
    """Return the file of one process: the shared one, and what tells it from its peers."""
    own = [f"%include {config_path}", f"unix_socket_dir = /run/pgbouncer/{number}"]
    if version >= PEERS_SINCE:
        own.append(f"peer_id = {number}")
    return "\n".join(own) + "\n"


def pem_pair_error(certificate: str, key: str) -> str | None:
    """Return why a certificate and a key (paths) do not belong together; None when they do."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        return str(error)
    return None


def server_tls_error(host: str, port: int, ca_file: str, full: bool) -> str | None:
    """Return why PostgreSQL's certificate would be refused; None also when it does not answer.

    A database that is down must not stand in the way of a change of the pooler.
    """
    try:
        with tls_to(host, port, ca_file, full):
            return None
    except ssl.SSLError as error:
        return f"{host}:{port}: {getattr(error, 'verify_message', error)}"
    except (OSError, Refused):
        return None


@contextlib.contextmanager
def tls_to(
    host: str, port: int, ca_file: str | None = None, full: bool = False
) -> Iterator[ssl.SSLSocket]:
    """Open TLS as PostgreSQL's protocol does; raise Refused when the other side offers none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = full
    context.verify_mode = ssl.CERT_REQUIRED if ca_file else ssl.CERT_NONE
    if ca_file:
        context.load_verify_locations(ca_file)
    with socket.create_connection((host, port), timeout=5) as plain:
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            raise Refused(f"{host}:{port} offers no TLS")
        with context.wrap_socket(plain, server_hostname=host) as secure:
            yield secure


def served_certificate(host: str, port: int) -> bytes:
    """Return the certificate (DER) that a PgBouncer shows its clients."""
    with tls_to(host, port) as secure:
        return secure.getpeercert(binary_form=True)


class Transaction:
    """The live files and processes, and the change that is being made to them."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.user = module.params["user"]
        self.timeout = module.params["timeout_seconds"]
        self.count = module.params["processes"]
        self.config_path = module.params["config"]["path"]
        self.directory = Path(self.config_path).parent
        self.version = installed_version()
        plain = [module.params["config"], *module.params["files"]]
        self.secret_paths = {file["path"] for file in module.params["secret_files"]}
        self.after: dict[str, str | None] = {
            file["path"]: file["content"] for file in [*plain, *module.params["secret_files"]]
        }
        for number in range(1, self.count + 1):
            path = self.process_path(number)
            self.after[path] = process_ini(self.config_path, number, self.version)
        for pattern in ("process-*.ini", "tls/*"):
            for path in self.directory.glob(pattern):
                self.after.setdefault(str(path), None)  # no longer wanted
        self.on_disk = {path: read(Path(path)) for path in self.after}
        self.before = dict(self.on_disk)
        self.owners = {path: self.owner(path) for path in self.after if Path(path).exists()}
        self.replaces_distribution = not (MASK.is_symlink() and str(MASK.readlink()) == "/dev/null")
        # What restore_distribution needs: an own unit under the distribution's name, and its state.
        self.distribution = {
            "unit": None if MASK.is_symlink() else read(MASK),
            "active": systemctl("is-active", "pgbouncer.service").returncode == 0,
        }
        # Holds the old files from before the swap until the proof: a run that was killed between is
        # caught up by the next one, and can still be undone by it.
        self.pending = self.directory / ".poolkit-pending"
        if self.pending.exists():
            with contextlib.suppress(ValueError, KeyError):
                kept = json.loads(self.pending.read_text())
                self.before = {path: kept["files"].get(path) for path in self.after}
                self.owners = {path: tuple(owner) for path, owner in kept["owners"].items()}
                self.distribution = kept["distribution"]
        self.done: list[dict] = []
        self.reasons: list[str] = []

    def process(self, number: int) -> Process:
        return Process(number, self.user, self.timeout)

    def process_path(self, number: int) -> str:
        return str(self.directory / f"process-{number}.ini")

    @staticmethod
    def numbers(files: dict[str, str | None]) -> list[int]:
        """Return the numbers of the processes that a set of files describes."""
        names = [Path(path).name for path, content in files.items() if content is not None]
        found = [re.fullmatch(r"process-(\d+)\.ini", name) for name in names]
        return sorted(int(match.group(1)) for match in found if match)

    def sections(self, files: dict[str, str | None], number: int) -> Sections:
        texts = {path: content or "" for path, content in files.items()}
        return parse_ini(texts.get(self.process_path(number), ""), texts)

    @staticmethod
    def owner(path: str) -> tuple[int, int, int]:
        stat = Path(path).stat()
        return stat.st_uid, stat.st_gid, stat.st_mode & 0o777

    def owner_and_mode(self, path: str) -> tuple[int, int, int]:
        """Return (uid, gid, mode) of a file: units are public, the rest is the service's alone."""
        if Path(path).parent == UNITS:
            return 0, 0, 0o644
        return 0, pwd.getpwnam(self.user).pw_gid, 0o640

    def write(
        self,
        contents: dict[str, str | None],
        owners: dict[str, tuple[int, int, int]] | None = None,
    ) -> None:
        """Put each file in place at once; a reader sees the old one or the new one, never half."""
        for path, content in contents.items():
            if content is None:
                Path(path).unlink(missing_ok=True)
                continue
            uid, gid, mode = (owners or {}).get(path) or self.owner_and_mode(path)
            parent = Path(path).parent
            if not parent.exists():
                parent.mkdir(mode=0o750)
                os.chown(parent, 0, gid)
            write(Path(path), content, mode, uid, gid)

    def right_modes(self) -> bool:
        """Tell whether the files belong to root and are readable by the service's group only."""
        wanted = [path for path, content in self.after.items() if content is not None]
        return all(self.owners.get(path) == self.owner_and_mode(path) for path in wanted)

    def try_candidate(self) -> None:
        """Let the installed binary load the candidate; raise Refused with what it said.

        PgBouncer does not look into the files of a TLS setting before the first connection.
        """
        sections = self.sections(self.after, 1)
        settings = sections.get("pgbouncer", {})
        for name, value in settings.items():
            named = name.endswith("_file") and value and value not in self.after
            if named and not Path(value).is_file():
                raise Refused(f"{name}: there is no file {value} on this host")
        directory = Path(tempfile.mkdtemp(prefix="poolkit-pgbouncer.", dir="/run"))
        try:
            owner = pwd.getpwnam(self.user)
            paths = [path for path, content in self.after.items() if content is not None]
            # The longest first: no path may be taken for the end of another.
            moved = {
                path: str(directory / f"{index}-{Path(path).name}")
                for index, path in enumerate(sorted(paths, key=len, reverse=True))
            }
            for path, trial in moved.items():
                text = self.after[path]
                Path(trial).write_text(trial_config(text, moved) if path.endswith("ini") else text)
                os.chown(trial, owner.pw_uid, owner.pw_gid)
                Path(trial).chmod(0o400)
            os.chown(directory, owner.pw_uid, owner.pw_gid)
            self.try_certificates(settings, moved)
            self.try_servers(sections, moved)
            try:
                done = subprocess.run(
                    ["pgbouncer", moved[self.process_path(1)]],
                    user=self.user,
                    group=owner.pw_gid,
                    env={"PATH": PATH},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=self.timeout,
                    cwd="/",
                )
            except subprocess.TimeoutExpired:
                raise Refused("the trial of the new configuration did not end") from None
            if error := trial_error(done.stdout, moved):
                raise Refused(f"PgBouncer refuses the new configuration: {error}")
        finally:
            shutil.rmtree(directory)

    @staticmethod
    def try_certificates(settings: dict[str, str], moved: dict[str, str]) -> None:
        """Refuse what PgBouncer would only notice at the first connection."""
        for side in ("client", "server"):
            names = [f"{side}_tls_{kind}_file" for kind in ("cert", "key", "ca")]
            cert, key, ca = (moved.get(p, p) for p in (settings.get(n, "") for n in names))
            if cert and (error := pem_pair_error(cert, key or cert)):
                raise Refused(f"{names[0]} and {names[1]} do not belong together: {error}")
            if ca:
                try:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
                except (ssl.SSLError, OSError) as error:
                    raise Refused(f"{names[2]} holds no certificate: {error}") from None

    @staticmethod
    def try_servers(sections: Sections, moved: dict[str, str]) -> None:
        """Refuse a PostgreSQL whose certificate does not pass server_tls_sslmode's check."""
        settings = sections.get("pgbouncer", {})
        mode = settings.get("server_tls_sslmode", "")
        if not mode.startswith("verify-"):
            return
        ca = settings.get("server_tls_ca_file", "")
        entries = [parse_connstr(text) for text in sections.get("databases", {}).values()]
        servers = {
            (host, int(entry.get("port", 5432)))
            for entry in entries
            for host in entry.get("host", "").split(",")
            if host and not host.startswith("/")
        }
        for host, port in sorted(servers):
            if error := server_tls_error(host, port, moved.get(ca, ca), mode == "verify-full"):
                raise Refused(f"server_tls_sslmode is {mode}, and PgBouncer would refuse {error}")

    def restart_reasons(self, process: Process, sections: Sections, rows: Rows) -> list[str]:
        """Return why a running process must be replaced to have the files that are in place."""
        reasons = restart_only(sections, rows)
        if process.older_than(pgbouncer_path()):
            reasons.append("the installed PgBouncer is newer than the process")
        template = str(UNITS / "pgbouncer@.service")

        def lines(files: dict[str, str | None]) -> list[str]:
            every = (files.get(template) or "").splitlines()
            return [line for line in every if not line.startswith(("LimitNOFILE=", "#"))]

        known = (self.before, self.on_disk) if template in self.after else ()
        if any(lines(files) != lines(self.after) for files in known):
            reasons.append("pgbouncer@.service")
        settings = sections.get("pgbouncer", {})
        listen, port = settings.get("listen_addr", ""), settings.get("listen_port", "6432")
        if not reasons and process.deaf(listen, port):
            reasons.append("an address that it does not listen on")
        return reasons

    @staticmethod
    def open_files(files: dict[str, str | None]) -> int:
        """Return how many open files the unit asks for."""
        unit = files.get(str(UNITS / "pgbouncer@.service")) or ""
        match = re.search(r"^LimitNOFILE=(\d+)", unit, re.MULTILINE)
        return int(match.group(1)) if match else 0

    def apply(self, files: dict[str, str | None], others: dict[str, str | None]) -> None:
        """Make the processes take the files that are in place instead of others, one by one."""
        if self.replaces_distribution:
            systemctl("stop", "pgbouncer.service")
            MASK.unlink(missing_ok=True)
            MASK.symlink_to("/dev/null")
            self.replaces_distribution = False
        systemctl("daemon-reload")
        wanted = self.numbers(files)
        running = self.running()
        # New ones first: another process must take the clients of one that is replaced.
        for number in sorted(wanted, key=lambda number: (number in running, number)):
            start = time.monotonic()
            action = self.apply_to(self.process(number), files, others)
            self.prove(number, files)
            seconds = round(time.monotonic() - start, 2)
            self.done.append({"process": number, "action": action, "seconds": seconds})
        for number in sorted(set(self.running()) - set(wanted)):
            start = time.monotonic()
            self.remove(self.process(number))
            seconds = round(time.monotonic() - start, 2)
            self.done.append({"process": number, "action": "stop", "seconds": seconds})
        if problem := self.stale_certificate(files):
            raise Refused(problem)
        if disabled := self.disabled(wanted):
            done = systemctl("enable", "--quiet", *disabled)
            if done.returncode:
                raise Refused(f"systemctl enable {' '.join(disabled)} failed: {done.stderr}")
        systemctl("start", "pgbouncer.target")

    @staticmethod
    def disabled(numbers: list[int]) -> list[str]:
        """Return the units that would not start at boot; is-enabled itself is content with one."""
        units = ["pgbouncer.target", *(f"pgbouncer@{number}.service" for number in numbers)]
        shown = systemctl("is-enabled", *units).stdout.split()
        states = shown + ["missing"] * (len(units) - len(shown))
        return [unit for unit, state in zip(units, states, strict=False) if state != "enabled"]

    @staticmethod
    def running() -> list[int]:
        """Return the numbers of the processes that run, or try to."""
        shown = systemctl(
            *("list-units", "--plain", "--no-legend", "--state=active,activating,reloading"),
            "pgbouncer@*.service",
        )
        found = re.findall(r"^pgbouncer@(\d+)\.service", shown.stdout, re.MULTILINE)
        return sorted({int(number) for number in found})

    def apply_to(
        self, process: Process, files: dict[str, str | None], others: dict[str, str | None]
    ) -> str:
        """Make one process take the files; return what was done."""
        sections = self.sections(files, process.number)
        if not process.running():
            process.control("start")
            return "start"
        try:
            reasons = self.restart_reasons(process, sections, process.rows())
        except Refused as error:
            reasons = [str(error)]
        if not process.has_open_files(self.open_files(files), not self.module.check_mode):
            reasons.append("LimitNOFILE")
        if reasons:
            self.reasons = sorted({*self.reasons, *reasons})
            self.replace(process, files)
            return "restart"
        kept = set(sections.get("users", {}))
        earlier = {**self.sections(self.on_disk, 1), **self.sections(others, process.number)}
        known = {*earlier.get("users", {}), *self.sections(self.on_disk, 1).get("users", {})}
        removed = sorted(known - kept)
        # PgBouncer resets a server connection only when a client leaves it in pool mode session:
        # one in use while the mode changes would hand its state to the next client. Once only: a
        # second RECONNECT would end a login that the first one caused.
        modes = pool_modes(self.sections(others, process.number))
        renew = ["RECONNECT"] if modes != pool_modes(sections) else []
        if removed:
            # A user whose line is gone keeps its limits: give it a neutral line first.
            text = files[self.config_path]
            lines = "\n".join(f"{user} = {NEUTRAL_USER}" for user in removed)
            self.write({self.config_path: f"[users]\n{lines}\n{text}"})
            process.ask(*renew, "RELOAD")
            renew = []
            self.write({self.config_path: text})
        process.ask(*renew, "RELOAD")
        if stuck := kept_by_reload(sections, process.rows()):
            self.reasons = sorted({*self.reasons, *stuck})
            self.replace(process, files)
            return "restart"
        return "reload"

    def replace(self, process: Process, files: dict[str, str | None]) -> None:
        """Restart a process; where the version allows, without cutting a client off."""
        try:
            drains = min(self.version, process.version()) >= DRAINS_SINCE
        except Refused:
            drains = False
        if not drains:  # an older one, or one that hangs
            process.control("restart")
            return
        stand_in = None
        others = [number for number in self.running() if number != process.number]
        if not any(self.process(number).running() for number in others):
            stand_in = self.process(1 if process.number == 2 else 2)
            path = self.process_path(stand_in.number)
            own = {path: process_ini(self.config_path, stand_in.number, self.version)}
            self.write(own)
            stand_in.control("start")
            self.prove(stand_in.number, {**files, **own})
        try:
            process.drain(self.module.params["drain_seconds"])
            process.control("start")
        except Refused:
            process.control("restart")
        self.prove(process.number, files)
        if stand_in:
            self.remove(stand_in)

    def remove(self, process: Process) -> None:
        """End a process for good; without its file systemd does not start it again."""
        Path(self.process_path(process.number)).unlink(missing_ok=True)
        with contextlib.suppress(Refused):  # one that does not answer is only stopped
            if process.running() and process.version() >= DRAINS_SINCE:
                process.drain(self.module.params["drain_seconds"])
        process.control("stop")
        systemctl("disable", "--quiet", process.unit)

    def problems(self, number: int, files: dict[str, str | None]) -> list[str]:
        """Return where one process differs from the files, as readable statements."""
        sections = self.sections(files, number)
        settings = sections.get("pgbouncer", {})
        process = self.process(number)
        try:
            found = drift(sections, process.rows())
        except Refused as error:
            return [str(error)]
        listen, port = settings.get("listen_addr", ""), settings.get("listen_port", "6432")
        found += process.deaf(listen, port)
        if not process.has_open_files(self.open_files(files), not self.module.check_mode):
            found.append(
                f"{process.unit} may open fewer than {self.open_files(files)} files: lower "
                "max_client_conn, or raise the hard limit of this host (or container)"
            )
        return found

    def stale_certificate(self, files: dict[str, str | None]) -> str | None:
        """Return a statement when clients are shown another certificate than the file's.

        The kernel picks the process, so it is asked four times for each.
        """
        wanted = self.numbers(files)
        settings = self.sections(files, 1).get("pgbouncer", {})
        path = settings.get("client_tls_cert_file")
        off = settings.get("client_tls_sslmode", "disable") == "disable"
        addresses = re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", settings.get("listen_addr", ""))
        if not path or off or not addresses:
            return None
        pem = re.search(r"-----BEGIN CERT.*?-----END CERT[^\r\n]*", Path(path).read_text(), re.S)
        if not pem:
            return f"{path} holds no certificate"
        expected = ssl.PEM_cert_to_DER_cert(pem.group())
        host = addresses[0].replace("0.0.0.0", "127.0.0.1")  # noqa: S104 (compared, not bound)
        for _ in range(4 * len(wanted)):
            try:
                served = served_certificate(host, int(settings.get("listen_port", "6432")))
            except (OSError, Refused) as error:
                return f"{host} does not accept TLS: {error}"
            if served != expected:
                return f"{host} does not show the certificate in {path}"
        return None

    def prove(self, number: int, files: dict[str, str | None]) -> None:
        """Wait until a process has the configuration and listens; raise Refused otherwise."""
        deadline = time.monotonic() + self.timeout
        process = self.process(number)
        while problems := self.problems(number, files):
            # What a reload did not change stays; only a process that is starting needs patience.
            starting = "no socket" in problems[0] or "refused" in problems[0]
            if time.monotonic() > deadline or (process.running() and not starting):
                raise Refused("the running process differs: " + "; ".join(problems))
            time.sleep(0.2)

    def run(self) -> dict:
        """Carry the change out; return the module's result or raise Refused with the reason."""
        start = time.monotonic()
        names = changed_names(self.sections(self.before, 1), self.sections(self.after, 1))
        forecast = self.forecast()
        if not self.touched() and not forecast:
            return self.result(False, names, start)
        self.try_candidate()
        if self.module.check_mode:
            self.done = forecast or [{"process": 1, "action": "reload", "seconds": 0.0}]
            return self.result(True, names, start)
        kept = {"files": self.before, "owners": self.owners, "distribution": self.distribution}
        write(self.pending, json.dumps(kept), 0o600)
        try:
            self.write(self.after)
            self.apply(self.after, self.before)
        except Exception as error:  # whatever it was, half a change must not stay
            self.restore(error)
        self.pending.unlink()
        return self.result(True, names, start)

    def touched(self) -> bool:
        """Tell whether a file has to be written."""
        return (
            self.before != self.after
            or self.pending.exists()
            or self.replaces_distribution
            or bool(self.disabled(self.numbers(self.after)))
            or not self.right_modes()
        )

    def forecast(self) -> list[dict]:
        """Return what the processes need, apart from a reload for changed files."""
        wanted = self.numbers(self.after)
        extra = sorted(set(self.running()) - set(wanted))
        needs = [{"process": number, "action": "stop"} for number in extra]
        for number in wanted:
            process = self.process(number)
            if not process.running():
                needs.append({"process": number, "action": "start"})
                continue
            try:
                sections = self.sections(self.after, number)
                reasons = self.restart_reasons(process, sections, process.rows())
            except Refused as error:
                reasons = [str(error)]
            self.reasons = sorted({*self.reasons, *reasons})
            stale = not self.touched() and number == 1 and self.stale_certificate(self.after)
            if reasons or stale or (not self.touched() and self.problems(number, self.after)):
                needs.append({"process": number, "action": "restart" if reasons else "reload"})
        return [{**need, "seconds": 0.0} for need in needs]

    def restore(self, error: Exception) -> None:
        """Put the old files back, prove that they serve again, and fail with the reason."""
        try:
            if not self.numbers(self.before):
                self.restore_distribution()
                raise Refused("There was no poolkit configuration before") from None
            self.write(self.before)
            self.apply(self.before, self.after)
        except Exception as second:  # the first reason must not get lost
            self.module.fail_json(msg=f"{error}. {second}", restored=False)
        self.pending.unlink()
        self.module.fail_json(
            msg=f"{error}. The old configuration is back and serves.", restored=True
        )

    def restore_distribution(self) -> None:
        """Hand a host that had no poolkit configuration back as it was."""
        for number in self.running():
            self.process(number).control("stop")
        self.write(self.before, self.owners)
        MASK.unlink(missing_ok=True)
        if self.distribution["unit"] is not None:
            self.write({str(MASK): self.distribution["unit"]})
        systemctl("daemon-reload")
        if self.distribution["active"]:
            systemctl("start", "pgbouncer.service")
        self.pending.unlink()

    def result(self, changed: bool, names: list[str], start: float) -> dict:
        actions = [done["action"] for done in self.done] or ["none"]
        return {
            "changed": changed,
            "action": max(actions, key=ACTIONS.index),
            "processes": self.done,
            "settings": names,
            "restart_reason": self.reasons,
            "seconds": round(time.monotonic() - start, 2),
            "diff": [
                {
                    "before_header": path,
                    "after_header": path,
                    "before": CLEAR_PASSWORD.sub("password=***", self.before[path] or ""),
                    "after": content or "",
                }
                for path, content in self.after.items()
                if path not in self.secret_paths and self.before[path] != content
            ],
        }


def create_user(name: str) -> None:
    """Create the system user of the processes: no home, no shell, a group of its own."""
    command = ["useradd", "--system", "--no-create-home"]
    with contextlib.suppress(KeyError):
        command += ["--gid", str(grp.getgrnam(name).gr_gid)]
    if "--gid" not in command:
        command.append("--user-group")
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name]
    subprocess.run(command, check=True, env={"PATH": PATH})


def main() -> None:
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
    }
    secret = {**file, "content": {"type": "str", "required": True, "no_log": True}}
    files = {"type": "list", "elements": "dict", "default": []}
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict", "required": True, "options": file},
            "files": {**files, "options": file},
            "secret_files": {**files, "options": secret},
            "processes": {"type": "int", "default": 1},
            "user": {"type": "str", "default": "pgbouncer"},
            "timeout_seconds": {"type": "int", "default": 20},
            "drain_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    if pgbouncer_path() is None:
        if module.check_mode:
            module.exit_json(
                changed=True, action="start", processes=[], settings=[], restart_reason=[]
            )
        module.fail_json(msg="PgBouncer is not installed on this host")
    try:
        pwd.getpwnam(module.params["user"])
    except KeyError:
        if module.check_mode:
            module.exit_json(
                changed=True, action="start", processes=[], settings=[], restart_reason=[]
            )
        create_user(module.params["user"])
    try:
        seconds = module.params["drain_seconds"] + module.params["timeout_seconds"] * 3
        with lock(Path("/run/poolkit-pgbouncer.lock"), seconds):
            for left_over in Path("/run").glob("poolkit-pgbouncer.*/"):  # of a run that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            module.exit_json(**Transaction(module).run())
    except (Refused, Locked, OSError, ValueError, subprocess.SubprocessError) as error:
        # What happens after the swap is caught by restore().
        module.fail_json(msg=f"{error}. Nothing was changed.")


if __name__ == "__main__":
    main()

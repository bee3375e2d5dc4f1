#!/usr/bin/python
"""Apply a whole PgBouncer configuration as one transaction."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import grp
import io
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: pgbouncer_config
short_description: Apply a whole PgBouncer configuration as one transaction
description:
  - Tries the candidate with the installed binary, swaps the files, reloads or restarts, reads the
    result back from the running process and, when anything is off, puts the old files back.
  - PgBouncer itself has no check option, and a reload that fails leaves it half on its defaults
    (upstream issue 1482).
  - A reload is used wherever it suffices; the process's own SHOW CONFIG says which settings need a
    restart. The limits of a user whose line was removed are reset, which a reload alone does not do
    (upstream issue 1594).
  - Two runs at once wait for each other. Check mode tries the candidate and changes nothing.
options:
  config:
    description: The main file, as {path, content}.
    type: dict
    required: true
  files:
    description: Further files without secrets, as a list of {path, content}.
    type: list
    elements: dict
    default: []
  userlist:
    description: The auth_file, as {path, content}; its content appears in no output.
    type: dict
    required: true
  service:
    description: Name of the systemd service.
    type: str
    default: pgbouncer
  user:
    description: Operating system user of the service; it reads the files and the admin console.
    type: str
    default: postgres
  timeout_seconds:
    description: How long a restart, a reload and the proof may each take.
    type: int
    default: 20
"""

EXAMPLES = r"""
- name: Apply the configuration
  pgbouncer_config:
    config:
      path: /etc/pgbouncer/pgbouncer.ini
      content: "{{ lookup('ansible.builtin.template', 'pgbouncer.ini.j2') }}"
    userlist:
      path: /etc/pgbouncer/userlist.txt
      content: "{{ lookup('ansible.builtin.template', 'userlist.txt.j2') }}"
"""

RETURN = r"""
action:
  description: What was done, or would be in check mode. One of none, reload, restart, start.
  type: str
  returned: success
settings:
  description: Names of the settings, databases and users that changed, as section.name.
  type: list
  elements: str
  returned: success
restart_reason:
  description: Settings that a reload cannot change.
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

Sections = dict[str, dict[str, str]]
"""A parsed file: section -> name -> value, as text."""

NOWHERE = "nowhere to listen on"
"""What a good candidate ends with, since it is given no address and no socket."""

ABSENT_IN_TRIAL = ("listen_addr", "unix_socket_dir", "pidfile", "logfile")
"""Settings that a trial beside the live process must not have."""

DATABASE_COLUMNS = {
    "host": "host",
    "port": "port",
    "dbname": "database",
    "pool_size": "pool_size",
    "min_pool_size": "min_pool_size",
    "reserve_pool": "reserve_pool_size",
    "reserve_pool_size": "reserve_pool_size",
    "pool_mode": "pool_mode",
    "max_db_connections": "max_connections",
    "max_db_client_connections": "max_client_connections",
    "server_lifetime": "server_lifetime",
}
"""[databases] key -> column of SHOW DATABASES (before 1.24 reserve_pool_size was reserve_pool)."""

USER_COLUMNS = (
    "pool_size",
    "reserve_pool_size",
    "pool_mode",
    "max_user_connections",
    "max_user_client_connections",
)
"""[users] keys that SHOW USERS shows under their own names, where the version has them."""

OWN_SETTINGS = ("conffile", "verbose", "user", "job_name", "service_name")
"""Settings that the command line and the service give the process."""

CLEAR_PASSWORD = re.compile(r"password\s*=\s*('(?:[^']|'')*'|\S+)")
"""What a file from before poolkit may hold, and a diff must not show."""

NEUTRAL_USER = "max_user_connections=-1"
"""A [users] line that resets every limit of the user: a key that is not given goes to "unset"."""


class Refused(Exception):
    """The candidate cannot be used, or the process does not do what it says."""


def parse_ini(text: str) -> Sections:
    """Parse a pgbouncer.ini as PgBouncer does: comments at line starts only, last value wins."""
    sections: Sections = {}
    section = ""
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in ";#":
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header.group(1)
            sections.setdefault(section, {})
        elif "=" in line:
            name, value = line.split("=", 1)
            sections.setdefault(section, {})[name.strip()] = value.strip()
    return sections


def parse_connstr(text: str) -> dict[str, str]:
    """Parse a [databases] or [users] value: key=value, quoted values with doubled quotes."""
    pairs = re.findall(r"(\w+)\s*=\s*('(?:[^']|'')*'|\S+)", text)
    return {
        key: value[1:-1].replace("''", "'") if value.startswith("'") else value
        for key, value in pairs
    }


def same(rendered: str, live: str | None) -> bool:
    """Compare two values as PgBouncer would: 30 and 30.0 are the same time."""
    if live is None:
        return False
    try:
        return float(rendered) == float(live)
    except ValueError:
        return rendered == live


def changed_names(before: Sections, after: Sections) -> list[str]:
    """Return section.name of everything that differs between two files."""
    return sorted(
        f"{section}.{name}"
        for section in {*before, *after}
        for name in {*before.get(section, {}), *after.get(section, {})}
        if before.get(section, {}).get(name) != after.get(section, {}).get(name)
    )


def trial_config(text: str, moved: dict[str, str]) -> str:
    """Return the candidate as a trial beside the live process can load it.

    moved: live path -> path of the trial's copy, for the files that the configuration names.
    """
    lines = []
    for line in text.splitlines():
        name = line.split("=", 1)[0].strip()
        if name in ABSENT_IN_TRIAL:
            line = f"{name} ="
        for live, trial in moved.items():
            if name.endswith("_file") and line.endswith(live):
                line = line.removesuffix(live) + trial
        lines.append(line)
    return "\n".join(lines) + "\n"


def trial_error(output: str, moved: dict[str, str]) -> str | None:
    """Return why the binary refused the candidate; None when it loaded all of it.

    A warning is a refusal as well: an HBA rule that PgBouncer skips would leave a door open.
    """
    problems = [
        re.sub(r"^.*?\b(WARNING|ERROR|FATAL)\b", r"\1", line)
        for line in output.splitlines()
        if re.search(r"\b(WARNING|ERROR|FATAL)\b", line) and NOWHERE not in line
    ]
    if not problems and NOWHERE in output:
        return None
    message = "; ".join(problems) or output.strip() or "it printed nothing"
    for live, trial in moved.items():
        message = message.replace(trial, live)
    return message


def config_drift(sections: Sections, config: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return {setting: value that it should have} where SHOW CONFIG differs from the file.

    A setting that is not in the file should have its default: one that was removed and needs a
    restart to forget its value would otherwise stay.
    """
    rendered = sections.get("pgbouncer", {})
    wanted = {
        name: rendered.get(name, row.get("default", row["value"]))
        for name, row in config.items()
        if name in rendered or name not in OWN_SETTINGS
    }
    wanted |= {name: value for name, value in rendered.items() if name not in config}
    found = {}
    for name, value in wanted.items():
        live = config.get(name, {}).get("value")
        if name == "unix_socket_mode" and live is not None:
            live = f"0{int(live):o}"  # shown as a decimal number
        if not same(value, live):
            found[name] = value
    return found


def drift(sections: Sections, console: Console) -> list[str]:
    """Return where the running process differs from the rendered file, as readable statements."""
    config = console.show("CONFIG", "key")
    found = [
        f"{name} is {config.get(name, {}).get('value')!r} and should be {value!r}"
        for name, value in config_drift(sections, config).items()
    ]
    databases = console.show("DATABASES", "name")
    rendered = sections.get("databases", {})
    found += [f"database {name} is missing" for name in rendered if name not in databases]
    found += [
        f"database {name} is still there"
        for name, row in databases.items()
        if name not in rendered and name != "pgbouncer" and "*" not in rendered
    ]
    for name, text in rendered.items():
        row = databases.get(name, {})
        wanted = parse_connstr(text)
        pairs = [(key, DATABASE_COLUMNS[key]) for key in wanted if key in DATABASE_COLUMNS]
        for key, column in pairs if row else []:
            live = row.get("reserve_pool" if column not in row and "reserve" in column else column)
            shows_global = key == "server_lifetime" and wanted[key] == "0"
            if not shows_global and not same(wanted[key], live):
                found.append(f"database {name}: {key} is {live!r} and should be {wanted[key]!r}")
        if row and row["force_user"] != wanted.get("user", ""):
            found.append(f"database {name}: the forced user is {row['force_user']!r}")
    users = console.show("USERS", "name")
    for name, text in sections.get("users", {}).items():
        wanted = parse_connstr(text)
        for key in (key for key in USER_COLUMNS if key in wanted and key in users.get(name, {})):
            if not same(wanted[key], users[name][key]):
                live = users[name][key]
                found.append(f"user {name}: {key} is {live!r} and should be {wanted[key]!r}")
    return found


def restart_only(sections: Sections, console: Console) -> list[str]:
    """Return the settings that differ in the running process and that a reload cannot change."""
    config = console.show("CONFIG", "key")
    names = [
        name
        for name in config_drift(sections, config)
        if config.get(name, {}).get("changeable") == "no"
    ]
    databases = console.show("DATABASES", "name")
    forced = [
        f"databases.{name}.user"
        for name, text in sections.get("databases", {}).items()
        if databases.get(name, {}).get("force_user") and "user" not in parse_connstr(text)
    ]
    return names + forced


class Console:
    """PgBouncer's admin console, over its unix socket as the service's own user."""

    def __init__(self, socket_directory: str, port: str, user: str, timeout: int) -> None:
        self.arguments = ["psql", "-X", "-q", "--csv", "-h", socket_directory, "-p", port]
        self.arguments += ["-U", "pgbouncer", "-d", "pgbouncer", "-c"]
        self.user = user
        self.timeout = timeout

    def run(self, command: str) -> str:
        """Return what the console prints; raise Refused when it refuses or does not answer."""
        try:
            done = subprocess.run(
                [*self.arguments, command],
                user=self.user,
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PGCONNECT_TIMEOUT": "5"},
                capture_output=True,
                text=True,
                timeout=self.timeout,
                cwd="/",
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"the admin console did not answer {command} in time") from None
        if done.returncode:
            raise Refused(f"the admin console refused {command}: {done.stderr.strip()}")
        return done.stdout

    def show(self, what: str, key: str) -> dict[str, dict[str, str]]:
        """Return the rows of a SHOW command by one of their columns."""
        return {row[key]: row for row in csv.DictReader(io.StringIO(self.run(f"SHOW {what}")))}


class Transaction:
    """The live files and process, and the change that is being made to them."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.user = module.params["user"]
        self.service = module.params["service"]
        self.timeout = module.params["timeout_seconds"]
        self.config_path = module.params["config"]["path"]
        every = [module.params["config"], *module.params["files"], module.params["userlist"]]
        self.after = {file["path"]: file["content"] for file in every}
        self.before = {path: self.read(path) for path in self.after}
        # Holds the old files from before the swap until the proof: a run that was killed between is
        # caught up by the next one, and can still be undone by it.
        self.pending = Path(self.config_path).with_name(".poolkit-pending")
        if self.pending.exists():
            with contextlib.suppress(ValueError):
                self.before.update(json.loads(self.pending.read_text()))

    @staticmethod
    def read(path: str) -> str | None:
        return Path(path).read_text() if Path(path).exists() else None

    def write(self, contents: dict[str, str | None]) -> None:
        """Put each file in place at once; a reader sees the old one or the new one, never half."""
        group = grp.getgrgid(pwd.getpwnam(self.user).pw_gid).gr_gid
        for path, content in contents.items():
            if content is None:
                Path(path).unlink(missing_ok=True)
                continue
            partial = Path(f"{path}.new")
            partial.touch(mode=0o600)
            os.chown(partial, 0, group)
            partial.chmod(0o640)
            partial.write_text(content)
            partial.replace(path)

    def right_modes(self) -> bool:
        """Tell whether the files belong to root and are readable by the service's group only."""
        group = pwd.getpwnam(self.user).pw_gid
        stats = [Path(path).stat() for path in self.after]
        return all((s.st_uid, s.st_gid, s.st_mode & 0o777) == (0, group, 0o640) for s in stats)

    def try_candidate(self) -> None:
        """Let the installed binary load the candidate; raise Refused with what it said.

        PgBouncer does not look for the files of a TLS setting before the first connection.
        """
        for name, value in parse_ini(self.after[self.config_path]).get("pgbouncer", {}).items():
            named = name.endswith("_file") and value and value not in self.after
            if named and not Path(value).is_file():
                raise Refused(f"{name}: there is no file {value} on this host")
        directory = Path(tempfile.mkdtemp(prefix="poolkit-pgbouncer.", dir="/run"))
        try:
            owner = pwd.getpwnam(self.user)
            moved = {path: str(directory / Path(path).name) for path in self.after}
            for path, content in self.after.items():
                text = trial_config(content, moved) if path == self.config_path else content
                Path(moved[path]).write_text(text)
                os.chown(moved[path], owner.pw_uid, owner.pw_gid)
                Path(moved[path]).chmod(0o400)
            os.chown(directory, owner.pw_uid, owner.pw_gid)
            try:
                done = subprocess.run(
                    ["pgbouncer", moved[self.config_path]],
                    user=self.user,
                    group=owner.pw_gid,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
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

    def console(self, sections: Sections) -> Console:
        """Return the console of a process that runs with a configuration."""
        settings = sections.get("pgbouncer", {})
        return Console(
            settings.get("unix_socket_dir", "/var/run/postgresql"),
            settings.get("listen_port", "6432"),
            self.user,
            self.timeout,
        )

    def running(self) -> bool:
        return self.systemctl("is-active", check=False) == 0

    def systemctl(self, verb: str, check: bool = True) -> int:
        try:
            done = subprocess.run(
                ["systemctl", verb, self.service],
                capture_output=True,
                text=True,
                timeout=self.timeout + 120,  # systemd itself waits 90 s for a stop
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"systemctl {verb} {self.service} did not end in time") from None
        if check and done.returncode:
            log = subprocess.run(
                ["journalctl", "-u", self.service, "-n", "5", "-o", "cat", "--no-pager"],
                capture_output=True,
                text=True,
            )
            raise Refused(f"systemctl {verb} {self.service} failed: {log.stdout.strip()}")
        return done.returncode

    def apply(self, text: str, removed_users: list[str]) -> tuple[str, list[str]]:
        """Make the process take a configuration that is in place; return (action, reasons)."""
        sections = parse_ini(text)
        if not self.running():
            self.systemctl("start")
            return "start", []
        live = self.console(self.live_sections)
        try:
            reasons = restart_only(sections, live)
        except Refused as error:
            reasons = [str(error)]
        if reasons:
            self.systemctl("restart")
            return "restart", reasons
        if removed_users:
            # A user whose line is gone keeps its limits: give it a neutral line first.
            lines = "\n".join(f"{user} = {NEUTRAL_USER}" for user in removed_users)
            self.write({self.config_path: f"{text}\n[users]\n{lines}\n"})
            live.run("RELOAD")
            self.write({self.config_path: text})
        live.run("RELOAD")
        return "reload", []

    def prove(self, text: str) -> None:
        """Wait until the process has the configuration and listens; raise Refused otherwise."""
        sections = parse_ini(text)
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                problems = drift(sections, self.console(sections)) + self.deaf(sections)
            except Refused as error:
                problems = [str(error)]
            if not problems:
                return
            # What a reload did not change stays; only a process that is starting needs patience.
            if time.monotonic() > deadline or (self.running() and "refused" not in problems[0]):
                raise Refused("the running process differs: " + "; ".join(problems))
            time.sleep(0.2)

    def deaf(self, sections: Sections) -> list[str]:
        """Return a statement when the service does not listen on the port that it should."""
        settings = sections.get("pgbouncer", {})
        port = settings.get("listen_port", "6432")
        if not settings.get("listen_addr"):
            return []
        sockets = subprocess.run(
            ["ss", "-Hltn", "--cgroup", f"sport = :{port}"], capture_output=True, text=True
        ).stdout
        own = [line for line in sockets.splitlines() if f"/{self.service}.service" in line]
        addresses = [part.strip() for part in settings["listen_addr"].split(",")]
        literal = [address for address in addresses if re.fullmatch(r"[0-9.]+", address)]
        deaf = [a for a in literal if not any(f" {a}:{port} " in line for line in own)]
        if own and not deaf:
            return []
        return [f"{self.service} does not listen on {', '.join(deaf) or 'any address'}:{port}"]

    def run(self) -> dict:
        """Carry the change out; return the module's result or raise Refused with the reason."""
        start = time.monotonic()
        new = self.after[self.config_path]
        old = self.before[self.config_path] or ""
        self.live_sections = parse_ini(old)
        names = changed_names(self.live_sections, parse_ini(new))
        files = [path for path in self.after if self.before[path] != self.after[path]]
        touched = bool(files) or self.pending.exists() or not self.right_modes()
        self.try_candidate()
        if self.module.check_mode:
            action, reasons = self.forecast(touched, new)
            return self.result(action != "none", action, names, reasons, start)
        if not touched and self.running() and not self.problems(new):
            return self.result(False, "none", names, [], start)
        removed = sorted(
            set(parse_ini(old).get("users", {})) - set(parse_ini(new).get("users", {}))
        )
        self.pending.touch(mode=0o600)
        self.pending.write_text(json.dumps(self.before))
        try:
            self.write(self.after)
            action, reasons = self.apply(new, removed)
            self.prove(new)
        except Exception as error:  # whatever it was, half a change must not stay
            self.restore(error)
        self.pending.unlink()
        return self.result(True, action, names, reasons, start)

    def problems(self, text: str) -> list[str]:
        try:
            sections = parse_ini(text)
            return drift(sections, self.console(sections)) + self.deaf(sections)
        except Refused as error:
            return [str(error)]

    def forecast(self, touched: bool, text: str) -> tuple[str, list[str]]:
        """Return what a real run would do."""
        if not self.running():
            return "start", []
        try:
            reasons = restart_only(parse_ini(text), self.console(self.live_sections))
        except Refused as error:
            return "restart", [str(error)]
        if reasons:
            return "restart", reasons
        return ("reload" if touched or self.problems(text) else "none"), []

    def restore(self, error: Exception) -> None:
        """Put the old files back, prove that they serve again, and fail with the reason."""
        old = self.before[self.config_path]
        if old is None:
            self.module.fail_json(msg=f"{error}. There was no configuration before", restored=False)
        self.write(self.before)
        try:
            new_users = parse_ini(self.after[self.config_path]).get("users", {})
            self.apply(old, sorted(set(new_users) - set(parse_ini(old).get("users", {}))))
            self.prove(old)
        except Refused as second:
            self.module.fail_json(
                msg=f"{error}. The old files are back, but do not serve: {second}", restored=False
            )
        self.pending.unlink()
        self.module.fail_json(
            msg=f"{error}. The old configuration is back and serves.", restored=True
        )

    def result(
        self, changed: bool, action: str, names: list[str], reasons: list[str], start: float
    ) -> dict:
        secret = self.module.params["userlist"]["path"]
        return {
            "changed": changed,
            "action": action,
            "settings": names,
            "restart_reason": reasons,
            "seconds": round(time.monotonic() - start, 2),
            "diff": [
                {
                    "before_header": path,
                    "after_header": path,
                    "before": CLEAR_PASSWORD.sub("password=***", self.before[path] or ""),
                    "after": content,
                }
                for path, content in self.after.items()
                if path != secret and self.before[path] != content
            ],
        }


@contextlib.contextmanager
def exclusive(path: str, seconds: int) -> Iterator[None]:
    """Hold a lock file, so that two runs cannot interleave; raise Refused when it stays taken."""
    with Path(path).open("w") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Refused(f"another run holds {path} since {seconds} s") from None
                time.sleep(0.2)
        yield


def main() -> None:
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
    }
    secret = {**file, "content": {"type": "str", "required": True, "no_log": True}}
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict", "required": True, "options": file},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
            "userlist": {"type": "dict", "required": True, "options": secret},
            "service": {"type": "str", "default": "pgbouncer"},
            "user": {"type": "str", "default": "postgres"},
            "timeout_seconds": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    if shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        if module.check_mode:
            module.exit_json(changed=True, action="start", settings=[], restart_reason=[])
        module.fail_json(msg="PgBouncer is not installed on this host")
    try:
        with exclusive("/run/poolkit-pgbouncer.lock", module.params["timeout_seconds"] * 3):
            module.exit_json(**Transaction(module).run())
    except Refused as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")


if __name__ == "__main__":
    main()

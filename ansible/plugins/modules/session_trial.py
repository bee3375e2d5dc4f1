#!/usr/bin/python
"""Run a command of an application through a pooler of its own, and tell what its sessions keep."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: session_trial
short_description: Run a command of an application through a pooler of its own
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Starts a second PgBouncer of the installed binary, with the live one's user list and rules, on
    a port of 127.0.0.1 and a socket of its own. Runs a command as the application through it, in
    session mode, then in transaction mode, and asks afterwards what the server connections keep.
  - The pooler, its socket and its files are gone at the end, also where the run is killed.
options:
  name:
    description: Name of the application.
    type: str
    required: true
  command:
    description: The command, as a shell would split it into words.
    type: str
    required: true
  databases:
    description: The entries of the live pgbouncer.ini that the application uses.
    type: list
    elements: str
    required: true
  services:
    description: The sections of O(service_file) for the same databases.
    type: list
    elements: str
    required: true
  secret_environment:
    description: The application's variables, which lead to the trial.
    type: str
    required: true
  service_file:
    description: Text of the connection service file, which leads to the trial.
    type: str
    required: true
  directory:
    description: The folder of the trial, which is made and removed. Its socket is in C(socket).
    type: path
    required: true
  port:
    description: Port of the trial.
    type: int
    required: true
  connections:
    description: Server connections of each of its pools.
    type: int
    default: 4
  custom_settings:
    description: Names of settings with a dot that the application may set, such as app.tenant.
    type: list
    elements: str
    default: []
  timeout:
    description: How long one run of the command may take, in seconds.
    type: int
    default: 900
"""

EXAMPLES = r"""
- name: Try the application's tests
  poolkit.poolkit.session_trial:
    name: shop
    command: manage.py check
    databases: [shop]
    services: [shop]
    secret_environment: "{{ lookup('ansible.builtin.template', 'app.env.j2') }}"
    service_file: "{{ lookup('ansible.builtin.template', 'pg_service.conf.j2') }}"
    directory: /run/poolkit-audit-shop
    port: 6439
"""

RETURN = r"""
codes:
  description: The command's exit code in each mode.
  type: dict
  returned: success
  sample: {session: 0, transaction: 1}
output:
  description: The last lines that it printed in each mode.
  type: dict
  returned: success
left:
  description: What its sessions left on server connections in transaction mode, by kind.
  type: dict
  returned: success
  sample: {locks: ["1"]}
problems:
  description: A sentence for each reason against transaction mode.
  type: list
  elements: str
  returned: success
"""

import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..module_utils.refused import Refused
from ..module_utils.session_trial import MODES, left, problems, state_sql, trial_ini
from ..module_utils.unlogged_module import UnloggedModule

CONFIG = Path("/etc/pgbouncer/pgbouncer.ini")
USER = "pgbouncer"
RUN = "/usr/local/sbin/poolkit-run"
GRACE = 20
"""Seconds that a run may take longer than its command, before systemd ends its pooler."""
LINES = 30
"""Of the command's output."""


class Trial:
    """The pooler of a trial, in one mode; a context manager that leaves nothing."""

    def __init__(self, params: dict[str, Any], mode: str) -> None:
        self.params, self.mode = params, mode
        self.directory = Path(params["directory"])
        self.unit = f"poolkit-audit-{params['name']}.service"

    def __enter__(self) -> Trial:
        active = subprocess.run(["systemctl", "is-active", "--quiet", self.unit], check=False)
        if active.returncode == 0:
            raise Refused(f"another audit runs on this host; systemctl stop {self.unit} ends it")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.params["port"]))
            except OSError as error:
                raise Refused(
                    f"port {self.params['port']} of 127.0.0.1: {error.strerror}. Set another "
                    "audit_port"
                ) from None
        try:
            self.write()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def write(self) -> None:
        """Write the trial's files: nobody but root reads the application's variables."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(mode=0o755)
        owner = pwd.getpwnam(USER)
        folder = self.directory / "socket"
        folder.mkdir(mode=0o755)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        try:
            ini = trial_ini(
                CONFIG.read_text(),
                self.params["databases"],
                str(folder),
                self.params["port"],
                self.mode,
                self.params["connections"],
            )
        except KeyError as error:
            raise Refused(f"the pooler has no database {error}: run pgbouncer.yml first") from None
        service = self.directory / "pg_service.conf"
        environment = f'{self.params["secret_environment"]}\nPGSERVICEFILE="{service}"\n'
        for name, text, mode, user in (
            ("pgbouncer.ini", ini, 0o400, owner.pw_uid),
            ("pg_service.conf", self.params["service_file"], 0o444, 0),
            ("app.env", environment, 0o400, 0),
        ):
            path = self.directory / name
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
                file.write(text)
            os.chown(path, user, -1)
            path.chmod(mode)

    def start(self) -> None:
        """Start the pooler as a unit that ends by itself, and takes its files with it."""
        words = ["systemd-run", "--quiet", "--collect", f"--unit={self.unit}"]
        words += ["--service-type=notify", f"--uid={USER}", f"--gid={USER}"]
        for line in (
            f"RuntimeMaxSec={self.params['timeout'] + GRACE}",
            f"ExecStopPost=+/bin/rm -rf {self.directory}",
            "NoNewPrivileges=yes",
            "KillSignal=SIGTERM",
            "TimeoutStartSec=20",
            "TimeoutStopSec=10",
        ):
            words.append(f"--property={line}")
        words += ["/usr/sbin/pgbouncer", "--quiet", str(self.directory / "pgbouncer.ini")]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            log = subprocess.run(
                ["journalctl", "--quiet", "--output=cat", "--lines=5", f"--unit={self.unit}"],
                capture_output=True,
                text=True,
            )
            raise Refused(f"the trial's PgBouncer does not start: {done.stderr}{log.stdout}")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["systemctl", "stop", self.unit], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def states(self, service: str) -> list[dict[str, Any]]:
        """Return the state of every server connection of a pool, each in a transaction."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "PGSERVICEFILE": str(self.directory / "pg_service.conf"),
            "PGPASSFILE": f"/etc/poolkit/{self.params['name']}/pgpass",
        }
        words = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", f"service={service}"]
        question = f"BEGIN;\n{state_sql(self.params['custom_settings'])};\n"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        asking: list[subprocess.Popen[str]] = []
        found = []
        try:
            for _ in range(self.params["connections"]):
                psql = subprocess.Popen(words, text=True, env=environment, **pipes)
                asking.append(psql)
                psql.stdin.write(question)
                psql.stdin.flush()
                line = psql.stdout.readline()
                if not line:
                    raise Refused(f"the trial cannot be asked: {psql.communicate()[1].strip()}")
                found.append(json.loads(line))
        finally:
            for psql in asking:
                if not psql.stdin.closed:
                    psql.communicate("COMMIT;\n")
        return found

    def run(self) -> tuple[int, str]:
        """Return (exit code, last lines of the output) of the command."""
        words = [RUN, "--environment", str(self.directory / "app.env"), self.params["name"], "--"]
        running = subprocess.Popen(
            [*words, *shlex.split(self.params["command"])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            output, _ = running.communicate(timeout=self.params["timeout"])
        except subprocess.TimeoutExpired:
            raise Refused(
                f"the command did not end within {self.params['timeout']} s in {self.mode} mode. "
                "Give another, or raise audit_timeout_seconds"
            ) from None
        finally:
            if running.poll() is None:
                running.terminate()  # poolkit-run stops its unit
                running.communicate()
        return running.returncode, "\n".join(output.splitlines()[-LINES:])


def trial(params: dict[str, Any]) -> dict[str, Any]:
    """Run the command in both modes; return the module's result. Raises Refused."""
    program = Path(RUN)
    if not program.is_file() or "--environment" not in program.read_text():
        raise Refused(f"{RUN} is older than this playbook: deploy {params['name']} once more")
    codes, output = {}, {}
    kept: dict[str, list[str]] = {}
    for mode in MODES:
        with Trial(params, mode) as pooler:
            asked = params["services"] if mode == "transaction" else []
            before = {service: pooler.states(service)[0] for service in asked}
            codes[mode], output[mode] = pooler.run()
            for service in asked:
                for kind, names in left(before[service], pooler.states(service)).items():
                    kept[kind] = sorted({*kept.get(kind, []), *names})
    return {
        "codes": codes,
        "output": output,
        "left": kept,
        "problems": problems(codes, kept),
    }


def main() -> None:
    texts = {"type": "list", "elements": "str"}
    module = UnloggedModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "command": {"type": "str", "required": True},
            "databases": {**texts, "required": True},
            "services": {**texts, "required": True},
            "secret_environment": {"type": "str", "required": True, "no_log": True},
            "service_file": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "port": {"type": "int", "required": True},
            "connections": {"type": "int", "default": 4},
            "custom_settings": {**texts, "default": []},
            "timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, msg="check mode runs no command")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        result = trial(module.params)
    except Refused as error:
        module.fail_json(msg=str(error))
    # The command itself may have changed something; the trial did not.
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

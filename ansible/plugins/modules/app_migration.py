#!/usr/bin/python
"""Run an application's migrations, one deployment at a time and past every pooler."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_migration
short_description: Run an application's migrations, one deployment at a time, past every pooler
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Holds an advisory lock on a connection of its own while it looks for pending migrations, runs
    them and looks again, so that two deployments never migrate at once. A second one waits, then
    fails with the address of the first.
  - Refuses to run through a pooler, which may give the lock to somebody else. A pooler answers the
    login itself, with a process id of its own making; PostgreSQL's is that of the process which
    runs the queries.
  - The commands run as an unprivileged user in a systemd unit of their own, NAME-migrate.service.
    Their words arrive as they are given - systemd expands no variable in them.
  - A command ends when this module does, however that ends, and after timeout_seconds. So it never
    goes on without the lock. PostgreSQL ends what such a command has left running on the server
    within a few seconds (14 and later, for clients of libpq).
  - Where a migration has failed, the message names the invalid indexes of the database, which a
    failed CREATE INDEX CONCURRENTLY leaves behind.
  - The output comes without the password of the connection and the values of environment files.
    Of a failed command's long output the line that matters and the end are shown; the whole of it
    is in /var/log/poolkit/NAME-migrate.log.
  - Check mode runs the command that lists what is pending, and nothing else. Where the owner
    cannot log in it tells that and goes on - what it checks may include the database's set-up.
options:
  name:
    description: The application; part of the unit's name.
    type: str
    required: true
  conninfo:
    description: libpq's connection URI of the role that owns the schema, directly to PostgreSQL.
    type: str
    required: true
  pending:
    description: Command that lists pending migrations; empty, the migrations always run.
    type: list
    elements: str
    default: []
  pending_pattern:
    description: Regular expression of a line that names a pending migration, its name as group 1.
    type: str
    default: (\S.*)
  upgrade:
    description: Command that migrates.
    type: list
    elements: str
    required: true
  before:
    description: Command that runs before the migrations where there are any, under the same lock.
    type: list
    elements: str
    default: []
  after:
    description: Command that runs after them.
    type: list
    elements: str
    default: []
  unfinished:
    description:
      - Path of a file that is there from the beginning of the migrations until `after` has ended
        well. Where an earlier run has left it, `after` runs also with nothing pending.
    type: path
  properties:
    description: Properties of the unit, as of systemd-run.
    type: list
    elements: str
    default: []
  environment:
    description: Environment variables of the commands; no secrets, these are on a command line.
    type: dict
    default: {}
  timeout_seconds:
    description: Time after which a command is ended.
    type: int
    default: 14400
  wait_seconds:
    description: How long to wait for another deployment's migrations.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Run the migrations
  poolkit.poolkit.app_migration:
    name: shop
    conninfo: "{{ conninfo }}"
    pending: [python, manage.py, showmigrations, --plan]
    pending_pattern: '^\[ \]\s+(\S+)'
    upgrade: [python, manage.py, migrate, --noinput]
"""

RETURN = r"""
pending:
  description: The migrations that were pending, and in check mode still are.
  type: list
  elements: str
  returned: success, unless unknown
unknown:
  description: Why the pending migrations are not known.
  type: str
  returned: in check mode, where the owner cannot log in
output:
  description: What the commands printed.
  type: str
  returned: success
invalid_indexes:
  description: The database's invalid indexes and what to do about them; empty without one.
  type: str
  returned: success
waited_seconds:
  description: Time that another deployment's migrations took.
  type: float
  returned: success
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..module_utils.command_output import shortened
from ..module_utils.migration import TELLING, Ended, Migration, NoLogin, psycopg2
from ..module_utils.refused import Refused
from ..module_utils.secret_values import hide, of_environment, of_url
from ..module_utils.service_state import systemctl
from ..module_utils.unlogged_module import UnloggedModule

LIFELINE = """
import os, subprocess, sys, threading

def end_with_the_module():
    os.read(0, 1)
    os._exit(1)

command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=end_with_the_module, daemon=True).start()
code = command.wait()
sys.exit(code if code >= 0 else 128 - code)
"""
"""Runs a command in its unit. Its input is a pipe of this module: when that closes, the unit ends.

systemd then ends what the unit has left, the command too.
"""

STOP_SECONDS = 10
"""How long a command may take to end after SIGTERM."""


def systemd_run(
    unit: str, properties: list[str], environment: dict[str, str], command: list[str]
) -> list[str]:
    """Return the command that runs another one in a unit of its own and waits for it.

    Its input is a lifeline().

    systemd would put variables of the unit into the command, as in ExecStart=; a doubled `$` is a
    literal one in every version. `%` is no specifier there.
    """
    literal = [word.replace("$", "$$") for word in command]
    return [
        *("systemd-run", "--quiet", "--pipe", "--wait", "--collect"),
        f"--unit={unit}",
        *(f"--property={line}" for line in properties),
        *(f"--setenv={key}={value}" for key, value in environment.items()),
        *("/usr/bin/python3", "-I", "-c", LIFELINE),
        *("/usr/bin/env", *literal),  # finds the command on the PATH of its environment
    ]


def printed_by(command: list[str]) -> tuple[int, str, str]:
    """Run a command of systemd_run() to its end; return its exit code, output and errors.

    It writes to files: the unit would keep a pipe open where systemd-run itself is killed.
    """
    with lifeline() as end, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        done = subprocess.run(command, stdin=end, stdout=output, stderr=errors)
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return done.returncode, texts[0], texts[1]


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """Yield the reading end of a pipe; the other one closes after that, or when this process ends.

    Nobody else has the other one: subprocess hands no further files down.
    """
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def secrets(conninfo: str, properties: list[str]) -> set[str]:
    """Return what must not appear in an output: the password, values of environment files."""
    found = of_url(conninfo)
    for line in properties:
        name, _, path = line.partition("=")
        if name == "EnvironmentFile" and Path(path).is_file():
            found |= of_environment(Path(path).read_text())
    return found


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "conninfo": {"type": "str", "required": True, "no_log": True},
            "pending": {"type": "list", "elements": "str", "default": []},
            "pending_pattern": {"type": "str", "default": r"(\S.*)"},
            "upgrade": {"type": "list", "elements": "str", "required": True},
            "before": {"type": "list", "elements": "str", "default": []},
            "after": {"type": "list", "elements": "str", "default": []},
            "properties": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "unfinished": {"type": "path"},
            "timeout_seconds": {"type": "int", "default": 14400},
            "wait_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    if psycopg2 is None:
        module.fail_json(msg="python3-psycopg2 is missing on this host")
    # Looking must not get in the way of a run.
    unit = f"{given['name']}-{'pending' if module.check_mode else 'migrate'}"
    properties = [
        *given["properties"],
        f"RuntimeMaxSec={given['timeout_seconds']}",
        f"TimeoutStopSec={STOP_SECONDS}",
    ]
    hidden = secrets(given["conninfo"], given["properties"])
    unfinished = Path(given["unfinished"]) if given["after"] and given["unfinished"] else None

    def execute(_step: str, words: list[str], environment: dict[str, str]) -> Ended:
        environment = {**environment, **given["environment"]}
        code, output, errors = printed_by(systemd_run(unit, properties, environment, words))
        if code >= 0:
            return Ended(code, output, errors)
        systemctl("stop", f"{unit}.service")  # the command must not go on
        why = "systemd-run was killed on the host, so the command was ended as well"
        return Ended(code, output, errors, why)

    def shorten(text: str) -> str:
        return shortened(text, "" if module.check_mode else unit, TELLING)

    migration = Migration(given, execute, hidden, shorten)
    try:
        result = migration.run(
            given["conninfo"], only_look=module.check_mode, unfinished=unfinished
        )
    except Refused as error:
        if module.check_mode and isinstance(error, NoLogin):
            module.exit_json(changed=False, unknown=str(error))
        output = shortened(hide("\n".join(migration.printed), hidden))
        module.fail_json(msg=str(error), output=output)
    output = hide("\n".join(migration.printed), hidden)
    module.exit_json(changed=bool(result["pending"]), output=output, **result)


if __name__ == "__main__":
    main()

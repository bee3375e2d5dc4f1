#!/usr/bin/python
"""Run an application's migrations, one deployment at a time and past every pooler."""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.secret_values import hide, of_environment, of_url

try:
    import psycopg2
except ImportError:  # the module says so
    psycopg2 = None

DOCUMENTATION = r"""
---
module: app_migration
short_description: Run an application's migrations, one deployment at a time, past every pooler
description:
  - Holds an advisory lock on a connection of its own while it looks for pending migrations, runs
    them and looks again, so that two deployments never migrate at once. A second one waits, then
    fails with the address of the first.
  - Refuses to run through a pooler, which may give the lock to somebody else. A pooler answers the
    login itself, with a process id of its own making; PostgreSQL's is that of the process which
    runs the queries.
  - The commands run as an unprivileged user in a systemd unit of their own, NAME-migrate.service.
    Their words arrive as they are given - systemd expands no variable in them.
  - The output comes without the password of the connection and the values of environment files.
  - Check mode runs the command that lists what is pending, and nothing else.
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
  wait_seconds:
    description: How long to wait for another deployment's migrations.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Run the migrations
  app_migration:
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
  returned: success
output:
  description: What the commands printed.
  type: str
  returned: success
waited_seconds:
  description: Time that another deployment's migrations took.
  type: float
  returned: success
"""


HINTS = {
    "was already loaded": (
        "The command of another run goes on, perhaps of one that was cut off: wait for it to end "
        "(systemctl status shows it), then run this again"
    ),
    "Can't locate revision": (
        "The database is ahead of this code. To go back to it use ansible/playbooks/rollback.yml, "
        "or deploy it with -e app_migrations=skip"
    ),
    "canceling statement due to lock timeout": (
        "Another transaction held the lock for longer than app_migration_lock_timeout: run this "
        "again at a quieter time"
    ),
    "canceling statement due to statement timeout": (
        "A statement took longer than app_migration_statement_timeout: raise it and run "
        "ansible/playbooks/database.yml first"
    ),
}
"""What to do about words that a migration prints."""


class Refused(Exception):
    """The migrations cannot run; the message says why."""


def lock_key(database: str) -> int:
    """Return the advisory lock's key: 64 bits, the same on every controller and host."""
    digest = hashlib.sha256(f"poolkit migrations of {database}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def pending_migrations(output: str, pattern: str) -> list[str]:
    """Return what a pending command's output names."""
    return [found.group(1) for line in output.splitlines() if (found := re.search(pattern, line))]


def systemd_run(
    unit: str, properties: list[str], environment: dict[str, str], command: list[str]
) -> list[str]:
    """Return the command that runs another one in a unit of its own and waits for it.

    systemd would put variables of the unit into the command, as in ExecStart=; a doubled `$` is a
    literal one in every version. `%` is no specifier there.
    """
    literal = [word.replace("$", "$$") for word in command]
    return [
        *("systemd-run", "--quiet", "--pipe", "--wait", "--collect"),
        f"--unit={unit}",
        *(f"--property={line}" for line in properties),
        *(f"--setenv={key}={value}" for key, value in environment.items()),
        *("/usr/bin/env", *literal),  # finds the command on the PATH of its environment
    ]


def secrets(conninfo: str, properties: list[str]) -> set[str]:
    """Return what must not appear in an output: the password, values of environment files."""
    found = of_url(conninfo)
    for line in properties:
        name, _, path = line.partition("=")
        if name == "EnvironmentFile" and Path(path).is_file():
            found |= of_environment(Path(path).read_text())
    return found


def connect(conninfo: str) -> Any:
    """Return a connection that is PostgreSQL's own; raises Refused.

    conninfo: a URI, which may name a driver as SQLAlchemy's URLs do (postgresql+asyncpg://).
    """
    conninfo = re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", conninfo)
    try:
        connection = psycopg2.connect(conninfo, keepalives_idle=60, application_name="poolkit")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
    except psycopg2.Error as error:
        raise Refused(f"PostgreSQL refuses the owner: {str(error).strip()}") from None
    if connection.info.backend_pid != pid:
        raise Refused(
            "the connection for migrations goes through a pooler (process "
            f"{connection.info.backend_pid} answered the login, {pid} the query): give "
            "PostgreSQL's own address as database_host and database_port "
            "(app_database_direct_url with the strategy managed)"
        )
    return connection


def prove_lock(connection: Any) -> None:
    """See that the lock's session is still there, and with it the lock; raises Refused."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as error:
        raise Refused(
            "the connection that held the lock broke while a command ran, so another deployment "
            f"may have migrated meanwhile: look at the database, then run this again ({error})"
        ) from None


def take_lock(connection: Any, seconds: int) -> float:
    """Take the advisory lock and return the seconds that it took; raises Refused."""
    begin = time.monotonic()
    with connection.cursor() as cursor:
        if connection.server_version >= 140000:  # the session is idle while the commands run
            cursor.execute("SET idle_session_timeout = 0")
        key = lock_key(connection.info.dbname)
        while True:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (key,))
            if cursor.fetchone()[0]:
                return time.monotonic() - begin
            if time.monotonic() - begin > seconds:
                break
            time.sleep(0.5)
        cursor.execute(
            "SELECT coalesce(host(client_addr), 'the database host'), backend_start::timestamp(0) "
            "FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND granted "
            "AND classid = (%s >> 32) & 4294967295 AND objid = %s & 4294967295",
            (key, key),
        )
        host, start = cursor.fetchone() or ("an unknown host", "?")
    raise Refused(
        f"another deployment's migrations hold the lock of the database {connection.info.dbname} "
        f"since {start} (connected from {host}), longer than app_migration_wait_seconds "
        f"({seconds} s): wait for it to end, then run this again"
    )


def main() -> None:
    module = AnsibleModule(
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
            "wait_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    if psycopg2 is None:
        module.fail_json(msg="python3-psycopg2 is missing on this host")
    printed: list[str] = []
    unfinished = Path(given["unfinished"]) if given["after"] and given["unfinished"] else None
    hidden = secrets(given["conninfo"], given["properties"])

    def run(step: str) -> str:
        if not given[step]:
            return ""
        # Looking must not get in the way of a run.
        unit = f"{given['name']}-{'pending' if module.check_mode else 'migrate'}"
        command = systemd_run(unit, given["properties"], given["environment"], given[step])
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        text = "\n".join(part.strip() for part in (done.stdout, done.stderr) if part.strip())
        if step != "pending":
            printed.append(text)
        if done.returncode:
            shown = " ".join(given[step])
            hint = next((f". {hint}" for words, hint in HINTS.items() if words in text), "")
            raise Refused(f"{step} ({shown}) failed with exit code {done.returncode}: {text}{hint}")
        if not module.check_mode:
            prove_lock(connection)
        return done.stdout

    def pending() -> list[str]:
        return pending_migrations(run("pending"), given["pending_pattern"])

    connection, waited = None, 0.0
    try:
        connection = connect(given["conninfo"])
        if not module.check_mode:
            waited = take_lock(connection, given["wait_seconds"])
        found = pending() if given["pending"] else [" ".join(given["upgrade"])]
        if found and not module.check_mode:
            run("before")
            if unfinished:
                unfinished.touch()
            run("upgrade")
            if given["pending"] and (left := pending()):
                raise Refused(f"still pending after the migrations: {', '.join(left)}")
        elif not found and unfinished and unfinished.exists():
            found = [f"{' '.join(given['after'])} (of an earlier run)"]
        if found and not module.check_mode:
            run("after")
            if unfinished:
                unfinished.unlink()
    except (Refused, psycopg2.Error) as error:
        said = f"PostgreSQL: {error}" if isinstance(error, psycopg2.Error) else str(error)
        module.fail_json(msg=hide(said, hidden), output=hide("\n".join(printed), hidden))
    finally:
        if connection is not None:
            connection.close()  # and with it goes the lock
    module.exit_json(
        changed=bool(found),
        pending=[hide(name, hidden) for name in found],
        output=hide("\n".join(printed), hidden),
        waited_seconds=round(waited, 1),
    )


if __name__ == "__main__":
    main()

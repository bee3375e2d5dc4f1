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
import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..module_utils.command_output import shortened
from ..module_utils.refused import Refused
from ..module_utils.secret_values import hide, of_environment, of_url
from ..module_utils.service_state import systemctl
from ..module_utils.unlogged_module import UnloggedModule

try:
    import psycopg2
except ImportError:  # the module says so
    psycopg2 = None


CERTIFICATE_HINT = (
    ". Give a database_host that PostgreSQL's certificate names, and in database_ca_file the "
    "authority that signed it (app_database_direct_url with the strategy managed)"
)
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
        "again at a quieter time. A concurrent index build, which holds up no query, may wait "
        "longer: docs/databases.md has the migration"
    ),
    "invalid interpolation syntax": (
        "Alembic's ini reads % as its own: in migrations/env.py double it, "
        'url.replace("%", "%%") (docs/databases.md)'
    ),
    "ConnectionDoesNotExist": (
        "The settings have no alias of this name in DATABASES, which app_databases names: add it, "
        "or give app_migration_command (docs/databases.md)"
    ),
    "canceling statement due to statement timeout": (
        "A statement took longer than app_migration_statement_timeout: raise it and run "
        "ansible/playbooks/database.yml first"
    ),
}
"""What to do about words that a migration prints."""

TELLING = (r"^(\w+\.)+\w+: |^\w*(Error|Exception): ", r"\b(ERROR|FATAL):", r"(?i)\berror\b")
"""Lines that say why a command failed, the most telling first."""


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

CANCEL_ORPHANS = "client_connection_check_interval=5s"
"""Setting by which PostgreSQL notices that a client is gone while a statement runs."""


class NoLogin(Refused):
    """The owner cannot log in, or the server does not answer."""


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


def connect(conninfo: str) -> Any:
    """Return a connection that is PostgreSQL's own; raises NoLogin and Refused.

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
        said = str(error).strip()
        hint = CERTIFICATE_HINT if re.search("certificate|SSL error|support SSL", said) else ""
        raise NoLogin(f"PostgreSQL refuses the owner: {said}{hint}") from None
    if connection.info.backend_pid != pid:
        raise Refused(
            "the connection for migrations goes through a pooler (process "
            f"{connection.info.backend_pid} answered the login, {pid} the query): give "
            "PostgreSQL's own address as database_host and database_port "
            "(app_database_direct_url with the strategy managed)"
        )
    return connection


def cancels_orphans(connection: Any) -> bool:
    """Say whether the server can end statements whose client is gone; prepare it for itself."""
    try:
        with connection.cursor() as cursor:
            name, value = CANCEL_ORPHANS.split("=")
            cursor.execute(f"SET {name} = '{value}'")
    except psycopg2.Error:  # before 14, or a server on a system that cannot
        return False
    return True


def invalid_indexes(connection: Any) -> str:
    """Return what to do about the database's invalid indexes, as sentences; empty without one."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT format('%I.%I', nspname, relname) FROM pg_index "
                "JOIN pg_class ON pg_class.oid = indexrelid "
                "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
                "WHERE NOT indisvalid AND relkind = 'i' ORDER BY 1"
            )
            names = [name for (name,) in cursor.fetchall()]
    except psycopg2.Error:
        return ""
    if not names:
        return ""
    drops = "; ".join(f"DROP INDEX CONCURRENTLY {name}" for name in names)
    return (
        f"The database has invalid indexes: {', '.join(names)}. A failed CREATE INDEX "
        "CONCURRENTLY leaves one: no query uses it, and the migration cannot be run again. If none "
        f"is being built now, run as the owner: {drops}"
    )


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
    printed: list[str] = []
    unfinished = Path(given["unfinished"]) if given["after"] and given["unfinished"] else None
    hidden = secrets(given["conninfo"], given["properties"])
    environment = dict(given["environment"])

    def run(step: str) -> str:
        if not given[step]:
            return ""
        # Looking must not get in the way of a run.
        unit = f"{given['name']}-{'pending' if module.check_mode else 'migrate'}"
        limit = given["timeout_seconds"]
        properties = [
            *given["properties"],
            *(f"RuntimeMaxSec={limit}", f"TimeoutStopSec={STOP_SECONDS}"),
        ]
        command = systemd_run(unit, properties, environment, given[step])
        begin = time.monotonic()
        code, output, errors = printed_by(command)
        seconds = time.monotonic() - begin
        if code < 0:  # somebody has killed systemd-run: the command must not go on
            systemctl("stop", f"{unit}.service")
        text = "\n".join(part.strip() for part in (output, errors) if part.strip())
        if step != "pending":
            printed.append(text)
        if code:
            shown = " ".join(given[step])
            hint = next((f". {hint}" for words, hint in HINTS.items() if words in text), "")
            if code < 0:
                hint = ". systemd-run was killed on the host, so the command was ended as well"
            elif seconds >= limit:
                hint = (
                    f". It was ended after {limit} s (app_migration_timeout_seconds): look at what "
                    "it did, then raise that or make the migration shorter"
                )
            if step != "pending" and (left := invalid_indexes(connection)):
                hint += f". {left}"
            file = "" if module.check_mode else unit
            said = shortened(hide(text, hidden), file, TELLING) or "no output"
            raise Refused(f"{step} ({shown}) failed with exit code {code}: {said}{hint}")
        if not module.check_mode:
            prove_lock(connection)
        return output

    def pending() -> list[str]:
        return pending_migrations(run("pending"), given["pending_pattern"])

    connection, waited = None, 0.0
    try:
        connection = connect(given["conninfo"])
        if cancels_orphans(connection):
            environment.setdefault("PGOPTIONS", f"-c {CANCEL_ORPHANS}")
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
        # Also of a migration that has IF NOT EXISTS, and so ends well.
        invalid = invalid_indexes(connection)
    except (Refused, psycopg2.Error) as error:
        if module.check_mode and isinstance(error, NoLogin):
            module.exit_json(changed=False, unknown=hide(str(error), hidden))
        said = f"PostgreSQL: {error}" if isinstance(error, psycopg2.Error) else str(error)
        output = shortened(hide("\n".join(printed), hidden))
        module.fail_json(msg=hide(said, hidden), output=output)
    finally:
        if connection is not None:
            connection.close()  # and with it goes the lock
    module.exit_json(
        changed=bool(found),
        pending=[hide(name, hidden) for name in found],
        output=hide("\n".join(printed), hidden),
        invalid_indexes=invalid,
        waited_seconds=round(waited, 1),
    )


if __name__ == "__main__":
    main()

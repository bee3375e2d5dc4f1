"""Migrations under a lock, past every pooler; what runs their commands is the caller's.

Needs psycopg2 and nothing else beside the standard library: the module app_migration runs it on a
host, and app-migrate in a container.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .command_output import telling_line
from .refused import Refused
from .secret_values import hide

try:
    import psycopg2
except ImportError:  # the caller says so
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


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    why: what to do, where it did not end by itself; goes before the words that it printed.
    """

    code: int
    output: str
    errors: str
    why: str = ""


Execute = Callable[[str, list[str], dict[str, str]], Ended]
"""Runs a command to its end; gets the step's name, its words and further environment variables."""


def said_in_a_line(text: str) -> str:
    """Return the line of an output that matters, else its last."""
    return telling_line(text, TELLING) or (text.strip().splitlines() or [""])[-1]


class Migration:
    """One run.

    given: the commands `pending`, `upgrade`, `before` and `after` (lists of words, empty for
    none), `pending_pattern`, `wait_seconds` and `timeout_seconds`, as of the module.
    hidden: what appears in no message.
    shorten: makes of a failed command's output what its message quotes.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        execute: Execute,
        hidden: set[str],
        shorten: Callable[[str], str] = said_in_a_line,
    ) -> None:
        self.given, self.execute, self.hidden, self.shorten = given, execute, hidden, shorten
        self.environment: dict[str, str] = {}
        self.printed: list[str] = []
        self.connection: Any = None
        self.only_look = False

    def run(
        self,
        conninfo: str,
        *,
        only_look: bool = False,
        unfinished: Path | None = None,
        always_after: bool = False,
    ) -> dict[str, Any]:
        """Migrate; return pending, ran_after, invalid_indexes and waited_seconds.

        Raises Refused, NoLogin where the owner cannot log in, without a secret in the text.
        only_look: list what is pending, without the lock.
        unfinished: the file that is there until `after` has ended well; where an earlier run has
        left it, `after` runs also with nothing pending. always_after: it does so in any case.
        """
        self.only_look = only_look
        try:
            self.connection = connect(conninfo)
            return self._run(unfinished, always_after)
        except (Refused, psycopg2.Error) as error:
            said = f"PostgreSQL: {error}" if isinstance(error, psycopg2.Error) else str(error)
            kind = NoLogin if isinstance(error, NoLogin) else Refused
            raise kind(hide(said, self.hidden)) from None
        finally:
            if self.connection is not None:
                self.connection.close()  # and with it goes the lock

    def _run(self, unfinished: Path | None, always_after: bool) -> dict[str, Any]:
        given, look, waited = self.given, self.only_look, 0.0
        if cancels_orphans(self.connection):
            self.environment["PGOPTIONS"] = f"-c {CANCEL_ORPHANS}"
        if not look:
            waited = take_lock(self.connection, given["wait_seconds"])
        found = self._pending() if given["pending"] else [" ".join(given["upgrade"])]
        if found and not look:
            self._step("before")
            if unfinished:
                unfinished.touch()
            self._step("upgrade")
            if given["pending"] and (left := self._pending()):
                raise Refused(f"still pending after the migrations: {', '.join(left)}")
        elif not found and unfinished and unfinished.exists():
            found = [f"{' '.join(given['after'])} (of an earlier run)"]
        if (found or always_after) and not look:
            self._step("after")
            if unfinished:
                unfinished.unlink()
        return {
            "pending": [hide(name, self.hidden) for name in found],
            # Also of a migration that has IF NOT EXISTS, and so ends well.
            "invalid_indexes": invalid_indexes(self.connection),
            "waited_seconds": round(waited, 1),
        }

    def _pending(self) -> list[str]:
        return pending_migrations(self._step("pending"), self.given["pending_pattern"])

    def _step(self, step: str) -> str:
        """Run a step's command, where there is one; return what it printed, without its errors."""
        if not self.given[step]:
            return ""
        begin = time.monotonic()
        ended = self.execute(step, self.given[step], self.environment)
        seconds = time.monotonic() - begin
        text = "\n".join(part.strip() for part in (ended.output, ended.errors) if part.strip())
        if step != "pending":
            self.printed.append(text)
        if ended.code:
            raise Refused(self._failure(step, ended, text, seconds))
        if not self.only_look:
            prove_lock(self.connection)
        return ended.output

    def _failure(self, step: str, ended: Ended, text: str, seconds: float) -> str:
        limit = self.given["timeout_seconds"]
        hint = next((f". {hint}" for words, hint in HINTS.items() if words in text), "")
        if ended.why:
            hint = f". {ended.why}"
        elif seconds >= limit:
            hint = (
                f". It was ended after {limit} s (app_migration_timeout_seconds): look at what "
                "it did, then raise that or make the migration shorter"
            )
        if step != "pending" and (left := invalid_indexes(self.connection)):
            hint += f". {left}"
        shown = " ".join(self.given[step])
        said = self.shorten(hide(text, self.hidden)) or "no output"
        return f"{step} ({shown}) failed with exit code {ended.code}: {said}{hint}"

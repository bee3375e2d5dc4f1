"""Migrations: the lock, what is pending, and the command that systemd gets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from psycopg2 import OperationalError

from plugins.module_utils import command_output, migration
from plugins.modules import app_migration

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = yaml.safe_load((ROOT / "roles/app/vars/main.yml").read_text())["_app_frameworks"]

# python manage.py showmigrations --plan, Django 5.2.
PLAN = """\
[X]  contenttypes.0001_initial
[X]  auth.0001_initial
[ ]  admin.0001_initial
[X]  contenttypes.0002_remove_content_type_name
[ ]  auth.0003_alter_user_email_max_length
[ ]  items.0001_initial
"""


@pytest.mark.parametrize(
    ("framework", "output", "pending"),
    [
        (
            "django",
            PLAN,
            ["admin.0001_initial", "auth.0003_alter_user_email_max_length", "items.0001_initial"],
        ),
        ("django", PLAN.replace("[ ]", "[X]"), []),
        ("django", "(no migrations)\n", []),
        # What _app_alembic_heads prints: Alembic 1.20 and Flask-Migrate 4.1 alike.
        ("fastapi", "0002\n0003\n", ["0002", "0003"]),
        ("fastapi", "", []),
        ("flask", "0001\n", ["0001"]),
    ],
)
def test_pending_migrations(framework: str, output: str, pending: list[str]) -> None:
    pattern = FRAMEWORKS[framework]["pattern"]
    assert migration.pending_migrations(output, pattern) == pending


@pytest.mark.parametrize(
    ("current", "heads", "pending"),
    [
        ("", "0002 (head)\n0003 (head)\n", ["0002", "0003"]),
        ("0002 (head)\n", "0002 (head)\n0003 (head)\n", ["0003"]),
        ("0003 (head)\n0002 (head)\n", "0002 (head)\n0003 (head)\n", []),
        ("000 (head)\n0001\n", "0002 (head)\n", ["0002"]),  # none is a part of another
        ("", "", []),
    ],
)
def test_heads_that_the_database_has_not_reached(
    tmp_path: Path, current: str, heads: str, pending: list[str]
) -> None:
    """The role's script, with a stand-in that prints what `alembic` does (a line of each head)."""
    text = yaml.safe_load((ROOT / "roles/app/vars/main.yml").read_text())[
        "_app_alembic_heads"
    ].replace("FOLDER", "")
    (tmp_path / "alembic").write_text(f'#!/bin/sh\ncat "{tmp_path}/$1.txt"\necho INFO >&2\n')
    (tmp_path / "alembic").chmod(0o755)
    (tmp_path / "current.txt").write_text(current)
    (tmp_path / "heads.txt").write_text(heads)
    script = text.replace("/tmp/", f"{tmp_path}/").replace("ALEMBIC", f"{tmp_path}/alembic")
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0
    pattern = FRAMEWORKS["fastapi"]["pattern"]
    assert migration.pending_migrations(done.stdout, pattern) == pending


def test_script_fails_with_alembic(tmp_path: Path) -> None:
    text = yaml.safe_load((ROOT / "roles/app/vars/main.yml").read_text())[
        "_app_alembic_heads"
    ].replace("FOLDER", "")
    script = text.replace("ALEMBIC", "false").replace("/tmp/", f"{tmp_path}/")
    assert subprocess.run(["sh", "-ec", script]).returncode != 0


def test_lock_key_is_the_same_everywhere() -> None:
    """A controller of another version has to take the same lock.

    Its bytes are the first of `printf 'poolkit migrations of shop' | sha256sum`.
    """
    assert migration.lock_key("shop") == 0x3F41E955FC0E1578
    keys = [migration.lock_key(f"shop{number}") for number in range(100)]
    assert len(set(keys)) == 100
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)


def test_command_for_systemd() -> None:
    command = app_migration.systemd_run(
        "shop-migrate",
        ["User=shop-migrate", "PrivateTmp=yes"],
        {"PATH": "/srv/x:/bin"},
        ["alembic", "-x"],
    )
    assert command == [
        *("systemd-run", "--quiet", "--pipe", "--wait", "--collect"),
        "--unit=shop-migrate",
        *("--property=User=shop-migrate", "--property=PrivateTmp=yes", "--setenv=PATH=/srv/x:/bin"),
        *("/usr/bin/python3", "-I", "-c", app_migration.LIFELINE),
        *("/usr/bin/env", "alembic", "-x"),
    ]


def test_command_ends_with_the_module(tmp_path: Path) -> None:
    """Also with one that is killed; systemd ends what its unit has left, here `exec` stands in."""
    code = (
        "import subprocess, sys, time\n"
        "from plugins.modules import app_migration\n"
        "with app_migration.lifeline() as end:\n"
        "    command = [sys.executable, '-c', app_migration.LIFELINE, 'sleep', '10']\n"
        "    print(subprocess.Popen(command, stdin=end).pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    module = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    wrapper = Path("/proc") / module.stdout.readline().strip()
    assert wrapper.exists()
    module.kill()
    module.wait()
    deadline = time.monotonic() + 5
    while wrapper.exists() and "\nState:\tZ" not in (wrapper / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -TERM $$", 143), ("cat", 0)])
def test_wrapper_gives_the_exit_code_of_its_command(script: str, code: int) -> None:
    """And no input."""
    command = [sys.executable, "-c", app_migration.LIFELINE, "sh", "-c", script]
    with app_migration.lifeline() as end:
        assert subprocess.run(command, stdin=end, timeout=30).returncode == code


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$HOME", "$$HOME"),
        ('a=${HOME} b=$(id) "$@" $$', 'a=$${HOME} b=$$(id) "$$@" $$$$'),
        ("50%", "50%"),
        ("%n %% \\ ; 'x'", "%n %% \\ ; 'x'"),
        ("", ""),
    ],
)
def test_words_arrive_as_they_are_given(word: str, expected: str) -> None:
    """systemd.service(5): `$$` is a literal `$`; a transient unit knows no specifiers."""
    assert app_migration.systemd_run("shop", [], {}, ["sh", "-c", word])[-1] == expected


class Database:
    """Stands for a connection: a pid at the login, another for queries, and who holds the lock."""

    def __init__(self, login: int = 7, pid: int = 7, busy: int = 0, holder: tuple | None = None):
        self.info = SimpleNamespace(backend_pid=login, dbname="shop")
        self.pid, self.busy, self.holder = pid, busy, holder
        self.autocommit, self.closed = False, False
        self.server_version = 150000
        self.invalid: list[str] = []
        self.queries: list[tuple] = []

    def cursor(self) -> Database:
        return self

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, query: str, parameters: tuple = ()) -> None:
        self.queries.append((query, parameters))
        if "pg_backend_pid" in query:
            self.answer = (self.pid,)
        elif "indisvalid" in query:
            self.indexes_asked = True
        elif "client_connection_check_interval" in query and self.server_version < 140000:
            raise migration.psycopg2.ProgrammingError("unrecognized parameter")
        elif "pg_try_advisory_lock" in query:
            self.busy -= 1
            self.answer = (self.busy < 0,)
        else:
            self.answer = self.holder

    def fetchone(self) -> tuple:
        return self.answer

    def fetchall(self) -> list[tuple]:
        return [(name,) for name in self.invalid]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], list]:
    """Make psycopg2.connect return a stand-in, or raise; return the arguments that it gets."""

    def install(answer: object) -> list:
        seen: list = []

        def connect(conninfo: str, **options: object) -> object:
            seen.append((conninfo, options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(migration.psycopg2, "connect", connect)
        monkeypatch.setattr(migration.time, "sleep", lambda _: None)
        return seen

    return install


def test_connection_of_postgresql_itself(server: Callable) -> None:
    database = Database()
    seen = server(database)
    assert migration.connect("postgresql://u:p@h/shop") is database
    assert database.autocommit is True
    assert seen == [
        ("postgresql://u:p@h/shop", {"keepalives_idle": 60, "application_name": "poolkit"})
    ]


def test_connection_through_a_pooler_is_refused(server: Callable) -> None:
    server(Database(login=7, pid=8))
    with pytest.raises(migration.Refused) as refused:
        migration.connect("postgresql://u:p@h/shop")
    assert "through a pooler (process 7 answered the login, 8 the query)" in str(refused.value)
    assert "database_host" in str(refused.value)
    assert "app_database_direct_url" in str(refused.value)


def test_connection_that_is_refused(server: Callable) -> None:
    server(OperationalError('FATAL:  password authentication failed for user "o"\n'))
    with pytest.raises(migration.Refused) as refused:
        migration.connect("postgresql://u:p@h/shop")
    assert str(refused.value) == (
        'PostgreSQL refuses the owner: FATAL:  password authentication failed for user "o"'
    )


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgres+psycopg", "postgresql"])
def test_driver_in_the_url_is_not_for_libpq(server: Callable, scheme: str) -> None:
    seen = server(Database())
    migration.connect(f"{scheme}://u:p+a@h/shop?application_name=a+b://")
    assert seen[0][0] == "postgresql://u:p+a@h/shop?application_name=a+b://"


def test_lock_is_waited_for(server: Callable) -> None:
    database = Database(busy=3)
    server(database)
    assert migration.take_lock(database, 60) >= 0
    asked = [query for query in database.queries if "pg_try_advisory_lock" in query[0]]
    assert len(asked) == 4
    assert {query[1] for query in asked} == {(migration.lock_key("shop"),)}


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (("192.0.2.1", "10:00"), "since 10:00 (connected from 192.0.2.1), longer than"),
        (None, "since ? (connected from an unknown host), longer than"),
    ],
)
def test_lock_of_another_deployment(server: Callable, holder: tuple | None, words: str) -> None:
    database = Database(busy=9, holder=holder)
    server(database)
    with pytest.raises(migration.Refused) as refused:
        migration.take_lock(database, -1)
    assert "another deployment's migrations hold the lock of the database shop" in str(
        refused.value
    )
    assert words in str(refused.value)
    assert "app_migration_wait_seconds" in str(refused.value)


# The module, with stand-ins for the database and for systemd-run.


class Project:
    """Runs the module; commands are `pending` (prints what is left), `upgrade`, hooks."""

    def __init__(self, run_module: Callable[..., dict], pending: list[str]) -> None:
        self.run_module, self.pending = run_module, pending
        self.ran: list[str] = []
        self.output: dict[str, tuple[int, str]] = {}
        self.applies = True

    def run(self, command: list[str], **files: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == "systemd-run"
        (name,) = command[command.index("/usr/bin/env") + 1 :]
        self.ran.append(name)
        code, text = self.output.get(name, (0, f"output of {name}"))
        if name == "list":
            text = "\n".join(self.pending)
        if name == "upgrade" and self.applies:
            self.pending = []
        files["stdout"].write(text.encode())
        return subprocess.CompletedProcess(command, code)

    def migrate(self, **parameters: object) -> dict:
        arguments = {
            "name": "shop",
            "conninfo": "postgresql://owner:secret-word@db1/shop",
            "pending": ["list"],
            "upgrade": ["upgrade"],
            **parameters,
        }
        return self.run_module(app_migration, **arguments)


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def project(
    run_module: Callable[..., dict],
    server: Callable,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    server(database)
    project = Project(run_module, ["items.0002"])
    monkeypatch.setattr(app_migration.subprocess, "run", project.run)
    return project


def test_pending_migrations_run_with_their_hooks(project: Project, database: Database) -> None:
    done = project.migrate(before=["before"], after=["after"])
    assert (done["changed"], done["pending"]) == (True, ["items.0002"])
    assert project.ran == ["list", "before", "upgrade", "list", "after"]
    assert done["output"] == "output of before\noutput of upgrade\noutput of after"
    assert database.closed


def test_nothing_pending_runs_nothing(project: Project) -> None:
    project.pending = []
    done = project.migrate(before=["before"])
    assert (done["changed"], done["pending"], project.ran) == (False, [], ["list"])


def test_without_a_pending_command_the_migrations_always_run(project: Project) -> None:
    done = project.migrate(pending=[])
    assert (done["changed"], done["pending"], project.ran) == (True, ["upgrade"], ["upgrade"])


def test_check_mode_lists_and_takes_no_lock(project: Project, database: Database) -> None:
    done = project.migrate(check=True, before=["before"])
    assert (done["changed"], done["pending"], project.ran) == (True, ["items.0002"], ["list"])
    assert not [query for query in database.queries if "advisory" in query[0]]


def test_check_mode_says_where_the_database_cannot_be_asked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the whole deployment has made no role, no database and no server."""

    def refuse(*_: object, **__: object) -> None:
        raise OperationalError('database "shop" does not exist')

    monkeypatch.setattr(migration.psycopg2, "connect", refuse)
    done = project.migrate(check=True)
    assert (done["changed"], "pending" in done, project.ran) == (False, False, [])
    assert done["unknown"] == 'PostgreSQL refuses the owner: database "shop" does not exist'
    assert project.migrate()["failed"] is True


@pytest.mark.parametrize(
    ("failing", "ran"),
    [
        ("list", ["list"]),
        ("before", ["list", "before"]),
        ("upgrade", ["list", "before", "upgrade"]),
    ],
)
def test_failure_stops_what_comes_after(project: Project, failing: str, ran: list[str]) -> None:
    project.output[failing] = (3, "canceling statement due to lock timeout")
    step = {"list": "pending"}.get(failing, failing)
    done = project.migrate(before=["before"], after=["after"])
    assert done["msg"].startswith(f"{step} ({failing}) failed with exit code 3: ")
    assert project.ran == ran


def test_command_after_the_migrations_is_caught_up(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "unfinished"
    hooks = {"after": ["after"], "unfinished": str(file)}
    project.output["after"] = (1, "no such view")
    assert project.migrate(**hooks)["failed"] is True
    assert file.exists()
    shown = project.migrate(check=True, **hooks)
    assert (shown["changed"], shown["pending"]) == (True, ["after (of an earlier run)"])
    project.ran.clear()
    del project.output["after"]
    assert project.migrate(**hooks)["pending"] == ["after (of an earlier run)"]
    assert (project.ran, file.exists()) == (["list", "after"], False)
    assert project.migrate(**hooks)["changed"] is False


def test_lost_lock_is_noticed(
    project: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends the session that holds it, while the upgrade runs."""
    run = project.run

    def ended(*_: object) -> None:
        raise migration.psycopg2.OperationalError("terminating connection")

    def watched(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if command[-1] == "upgrade":
            monkeypatch.setattr(database, "execute", ended)
        return run(command, **options)

    monkeypatch.setattr(app_migration.subprocess, "run", watched)
    done = project.migrate(after=["after"])
    assert "broke while a command ran" in done["msg"]
    assert project.ran == ["list", "upgrade"]


def test_looking_and_migrating_have_units_of_their_own(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, run = [], project.run

    def watched(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        units.append(next(word for word in command if word.startswith("--unit=")))
        return run(command, **options)

    monkeypatch.setattr(app_migration.subprocess, "run", watched)
    project.migrate(check=True)
    assert units == ["--unit=shop-pending"]
    project.migrate()
    assert set(units[1:]) == {"--unit=shop-migrate"}


def test_time_limit_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd ends the command; the module is told nothing but that it failed."""
    seen, run = [], project.run

    def watched(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append([word for word in command if "Sec=" in word])
        clock.append(30)
        return run(command, **options)

    clock = [0]
    monkeypatch.setattr(migration.time, "monotonic", lambda: clock[-1])
    monkeypatch.setattr(app_migration.subprocess, "run", watched)
    project.output["upgrade"] = (1, "")
    done = project.migrate(pending=[], timeout_seconds=30)
    assert seen[0] == ["--property=RuntimeMaxSec=30", "--property=TimeoutStopSec=10"]
    assert "It was ended after 30 s (app_migration_timeout_seconds)" in done["msg"]


def test_command_does_not_go_on_when_systemd_run_is_killed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []
    monkeypatch.setattr(app_migration, "systemctl", lambda *words: stopped.append(words))
    project.output["upgrade"] = (-9, "")
    done = project.migrate()
    assert stopped == [("stop", "shop-migrate.service")]
    assert "systemd-run was killed on the host, so the command was ended as well" in done["msg"]


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        (140000, {}, "-c client_connection_check_interval=5s"),
        (130000, {}, None),
        (140000, {"PGOPTIONS": "-c x=y"}, "-c x=y"),
    ],
)
def test_server_ends_what_a_killed_command_leaves(
    project: Project,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    given: dict,
    expected: str | None,
) -> None:
    seen, run = [], project.run

    def watched(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.extend(word for word in command if word.startswith("--setenv=PGOPTIONS="))
        return run(command, **options)

    monkeypatch.setattr(app_migration.subprocess, "run", watched)
    database.server_version = version
    project.migrate(pending=[], environment=given)
    assert seen == ([f"--setenv=PGOPTIONS={expected}"] if expected else [])


def test_invalid_index_is_named(project: Project, database: Database) -> None:
    """CREATE INDEX CONCURRENTLY that is cut off leaves one, on which the next try fails."""
    database.invalid = ["public.items_name_idx", '"Shop"."by name"']
    project.output["upgrade"] = (1, "canceling statement due to lock timeout")
    message = project.migrate()["msg"]
    assert "run this again at a quieter time" in message
    assert (
        'The database has invalid indexes: public.items_name_idx, "Shop"."by name". A failed '
        "CREATE INDEX CONCURRENTLY leaves one: no query uses it, and the migration cannot be run "
        "again"
    ) in message
    assert message.endswith(
        "run as the owner: DROP INDEX CONCURRENTLY public.items_name_idx; "
        'DROP INDEX CONCURRENTLY "Shop"."by name"'
    )


@pytest.mark.parametrize("check", [True, False])
def test_invalid_index_is_told_where_migrations_end_well(
    project: Project, database: Database, check: bool
) -> None:
    """IF NOT EXISTS passes over one; check mode tells before the migration."""
    assert project.migrate(check=check)["invalid_indexes"] == ""
    database.invalid = ["public.items_name_idx"]
    told = project.migrate(check=check)["invalid_indexes"]
    assert "invalid indexes: public.items_name_idx. A failed" in told


def test_listed_migrations_hide_secrets(project: Project) -> None:
    project.pending = ["postgresql://owner:secret-word@db1/shop"]
    assert "secret-word" not in str(project.migrate(check=True))


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("canceling statement due to lock timeout", "run this again at a quieter time"),
        ("Unit shop-migrate.service was already loaded", "wait for it to end"),
        ("ValueError: invalid interpolation syntax in 'postgresql://…'", 'replace("%", "%%")'),
        ("ConnectionDoesNotExist: The connection 'reports' doesn't exist.", "app_databases names"),
        ("no such column", ""),
    ],
)
def test_what_to_do_follows_the_output(project: Project, said: str, advice: str) -> None:
    project.output["upgrade"] = (1, said)
    message = project.migrate()["msg"]
    assert said in message
    assert advice in message
    assert message.endswith(said) is (not advice)


def test_migrations_that_stay_pending_are_an_error(project: Project) -> None:
    project.applies = False
    assert project.migrate()["msg"] == "still pending after the migrations: items.0002"


def test_nothing_runs_without_the_lock(project: Project, database: Database) -> None:
    database.busy = 9
    done = project.migrate(wait_seconds=-1)
    assert "hold the lock of the database shop" in done["msg"]
    assert project.ran == []
    assert database.closed


def test_connection_that_breaks_is_explained(
    project: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = database.execute

    def broken(query: str, parameters: tuple = ()) -> None:
        execute(query, parameters)
        if "advisory" in query:
            raise OperationalError("server closed the connection")

    monkeypatch.setattr(database, "execute", broken)
    assert project.migrate()["msg"] == "PostgreSQL: server closed the connection"


def test_output_holds_no_secrets(project: Project, tmp_path: Path) -> None:
    environment = tmp_path / "migrate.env"
    environment.write_text('API_KEY="key-of-the-application"\n')
    project.output["upgrade"] = (0, "uses secret-word and key-of-the-application")
    properties = [f"EnvironmentFile={environment}", "User=shop-migrate"]
    assert project.migrate(properties=properties)["output"] == "uses ******** and ********"
    project.output["upgrade"] = (1, "cannot parse secret-word")
    project.pending = ["items.0003"]
    done = project.migrate(properties=properties)
    assert done["msg"].endswith("exit code 1: cannot parse ********")
    assert done["output"] == "cannot parse ********"


def test_long_output_is_shortened(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that matters, the end, and where the rest is; secrets are in neither."""
    monkeypatch.setattr(command_output, "DIRECTORY", tmp_path / "log")
    said = [
        *(f"Applying {number} with secret-word" for number in range(500)),
        'psycopg.errors.UndefinedTable: relation "x" does not exist',
        *(f"LINE {number}: {'y' * 2000}" for number in range(30)),
    ]
    project.output["upgrade"] = (1, "\n".join(said))
    done = project.migrate()
    first, *rest = done["msg"].splitlines()
    assert first.startswith("upgrade (upgrade) failed with exit code 1: ")
    assert 'psycopg.errors.UndefinedTable: relation "x" does not exist' in first
    assert len(rest) == 21
    assert rest[-1].endswith(f"{tmp_path}/log/shop-migrate.log")
    assert len(done["msg"]) < 20_000
    assert len(done["output"]) < 20_000
    text = (tmp_path / "log/shop-migrate.log").read_text()
    assert "Applying 499 with ********" in text
    assert "secret-word" not in text
    (tmp_path / "log/shop-migrate.log").unlink()
    project.output["list"] = (1, "\n".join(said))
    project.migrate(check=True)
    assert list((tmp_path / "log").iterdir()) == []

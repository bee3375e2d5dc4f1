"""The module pgbouncer_admin, on four processes of Debian 13 and one of Debian 12."""

import json
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Pooler
from controller import ansible

TRIXIE = pytest.mark.parametrize("pooler", ["trixie1"], indirect=True)
Admin = Callable[..., tuple[int, dict]]


@pytest.fixture
def admin(pooler: Pooler) -> Iterator[Admin]:
    """Run the module; return (exit code, result). At the end nothing is paused or disabled."""

    def run(*arguments: str, **parameters: object) -> tuple[int, dict]:
        done = ansible(
            *("ansible", pooler.name, "-b", "-m", "poolkit.poolkit.pgbouncer_admin"),
            *("-a", json.dumps(parameters), *arguments),
            ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
            ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
        )
        (result,) = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"].values()
        return done.returncode, result

    yield run
    pooler.host.check_output(
        "for socket in /run/pgbouncer/*/.s.PGSQL.*; do for command in RESUME 'ENABLE shop'; do "
        'sudo -u pgbouncer psql -Xq -h "${socket%%/.s*}" -p "${socket##*.}" -c "$command" || true; '
        "done; done"
    )


class Query(threading.Thread):
    """A statement through the pooler beside the test; result: its value, or the error."""

    def __init__(self, pooler: Pooler, sql: str) -> None:
        super().__init__()
        self.pooler = pooler
        self.sql = sql
        self.result: object = None
        self.connection: psycopg.Connection | None = None
        self.start()

    def run(self) -> None:
        try:
            # While the database is paused, 1.18 lets a client wait here for a server connection.
            with self.pooler.connect(connect_timeout=60) as self.connection:
                (self.result,) = self.connection.execute(self.sql).fetchone()
        except psycopg.Error as error:
            self.result = error

    def stop(self) -> None:
        self.connection.cancel()
        self.join(timeout=10)


@pytest.fixture
def busy(pooler: Pooler) -> Iterator[Query]:
    """A server connection that is busy for longer than a test takes."""
    query = Query(pooler, "SELECT 1 FROM pg_sleep(120)")
    time.sleep(0.5)
    yield query
    query.stop()


def outcomes(result: dict) -> set[str]:
    return {process["outcome"] for process in result["processes"]}


def test_show_returns_rows_by_process(pooler: Pooler, admin: Admin) -> None:
    code, result = admin(command="show", what="databases")
    assert code == 0
    assert result["changed"] is False
    wanted = [1, 2, 3, 4] if pooler.name == "trixie1" else [1]
    assert [process["process"] for process in result["processes"]] == wanted
    rows = [row for row in result["rows"] if row["name"] == "shop"]
    assert [(row["process"], row["paused"]) for row in rows] == [(n, "0") for n in wanted]


@TRIXIE
def test_check_mode_changes_nothing(admin: Admin) -> None:
    code, result = admin("--check", command="pause", database="shop")
    assert (code, result["changed"], outcomes(result)) == (0, True, {"planned"})
    _, result = admin("--check", command="show", what="databases")
    assert {row["paused"] for row in result["rows"]} == {"0"}


def test_pause_holds_a_query_and_resume_lets_it_through(pooler: Pooler, admin: Admin) -> None:
    code, result = admin(command="pause", database="shop")
    assert (code, result["changed"], outcomes(result)) == (0, True, {"done"})
    code, result = admin(command="pause", database="shop")
    assert (code, result["changed"], outcomes(result)) == (0, False, {"unchanged"})
    query = Query(pooler, "SELECT 42")  # waits at most query_wait_timeout, 60 s in this scenario
    time.sleep(0.5)
    assert query.result is None
    code, result = admin(command="resume", database="shop")
    assert (code, result["changed"], outcomes(result)) == (0, True, {"done"})
    query.join(timeout=10)
    assert query.result == 42
    assert admin(command="resume", database="shop")[1]["changed"] is False


def test_pause_that_does_not_end_is_undone(pooler: Pooler, admin: Admin, busy: Query) -> None:
    code, result = admin(command="pause", timeout_seconds=2)
    assert code != 0
    assert "still busy: " in result["msg"]
    assert "it was resumed" in result["msg"]
    with pooler.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert admin("--check", command="resume", database="shop")[1]["changed"] is False


@TRIXIE
def test_wait_close_returns_when_reconnect_is_through(admin: Admin, busy: Query) -> None:
    code, result = admin(command="reconnect", database="shop")
    assert (code, result["changed"]) == (0, True)
    code, result = admin(command="wait_close", database="shop", timeout_seconds=1)
    assert code != 0
    assert "did not end in time, still busy: " in result["msg"]
    busy.stop()
    code, result = admin(command="wait_close", database="shop")
    assert (code, result["changed"], outcomes(result)) == (0, False, {"done"})


@TRIXIE
def test_disabled_database_refuses_new_clients(pooler: Pooler, admin: Admin) -> None:
    for command, changed in (("disable", True), ("disable", False)):
        code, result = admin(command=command, database="shop")
        assert (code, result["changed"]) == (0, changed)
    with pytest.raises(psycopg.OperationalError, match='database "shop" is disabled'):
        pooler.connect()
    for command, changed in (("enable", True), ("enable", False)):
        code, result = admin(command=command, database="shop")
        assert (code, result["changed"]) == (0, changed)
    pooler.connect().close()


@TRIXIE
def test_missing_process_is_named(admin: Admin) -> None:
    code, result = admin(command="show", what="pools", process=99)
    assert code != 0
    assert "there is no socket /run/pgbouncer/99/" in result["msg"]
    assert "systemctl status 'pgbouncer@99'" in result["msg"]

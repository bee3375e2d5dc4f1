"""The module pgbouncer_admin, on the processes of a deployed pooler."""

import json
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import Application, ansible

INVENTORY_HOST = "flask1"

ON_EVERY_CONSOLE = """
for socket in /run/pgbouncer/*/.s.PGSQL.*; do
    sudo -u pgbouncer psql -XAtq -h ${socket%%/*} -p ${socket##*.} -U pgbouncer pgbouncer -c %s
done"""


@pytest.fixture(scope="module")
def host(applications: dict[str, Application]) -> Application:
    """The application on the host whose pooler the tests command."""
    return next(a for a in applications.values() if a.inventory_host == INVENTORY_HOST)


@pytest.fixture
def admin(host: Application) -> Iterator[Callable[..., tuple[int, dict]]]:
    """Run the module; return (exit code, result). At the end nothing is paused or disabled."""

    def run(*arguments: str, **parameters: object) -> tuple[int, dict]:
        done = ansible(
            *("ansible", host.inventory_host, "-b", "-m", "pgbouncer_admin"),
            *("-a", json.dumps(parameters), *arguments),
            ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
            ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
        )
        (result,) = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"].values()
        return done.returncode, result

    yield run
    host.host.run("systemctl stop query; rm -f /run/query.out")
    run(command="resume")
    run(command="enable", database=host.name)


def outcomes(result: dict) -> set[str]:
    return {process["outcome"] for process in result["processes"]}


def query_in_background(host: Application, sql: str) -> None:
    """Run a statement through the pooler into /run/query.out, next to the test."""
    folder = f"/etc/poolkit/{host.name}"
    host.host.run("systemctl stop query; systemctl reset-failed query; rm -f /run/query.out")
    host.host.check_output(
        "systemd-run --unit=query --property=StandardOutput=file:/run/query.out"
        " --property=StandardError=file:/run/query.out"
        " --setenv=PGSERVICEFILE=%s/pg_service.conf --setenv=PGPASSFILE=%s/pgpass"
        " psql -XAtq -c %s %s",
        *(folder, folder, sql, f"service={host.name} host=127.0.0.1 port=6432"),
    )


def slow_query(host: Application) -> None:
    """Keep one server connection busy for longer than a test takes; wait until it is."""
    query_in_background(host, "SELECT pg_sleep(120)")
    for _ in range(50):
        if "|active|" in host.host.check_output(ON_EVERY_CONSOLE, "SHOW SERVERS"):
            return
        time.sleep(0.1)
    pytest.fail("no server connection became active")


def output_of_query(host: Application) -> str:
    """Wait for the end of the statement in the background and return what it printed."""
    host.host.check_output(
        "timeout 30 sh -c 'while systemctl -q is-active query; do sleep 0.1; done'"
    )
    return host.host.check_output("cat /run/query.out")


def test_show_returns_rows_by_process(host: Application, admin: Callable) -> None:
    host.psql(host.name, "SELECT 1")
    code, result = admin(command="show", what="databases")
    assert code == 0
    assert result["changed"] is False
    numbers = host.host.check_output("ls /run/pgbouncer").split()
    assert [str(process["process"]) for process in result["processes"]] == sorted(numbers, key=int)
    for number in numbers:
        (row,) = [
            row
            for row in result["rows"]
            if row["name"] == host.name and row["process"] == int(number)
        ]
        assert (row["paused"], row["disabled"]) == ("0", "0")


def test_check_mode_changes_nothing(host: Application, admin: Callable) -> None:
    code, result = admin("--check", command="pause", database=host.name)
    assert (code, result["changed"], outcomes(result)) == (0, True, {"planned"})
    _, result = admin("--check", command="show", what="databases")
    assert {row["paused"] for row in result["rows"]} == {"0"}


def test_pause_holds_a_query_and_resume_lets_it_through(host: Application, admin: Callable) -> None:
    code, result = admin(command="pause", database=host.name)
    assert (code, result["changed"], outcomes(result)) == (0, True, {"done"})
    query_in_background(host, "SELECT 42")
    code, result = admin(command="pause", database=host.name)
    assert (code, result["changed"], outcomes(result)) == (0, False, {"unchanged"})
    assert host.host.run("systemctl is-active query").stdout.strip() == "active"
    assert host.host.check_output("cat /run/query.out") == ""
    code, result = admin(command="resume", database=host.name)
    assert (code, result["changed"], outcomes(result)) == (0, True, {"done"})
    assert output_of_query(host) == "42"
    assert admin(command="resume", database=host.name)[1]["changed"] is False


def test_pause_that_does_not_end_is_undone(host: Application, admin: Callable) -> None:
    """Also on a process that has seen a WAIT_CLOSE and answers PAUSE too early from then on."""
    host.host.check_output(ON_EVERY_CONSOLE, f'WAIT_CLOSE "{host.name}"')
    slow_query(host)
    code, result = admin(command="pause", timeout_seconds=2)
    assert code != 0
    assert "still busy: " in result["msg"]
    assert f"{host.name} as " in result["msg"]
    assert "it was resumed" in result["msg"]
    assert host.psql(host.name, "SELECT 1", host="127.0.0.1", port="6432") == "1"
    assert admin("--check", command="resume", database=host.name)[1]["changed"] is False


def test_wait_close_returns_when_reconnect_is_through(host: Application, admin: Callable) -> None:
    slow_query(host)
    code, result = admin(command="reconnect", database=host.name)
    assert (code, result["changed"]) == (0, True)
    code, result = admin(command="wait_close", database=host.name, timeout_seconds=1)
    assert code != 0
    assert "did not end in time, still busy: " in result["msg"]
    host.host.check_output("systemctl stop query")
    code, result = admin(command="wait_close", database=host.name)
    assert (code, result["changed"], outcomes(result)) == (0, False, {"done"})


def test_disabled_database_refuses_new_clients(host: Application, admin: Callable) -> None:
    for command, changed in (("disable", True), ("disable", False)):
        code, result = admin(command=command, database=host.name)
        assert (code, result["changed"]) == (0, changed)
    message = host.psql_error(host.name, "SELECT 1", host="127.0.0.1", port="6432")
    assert f'database "{host.name}" is disabled' in message
    for command, changed in (("enable", True), ("enable", False)):
        code, result = admin(command=command, database=host.name)
        assert (code, result["changed"]) == (0, changed)
    assert host.psql(host.name, "SELECT 1", host="127.0.0.1", port="6432") == "1"


def test_missing_process_is_named(admin: Callable) -> None:
    code, result = admin(command="show", what="pools", process=99)
    assert code != 0
    assert "there is no socket /run/pgbouncer/99/" in result["msg"]
    assert "systemctl status 'pgbouncer@99'" in result["msg"]

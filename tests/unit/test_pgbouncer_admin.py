"""The pure parts of the admin console's module; the scenario `console` runs it."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from plugins.module_utils import pgbouncer_console
from plugins.modules import pgbouncer_admin as admin


def state(
    whole: bool | None = False,
    paused: str = "0",
    disabled: str = "0",
    counts: tuple[int, int] = (0, 0),
) -> admin.State:
    """A process with the databases shop, in the given state, and other, in none."""
    return admin.State(
        whole,
        {
            "shop": {"paused": paused, "disabled": disabled},
            "other": {"paused": "0", "disabled": "0"},
        },
        {"shop": counts},
    )


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("shop", '"shop"'), ("Shop-1.x y;", '"Shop-1.x y;"'), ('a"b', '"a""b"'), ("café", '"café"')],
)
def test_names_are_quoted(name: str, quoted: str) -> None:
    assert admin.quote(name) == quoted


@pytest.mark.parametrize("name", ["", "a\nb", "a\tb", "\x00", "a\x7f"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(admin.Refused, match="printable"):
        admin.quote(name)


def test_what_is_a_word() -> None:
    assert admin.word("dns_hosts") == "DNS_HOSTS"


@pytest.mark.parametrize("what", ["", "POOLS; SHUTDOWN", "POOLS\n", "1", "fds"])
def test_what_is_refused(what: str) -> None:
    with pytest.raises(admin.Refused, match="cannot show"):
        admin.word(what)


def test_rows_keep_quoted_values() -> None:
    assert pgbouncer_console.rows('name,addr\n"a,""b""",\n') == [{"name": 'a,"b"', "addr": ""}]
    assert pgbouncer_console.rows("name,addr\n") == []


def test_connections_add_up_over_users() -> None:
    pools = [
        {"database": "shop", "user": "a", "cl_active": "1", "cl_waiting": "2", "sv_idle": "3"},
        {"database": "shop", "user": "b", "cl_active": "4", "cl_waiting": "0", "sv_idle": "1"},
        {"database": "other", "user": "a", "cl_active": "0", "cl_waiting": "0", "sv_idle": "9"},
    ]
    assert pgbouncer_console.connections(pools) == {"shop": (7, 4), "other": (0, 9)}


@pytest.mark.parametrize(
    ("command", "database", "before", "expected"),
    [
        ("pause", "shop", state(), ['PAUSE "shop"']),
        ("pause", "shop", state(paused="1"), []),
        ("pause", "shop", state(whole=True), []),
        ("pause", "shop", state(whole=None), ['PAUSE "shop"']),
        ("pause", "new", state(), ['PAUSE "new"']),
        ("pause", None, state(), ["PAUSE"]),
        ("pause", None, state(paused="1"), ["PAUSE"]),
        ("pause", None, state(whole=None), ["PAUSE"]),
        ("pause", None, state(whole=True), []),
        ("resume", "shop", state(paused="1"), ['RESUME "shop"']),
        ("resume", "shop", state(), []),
        ("resume", "new", state(), ['RESUME "new"']),
        ("resume", None, state(), []),
        ("resume", None, state(whole=True), ["RESUME"]),
        ("resume", None, state(whole=None), ["RESUME"]),
        ("resume", None, state(paused="1"), ['RESUME "shop"']),
        ("resume", None, state(whole=True, paused="1"), ["RESUME", 'RESUME "shop"']),
        ("disable", "shop", state(), ['DISABLE "shop"']),
        ("disable", "shop", state(disabled="1"), []),
        ("enable", "shop", state(disabled="1"), ['ENABLE "shop"']),
        ("enable", "shop", state(), []),
        ("enable", "new", state(), ['ENABLE "new"']),
        ("reconnect", "shop", state(counts=(0, 2)), ['RECONNECT "shop"']),
        ("reconnect", "shop", state(counts=(2, 0)), []),
        ("reconnect", "other", state(counts=(0, 2)), []),
        ("reconnect", "new", state(), ['RECONNECT "new"']),
        ("reconnect", None, state(counts=(0, 2)), ["RECONNECT"]),
        ("reconnect", None, state(), []),
        ("kill", "shop", state(), ['KILL "shop"']),
        ("kill", "shop", state(paused="1"), []),
        ("kill", "shop", state(paused="1", counts=(1, 0)), ['KILL "shop"']),
        ("kill", "new", state(), ['KILL "new"']),
        ("wait_close", "shop", state(counts=(1, 1)), []),
    ],
)
def test_plan(command: str, database: str | None, before: admin.State, expected: list[str]) -> None:
    assert admin.plan(command, database, before) == expected


def test_resume_of_one_database_of_a_paused_process() -> None:
    with pytest.raises(admin.Refused, match="without a database"):
        admin.plan("resume", "shop", state(whole=True))


def test_wait_close_of_a_database_that_is_not_there() -> None:
    with pytest.raises(admin.Refused, match="no such database: shpo"):
        admin.plan("wait_close", "shpo", state())


SERVERS = [
    {"database": d, "user": "u", "state": s, "remote_pid": p, "close_needed": c} | more
    for d, s, p, c, more in [
        ("shop", "active", "11", "0", {"application_name": "web"}),
        ("shop", "idle", "12", "1", {}),
        ("other", "active", "13", "0", {}),
    ]
]


def test_busy_connections_are_named() -> None:
    assert admin.busy("pause", "shop", SERVERS) == [
        "shop as u (active, process 11 of PostgreSQL, web)"
    ]
    assert len(admin.busy("pause", None, SERVERS)) == 2
    assert admin.busy("wait_close", "shop", SERVERS) == [
        "shop as u (idle, process 12 of PostgreSQL)"
    ]
    assert admin.busy("wait_close", "other", SERVERS) == []


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    """A directory with the sockets of processes 2 and 10, and an older one of process 2."""
    for name, moment in (("2/.s.PGSQL.6433", 100), ("2/.s.PGSQL.6432", 200), ("10/.s.PGSQL.1", 1)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        os.utime(path, (moment, moment))
    (tmp_path / "backup").mkdir()
    (tmp_path / "2/.s.PGSQL.9.lock").touch()
    return tmp_path


def test_processes_are_found_by_their_newest_socket(sockets: Path) -> None:
    found = admin.find_sockets(str(sockets), None)
    assert list(found.items()) == [
        (2, (str(sockets / "2"), "6432")),
        (10, (str(sockets / "10"), "1")),
    ]
    assert list(admin.find_sockets(str(sockets), 10)) == [10]


@pytest.mark.parametrize("process", [0, 3])
def test_missing_process_is_named(sockets: Path, process: int) -> None:
    with pytest.raises(admin.Refused, match=rf"pgbouncer@{process}'") as caught:
        admin.find_sockets(str(sockets), process)
    assert str(sockets) in str(caught.value)


class Console:
    """A process that answers state(), and refuses or does not finish what it is told to."""

    def __init__(
        self,
        process: int,
        trouble: Exception | None = None,
        again: bool = True,
        deaf: bool = False,
    ) -> None:
        """again: whether it takes RESUME; deaf: whether connections stay busy all the same."""
        self.process, self.trouble, self.again, self.deaf = process, trouble, again, deaf
        self.sent: list[str] = []
        self.config = {"query_wait_timeout": "4", "query_timeout": "0"}

    def state(self) -> admin.State:
        return state()

    def show(self, what: str) -> list[dict[str, str]]:
        if what == "CONFIG":
            return [{"key": name, "value": value} for name, value in self.config.items()]
        assert what == "SERVERS"
        return SERVERS if self.deaf or isinstance(self.trouble, admin.TimedOut) else []

    def change(self, command: str, seconds: float) -> bool:
        self.sent.append(command)
        if command.startswith("RESUME"):
            if not self.again:
                raise admin.Refused("no answer")
        elif self.trouble:
            raise self.trouble
        return True


def run(
    monkeypatch: pytest.MonkeyPatch, consoles: list[Console], dry: bool = False, **params: object
) -> tuple[list[dict], bool]:
    by_number = {console.process: console for console in consoles}
    monkeypatch.setattr(admin, "find_sockets", lambda *_: dict.fromkeys(by_number, ("", "")))
    monkeypatch.setattr(admin, "Console", lambda number, *_: by_number[number])
    given = {"database": None, "what": None, "process": None, "timeout_seconds": 1}
    given["release_after_seconds"] = None
    given |= {"user": "root", "socket_directory": "/run/pgbouncer", **params}
    return admin.run(given, dry)


def outcomes(results: list[dict]) -> list[str]:
    return [result["outcome"] for result in results]


@pytest.mark.parametrize("trouble", [admin.Refused("no"), admin.TimedOut("PAUSE did not end")])
def test_failed_pause_is_undone_on_every_process(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    first, second, third = Console(1), Console(2, trouble), Console(3)
    results, failed = run(monkeypatch, [first, second, third], command="pause", database="shop")
    assert failed
    assert outcomes(results) == ["undone", "failed", "not tried"]
    assert first.sent == ['PAUSE "shop"', 'RESUME "shop"']
    # A PAUSE that was sent may have come through, whatever its answer.
    assert second.sent == ['PAUSE "shop"', 'RESUME "shop"']
    assert results[1]["error"].startswith(str(trouble))
    assert results[1]["error"].endswith(", it was resumed")
    assert ("process 11" in results[1]["error"]) is isinstance(trouble, admin.TimedOut)
    assert third.sent == []
    message = admin.summary("pause", results)
    assert message.startswith("pause: process 1: undone. process 2: failed, ")
    assert message.endswith(". process 3: not tried")


def test_pause_that_cannot_be_undone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    consoles = [Console(1, again=False), Console(2, admin.Refused("no"))]
    results, _ = run(monkeypatch, consoles, command="pause")
    assert outcomes(results) == ["failed", "failed"]
    assert results[0]["error"] == "it may still be paused: no answer"


def test_pause_that_is_answered_too_early_is_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PgBouncer does once it has seen a WAIT_CLOSE."""
    console = Console(1, deaf=True)
    results, failed = run(monkeypatch, [console], command="pause", timeout_seconds=0)
    assert (failed, outcomes(results)) == (True, ["failed"])
    assert "still busy: shop as u (active, process 11" in results[0]["error"]
    assert console.sent == ["PAUSE", "RESUME"]


@pytest.mark.parametrize(
    ("command", "wait", "query", "seconds"),
    [
        ("pause", "4", "0", 3),
        ("pause", "120", "4.5", 3.5),
        ("pause", "0", "0", 20),
        ("pause", "1", "0", 0.5),
        ("wait_close", "4", "4", 20),
    ],
)
def test_pause_ends_before_what_it_holds_fails(
    command: str, wait: str, query: str, seconds: float
) -> None:
    console = Console(1)
    console.config = {"query_wait_timeout": wait, "query_timeout": query}
    assert admin.seconds_of(command, [console]) == seconds


@pytest.mark.parametrize(("deaf", "outcome"), [(False, "done"), (True, "failed")])
def test_wait_close_only_looks(monkeypatch: pytest.MonkeyPatch, deaf: bool, outcome: str) -> None:
    console = Console(1, deaf=deaf)
    results, _ = run(monkeypatch, [console], command="wait_close", timeout_seconds=0)
    assert (outcomes(results), console.sent) == ([outcome], [])


def test_other_commands_go_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    consoles = [Console(1, admin.Refused("no")), Console(2)]
    results, failed = run(monkeypatch, consoles, command="disable", database="shop")
    assert failed
    assert outcomes(results) == ["failed", "done"]


def test_check_mode_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(1)
    results, failed = run(monkeypatch, [console], dry=True, command="pause")
    assert (outcomes(results), failed, console.sent) == (["planned"], False, [])
    assert results[0]["commands"] == ["PAUSE"]


def test_what_belongs_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(admin.Refused, match="not to kill"):
        run(monkeypatch, [Console(1)], command="kill", what="POOLS")


def test_unknown_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(admin.Refused, match="no operating system user nobody-here"):
        run(monkeypatch, [], command="kill", user="nobody-here")


def test_whoever_waits_since_a_killed_run_goes_before_the_next_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a request would wait for two pauses."""
    calls: list[str] = []
    running = ["active"]

    class Held:
        process, psql = 1, ["psql"]

        def ask(self, *commands: str) -> None:
            calls.extend(commands)

        def change(self, command: str, _: float) -> bool:
            calls.append(command)
            return True

        def show(self, what: str) -> list[dict]:
            calls.append(what)
            return [{"cl_waiting": "0"}]

    def systemctl(verb: str, *_: str) -> None:
        calls.append(verb)
        running[0] = "inactive"

    hold = admin.pgbouncer_hold
    monkeypatch.setattr(hold, "systemctl", systemctl)
    monkeypatch.setattr(hold, "properties", lambda *_: {"ActiveState": running[0]})
    monkeypatch.setattr(
        hold.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", "")
    )
    hold.begin([Held()], 20, "pgbouncer")
    limits = ["SET query_wait_timeout = 25", "SET query_timeout = 0"]
    assert calls == ["RESUME", "POOLS", "stop", *limits]
    calls.clear()
    hold.begin([Held()], 20, "pgbouncer")
    assert calls == ["stop", *limits]

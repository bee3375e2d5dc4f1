"""The client of the admin console, with a stand-in for psql; the scenario `console` has a real one.

The stand-in answers SHOW VERSION, refuses NONSENSE, is cut off from its server by GONE, and never
answers SLEEP.
"""

import os
from pathlib import Path

import pytest

from plugins.module_utils import pgbouncer_console, pgbouncer_process
from plugins.module_utils.pgbouncer_console import Console, Denied, TimedOut, Unusable
from plugins.module_utils.refused import Refused

PSQL = r"""#!/bin/sh
answer() {
  case "$1" in
    *VERSION*) printf 'version\nPgBouncer 1.24.1\n' ;;
    *LISTS*) printf 'list,items\nusers,2\n' ;;
    NONSENSE*) echo 'ERROR:  invalid command' >&2; exit 1 ;;
    PAUSE*|KILL*) echo 'ERROR:  already suspended/paused' >&2; exit 1 ;;
    GONE*) echo 'connection to server was lost' >&2; exit 2 ;;
    SLEEP*) exec sleep 60 ;;
    '\echo '*) echo "${1#* }" ;;
  esac
}
one=
while [ $# -gt 0 ]; do
  if [ "$1" = -c ]; then answer "$2"; one=1; shift; fi
  shift
done
[ -n "$one" ] || while read -r line; do answer "$line"; done
"""


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Console:
    program = tmp_path / "psql"
    program.write_text(PSQL)
    program.chmod(0o755)
    environment = {"env": {"PATH": f"{tmp_path}:{os.environ['PATH']}"}}
    monkeypatch.setattr(Console, "identity", lambda _: environment)
    return Console(3, ("/run/pgbouncer/3", "6432"), "pgbouncer")


@pytest.fixture
def process(console: Console, monkeypatch: pytest.MonkeyPatch) -> pgbouncer_process.Process:
    process = pgbouncer_process.Process(3, "pgbouncer", 1)
    monkeypatch.setattr(process, "console", lambda: console)
    return process


def test_each_command_has_its_rows(console: Console) -> None:
    assert console.ask("SHOW VERSION", "SHOW LISTS", "RELOAD") == [
        [{"version": "PgBouncer 1.24.1"}],
        [{"list": "users", "items": "2"}],
        [],
    ]
    assert console.show("LISTS") == [{"list": "users", "items": "2"}]
    assert console.version() == (1, 24, 1)


def test_refusal_has_psqls_words(console: Console, process: pgbouncer_process.Process) -> None:
    with pytest.raises(Denied, match=r"^RELOAD, NONSENSE was refused: ERROR: invalid command"):
        console.ask("RELOAD", "NONSENSE")
    with pytest.raises(Refused, match=r"^pgbouncer@3.service refused NONSENSE: ERROR:  invalid"):
        process.ask("NONSENSE")


def test_lost_server_names_the_unit(console: Console, process: pgbouncer_process.Process) -> None:
    words = "^connection to server was lost; look at: systemctl status pgbouncer@3$"
    with pytest.raises(Denied, match=words):
        console.ask("GONE")
    with pytest.raises(Refused, match="refused GONE: connection to server was lost"):
        process.ask("GONE")


def test_silence_ends(console: Console, process: pgbouncer_process.Process) -> None:
    with pytest.raises(TimedOut, match=r"^SLEEP did not end in time$"):
        console.ask("SLEEP", seconds=0.1)
    process.timeout = 0
    with pytest.raises(Refused, match=r"^pgbouncer@3.service did not answer SLEEP in time$"):
        process.ask("SLEEP")


def test_state_that_is_there_already_is_no_failure(console: Console) -> None:
    assert console.change("RELOAD", 5) is True
    assert console.change("PAUSE", 5) is False
    for command in ("NONSENSE", "KILL"):
        with pytest.raises(Denied):
            console.change(command, 5)


def test_host_without_psql_is_no_refusal_of_the_process(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal would be a reason to restart it."""
    monkeypatch.setattr(Console, "identity", lambda _: {"env": {"PATH": "/nowhere"}})
    with pytest.raises(Unusable, match="install postgresql-client") as caught:
        console.ask("RELOAD")
    assert not isinstance(caught.value, Refused)


def test_session_stays_open_over_several_commands(console: Console) -> None:
    with console.session(5) as ask:
        assert ask("SHOW VERSION") == [{"version": "PgBouncer 1.24.1"}]
        assert ask("SHOW LISTS") == [{"list": "users", "items": "2"}]


@pytest.mark.parametrize("command", ["GONE", "SLEEP"])
def test_session_tells_the_end_of_the_process(console: Console, command: str) -> None:
    with console.session(0.2) as ask, pytest.raises(EOFError):
        ask(command)


def test_clients_are_waited_for_then_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the console do not count."""
    asked = []
    clients, servers = iter(["shop", "pgbouncer"]), iter(["active", "idle"])
    answers = {
        "SHOW CLIENTS": lambda: [{"database": next(clients)}],
        "SHOW SERVERS": lambda: [{"state": next(servers)}],
        "PAUSE": list,
    }

    def ask(command: str) -> pgbouncer_console.Table:
        asked.append(command)
        return answers[command]()

    monkeypatch.setattr(pgbouncer_process.time, "sleep", lambda _: None)
    pgbouncer_process.wait_for_clients(ask, float("inf"))
    assert asked == ["SHOW CLIENTS"] * 2
    asked.clear()
    clients = iter(["shop"])
    pgbouncer_process.wait_for_clients(ask, 0.0)
    assert asked == ["SHOW CLIENTS", "PAUSE", "SHOW SERVERS", "SHOW SERVERS"]

#!/usr/bin/python
"""Ask or command the admin console of every PgBouncer process of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pgbouncer_admin
short_description: Ask or command the admin console of every PgBouncer process of a host
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Finds the processes by their unix sockets, SOCKET_DIRECTORY/N/.s.PGSQL.PORT, and talks to the
    console as the operating system user of the service, which needs no password. Needs root.
  - C(pause), C(resume), C(disable) and C(enable) do nothing where the process is in that state
    already. C(reconnect) does nothing without server connections; C(kill) does nothing where the
    database is paused and has no connection.
  - When C(pause) fails or does not end in time on one process, those that this call has paused are
    resumed. The other commands go on with the remaining processes and fail at the end. The message
    tells for each process what happened.
  - Check mode runs C(show) and reports for the others what they would do.
notes:
  - C(pause) waits for the end of the running transactions, and holds the queries that come
    meanwhile. A query that is held for longer than query_wait_timeout or query_timeout fails. For
    a longer pause give release_after_seconds.
  - C(resume) without a database ends every pause, also that of C(kill) and those of single
    databases, which PgBouncer's own RESUME would leave.
  - PgBouncer before 1.19 does not show whether the whole process is paused; there check mode
    reports C(pause) and C(resume) without a database as a change.
  - Do not type WAIT_CLOSE into the console. Afterwards the process answers PAUSE before the
    transactions have ended, until it is restarted (seen in 1.24.1). This module does not send it
    and does not rely on PAUSE's answer.
  - SHOW DATABASES leaves out an idle database that only a C(*) entry makes; what is asked of it is
    sent, and counts as a change.
options:
  command:
    description:
      - C(show) returns rows. C(pause) lets transactions end, closes the server connections and
        holds queries; C(resume) lets them go. C(reconnect) replaces each server connection when it
        is released, and C(wait_close) waits until that is done (by looking at SHOW SERVERS; see the
        notes). C(disable) refuses new clients and
        C(enable) takes them again. C(kill) drops clients and server connections at once, and
        pauses.
    type: str
    required: true
    choices: [show, pause, resume, reconnect, disable, enable, kill, wait_close]
  what:
    description: What to show, such as POOLS, CLIENTS, SERVERS, DATABASES, CONFIG, STATS or VERSION.
    type: str
  database:
    description: The pooler's name of a database; where not given, every database. C(disable),
      C(enable) and C(kill) need it.
    type: str
  process:
    description: Number of a process; every running process where not given.
    type: int
  release_after_seconds:
    description:
      - With C(pause) of everything, when the host's systemd resumes by itself, whatever becomes of
        the run. Meanwhile query_wait_timeout is longer than that and query_timeout off, so that no
        query that waits fails. C(resume) without a database takes both back.
    type: int
  timeout_seconds:
    description:
      - How long C(pause) and C(wait_close) may take, over all processes. 20 where not given.
      - Where not given, C(pause) takes at most half of release_after_seconds, or without that a
        second less than the processes' query_wait_timeout and query_timeout, so that no query that
        it holds fails. Those of single databases and users are not looked at.
    type: int
  socket_directory:
    description: Directory that holds one directory for each process.
    type: path
    default: /run/pgbouncer
  user:
    description: Operating system user of the service.
    type: str
    default: pgbouncer
"""

EXAMPLES = r"""
- name: Show the pools
  poolkit.poolkit.pgbouncer_admin: {command: show, what: POOLS}
  register: __pools

- name: Print the clients that wait
  ansible.builtin.debug:
    msg: "{{ __pools.rows | rejectattr('cl_waiting', 'equalto', '0') }}"

- name: Hold the queries while PostgreSQL restarts, for 20 seconds at most
  poolkit.poolkit.pgbouncer_admin: {command: pause, release_after_seconds: 20}

- name: Let the queries go
  poolkit.poolkit.pgbouncer_admin: {command: resume}

- name: Mark the server connections for replacement after a schema change
  poolkit.poolkit.pgbouncer_admin: {command: reconnect, database: shop}

- name: Wait until each of them was replaced
  poolkit.poolkit.pgbouncer_admin: {command: wait_close, database: shop, timeout_seconds: 120}
"""

RETURN = r"""
processes:
  description: What happened, for each process in the order of their numbers.
  type: list
  elements: dict
  returned: always
  contains:
    process:
      description: Number of the process.
      type: int
    outcome:
      description: One of shown, done, unchanged, planned (check mode), failed, undone, not tried.
      type: str
    commands:
      description: The console commands that were sent, or would be in check mode.
      type: list
      elements: str
    rows:
      description: The rows of a show, as {column, value}; every value is text.
      type: list
      elements: dict
    error:
      description: Why it failed; empty otherwise.
      type: str
rows:
  description: The rows of all processes; each has the number of its process under C(process).
  type: list
  elements: dict
  returned: always
"""

import contextlib
import pwd
import re
import time

from ..module_utils import pgbouncer_hold
from ..module_utils.pgbouncer_console import (
    ANSWER_SECONDS,
    RUNTIME_DIRECTORY,
    Console,
    State,
    Table,
    TimedOut,
    Unusable,
    find_sockets,
)
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule

FAILURES = (Refused, Unusable)
"""What fails for one process, and is told for each."""

USUAL_SECONDS = 20
LIMITS = ("query_wait_timeout", "query_timeout")
"""Settings after which a query that is held fails; both count from the moment it was asked."""


def quote(database: str) -> str:
    """Return a database's name as the console reads it; raise Refused for one it cannot read."""
    if not database or not database.isprintable():
        raise Refused(f"database {database!r}: a name has one printable character at least")
    return '"' + database.replace('"', '""') + '"'


def word(what: str) -> str:
    """Return what to show; raise Refused for what is no word.

    SHOW FDS is refused as well: it can block the process and shows passwords (src/admin.c).
    """
    if not re.fullmatch(r"[A-Za-z_]+", what) or what.upper() == "FDS":
        raise Refused(f"what: cannot show {what!r}; try POOLS, CLIENTS, SERVERS or DATABASES")
    return what.upper()


def plan(command: str, database: str | None, state: State) -> list[str]:
    """Return the console commands that bring a process into the wanted state; none if it is.

    A database that the process does not know is left to the process, which refuses it or, with a
    `*` entry, makes it.
    """
    verb = command.upper()
    target = f"{verb} {quote(database)}" if database is not None else verb
    row = state.databases.get(database or "", {})
    unknown = database is not None and not row
    paused = row.get("paused") == "1"
    names = state.databases if database is None else [database]
    clients, servers = (
        sum(state.connections.get(name, (0, 0))[side] for name in names) for side in (0, 1)
    )
    if command == "pause":
        return [] if paused or state.paused else [target]
    if command == "resume" and database is None:
        single = [name for name, row in state.databases.items() if row["paused"] == "1"]
        whole = [] if state.paused is False else [target]
        return whole + [f"{target} {quote(name)}" for name in single]
    if command == "resume":
        if state.paused:
            raise Refused("the whole process is paused: resume it without a database")
        return [target] if paused or unknown else []
    if command in ("disable", "enable"):
        wanted = "1" if command == "disable" else "0"
        return [] if row.get("disabled") == wanted else [target]
    if command == "reconnect":
        return [target] if servers or unknown else []
    if command == "kill":
        return [] if paused and not clients and not servers else [target]
    if unknown:
        raise Refused(f"no such database: {database}")
    return []  # wait_close only looks


def busy(command: str, database: str | None, servers: Table) -> list[str]:
    """Return, from SHOW SERVERS, the connections that a pause or a wait_close waits for."""
    return [
        f"{row['database']} as {row['user']} ({row['state']}, process {row['remote_pid']} of "
        f"PostgreSQL{', ' + row['application_name'] if row.get('application_name') else ''})"
        for row in servers
        if database in (None, row["database"])
        and (row["close_needed"] == "1" if command == "wait_close" else row["state"] != "idle")
    ]


def summary(command: str, results: list[dict]) -> str:
    """Say for each process what happened."""
    parts = [
        f"process {result['process']}: {result['outcome']}"
        + (f", {result['error']}" if result["error"] else "")
        for result in results
    ]
    return f"{command}: {'. '.join(parts)}"


def release(console: Console, database: str | None) -> str:
    """Take back a pause that this call has made; return how that went."""
    try:
        console.change(
            "RESUME" if database is None else f"RESUME {quote(database)}", ANSWER_SECONDS
        )
    except FAILURES as error:
        return f"it may still be paused: {error}"
    return ""


def settle(command: str, database: str | None, console: Console, deadline: float) -> None:
    """Wait until no connection is busy; raise TimedOut.

    PAUSE's own answer does not say it: once a process has seen a WAIT_CLOSE it answers every later
    PAUSE at once, with the word WAIT_CLOSE, while transactions still run (seen in 1.24.1: nothing
    clears db_wait_close). So this module never sends WAIT_CLOSE, and looks for itself.
    """
    while busy(command, database, console.show("SERVERS")):
        if time.monotonic() > deadline:
            raise TimedOut(f"{command} did not end in time")
        time.sleep(0.1)


def act(command: str, database: str | None, console: Console, deadline: float, dry: bool) -> dict:
    """Carry a command out on one process; return its {outcome, commands, error}."""
    sent: list[str] = []
    done = command == "wait_close"
    try:
        commands = plan(command, database, console.state())
        if dry:
            return {"outcome": "planned" if commands else "unchanged", "commands": commands}
        for text in commands:
            sent.append(text)
            left = deadline - time.monotonic() if command == "pause" else ANSWER_SECONDS
            done |= console.change(text, left)
        if command in ("pause", "wait_close"):
            settle(command, database, console, deadline)
        return {"outcome": "done" if done else "unchanged", "commands": sent}
    except FAILURES as error:
        reasons = [str(error)]
        if isinstance(error, TimedOut) and (sent or command == "wait_close"):
            with contextlib.suppress(*FAILURES):
                servers = console.show("SERVERS")
                reasons.append(f"still busy: {'; '.join(busy(command, database, servers))}")
        if command == "pause" and sent:
            reasons.append(release(console, database) or "it was resumed")
        return {"outcome": "failed", "commands": sent, "error": ", ".join(reasons)}


def seconds_of(command: str, consoles: list[Console]) -> float:
    """Return how long a command may take where nobody said it; at least half a second."""
    held = [float(USUAL_SECONDS + 1)]
    for console in consoles if command == "pause" else ():
        with contextlib.suppress(*FAILURES):  # what is wrong with it, the command will tell
            settings = {row["key"]: row["value"] for row in console.show("CONFIG")}
            held += [float(settings.get(name) or 0) for name in LIMITS]
    return max(0.5, min(filter(None, held)) - 1)


def run(params: dict, dry: bool) -> tuple[list[dict], bool]:
    """Run the module's command on each process; return (results, whether one failed)."""
    command, database = params["command"], params["database"]
    if params["release_after_seconds"] and (command != "pause" or database is not None):
        raise Refused("release_after_seconds belongs to the command pause, without a database")
    if params["what"] is not None and command != "show":
        raise Refused(f"what belongs to the command show, not to {command}")
    what = word(params["what"]) if command == "show" else ""
    if database is not None:
        quote(database)
    try:
        pwd.getpwnam(params["user"])
    except KeyError:
        raise Refused(f"user: there is no operating system user {params['user']}") from None
    sockets = find_sockets(params["socket_directory"], params["process"])
    consoles = [Console(number, socket, params["user"]) for number, socket in sockets.items()]
    held, seconds = params["release_after_seconds"], params["timeout_seconds"]
    if held and command == "pause":
        seconds = seconds or min(USUAL_SECONDS, held / 2)
        if not dry:
            pgbouncer_hold.begin(consoles, held, params["user"])
    if seconds is None:
        seconds = seconds_of(command, consoles)
    deadline = time.monotonic() + seconds
    results: list[dict] = []
    failed = False
    for console in consoles:
        result = {"process": console.process, "outcome": "not tried", "commands": [], "rows": []}
        results.append(result | {"error": ""})
        if failed and command == "pause":
            continue
        if command == "show":
            try:
                results[-1] |= {"rows": console.show(what), "outcome": "shown"}
            except FAILURES as error:
                results[-1] |= {"error": str(error), "outcome": "failed"}
        else:
            results[-1] |= act(command, database, console, deadline, dry)
        failed |= results[-1]["outcome"] == "failed"
    if failed and command == "pause":
        for console, result in zip(consoles, results, strict=True):
            if result["outcome"] == "done":
                result["error"] = release(console, database)
                result["outcome"] = "failed" if result["error"] else "undone"
    if ((command == "resume" and database is None) or (failed and held)) and not dry:
        pgbouncer_hold.end(consoles)
    return results, failed


def main() -> None:
    commands = ["show", "pause", "resume", "reconnect", "disable", "enable", "kill", "wait_close"]
    module = UnloggedModule(
        argument_spec={
            "command": {"type": "str", "required": True, "choices": commands},
            "what": {"type": "str"},
            "database": {"type": "str"},
            "process": {"type": "int"},
            "release_after_seconds": {"type": "int"},
            "timeout_seconds": {"type": "int"},
            "socket_directory": {"type": "path", "default": str(RUNTIME_DIRECTORY)},
            "user": {"type": "str", "default": "pgbouncer"},
        },
        required_if=[
            ("command", "show", ["what"]),
            ("command", "disable", ["database"]),
            ("command", "enable", ["database"]),
            ("command", "kill", ["database"]),  # without one it exists after 1.24 only
        ],
        mutually_exclusive=[("what", "database")],
        supports_check_mode=True,
    )
    try:
        results, failed = run(module.params, module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}. Nothing was changed.", processes=[], rows=[])
    command = module.params["command"]
    rows = [{**row, "process": result["process"]} for result in results for row in result["rows"]]
    changing = command not in ("show", "wait_close")
    report = {
        "changed": changing and any(r["outcome"] in ("done", "planned") for r in results),
        "processes": results,
        "rows": rows,
    }
    if failed:
        module.fail_json(msg=summary(command, results), **report)
    module.exit_json(**report)


if __name__ == "__main__":
    main()

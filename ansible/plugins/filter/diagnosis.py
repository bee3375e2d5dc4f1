"""Filters that name why requests wait or fail, from what poolers and PostgreSQL tell.

ansible/playbooks/diagnose.yml reads; these functions judge, and are pure. A number below which
nothing is said is a constant here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

WAIT_SECONDS = 1
"""A client that waits for longer is told."""
IDLE_SECONDS = 5
"""So long may a transaction be idle."""
QUERY_SECONDS = 10
"""So long may a query run where clients wait for a connection."""
LONG_SECONDS = 300
"""A transaction of this age keeps vacuum and migrations waiting, whoever waits."""
FULL = 0.9
"""The part of a limit from which on it counts as reached."""

RUN = "ansible-playbook ansible/playbooks/"
Row = Mapping[str, Any]
Finding = dict[str, Any]
"""cause, evidence (a list), command and page; pid where ending that backend would help."""

JOURNAL = (
    (
        r"no more connections allowed",
        "clients are refused: max_client_conn is reached, and they go past the pooler",
        f"{RUN}plan.yml",
    ),
    (
        r"/(?P<who>\S+?)@\S+ .*(SASL authentication failed|password authentication failed)",
        "somebody logs in at the pooler with a wrong password",
        f"{RUN}rotate_password.yml --check",
    ),
    (
        r"server login failed: (?P<who>FATAL.*)",
        "PostgreSQL refuses the pooler's logins",
        f"{RUN}plan.yml",
    ),
    (
        r"no such database: (?P<who>\S+)|bouncer config error.*database",
        "clients ask for a database that the pooler does not have",
        f"{RUN}pgbouncer.yml --check --diff",
    ),
    (
        r"(?P<who>query_wait_timeout)",
        "queries were given up that got no server connection in time",
        f"{RUN}plan.yml",
    ),
    (
        r"(?P<who>query_timeout)",
        "queries were ended that ran, or that PostgreSQL did not answer, for too long",
        "",
    ),
    (
        r"(?P<who>connect failed|server conn crashed|server_login_retry|could not connect)",
        "PostgreSQL could not be reached",
        "",
    ),
)
"""Of the last minutes of PgBouncer's log: pattern (who: what is counted), cause, command."""


def _finding(cause: str, evidence: Sequence[str], command: str, page: str, pid: int = 0) -> Finding:
    return {
        "cause": cause,
        "evidence": list(evidence),
        "command": command,
        "page": f"docs/{page}",
        "pid": pid,
    }


def _backend(row: Row) -> str:
    """Return a backend as people look for it."""
    name = f" ({row['application_name']})" if row.get("application_name") else ""
    return (
        f"process {row['pid']} of PostgreSQL: {row['usename']} in {row['datname']}{name}, "
        f"{row['state']}, transaction since {row['transaction_seconds']} s, {row['command']}"
    )


def _ending(pid: int) -> str:
    return f"{RUN}diagnose.yml -e terminate={pid}"


def _number(row: Row, *names: str) -> int:
    return sum(int(row.get(name) or 0) for name in names)


def _of_poolers(poolers: Mapping[str, Row], minutes: int) -> Iterator[Finding]:
    """Yield what the poolers alone tell."""
    for host, pooler in poolers.items():
        console = f"on {host}: sudo -u pgbouncer psql -h /run/pgbouncer/1 -p {pooler['port']} -c"
        if pooler["error"]:
            yield _finding(
                f"the pooler on {host} does not answer",
                [pooler["error"]],
                f"on {host}: systemctl status 'pgbouncer@*'; journalctl -u 'pgbouncer@*' -n 50",
                "fallback.md",
            )
        held = sorted(row["name"] for row in pooler["databases"] if row.get("paused") == "1")
        if held or pooler["paused"]:
            yield _finding(
                f"the pooler on {host} is paused: every query waits",
                [
                    ", ".join(held) or "the whole process",
                    "if a playbook holds it, systemctl list-timers on the host has "
                    "poolkit-pgbouncer-release: leave it",
                ],
                f"{console} RESUME, for each process"
                + "".join(f", and 'RESUME {name}'" for name in held),
                "runbooks/restart_database.md",
            )
        for row in pooler["databases"]:
            if row.get("disabled") == "1":
                yield _finding(
                    f"the pooler on {host} refuses new clients of {row['name']} (DISABLE)",
                    [],
                    f"{console} 'ENABLE {row['name']}'",
                    "pgbouncer.md",
                )
        limit = _number(pooler["config"], "max_client_conn")
        clients = sum(_number(row, "cl_active", "cl_waiting") for row in pooler["pools"])
        if limit and clients >= FULL * limit * max(pooler["processes"], 1):
            yield _finding(
                f"the pooler on {host} has nearly all the clients that it takes",
                [f"{clients} of {limit * pooler['processes']} (max_client_conn)"],
                f"{RUN}plan.yml",
                "runbooks/pools.md",
            )
        if pooler["kills"]:
            yield _finding(
                f"the watchdog has killed silent processes on {host} in the last {minutes} minutes",
                [f"{pooler['kills']} times"],
                f"on {host}: journalctl -u pgbouncer-watchdog -u 'pgbouncer@*' "
                f"--since -{minutes + 5}min",
                "fallback.md",
            )
        yield from _of_journal(host, pooler["journal"], minutes)


def _of_journal(host: str, lines: Iterable[str], minutes: int) -> Iterator[Finding]:
    """Yield what a pooler's log says of the last minutes, each cause once."""
    seen: dict[str, Counter[str]] = {}
    commands = {cause: command for _, cause, command in JOURNAL}
    for line in lines:
        for pattern, cause, _ in JOURNAL:
            if match := re.search(pattern, line):
                who = (match.groupdict().get("who") or "").strip()
                seen.setdefault(cause, Counter())[who] += 1
                break
    for cause, counts in seen.items():
        evidence = [
            f"{count} times{f': {who}' * bool(who)}" for who, count in counts.most_common(3)
        ]
        evidence = [
            f"{line}, in the log of {host}, the last {minutes} minutes" for line in evidence
        ]
        command = commands[cause] or f"on {host}: journalctl -u 'pgbouncer@*' --since -{minutes}min"
        yield _finding(cause, evidence, command, "runbooks/diagnose.md")


def _waiting(poolers: Mapping[str, Row]) -> dict[tuple[str, str], list[str]]:
    """Return {(database, user): where its clients wait}."""
    found: dict[tuple[str, str], list[str]] = {}
    for host, pooler in poolers.items():
        paused = pooler["paused"] or any(r.get("paused") == "1" for r in pooler["databases"])
        for row in pooler["pools"]:
            waits = _number(row, "maxwait")
            if not paused and _number(row, "cl_waiting") and waits >= WAIT_SECONDS:
                busy = _number(row, "sv_active", "sv_used", "sv_login")
                found.setdefault((row["database"], row["user"]), []).append(
                    f"{row['cl_waiting']} clients of {row['database']} wait on {host}, the first "
                    f"for {waits} s; {busy} server connections are in use"
                )
    return found


def _of_server(server: Row, waiting: Mapping[tuple[str, str], list[str]]) -> Iterator[Finding]:
    """Yield what PostgreSQL tells of locks, transactions and limits."""
    backends = {row["pid"]: row for row in server["backends"]}
    blocked: dict[int, list[int]] = {}
    for row in backends.values():
        for pid in _roots(row["pid"], backends):
            blocked.setdefault(pid, []).append(row["pid"])
    told = set()
    for pid, waiters in blocked.items():
        root = backends.get(pid)
        told.add(pid)
        modes = Counter(backends[w]["command"] for w in waiters)
        evidence = [_backend(root)] if root else [f"process {pid}: a prepared transaction"]
        evidence.append(
            f"{len(waiters)} wait behind it, the longest since "
            f"{max(backends[w]['transaction_seconds'] or 0 for w in waiters)} s: "
            + ", ".join(f"{count} x {command}" for command, count in modes.items())
        )
        ends = _ending(pid) if pid else "SELECT * FROM pg_prepared_xacts; ROLLBACK PREPARED 'gid'"
        yield _finding(
            "a transaction holds locks that others wait for", evidence, ends, DIAGNOSE, pid
        )
    for row in backends.values():
        seconds = row["transaction_seconds"] or 0
        here = (row["datname"], row["usename"]) in waiting
        if row["pid"] in told:
            continue
        if str(row["state"]).startswith("idle in transaction") and row["state_seconds"] >= (
            IDLE_SECONDS
        ):
            cause = "a transaction is open and idle: it keeps a connection of the pool"
        elif here and row["state"] == "active" and seconds >= QUERY_SECONDS:
            cause = "a long query keeps a connection of the pool that clients wait for"
        elif seconds >= LONG_SECONDS:
            cause = "a transaction is old: vacuum and changes of tables wait for it"
        else:
            continue
        told.add(row["pid"])
        yield _finding(cause, [_backend(row)], _ending(row["pid"]), DIAGNOSE, row["pid"])
    yield from _of_limits(server)
    if not told:
        for lines in waiting.values():
            yield _finding(
                "the pool is too small for what comes, or PostgreSQL gives no more connections",
                lines,
                f"{RUN}plan.yml",
                "runbooks/pools.md",
            )


DIAGNOSE = "runbooks/diagnose.md"


def _roots(pid: int, backends: Mapping[int, Row]) -> set[int]:
    """Return the processes at the head of the queue that one stands in; none where it runs."""
    found, seen, queue = set(), set(), [pid]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        before = backends[current]["blocked_by"] if current in backends else []
        if not before and current != pid:
            found.add(current)
        queue += before
    return found


def _of_limits(server: Row) -> Iterator[Finding]:
    counts = Counter(row["usename"] for row in server["backends"] if row["usename"])
    used, limit = len(server["backends"]), server["max_connections"]
    if used >= FULL * limit:
        most = ", ".join(f"{count} of {user}" for user, count in counts.most_common(4))
        yield _finding(
            "PostgreSQL has nearly all the connections that it takes",
            [f"{used} of {limit} (max_connections): {most}"],
            f"{RUN}plan.yml",
            "pgbouncer.md",
        )
    for user, most in server["limits"].items():
        if counts[user] >= most > 0:
            yield _finding(
                f"the role {user} has all the connections of its CONNECTION LIMIT",
                [f"{counts[user]} of {most}; make status shows how many go past the poolers"],
                f"{RUN}status.yml",
                "fallback.md",
            )
    if server["read_only"]:
        yield _finding(
            "PostgreSQL takes no writes: a standby, or a server that was demoted",
            [],
            f"{RUN}reconnect.yml",
            "runbooks/failover.md",
        )
    if server["hidden"]:
        yield _finding(
            "PostgreSQL hides what others do from the administrator: locks and transactions are "
            "known in part",
            [f"{server['hidden']} backends"],
            "GRANT pg_monitor TO the administrator (on RDS: as rds_superuser)",
            DIAGNOSE,
        )
    for row in server["prepared"]:
        yield _finding(
            "a prepared transaction was left: it keeps its locks over restarts",
            [f"{row['gid']} of {row['owner']} in {row['database']}, since {row['seconds']} s"],
            f"in {row['database']}: ROLLBACK PREPARED '{row['gid']}'",
            DIAGNOSE,
        )


def diagnosis(poolers: Mapping[str, Row], server: Row, log_minutes: int = 15) -> list[Finding]:
    """Return why requests wait or fail: what is wrong with the server, then locks, then poolers.

    poolers: {host: {port, processes, error ("" for none), paused, databases, pools, config (rows
    and settings of the console, as text), journal (lines of the log), kills}}. server: {error} or
    {error: "", backends, max_connections, limits, read_only, hidden, prepared}, as the query of
    roles/database/tasks/activity.yml returns them. Each: cause, evidence (a list), command, page,
    and the pid of the backend whose end would help, else 0. log_minutes: how far back the logs go.
    """
    found = []
    if server["error"]:
        found.append(
            _finding(
                "PostgreSQL does not answer the administrator",
                [server["error"]],
                f"{RUN}plan.yml",
                "fallback.md",
            )
        )
    waiting = _waiting(poolers)
    if not server["error"]:
        found += _of_server(server, waiting)
    elif waiting:
        lines = [line for each in waiting.values() for line in each]
        found.append(_finding("clients wait", lines, f"{RUN}plan.yml", "runbooks/pools.md"))
    return found + list(_of_poolers(poolers, log_minutes))


def diagnosis_lines(findings: Sequence[Finding]) -> list[str]:
    """Return findings as lines for people."""
    lines = []
    for number, finding in enumerate(findings, 1):
        lines.append(f"{number}. {finding['cause']}")
        lines += [f"   {text}" for text in finding["evidence"]]
        lines.append(f"   -> {finding['command']} ({finding['page']})")
    return lines or [
        "Nothing was found: no client waits, no lock or transaction is old, poolers and PostgreSQL "
        "answer. If requests are slow, look at the application (docs/timeouts.md)."
    ]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"diagnosis": diagnosis, "diagnosis_lines": diagnosis_lines}

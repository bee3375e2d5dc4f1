"""The clients of each pooler host, against the limits of its PgBouncer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from . import pool_sizes
from .pools import (
    AUTO,
    Applications,
    Facts,
    client_connections,
    processes_of,
    role_settings,
    some_of,
    whole_number,
)
from .topology import uses_auth_query, value_of

OTHER_CLIENTS = 20
"""Clients of a pooler host that are no application's: people, monitoring, a deployment's checks."""

AUTO_WORKERS = 3
"""What app_workers auto makes on one core: 2 x cores + 1 (gunicorn.conf.py of roles/app)."""

ROOMY_WORKERS = 33
"""What it makes on 16 cores: a derived max_client_conn has room for them, since only the host knows
its cores. A client that PgBouncer expects costs it an open file."""


def _worker_connections(app: Mapping[str, Any]) -> int | None:
    """Return `client_connections`, None also without a framework (the role app refuses that)."""
    return client_connections(app) if app["framework"] else None


def _clients(app: Mapping[str, Any], pooler: str, automatic: int = AUTO_WORKERS) -> int:
    """Return the clients that a pooler has at once of an application, at least.

    Every host that may use it counts in full: the other poolers may be gone. automatic: the workers
    of a host whose app_workers is auto. A client logs in as the user or as its stand-in.
    """
    if "stands_in_for" in app:
        return 0
    numbers = (app["workers"][host] for host in app["clients"][pooler])
    workers = sum(automatic if number == AUTO else number for number in numbers)
    hosts = len(app["clients"][pooler])
    web = (workers + hosts) * (_worker_connections(app) or 1)
    return web + _process_connections(app, pooler)


def _process_connections(app: Mapping[str, Any], pooler: str) -> int:
    """Return the clients that a pooler has of an application's further processes."""
    return sum(app["process_connections"][host] for host in app["clients"][pooler])


def client_row(host: str, apps: Applications, facts: Facts) -> dict[str, Any]:
    """Return the clients of a pooler host against the limits of its PgBouncer.

    apps: those that it serves. Returns: pooler, clients, at_least (whether something does not bound
    them), max_client_conn, given (by the inventory), processes. The kernel may hand every client to
    one process, so each has room for all. Refused: a given limit without that room, since a client
    that PgBouncer refuses goes to PostgreSQL itself, silently.
    """
    processes = processes_of(facts, host)
    settings = facts.get("pgbouncer_settings") or {}
    others = OTHER_CLIENTS
    if uses_auth_query(facts):
        variable = "pgbouncer_auth_query_connections"
        others += whole_number(value_of(facts, variable), variable, host)
    needs = {app["name"]: _clients(app, host) for app in apps}
    need = sum(needs.values()) + others

    def check(variable: str, value: Any, clients: int, detail: str) -> None:
        share = -(-whole_number(value, variable, host) // processes)
        if share < clients:
            each = f", in each of {processes} PgBouncer processes" * (processes > 1)
            raise AnsibleFilterError(
                f"{host}: {variable} is {value}, but {clients} clients may come at once "
                f"({detail}{each}), and those beyond it go past the pooler: give at least "
                f"{clients * processes}, leave it out, or lower app_workers"
            )

    # A limit may hold for several entries: of one database, or of one user.
    holders: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for app in apps:
        held = functools.partial(
            pool_sizes.holding,
            app["database"],
            app["user"],
            facts.get("pgbouncer_databases") or {},
            facts.get("pgbouncer_users") or {},
            settings,
        )
        for name, of in (
            ("max_db_client_connections", "database"),
            ("max_user_client_connections", "user"),
        ):
            variable, value = held(name)
            if value not in (None, 0, "0"):
                holders.setdefault((variable, str(value), app[of]), []).append(app)
    for (variable, value, _), limited in holders.items():
        app = limited[0]
        detail = (
            f"the worker processes of {app['name']} and the stand-in of a deployment, each with "
            f"{_worker_connections(app) or 1}"
            + f", and {_process_connections(app, host)} of app_processes"
            * bool(_process_connections(app, host))
        )
        if len(limited) > 1:
            detail = ", ".join(f"{needs[app['name']]} of {app['name']}" for app in limited)
        check(variable, value, sum(needs[app["name"]] for app in limited), detail)
    given = settings.get("max_client_conn")
    if given is not None:
        detail = ", ".join(f"{count} of {name}" for name, count in needs.items())
        detail += f"{', ' * bool(detail)}{others} for people and monitoring"
        check("pgbouncer_settings.max_client_conn", given, need, detail)
    # The role's own number where it is enough.
    roomy = sum(_clients(app, host, ROOMY_WORKERS) for app in apps) + others
    limit = max(role_settings().get("max_client_conn", 0), roomy * processes)
    limit = limit if given is None else given
    return {
        "pooler": host,
        "clients": need,
        "at_least": any(
            _worker_connections(app) is None or app["workers"][client] == AUTO
            for app in apps
            for client in app["clients"][host]
        ),
        "max_client_conn": int(limit),
        "given": given is not None,
        "processes": processes,
    }


def _auto_connections(apps: Applications, pooler: str) -> int:
    """Return the connections that one worker more on each host with `auto` brings to a pooler."""
    return sum(
        (_worker_connections(app) or 1) * (app["workers"][host] == AUTO)
        for app in apps
        for host in app["clients"].get(pooler, [])
    )


def client_notes(apps: Applications, clients: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each application whose clients nothing bounds.

    With `auto` it names the pooler host with the least room, and the cores that this is enough for.
    """
    notes = []
    for app in (app for app in apps if app["framework"]):
        unbounded = _worker_connections(app) is None
        automatic = [host for host in app["hosts"] if app["workers"][host] == AUTO]
        found = []
        for row in clients:
            hosts = app["clients"].get(row["pooler"], [])
            limit = f"max_client_conn {row['max_client_conn']} of {row['pooler']}"
            free = -(-row["max_client_conn"] // row["processes"]) - row["clients"]
            if unbounded and hosts:
                found.append((row["max_client_conn"], limit))
            elif set(hosts) & set(automatic):
                workers = AUTO_WORKERS + free // _auto_connections(apps, row["pooler"])
                found.append(((workers - 1) // 2, limit))
        if not found:
            continue
        cores, limit = min(found, key=lambda each: each[0])
        if unbounded:
            notes.append(
                f"{app['name']}: app_connection_strategy is {app['strategy']}, so that nothing "
                f"bounds the clients of {some_of(app['hosts'])}; those beyond {limit} go past the "
                "pooler: choose pgbouncer, or give pgbouncer_settings.max_client_conn"
            )
        else:
            notes.append(
                f"{some_of(automatic)}: app_workers is auto, 2 x its cores + 1, so that the "
                f"clients of {app['name']} are not known; {limit} is enough for {cores} cores a "
                "host: for more, give app_workers as a number"
            )
    return notes

"""What pgbouncer.ini holds: the inventory's values on top of what derives, in shares of a process.

The size of a pool that derives (auto, pool mode session) comes from connection_budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..module_utils.pgbouncer_version import parse
from ..plugin_utils import pool_sizes
from ..plugin_utils.names import AUTH_USER
from ..plugin_utils.pool_sizes import CLIENT_LIMITS, SERVER_LIMITS
from ..plugin_utils.values import SERVER_TIMEOUTS, seconds

Catalogue = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""roles/pgbouncer/files/settings.yml: section -> name -> {type, since, reloadable, values}."""

QUERY_TIMEOUT_MARGIN = 0.5
"""Seconds from the server's statement_timeout to the pooler's query_timeout: more than the third of
a second between two looks of PgBouncer, so that a server that still answers is the first."""

PGBOUNCERS_OWN = {"max_client_conn": 100, "default_pool_size": 20}
"""Defaults of PgBouncer itself."""


def given_configuration(
    inputs: Mapping[str, Any], catalogue: Catalogue, version: str
) -> dict[str, Any]:
    """Return what is to be checked before a file is made of it: no value is read as a number yet.

    inputs: _pgbouncer_inputs of roles/pgbouncer/vars. Returns:
    settings, databases: the inventory's, with the sizes that derive in the place of `auto`;
    effective_settings: the role's, what derives, the inventory's, and the fixed ones, of the host.
    """
    usual, settings = inputs["usual_settings"], dict(inputs["settings"])
    if settings.get("default_pool_size") == "auto":
        settings["default_pool_size"] = usual["default_pool_size"]
    effective = {
        **known_settings(usual, catalogue, version),
        **inputs["derived_settings"],
        **query_timeout(inputs),
        **inputs["client_limits"],
        **settings,
        **inputs["fixed_settings"],
    }
    databases = _merged(inputs["databases"], inputs["pool_sizes"])
    return {"settings": settings, "databases": databases, "effective_settings": effective}


def query_timeout(inputs: Mapping[str, Any]) -> dict[str, float]:
    """Return the query_timeout that bounds the silence of a server which hangs; {} for none.

    It holds for every client, and also ends a transaction that waits for its next statement. So
    none derives where one may take as long as it likes: an application without a statement_timeout
    or an idle_in_transaction_session_timeout, people, databases that no application has.
    """
    apps = inputs["applications"]
    others = set(inputs["databases"]) - {app["database"] for app in apps}
    if others or inputs["auth_query_enabled"] or inputs["hba_rules"]:
        return {}
    try:
        limits = [seconds(app.get(name, 0)) for app in apps for name in SERVER_TIMEOUTS]
    except ValueError:  # the role app refuses it
        return {}
    return {"query_timeout": max(limits) + QUERY_TIMEOUT_MARGIN} if limits and all(limits) else {}


def pooler_configuration(
    inputs: Mapping[str, Any], catalogue: Catalogue, version: str
) -> dict[str, Any]:
    """Return what a pooler host's pgbouncer.ini and unit hold, from inputs that were checked.

    inputs: as of `given_configuration`. Returns:
    settings, databases, users: of one process, as the file's sections hold them;
    open_files: of one process, at most.
    """
    processes, apps = inputs["processes"], inputs["applications"]
    given = given_configuration(inputs, catalogue, version)
    settings = given["effective_settings"]
    where = (inputs["database_host"], inputs["database_port"])
    own = {app["database"]: pooler_database(app, *where) for app in apps}
    databases, users = _merged(own, given["databases"]), dict(inputs["users"])
    if inputs["auth_query_enabled"]:
        # auth_query lets in any number of users: each database is bounded.
        others = int(inputs["auth_query_connections"]) + 2 * processes
        databases = bound_databases(databases, settings, apps, users, others)
        users = {AUTH_USER: {"max_user_connections": 2 * processes}, **users}
    sections = {
        "settings": per_process(settings, processes),
        "databases": shares(databases, processes),
        "users": shares(users, processes),
    }
    return {
        **sections,
        "open_files": open_files_limit(*sections.values(), apps, inputs["hba_rules"]),
    }


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of both; of one that both have, the later values hold."""
    both = [name for name in first if isinstance(second.get(name), Mapping)]
    return {**first, **second, **{name: {**first[name], **second[name]} for name in both}}


def pooler_database(app: Mapping[str, Any], host: str, port: int) -> dict[str, Any]:
    """Return the [databases] entry of an application: where PgBouncer finds its database.

    It has pool_mode if the application asks for sessions; the pooler's own setting is transaction.
    """
    mode = {"pool_mode": "session"} if app.get("pool_mode") == "session" else {}
    server = app.get("server") or {"host": host, "port": port, "dbname": app["database"]}
    return {**server, **mode}


def per_process(settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Return settings with the host's limits divided among its processes.

    Server connections are rounded down, so that the sum never exceeds the host's number; clients
    are rounded up, since the kernel spreads them unevenly.
    """
    shares = dict(settings)
    for name in (name for name in settings if name in SERVER_LIMITS):
        shares[name] = int(settings[name]) // processes
    for name in (name for name in settings if name in CLIENT_LIMITS):
        shares[name] = -(-int(settings[name]) // processes)
    return shares


def shares(entries: Mapping[str, Mapping[str, Any]], processes: int) -> dict[str, dict[str, Any]]:
    """Return the entries of [databases] or [users] with per_process applied to each."""
    return {name: per_process(entry, processes) for name, entry in entries.items()}


def bound_databases(
    databases: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    apps: Iterable[Mapping[str, Any]],
    users: Mapping[str, Mapping[str, Any]],
    others: int,
) -> dict[str, dict[str, Any]]:
    """Return the databases with max_db_connections: the application's pool, and `others` more.

    With auth_query any number of users may come, each with a pool of its own.
    """
    bound = {}
    users_of: dict[str, list[str]] = {}
    for app in apps:
        users_of.setdefault(app["database"], []).append(app["user"])
    for name, entry in databases.items():
        pools = (
            pool_sizes.connections(name, user, databases, users, settings)
            for user in users_of.get(name, [""])
        )
        bound[name] = {"max_db_connections": sum(pools) + others, **entry}
    return bound


def open_files_limit(
    settings: Mapping[str, Any],
    databases: Mapping[str, Mapping[str, Any]],
    users: Mapping[str, Mapping[str, Any]] | None = None,
    apps: Iterable[Mapping[str, Any]] = (),
    rules: Iterable[Mapping[str, Any]] = (),
) -> int:
    """Return the open files that one process needs at most, for settings that are divided already.

    Each client has one, each server connection two (a burst of cancel requests may double a pool:
    PgBouncer's src/objects.c), and 100 are for listening, the log, DNS, TLS files and the console.
    """
    settings = {**PGBOUNCERS_OWN, **settings}
    total = int(settings["max_client_conn"]) + 100
    apps, rules = list(apps), list(rules)
    for name, entry in databases.items():
        pools = sum(
            pool_sizes.connections(name, user, databases, users or {}, settings)
            for user in pool_sizes.users_of(name, databases, apps, rules)
        )
        total += 2 * max(pools, int(entry.get("max_db_connections", 0)))
    return max(1024, total)


def known_settings(
    settings: Mapping[str, Any], catalogue: Catalogue, version: str
) -> dict[str, Any]:
    """Return the settings of the [pgbouncer] section that a version knows: defaults, not wishes."""
    known = catalogue["pgbouncer"]
    have = parse(version)
    return {k: v for k, v in settings.items() if have >= parse(known[k]["since"])}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            "given_configuration": given_configuration,
            "pooler_configuration": pooler_configuration,
        }

"""The pools of PgBouncer's databases: whose they are, and how many connections each may open.

Numbers are worst cases. Every function is pure; an inventory that contradicts itself raises
AnsibleFilterError with the variable to change.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleFilterError

from . import pool_sizes
from .role_defaults import role_constants
from .topology import FRAMEWORKS, Groups, Hostvars, uses_auth_query, value_of, whole_number

AUTO = "auto"
"""The pool_size that asks for an equal share of what is left, and the app_workers of the host."""

PORT = 5432
"""PgBouncer's default of port in [databases]."""

CLIENT_POOL = ("pgbouncer", "native", "managed")
"""Strategies with a pool, or a kept connection, inside each worker process."""

Facts = Mapping[str, Any]
Applications = Sequence[Mapping[str, Any]]
"""As the filter `applications` returns them."""


@dataclass(frozen=True)
class Pool:
    """The pool of one (database, user) pair on one pooler host.

    Numbers are those of the host, as the inventory gives them; PgBouncer counts in each process,
    so each gets its part, rounded down. size is None for `auto`.
    """

    host: str
    database: str
    user: str
    processes: int
    size: int | None
    size_variable: str
    reserve: int
    reserve_variable: str
    limit: int | None
    """The least of max_db_connections and max_user_connections."""
    limit_variable: str
    auth_query: int | None
    """With auth_query, what the role adds to pool and reserve for other users and its own logins,
    and sets as max_db_connections where [databases] gives none. None without auth_query."""
    database_limit: int | None
    """max_db_connections of [databases]."""
    database_variable: str
    stand_in: bool = True
    """Whether a lone process gets a stand-in while it is replaced; not so in a task of ECS."""
    derived: bool = False
    """Whether the size follows from the clients of the database's application (session mode)."""

    @property
    def lone(self) -> bool:
        """Whether a second process stands in for this one while it is replaced."""
        return self.stand_in and self.processes == 1

    def of_process(self, auto_size: int, reserve: int) -> int:
        """Server connections of one process."""
        size = auto_size if self.size is None else self.size
        connections = size // self.processes + reserve // self.processes
        return min(connections, self.limit // self.processes) if self.limit else connections

    def pooled(self, auto_size: int) -> int:
        """Server connections of all processes."""
        return self.processes * self.of_process(auto_size, self.reserve)

    def rolling(self, auto_size: int) -> int:
        """What a restart adds: a lone process has a stand-in, which may open its share once more.

        Several are replaced in turn: one drains and ends before its successor starts.
        """
        return self.of_process(auto_size, self.reserve) if self.lone else 0

    def other_users(self, auto_size: int) -> int:
        """Server connections of auth_query and the users that it lets in, and of the stand-in."""
        if self.auth_query is None:
            return 0
        size = auto_size if self.size is None else self.size
        limit = self.database_limit or size + self.reserve + self.auth_query
        each = max(limit // self.processes - self.of_process(auto_size, self.reserve), 0)
        return each * (self.processes + self.lone)

    def parts(self, auto_size: int, restarts: bool) -> Counter[str]:
        """Return the variables that make the pool's connections, each with how many.

        A size does not matter where a limit holds, nor anything else where auth_query fills the
        database up to its limit. restarts: whether the stand-in of a lone process counts.
        """
        processes = self.processes + (restarts and self.lone)
        whole = processes * self.of_process(auto_size, self.reserve)
        by_limit = self.limit and (self.size or auto_size) // self.processes + (
            self.reserve // self.processes
        ) > (self.limit // self.processes)
        if self.auth_query is not None and self.database_limit:
            return Counter({self.database_variable: whole + self.other_users(auto_size)})
        others = Counter({"pgbouncer_auth_query_connections": self.other_users(auto_size)})
        if by_limit and self.auth_query is None:
            return Counter({self.limit_variable: whole})
        sized = processes * self.of_process(auto_size, 0)
        size = Counter({} if self.size is None else {self.size_variable: sized})
        return others + size + Counter({self.reserve_variable: whole - sized})


@dataclass(frozen=True)
class Further:
    """Pools of a pooler's database on one host that are no application's own."""

    database: str
    pools: tuple[Pool, ...]
    """A pool for each user that the pooler lets in. With auth_query one pool for all, and none
    in an application's own database, whose row has them."""
    claims: tuple[Pool, ...]
    """Those of the applications' users, whose limits in PostgreSQL must have room for them."""

    def of_process(self, auto_size: int, without: frozenset[str]) -> int:
        """Server connections of one process, those of the users `without` left out."""
        pools = [pool for pool in self.pools if pool.user not in without]
        each = sum(pool.of_process(auto_size, pool.reserve) for pool in pools)
        limit = self.pools[0].database_limit
        return min(each, limit // self.pools[0].processes) if limit else each

    def parts(self, auto_size: int, without: frozenset[str]) -> Counter[str]:
        """Return the variables that make the connections, as `Pool.parts`."""
        pools = [pool for pool in self.pools if pool.user not in without]
        first = self.pools[0]
        each = self.of_process(auto_size, without)
        if each < sum(pool.of_process(auto_size, pool.reserve) for pool in pools):
            processes = first.processes + first.lone
            return Counter({first.database_variable: processes * each})
        return sum((pool.parts(auto_size, True) for pool in pools), Counter())


def role_settings() -> dict[str, Any]:
    """Return what the role sets if the inventory sets nothing."""
    return role_constants("pgbouncer")["_pgbouncer_settings"]


def serves_asgi(framework: str, module: str) -> bool:
    """Say whether an application is one of ASGI: FastAPI, or Django's "config.asgi:application"."""
    if framework == "django":
        return str(module).partition(":")[0].endswith("asgi")
    return framework == "fastapi"


def client_connections(app: Mapping[str, Any]) -> int | None:
    """Return the connections that one worker process of an application may hold at once.

    app: as of `applications`. With a pool in the process: its size (max_overflow 0). Without one,
    Django (WSGI) and Flask have one for each thread, and Django one more in the thread of its
    readiness check; nothing bounds an ASGI application: None. DATABASE_DIRECT_URL is not counted:
    app_fallback_connections is for it.
    """
    framework, strategy = app["framework"], app["strategy"]
    if framework not in FRAMEWORKS:
        raise AnsibleFilterError(
            f"{app['name']}: app_framework is {framework!r}: use one of {', '.join(FRAMEWORKS)}"
        )
    asgi = serves_asgi(framework, app["module"])
    # Of Django under WSGI only the strategy native has a pool.
    size = app["connection_pool_size"] if strategy in CLIENT_POOL else 0
    if size and (asgi or framework == "flask" or strategy == "native"):
        return size
    if asgi:
        return None
    return app["threads"] + (framework == "django")


def workers_of(app: Mapping[str, Any], host: str, reason: str) -> int:
    """Return the worker processes of an application's host; refuse `auto`."""
    workers = app["workers"][host]
    if workers == AUTO:
        raise AnsibleFilterError(
            f"{host}: app_workers is auto, a number that only the host knows. {reason}, so "
            f"{app['name']} needs it as a number, to add its connections up"
        )
    return workers


def _session_clients(app: Mapping[str, Any], pooler: str) -> int | None:
    """Return the clients that a pooler may have at once of an application with the pool mode
    session, each with a server connection of its own; None where nothing bounds them.

    A deployment has a stand-in of one worker process beside the workers of a host.
    """
    reason = "app_pool_mode is session, where each client has a server connection of its own"
    hosts = app["clients"][pooler]
    workers = [workers_of(app, host, reason) + 1 for host in hosts]
    each = client_connections(app)
    further = sum(app["process_connections"][host] for host in hosts)
    return None if each is None else sum(workers) * each + further


def processes_of(facts: Facts, host: str) -> int:
    processes = whole_number(value_of(facts, "pgbouncer_processes"), "pgbouncer_processes", host)
    if not processes:
        raise AnsibleFilterError(f"{host}: pgbouncer_processes is 0: give at least 1")
    return processes


def _pool(facts: Facts, host: str, app: Mapping[str, Any], own: Pool | None = None) -> Pool:
    """Return the pool of an application on a pooler host, from that host's variables.

    own: for another user, the pool of the database's own application. [databases] has one pool_size
    for all users of a database, so that a derived one holds for each without its own.
    """
    databases, users = (facts.get(f"pgbouncer_{kind}") or {} for kind in ("databases", "users"))
    settings = {**role_settings(), **(facts.get("pgbouncer_settings") or {})}
    first = functools.partial(
        pool_sizes.holding, app["database"], app["user"], databases, users, settings
    )
    processes = processes_of(facts, host)
    size_variable, size = first(*pool_sizes.SIZE)
    session = app["pool_mode"] == "session"
    needed = _session_clients(app, host) if session else None
    by_user = size_variable.startswith("pgbouncer_users")
    derived = session and not by_user and (size == AUTO or "pgbouncer_settings" in size_variable)
    if session:
        mode_variable, mode = first("pool_mode")
        if "pgbouncer_settings" not in mode_variable and mode != "session":
            raise AnsibleFilterError(
                f"{host}: {mode_variable} is {mode}, but app_pool_mode of {app['name']} is "
                "session: leave the first one out"
            )
        # The kernel may hand every client to one process.
        needed = None if needed is None else needed * processes
    if derived:
        if needed is None:
            raise AnsibleFilterError(
                f"{app['name']}: app_pool_mode is session, and without a pool in the process "
                f"(strategy {app['strategy']}) nothing bounds the clients that each need a server "
                f"connection: choose app_connection_strategy pgbouncer, or give "
                f"pgbouncer_databases[{app['database']!r}].pool_size"
            )
        size_variable, size = f"app_workers and client pools of {app['name']}", needed
    elif own and own.derived and not by_user:
        derived, size_variable, size = True, own.size_variable, own.size
    automatic = size == AUTO and not by_user
    reserve_variable, reserve = first(*pool_sizes.RESERVE)
    auth_query = None
    if uses_auth_query(facts):
        variable = "pgbouncer_auth_query_connections"
        auth_query = whole_number(value_of(facts, variable), variable, host)
        auth_query += 2 * processes
    database_variable, database_limit = first("max_db_connections")
    if "pgbouncer_settings" in database_variable and auth_query is not None:
        database_limit = None  # [databases] has the role's own number
    limits = [(database_variable, database_limit), first("max_user_connections")]
    given = {variable: value for variable, value in limits if value not in (None, 0, "0")}
    if not automatic:
        given[size_variable] = size
    for variable, value in given.items():
        given[variable] = whole_number(value, variable, host)
        if given[variable] < processes:
            raise AnsibleFilterError(
                f"{host}: {variable} is {value}, so that each process would have 0, which "
                f"PgBouncer takes for unlimited: give at least {processes}, one for each process "
                "(pgbouncer_processes)"
            )
        if needed is not None and given[variable] < needed:
            raise AnsibleFilterError(
                f"{host}: {variable} is {value}, but app_pool_mode of {app['name']} is session and "
                f"its clients need {needed} server connections (each worker process and the "
                f"stand-in of a deployment {client_connections(app)}, and app_processes what they "
                f"give as connections, in each of {processes} PgBouncer processes): give that "
                "many, leave it out, or lower app_workers"
            )
    size = None if automatic else given.pop(size_variable)
    limit_variable = min(given, key=lambda variable: given[variable], default="")
    return Pool(
        host=host,
        database=app["database"],
        user=(databases.get(app["database"]) or {}).get("user") or app["user"],
        processes=processes,
        size=size,
        size_variable=size_variable,
        reserve=whole_number(reserve, reserve_variable, host),
        reserve_variable=reserve_variable,
        limit=given.get(limit_variable),
        limit_variable=limit_variable,
        auth_query=auth_query,
        database_limit=given.get(database_variable),
        database_variable=database_variable,
        stand_in="ecs_task" not in facts,
        derived=derived,
    )


def pools_of(apps: Applications, hostvars: Hostvars) -> dict[str, list[Pool]]:
    """Return the pools of each application by its name."""
    return {
        app["name"]: [_pool(hostvars[host], host, app) for host in app["poolers"]] for app in apps
    }


def _same_server(facts: Facts, host: str, entry: Facts, hostvars: Hostvars, groups: Groups) -> bool:
    """Say whether an entry of pgbouncer_databases leads to the inventory's PostgreSQL server."""
    servers = groups.get("postgres") or []
    address = str(facts.get("pgbouncer_database_host", facts.get("database_host")))
    names = {*address.split(","), *servers}
    names |= {str(hostvars[server].get("private_address")) for server in servers}
    if host in servers:
        names |= {"127.0.0.1", "localhost", "::1"}
    port = facts.get("pgbouncer_database_port", facts.get("database_port"))
    given = str(entry["host"]).split(",")
    local = host in servers and str(entry["host"]).startswith("/")
    return (local or bool(names & set(given))) and str(entry.get("port", PORT)) == str(port)


def further_pools(
    apps: Applications, own_pools: Mapping[str, list[Pool]], hostvars: Hostvars, groups: Groups
) -> tuple[list[Further], list[str]]:
    """Return (the pools of pooler databases that are no application's own, notes).

    own_pools: as `pools_of`. notes: a line for each entry that leads to another server. An entry
    without a host that no application has is left out: the role refuses it.
    """
    found: list[Further] = []
    elsewhere: dict[tuple[str, str], list[str]] = {}
    for host in groups.get("pgbouncer") or []:
        facts = hostvars[host]
        served = [app for app in apps if host in app["poolers"]]
        own: dict[str, set[str]] = {}
        for app in served:
            own.setdefault(app["database"], set()).add(app["user"])
        pool_of = {
            pool.database: pool
            for app in served
            for pool in own_pools[app["name"]]
            if pool.host == host
        }
        entries = facts.get("pgbouncer_databases") or {}
        rules = facts.get("pgbouncer_hba_rules") or []
        auth_query = uses_auth_query(facts)
        for name in {**own, **entries}:
            entry = entries.get(name) or {}
            if name not in own and not (isinstance(entry, Mapping) and entry.get("host")):
                continue
            if name in own and entry.get("user"):
                continue  # every client is that user
            if entry.get("host") and not _same_server(facts, host, entry, hostvars, groups):
                if name not in own:
                    server = f"{entry['host']}:{entry.get('port', PORT)}"
                    elsewhere.setdefault((name, server), []).append(host)
                continue
            users = [
                user
                for user in pool_sizes.users_of(name, entries, served, rules)
                if user not in own.get(name, ())
            ]
            pools = [
                _pool(
                    facts,
                    host,
                    {"database": name, "user": user, "pool_mode": "transaction"},
                    pool_of.get(name),
                )
                for user in users
            ]
            claims = tuple(pool for pool in pools if pool.user)
            if auth_query:
                # max_db_connections, which the role sets, bounds all users together.
                app = {"database": name, "user": "", "pool_mode": "transaction"}
                pools = [] if name in own else [_pool(facts, host, app)]
            if pools or claims:
                found.append(Further(name, tuple(pools), claims))
    notes = [
        f"pgbouncer_databases[{name!r}] of {some_of(hosts)} leads to {server}, which is not the "
        "server of this budget: its pools are not counted"
        for (name, server), hosts in elsewhere.items()
    ]
    return found, notes


def some_of(hosts: Sequence[str]) -> str:
    """Return the names of hosts, of many the first ones and how many more."""
    more = len(hosts) - 3
    return ", ".join(hosts[:3]) + (f" and {more} more" if more > 0 else "")


def has_auto_pools(apps: Applications, hostvars: Hostvars, groups: Groups) -> bool:
    """Say whether some pool's size is `auto`, so that PostgreSQL has to be asked."""
    own = pools_of(apps, hostvars)
    further, _ = further_pools(apps, own, hostvars, groups)
    return any(pool.size is None for pool in every_pool(own, further))


def every_pool(own: Mapping[str, Sequence[Pool]], further: Sequence[Further]) -> list[Pool]:
    """Return the pools of `pools_of` and `further_pools`."""
    found = [pool for pools in own.values() for pool in pools]
    return found + [pool for entry in further for pool in entry.pools]

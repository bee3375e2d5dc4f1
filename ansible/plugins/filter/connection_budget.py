"""The connection budget: what may be open at once, against what PostgreSQL takes.

Worst cases of poolers, applications, migrations and people, added up over the whole inventory
before anything changes. Every function is pure; an inventory that contradicts itself raises
AnsibleFilterError with the variable to change. A budget that does not fit raises nothing: it says
so in `fits` and `message`, so that its table can be printed first.
"""

from __future__ import annotations

import bisect
import functools
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean

ROLE = Path(__file__).resolve().parents[3] / "roles/pgbouncer"

AUTO = "auto"
"""The pool_size that asks for an equal share of what is left."""
AUTO_PERCENT = 90
"""What `auto` fills the available connections up to; the rest absorbs a host that is added."""

MAX_CONNECTIONS = 100
"""PostgreSQL's default of max_connections, assumed where nothing says more."""
RESERVED_CONNECTIONS = 3
"""PostgreSQL's default of superuser_reserved_connections (reserved_connections is 0)."""

OTHERS = 5
"""Default of database_reserved_for_others: monitoring, people, the administrator's own runs."""
PROCESSES = 1
"""Default of pgbouncer_processes in roles/pgbouncer/defaults."""
AUTH_QUERY_CONNECTIONS = 5
"""Default of pgbouncer_auth_query_connections in roles/pgbouncer/defaults."""

CLIENT_POOL = ("pgbouncer", "native", "managed")
"""Strategies with a pool, or a kept connection, inside each worker process."""

Facts = Mapping[str, Any]
Hostvars = Mapping[str, Facts]
Groups = Mapping[str, Sequence[str]]
Applications = Sequence[Mapping[str, Any]]
"""As the filter `applications` returns them."""


@dataclass(frozen=True)
class Pool:
    """The pool of one application, that is of one (database, user) pair, on one pooler host.

    Numbers are those of the host, as the inventory gives them; PgBouncer counts in each process,
    so each gets its part, rounded down. size is None for `auto`.
    """

    host: str
    database: str
    processes: int
    size: int | None
    size_variable: str
    reserve: int
    reserve_variable: str
    limit: int | None
    """The least of max_db_connections and max_user_connections."""
    auth_query: int | None
    """With auth_query, what the role adds to pool and reserve for other users and its own logins,
    and sets as max_db_connections where [databases] gives none. None without auth_query."""
    database_limit: int | None
    """max_db_connections of [databases]."""
    derived: bool = False
    """Whether the size follows from the application's clients (pool mode session)."""

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
        return self.of_process(auto_size, self.reserve) if self.processes == 1 else 0

    def other_users(self, auto_size: int) -> int:
        """Server connections of auth_query and the users that it lets in, and of the stand-in."""
        if self.auth_query is None:
            return 0
        size = auto_size if self.size is None else self.size
        limit = self.database_limit or size + self.reserve + self.auth_query
        each = max(limit // self.processes - self.of_process(auto_size, self.reserve), 0)
        return each * (self.processes + (self.processes == 1))


@functools.cache
def _role_settings() -> dict[str, Any]:
    """Return what the role sets where the inventory says nothing: a number stands in one place."""
    return yaml.safe_load((ROLE / "vars/main.yml").read_text())["_pgbouncer_settings"]


def _number(value: Any, variable: str, host: str) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)):
        raise AnsibleFilterError(f"{host}: {variable} is {value!r}: give a whole number")
    return int(value)


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
    if framework not in ("django", "fastapi", "flask"):
        raise AnsibleFilterError(
            f"{app['name']}: app_framework is {framework!r}: use one of django, fastapi, flask"
        )
    asgi = serves_asgi(framework, app["module"])
    # Of Django under WSGI only the strategy native has a pool.
    size = app["connection_pool_size"] if strategy in CLIENT_POOL else 0
    if size and (asgi or framework == "flask" or strategy == "native"):
        return size
    if asgi:
        return None
    return app["threads"] + (framework == "django")


def _workers(app: Mapping[str, Any], host: str, reason: str) -> int:
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
    workers = [_workers(app, host, reason) + 1 for host in app["clients"][pooler]]
    each = client_connections(app)
    return None if each is None else sum(workers) * each


def _pool(facts: Facts, host: str, app: Mapping[str, Any]) -> Pool:
    """Return the pool of an application on a pooler host, from that host's variables."""
    sections = {
        f"pgbouncer_users[{app['user']!r}]": (facts.get("pgbouncer_users") or {}).get(app["user"]),
        f"pgbouncer_databases[{app['database']!r}]": (facts.get("pgbouncer_databases") or {}).get(
            app["database"]
        ),
        "pgbouncer_settings": {**_role_settings(), **(facts.get("pgbouncer_settings") or {})},
    }

    def first(*names: str) -> tuple[str, Any]:
        """Return (variable, value) of the first of `names` in the first section that has it."""
        for section, values in sections.items():
            for name in names:
                if (values or {}).get(name) is not None:
                    return f"{section}.{name}", values[name]
        return "", None

    processes = _number(facts.get("pgbouncer_processes", PROCESSES), "pgbouncer_processes", host)
    if not processes:
        raise AnsibleFilterError(f"{host}: pgbouncer_processes is 0: give at least 1")
    size_variable, size = first("pool_size", "default_pool_size")
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
    automatic = size == AUTO and not by_user
    reserve_variable, reserve = first("reserve_pool_size", "reserve_pool")
    auth_query = None
    if boolean(facts.get("pgbouncer_auth_query_enabled", False)):
        variable = "pgbouncer_auth_query_connections"
        auth_query = _number(facts.get(variable, AUTH_QUERY_CONNECTIONS), variable, host)
        auth_query += 2 * processes
    database_variable, database_limit = first("max_db_connections")
    if "pgbouncer_settings" in database_variable and auth_query is not None:
        database_limit = None  # the role's own number stands in [databases]
    limits = [(database_variable, database_limit), first("max_user_connections")]
    given = {variable: value for variable, value in limits if value not in (None, 0, "0")}
    if not automatic:
        given[size_variable] = size
    for variable, value in given.items():
        given[variable] = _number(value, variable, host)
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
                f"stand-in of a deployment {client_connections(app)}, in each of {processes} "
                "PgBouncer processes): give that many, leave it out, or lower app_workers"
            )
    size = None if automatic else given.pop(size_variable)
    return Pool(
        host=host,
        database=app["database"],
        processes=processes,
        size=size,
        size_variable=size_variable,
        reserve=_number(reserve, reserve_variable, host),
        reserve_variable=reserve_variable,
        limit=min(given.values(), default=None),
        auth_query=auth_query,
        database_limit=given.get(database_variable),
        derived=derived,
    )


def _pools(apps: Applications, hostvars: Hostvars) -> dict[str, list[Pool]]:
    """Return the pools of each application by its name."""
    return {
        app["name"]: [_pool(hostvars[host], host, app) for host in app["poolers"]] for app in apps
    }


def _available(facts: Facts, server: Mapping[str, Any]) -> tuple[int, str, bool]:
    """Return (connections, where the number is from, whether it was given and not assumed).

    server: what ansible/playbooks/tasks/server_limits.yml registers: {query_result: [{name,
    setting}]}, or {msg} where the server did not answer. Reserved slots are not available.
    """
    settings = {row["name"]: int(row["setting"]) for row in server.get("query_result") or []}
    address = f"PostgreSQL at {facts.get('database_host')}:{facts.get('database_port')}"
    variable = "database_max_connections"
    given = facts.get(variable)
    if given is not None:
        given = _number(given, variable, "group all")
    if "max_connections" in settings:
        highest = settings["max_connections"]
        reserved = settings["superuser_reserved_connections"]
        reserved += settings.get("reserved_connections", 0)  # since PostgreSQL 16
        source = f"{address}: max_connections {highest} less {reserved} reserved"
        if given not in (None, highest):
            source += f"; {variable} says {given}: correct it"
        return highest - reserved, source, True
    reason = " ".join(str(server.get("msg") or "it was not asked").split())[:100]
    if "Python library (psycopg2)" in reason:
        reason = "the host that asks has no client library yet, which database.yml installs"
    silent = f"{address} did not answer: {reason}"
    if given is not None:
        source = f"{variable} {given} less {RESERVED_CONNECTIONS} reserved; {silent}"
        return given - RESERVED_CONNECTIONS, source, True
    source = (
        f"assumed: PostgreSQL's default {MAX_CONNECTIONS} less {RESERVED_CONNECTIONS} reserved; "
        f"{variable} is not set, and {silent}"
    )
    return MAX_CONNECTIONS - RESERVED_CONNECTIONS, source, False


def _unpooled(app: Mapping[str, Any]) -> tuple[int | None, int]:
    """Return (direct, rolling) of an application that goes to PostgreSQL itself.

    direct: what its worker processes may open, None where nothing but a given limit bounds them.
    rolling: the stand-ins, one worker process on each host that is changed at the same time.
    """
    reason = f"app_connection_strategy is {app['strategy']}, which no pooler bounds"
    workers = sum(_workers(app, host, reason) for host in app["hosts"])
    each = client_connections(app)
    if each is not None:
        return workers * each, app["hosts_at_once"] * each
    if app["connection_limit"] is None:
        raise AnsibleFilterError(
            f"{app['name']}: app_connection_strategy is {app['strategy']}, and an ASGI application "
            "without a pool opens a connection for each request: nothing bounds them but "
            "app_database_connection_limit, so give it, or choose another strategy"
        )
    return None, 0


def _rows(apps: Applications, pools: Mapping[str, list[Pool]], auto_size: int) -> list[dict]:
    """Return the demand of each application, with every `auto` pool at auto_size."""
    rows = []
    for app in apps:
        pooled = sum(pool.pooled(auto_size) for pool in pools[app["name"]])
        rolling = sum(pool.rolling(auto_size) for pool in pools[app["name"]])
        fallback = app["fallback_connections"] * len(app["hosts"])
        given = app["connection_limit"]
        if app["poolers"]:
            # The fallback is for a pooler that is gone, not for one that is replaced.
            direct, limit = 0, pooled + max(rolling, fallback)
        else:
            # Here it is DATABASE_DIRECT_URL's, which a deployment does not stop.
            direct, rolling = _unpooled(app)
            limit = (direct or 0) + rolling + fallback
        rows.append(
            {
                "application": app["name"],
                "pooled": pooled,
                "direct": direct,
                "rolling": rolling,
                "fallback": fallback,
                "limit": limit if given is None else given,
                "migrations": app["owner_connection_limit"],
                "auth_query": sum(pool.other_users(auto_size) for pool in pools[app["name"]]),
            }
        )
    return rows


def _totals(rows: list[dict], others: int) -> dict[str, int]:
    """Return the sums: PostgreSQL holds an application to its limit, an owner to its own."""
    sums = {
        "limits": sum(row["limit"] for row in rows),
        "migrations": sum(row["migrations"] for row in rows),
        "auth_query": sum(row["auth_query"] for row in rows),
        "others": others,
    }
    return {**sums, "total": sum(sums.values())}


def _room(row: Mapping[str, Any]) -> bool:
    """Say whether the application's limit has room for what its poolers or workers may open."""
    return row["pooled"] + (row["direct"] or 0) + row["rolling"] <= row["limit"]


def _advice(
    apps: Applications,
    pools: Mapping[str, list[Pool]],
    rows: list[dict],
    totals: Mapping[str, int],
    auto_size: int,
) -> str:
    """Return the variables that make the total, the largest contributor first.

    Of rolling and fallback only the larger one counts. rolling is the pool of a lone process once
    more, so its size and reserve make it. Where both are equal, a smaller fallback alone would not
    lower the total.
    """
    parts: Counter[str] = Counter()
    for app, row in zip(apps, rows, strict=True):
        name = app["name"]
        parts[f"app_database_owner_connection_limit of {name}"] += row["migrations"]
        if app["connection_limit"] is not None:
            parts[f"app_database_connection_limit of {name}"] += row["limit"]
            continue
        if not app["poolers"]:
            parts[f"app_workers and client pools of {name}"] += row["direct"] + row["rolling"]
            parts[f"app_fallback_connections of {name}"] += row["fallback"]
            continue
        restarts = row["rolling"] >= row["fallback"]
        if not restarts:
            parts[f"app_fallback_connections of {name}"] += row["fallback"]
        for pool in pools[name]:
            processes = pool.processes + (restarts and pool.processes == 1)
            sized = processes * pool.of_process(auto_size, 0)
            parts[pool.size_variable] += sized
            whole = processes * pool.of_process(auto_size, pool.reserve)
            parts[pool.reserve_variable] += whole - sized
    parts["pgbouncer_auth_query_connections"] += totals["auth_query"]
    parts["database_reserved_for_others"] += totals["others"]
    largest = sorted(((count, name) for name, count in parts.items() if count), reverse=True)
    return ", ".join(f"{name} ({count})" for count, name in largest)


def _no_room(app: Mapping[str, Any], row: Mapping[str, Any], pools: list[Pool]) -> str:
    """Return why an application's given limit is too small."""
    wrong = f"{app['name']}: app_database_connection_limit is {row['limit']}, but its"
    if not app["poolers"]:
        need = row["direct"] + row["rolling"]
        return (
            f"{wrong} worker processes may open {need} connections and would get errors: give at "
            f"least {need + row['fallback']} ({row['direct']}, {row['rolling']} for a deployment "
            f"and {row['fallback']} over DATABASE_DIRECT_URL), leave it out, or lower app_workers"
        )
    need = row["pooled"] + row["rolling"]
    enough = row["pooled"] + max(row["rolling"], row["fallback"])
    return (
        f"{wrong} poolers may open {need} connections on {', '.join(app['poolers'])} and would get "
        f"errors: give at least {enough} ({row['pooled']} pooled, and the larger of "
        f"{row['rolling']} for a restart and {row['fallback']} for the fallback), leave it "
        f"out, or lower {pools[0].size_variable}"
    )


def connection_budget(
    apps: Applications, hostvars: Hostvars, groups: Groups, server: Mapping[str, Any]
) -> dict[str, Any]:
    """Add up the connections of the inventory, and resolve the pools whose size is `auto`.

    server: as in `_available`. Returns:
    rows: one for each application: application, poolers ("hosts x processes"), pool ("size +
      reserve"), pooled, direct (of the workers of an application without poolers; None where
      nothing but its limit bounds them), rolling (stand-ins: of lone PgBouncer processes, or of
      such workers), fallback, limit (pooled and the larger of rolling and fallback; direct, rolling
      and fallback; or as given), migrations, auth_query;
    totals: {limits, migrations, auth_query, others, total};
    available, source: PostgreSQL's connections and where the number is from;
    fits, message: whether total <= available, and what to change where not;
    pool_sizes: {pooler host: {database: {pool_size}}} of the pools with pool mode session, and of
      the `auto` pools, to be combined into pgbouncer_databases. Each `auto` one gets the same size:
      the largest with which the total stays within AUTO_PERCENT of the available connections and
      within every app_database_connection_limit.
    Refused: a limit below pooled + rolling, or direct + rolling, of its application; a pool of 0,
    which is unlimited; `auto` without a number of connections that stays the same, or without room;
    what native, direct and pool mode session cannot add up.
    """
    facts = hostvars[groups["applications"][0]]
    pools = _pools(apps, hostvars)
    available, source, given = _available(facts, server)
    variable = "database_reserved_for_others"
    others = _number(facts.get(variable, OTHERS), variable, "group all")

    automatic = [pool for app_pools in pools.values() for pool in app_pools if pool.size is None]
    if automatic and not given:
        raise AnsibleFilterError(
            f"{automatic[0].size_variable} is auto, which needs a number of connections that stays "
            f"the same from run to run: set database_max_connections for the group all. ({source})"
        )
    auto_size = max((pool.processes for pool in automatic), default=0)
    target = available * AUTO_PERCENT // 100

    def within(size: int) -> bool:
        rows = _rows(apps, pools, size)
        return all(map(_room, rows)) and _totals(rows, others)["total"] <= target

    if automatic:
        sizes = range(auto_size, target + 1)
        auto_size += max(bisect.bisect_left(sizes, True, key=lambda size: not within(size)) - 1, 0)

    rows = _rows(apps, pools, auto_size)
    for app, row in zip(apps, rows, strict=True):
        if not _room(row):
            raise AnsibleFilterError(_no_room(app, row, pools[app["name"]]))
        row["poolers"] = _counted(f"x {pool.processes}" for pool in pools[app["name"]])
        row["poolers"] = row["poolers"] or f"none ({app['strategy']})"
        row["pool"] = ", ".join(
            dict.fromkeys(
                f"{auto_size if pool.size is None else pool.size} + {pool.reserve}"
                + (" (auto)" if pool.size is None else " (session)" if pool.derived else "")
                for pool in pools[app["name"]]
            )
        )
    totals = _totals(rows, others)
    advice = _advice(apps, pools, rows, totals, auto_size)
    if automatic and totals["total"] > target:
        raise AnsibleFilterError(
            f"{automatic[0].size_variable} is auto, and even pools of {auto_size} make "
            f"{totals['total']} connections, {totals['total'] - target} more than {target}, "
            f"{AUTO_PERCENT} % of {available} ({source}). Change, the largest first: {advice}"
        )
    over = totals["total"] - available
    message = (
        f"{totals['total']} connections may be open at once, {over} more than the {available} that "
        f"PostgreSQL takes ({source}). Lower, the largest first: {advice}. Or raise "
        "max_connections of the server (postgres_max_connections and "
        "ansible/playbooks/postgres.yml, where the inventory makes it)"
    )
    sizes_of: dict[str, dict] = {}
    for pool in (pool for app_pools in pools.values() for pool in app_pools):
        if pool.derived or pool.size is None:
            size = auto_size if pool.size is None else pool.size
            sizes_of.setdefault(pool.host, {})[pool.database] = {"pool_size": size}
    return {
        "rows": rows,
        "totals": totals,
        "available": available,
        "source": source,
        "fits": over <= 0,
        "message": message if over > 0 else "",
        "pool_sizes": sizes_of,
    }


def _counted(values: Iterable[str]) -> str:
    """Return equal values with their number: "2 x 1, 1 x 4"."""
    return ", ".join(f"{count} {value}" for value, count in Counter(values).items())


def connection_limits(
    apps: Applications, hostvars: Hostvars, groups: Groups, server: Mapping[str, Any]
) -> list[dict]:
    """Return the applications with a connection_limit each: the given one, or the derived one."""
    rows = connection_budget(apps, hostvars, groups, server)["rows"]
    return [{**app, "connection_limit": row["limit"]} for app, row in zip(apps, rows, strict=True)]


def has_auto_pools(apps: Applications, hostvars: Hostvars) -> bool:
    """Say whether some pool's size is `auto`, so that PostgreSQL has to be asked."""
    return any(pool.size is None for pools in _pools(apps, hostvars).values() for pool in pools)


def budget_table(budget: Mapping[str, Any]) -> str:
    """Return a connection budget as text of at most 100 columns."""
    # Ansible loads this file for every task that uses a filter: only this one pays for rich.
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    view = Table(box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    view.add_column("application\n")
    view.add_column("pooler hosts\nx processes")
    view.add_column("pool +\nreserve")
    unpooled = any(row["direct"] != 0 for row in budget["rows"])
    numbers = ("pooled", *["direct"] * unpooled, "rolling", "fallback", "limit", "migrations")
    for name in numbers:
        view.add_column(name, justify="right")
    for row in budget["rows"]:
        texts = (row["application"], row["poolers"], row["pool"])
        shown = {**row, "direct": "unbounded" if row["direct"] is None else row["direct"]}
        view.add_row(*texts, *(str(shown[name]) for name in numbers))
    totals, room = budget["totals"], budget["available"] - budget["totals"]["total"]
    sums = Table.grid(padding=(0, 2))
    sums.add_column(justify="right")
    sums.add_column()
    for count, label in (
        (
            totals["limits"],
            "limits: pooled + the larger of rolling and fallback; direct + rolling + fallback; "
            "or as given"
            if unpooled
            else "limits of the applications: pooled + the larger of rolling and fallback, or as "
            "given",
        ),
        (totals["migrations"], "migrations"),
        (totals["auth_query"], "auth_query"),
        (totals["others"], "others (database_reserved_for_others)"),
        (totals["total"], "total"),
        (budget["available"], f"available ({budget['source']})"),
        (room, "left" if budget["fits"] else "left: the budget does not fit"),
    ):
        sums.add_row(str(count), label)
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(view)
    console.print()
    console.print(sums)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "\n".join(lines)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                budget_table,
                client_connections,
                connection_budget,
                connection_limits,
                has_auto_pools,
                serves_asgi,
            )
        }

"""What the inventory may open on PostgreSQL, and what PostgreSQL takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleFilterError

from .pools import Applications, Further, Pool, client_connections, whole_number, workers_of
from .topology import Groups, Hostvars, value_of

MAX_CONNECTIONS = 100
"""PostgreSQL's default of max_connections, assumed if nothing tells more."""

RESERVED_CONNECTIONS = 3
"""PostgreSQL's default of superuser_reserved_connections (reserved_connections is 0)."""


def available_connections(
    hostvars: Hostvars, groups: Groups, server: Mapping[str, Any]
) -> tuple[int, str, bool, str]:
    """Return (connections, where the number is from, whether it stays the same from run to run,
    how to raise it).

    server: what roles/database/tasks/ask.yml registers: {query_result: [{name,
    setting}]}, or {msg} where the server did not answer. Reserved slots are not available. A server
    that the inventory makes and that does not answer will have what the inventory gives.
    """
    facts = hostvars[groups["applications"][0]]
    settings = {row["name"]: int(row["setting"]) for row in server.get("query_result") or []}
    address = f"PostgreSQL at {facts.get('database_host')}:{facts.get('database_port')}"
    variable, made = "database_max_connections", "postgres_max_connections"
    given = facts.get(variable)
    if given is not None:
        given = whole_number(given, variable, "group all")
    wished = None
    for host in (groups.get("postgres") or [])[:1]:
        wished = whole_number(value_of(hostvars[host], made), made, host)
    if "max_connections" in settings:
        highest = settings["max_connections"]
        reserved = settings["superuser_reserved_connections"]
        reserved += settings.get("reserved_connections", 0)  # since PostgreSQL 16
        source = f"{address}: max_connections {highest} less {reserved} reserved"
        if given not in (None, highest):
            source += f"; {variable} is {given}: correct it"
        if wished is None:
            remedy = "raise max_connections of the server"
        elif wished > highest:
            remedy = f"run ansible/playbooks/postgres.yml first, since {made} is {wished}"
            remedy = f"raise the server to the inventory's number: {remedy}"
        else:
            remedy = f"raise {made}, and run ansible/playbooks/postgres.yml first"
        return highest - reserved, source, True, remedy
    reason = " ".join(str(server.get("msg") or "it was not asked").split())[:100]
    if "Python library (psycopg2)" in reason:
        reason = "the host that asks has no client library yet, which database.yml installs"
    silent = f"{address} did not answer: {reason}"
    if wished is not None:
        source = f"{made} {wished} less {RESERVED_CONNECTIONS} reserved; {silent}"
        if given not in (None, wished):
            source += f"; {variable} is {given}: correct it"
        return wished - RESERVED_CONNECTIONS, source, True, f"raise {made}"
    if given is not None:
        source = f"{variable} {given} less {RESERVED_CONNECTIONS} reserved; {silent}"
        remedy = f"raise {variable}, where the server takes more"
        return given - RESERVED_CONNECTIONS, source, True, remedy
    source = (
        f"assumed: PostgreSQL's default {MAX_CONNECTIONS} less {RESERVED_CONNECTIONS} reserved; "
        f"{variable} is not set, and {silent}"
    )
    remedy = f"raise the assumption: set {variable} to what the server takes"
    return MAX_CONNECTIONS - RESERVED_CONNECTIONS, source, False, remedy


def _unpooled(app: Mapping[str, Any]) -> tuple[int | None, int]:
    """Return (direct, rolling) of an application that goes to PostgreSQL itself.

    direct: what its worker processes may open, None where nothing but a given limit bounds them.
    rolling: the stand-ins, one worker process on each host that is changed at the same time.
    """
    reason = f"app_connection_strategy is {app['strategy']}, which no pooler bounds"
    workers = sum(workers_of(app, host, reason) for host in app["hosts"])
    each = client_connections(app)
    if each is not None:
        further = sum(app["process_connections"].values())
        return workers * each + further, app["hosts_at_once"] * each
    if app["connection_limit"] is None:
        raise AnsibleFilterError(
            f"{app['name']}: app_connection_strategy is {app['strategy']}, and an ASGI application "
            "without a pool opens a connection for each request: nothing bounds them but "
            "app_database_connection_limit, so give it, or choose another strategy"
        )
    return None, 0


@dataclass(frozen=True)
class Demand:
    """What the inventory may open, before the sizes of the `auto` pools are known."""

    apps: Applications
    pools: Mapping[str, list[Pool]]
    """Of each application by its name."""
    further: list[Further]
    others: int

    @property
    def held(self) -> frozenset[str]:
        """The users with a given limit, which includes their pools in every database."""
        return frozenset(app["user"] for app in self.apps if app["connection_limit"] is not None)

    def claims(self, app: Mapping[str, Any], auto_size: int) -> int:
        """Return what the application's user may open in further databases, a restart included."""
        pools = [pool for entry in self.further for pool in entry.claims]
        mine = [pool for pool in pools if pool.user == app["user"]]
        return sum(pool.pooled(auto_size) + pool.rolling(auto_size) for pool in mine)

    def rows(self, auto_size: int) -> list[dict]:
        """Return the demand of each application, then of each further database of the poolers."""
        rows = [self._row(app, auto_size) for app in self.apps]
        pooled = [entry for entry in self.further if entry.pools]
        for database in dict.fromkeys(entry.database for entry in pooled):
            entries = [entry for entry in pooled if entry.database == database]
            rows.append(self._further_row(database, entries, auto_size))
        return rows

    def _row(self, app: Mapping[str, Any], auto_size: int) -> dict[str, Any]:
        pools = self.pools[app["name"]]
        pooled = sum(pool.pooled(auto_size) for pool in pools)
        rolling = sum(pool.rolling(auto_size) for pool in pools)
        fallback = app["fallback_connections"] * len(app["hosts"])
        given = app["connection_limit"]
        if app["poolers"]:
            # The fallback is for a pooler that is gone, not for one that is replaced.
            direct, limit = 0, pooled + max(rolling, fallback)
        else:
            # Here it is DATABASE_DIRECT_URL's, which a deployment does not stop.
            direct, rolling = _unpooled(app)
            limit = (direct or 0) + rolling + fallback
        return {
            "application": app["name"],
            "poolers": _counted(f"x {pool.processes}" for pool in pools)
            or f"none ({app['strategy']})",
            "pool": _sizes(pools, auto_size),
            "pooled": pooled,
            "direct": direct,
            "rolling": rolling,
            "fallback": fallback,
            "limit": limit if given is None else given,
            # The owner is the same, and nobody stands in for it.
            "migrations": 0 if "stands_in_for" in app else app["owner_connection_limit"],
            "auth_query": sum(pool.other_users(auto_size) for pool in pools),
        }

    def _further_row(self, database: str, entries: list[Further], auto_size: int) -> dict[str, Any]:
        none: frozenset[str] = frozenset()
        firsts = [entry.pools[0] for entry in entries]
        lone = [(entry, entry.pools[0].lone) for entry in entries]
        return {
            "application": database,
            "poolers": _counted(f"x {pool.processes}" for pool in firsts),
            "pool": _sizes([pool for entry in entries for pool in entry.pools], auto_size),
            "pooled": sum(
                entry.pools[0].processes * entry.of_process(auto_size, none) for entry in entries
            ),
            "direct": 0,
            "rolling": sum(one * entry.of_process(auto_size, none) for entry, one in lone),
            "fallback": 0,
            "limit": sum(
                (entry.pools[0].processes + one) * entry.of_process(auto_size, self.held)
                for entry, one in lone
            ),
            "migrations": 0,
            "auth_query": sum(pool.other_users(auto_size) for pool in firsts),
        }

    def totals(self, rows: list[dict]) -> dict[str, int]:
        """Return the sums: PostgreSQL holds an application to its limit, an owner to its own."""
        sums = {
            "limits": sum(row["limit"] for row in rows),
            "migrations": sum(row["migrations"] for row in rows),
            "auth_query": sum(row["auth_query"] for row in rows),
            "others": self.others,
        }
        return {**sums, "total": sum(sums.values())}

    def need(self, app: Mapping[str, Any], row: Mapping[str, Any], auto_size: int) -> int:
        """Return what the application's limit must have room for at least."""
        used = row["pooled"] + (row["direct"] or 0) + row["rolling"]
        return used + self.claims(app, auto_size)

    def has_room(self, app: Mapping[str, Any], row: Mapping[str, Any], auto_size: int) -> bool:
        """Say whether a given limit has room for what poolers or workers may open."""
        return app["connection_limit"] is None or self.need(app, row, auto_size) <= row["limit"]

    def advice(self, rows: list[dict], auto_size: int) -> str:
        """Return the variables that make the total, the largest contributor first.

        Of rolling and fallback only the larger one counts. rolling is the pool of a lone process
        once more, so its size and reserve make it. Where both are equal, a smaller fallback alone
        would not lower the total. A given limit without room to spare falls with what it is for.
        """
        parts: Counter[str] = Counter()
        for app, row in zip(self.apps, rows, strict=False):
            name = app["name"]
            parts[f"app_database_owner_connection_limit of {name}"] += row["migrations"]
            pools = self.pools[name]
            if app["connection_limit"] is not None:
                tight = self.need(app, row, auto_size) >= row["limit"]
                within = (pools[0].size_variable if pools else "app_workers") if tight else ""
                limit = f"app_database_connection_limit of {name}" + f" with {within}" * tight
                parts[limit] += row["limit"]
                for pool in pools:
                    for variable, count in pool.parts(auto_size, True).items():
                        if variable.startswith("pgbouncer_auth_query"):
                            parts[variable] += count
                continue
            restarts = row["rolling"] >= row["fallback"]
            if not app["poolers"]:
                processes = sum(app["process_connections"].values())
                parts[f"app_processes of {name}"] += processes
                workers = row["direct"] + row["rolling"] - processes
                parts[f"app_workers and client pools of {name}"] += workers
            if not app["poolers"] or not restarts:
                parts[f"app_fallback_connections of {name}"] += row["fallback"]
            for pool in pools:
                parts += pool.parts(auto_size, restarts)
        for entry in (entry for entry in self.further if entry.pools):
            parts += entry.parts(auto_size, self.held)
        parts["database_reserved_for_others"] += self.others
        largest = sorted(((count, name) for name, count in parts.items() if count), reverse=True)
        return ", ".join(f"{name} ({count})" for count, name in largest)

    def no_room(self, app: Mapping[str, Any], row: Mapping[str, Any], auto_size: int) -> str:
        """Return why an application's given limit is too small."""
        wrong = f"{app['name']}: app_database_connection_limit is {row['limit']}, but its"
        claims = self.claims(app, auto_size)
        need = self.need(app, row, auto_size)
        further = f", {claims} of its user in further databases of the poolers" * bool(claims)
        if not app["poolers"]:
            processes = sum(app["process_connections"].values())
            among = f", {processes} of them of app_processes" * bool(processes)
            return (
                f"{wrong} worker processes may open {need} connections{among} and would get "
                f"errors: give at least {need + row['fallback']} ({row['direct']}, "
                f"{row['rolling']} for a deployment and {row['fallback']} over "
                "DATABASE_DIRECT_URL), leave it out, or lower app_workers"
                + " or app_processes.*.connections"
                * bool(processes)
            )
        enough = row["pooled"] + max(row["rolling"], row["fallback"]) + claims
        pools = self.pools[app["name"]]
        return (
            f"{wrong} poolers may open {need} connections on {', '.join(app['poolers'])} and would "
            f"get errors: give at least {enough} ({row['pooled']} pooled{further}, and the larger "
            f"of {row['rolling']} for a restart and {row['fallback']} for the fallback), leave it "
            f"out, or lower {pools[0].size_variable}"
        )


def _sizes(pools: Sequence[Pool], auto_size: int) -> str:
    """Return the different sizes of pools as the table shows them."""
    return ", ".join(
        dict.fromkeys(
            f"{auto_size if pool.size is None else pool.size} + {pool.reserve}"
            + (" (auto)" if pool.size is None else " (session)" if pool.derived else "")
            for pool in pools
        )
    )


def _counted(values: Iterable[str]) -> str:
    """Return equal values with their number: "2 x 1, 1 x 4"."""
    return ", ".join(f"{count} {value}" for value, count in Counter(values).items())

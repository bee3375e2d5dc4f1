"""The connection budget: what may be open at once, against what PostgreSQL takes.

Worst cases of poolers, applications, migrations and people, added up over the whole inventory
before anything changes. plugin_utils/pools.py has the pools, demand.py their sums, and
pooler_clients.py the other side of the poolers. Every function is pure.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ..plugin_utils.demand import Demand, available_connections
from ..plugin_utils.pooler_clients import client_notes, client_row
from ..plugin_utils.pools import (
    AUTO,
    Applications,
    client_connections,
    every_pool,
    further_pools,
    pools_of,
    serves_asgi,
    some_of,
    whole_number,
)
from ..plugin_utils.topology import Groups, Hostvars, value_of

AUTO_PERCENT = 90
"""What `auto` fills the available connections up to; the rest absorbs a host that is added."""


def add_up(
    apps: Applications, hostvars: Hostvars, groups: Groups, server: Mapping[str, Any]
) -> dict[str, Any]:
    """Add up the connections of the inventory, and resolve the pools whose size is `auto`.

    server: as in `available_connections`. Returns:
    rows: one for each application, then one for each database of pgbouncer_databases that none has:
      application, poolers ("hosts x processes"), pool ("size + reserve"), pooled, direct (of the
      workers of an application without poolers; None where nothing but its limit bounds them),
      rolling (stand-ins: of lone PgBouncer processes, or of such workers), fallback, limit (pooled
      and the larger of rolling and fallback; direct, rolling and fallback; or as given),
      migrations, auth_query. A further database's limit leaves out the users with a given limit;
    totals: {limits, migrations, auth_query, others, total};
    available, source: PostgreSQL's connections and where the number is from;
    fits, message: whether total <= available, and what to change where not;
    connection_limits: {application: the given limit, or the derived one with its user's pools in
      further databases};
    pool_sizes: {pooler host: {database: {pool_size}}} of the pools with pool mode session, and of
      the `auto` pools, to be combined into pgbouncer_databases. Each `auto` one gets the same size:
      the largest with which the total stays within AUTO_PERCENT of the available connections and
      within every app_database_connection_limit;
    clients: for each pooler host with an application what `client_row` returns;
    client_limits: {pooler host: {max_client_conn}} where the inventory gives none: the role's
      number, or what the clients need;
    notes: lines on what could not be added up.
    Refused: a limit below pooled + rolling, or direct + rolling, of its application; a pool of 0,
    which is unlimited; `auto` without a number of connections that stays the same, or without room;
    what native, direct and pool mode session cannot add up; a limit of clients without room.
    """
    variable = "database_reserved_for_others"
    facts = hostvars[groups["applications"][0]]
    everywhere, apps = apps, [app for app in apps if not app["server"]]
    pools = pools_of(apps, hostvars)
    further, notes = further_pools(apps, pools, hostvars, groups)
    notes += other_servers(everywhere)
    others = whole_number(value_of(facts, variable), variable, "group all")
    demand = Demand(apps, pools, further, others)
    available, source, given, remedy = available_connections(hostvars, groups, server)

    automatic = [pool for pool in every_pool(pools, further) if pool.size is None]
    if automatic and not given:
        raise AnsibleFilterError(
            f"{automatic[0].size_variable} is auto, which needs a number of connections that stays "
            f"the same from run to run: set database_max_connections for the group all. ({source})"
        )
    auto_size = max((pool.processes for pool in automatic), default=0)
    target = available * AUTO_PERCENT // 100

    def within(size: int) -> bool:
        rows = demand.rows(size)
        room = all(demand.has_room(*pair, size) for pair in zip(apps, rows, strict=False))
        return room and demand.totals(rows)["total"] <= target

    if automatic:
        sizes = range(auto_size, target + 1)
        auto_size += max(bisect.bisect_left(sizes, True, key=lambda size: not within(size)) - 1, 0)

    rows = demand.rows(auto_size)
    for app, row in zip(apps, rows, strict=False):
        if not demand.has_room(app, row, auto_size):
            raise AnsibleFilterError(demand.no_room(app, row, auto_size))
    totals = demand.totals(rows)
    advice = demand.advice(rows, auto_size)
    if automatic and totals["total"] > target:
        raise AnsibleFilterError(
            f"{automatic[0].size_variable} is auto, and even pools of {auto_size} make "
            f"{totals['total']} connections, {totals['total'] - target} more than {target}, "
            f"{AUTO_PERCENT} % of {available} ({source}). Change, the largest first: {advice}. "
            f"Or {remedy}"
        )
    over = totals["total"] - available
    message = (
        f"{totals['total']} connections may be open at once, {over} more than the {available} that "
        f"PostgreSQL takes ({source}). Lower, the largest first: {advice}. Or {remedy}"
    )
    sizes_of: dict[str, dict] = {}
    elsewhere = pools_of([app for app in everywhere if app["server"]], hostvars)
    for pool in every_pool(elsewhere, []):
        if pool.size is None and not automatic:
            raise AnsibleFilterError(
                f"{pool.host}: {pool.size_variable} is auto, but {pool.database} is on another "
                "server, whose connections nobody adds up: give a number"
            )
    for pool in [*every_pool(pools, further), *every_pool(elsewhere, [])]:
        if pool.derived or pool.size is None:
            size = auto_size if pool.size is None else pool.size
            sizes_of.setdefault(pool.host, {})[pool.database] = {"pool_size": size}
    clients = []
    for host in groups.get("pgbouncer") or []:
        if served := [app for app in everywhere if host in app["poolers"]]:
            clients.append(client_row(host, served, hostvars[host]))
    return {
        "rows": rows,
        "totals": totals,
        "available": available,
        "source": source,
        "fits": over <= 0,
        "message": message if over > 0 else "",
        "connection_limits": {
            app["name"]: row["limit"]
            + (demand.claims(app, auto_size) if app["connection_limit"] is None else 0)
            for app, row in zip(apps, rows, strict=False)
        },
        "pool_sizes": sizes_of,
        "clients": clients,
        "client_limits": {
            row["pooler"]: {"max_client_conn": row["max_client_conn"]}
            for row in clients
            if not row["given"]
        },
        "notes": notes + client_notes(everywhere, clients),
    }


def other_servers(apps: Applications) -> list[str]:
    """Return a line for each further database that is not on the server of this budget."""
    return [
        f"{app['name']} is on {app['server']['host']}:{app['server']['port']}, which is not the "
        f"server of this budget: its pools, one on each of {some_of(app['poolers'])}, are not "
        "counted"
        for app in apps
        if app["server"]
    ]


def more_than_counted(
    fleet: Mapping[str, Any], name: str, host: str, ways: Mapping[str, Any]
) -> str:
    """Return what to do where a running application opens more than the budget counts; else "".

    fleet: as of `connection_budget`. ways: what app_ways registers of the application's host:
    pooled and cores; nothing is said where the host did not answer.
    """
    app = fleet["applications"].get(name)
    opened = ways.get("pooled")
    each = client_connections(app) if app and app["poolers"] and app["framework"] else None
    if each is None or opened is None:
        return ""
    workers = app["workers"][host]
    workers = 2 * ways["cores"] + 1 if workers == AUTO else workers
    databases = sum(key == name or key.startswith(f"{name}.") for key in fleet["applications"])
    processes = app["process_connections"][host]
    # A deployment has one worker more, its stand-in.
    most = ((workers + 1) * each + processes) * databases
    if opened <= most:
        return ""
    return (
        f"has {opened} connections to its poolers, and the budget counts {most}: ({workers} worker "
        f"processes and a stand-in) x {each}, and {processes} of app_processes"
        + f", in each of {databases} databases"
        * (databases > 1)
        + ". Set app_connection_pool_size (or app_threads) and the connections of app_processes to "
        "what the application really opens, docs/databases.md"
    )


def connection_budget(fleet: Mapping[str, Any], server: Mapping[str, Any]) -> dict[str, Any]:
    """Return the connection budget of a fleet; where `add_up` refuses it, {fits: false, message}.

    fleet: as the filter of that name returns it. server: as of `add_up`.
    """
    apps = list(fleet["applications"].values())
    if fleet["contradiction"]:
        return {"fits": False, "message": fleet["contradiction"]}
    try:
        return add_up(apps, fleet["facts"], fleet["groups"], server)
    except AnsibleFilterError as error:
        return {"fits": False, "message": str(error)}


def _client_table(clients: Sequence[Mapping[str, Any]]) -> Any:
    """Return the clients of the pooler hosts, those with the same numbers in one line."""
    from rich.box import SIMPLE
    from rich.table import Table

    view = Table(box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    view.add_column("pooler hosts")
    view.add_column("clients of each", justify="right")
    view.add_column("max_client_conn", justify="right")
    alike: dict[tuple[str, str], list[str]] = {}
    for row in clients:
        count = f"{row['clients']}{' or more' * row['at_least']}"
        limit = f"{row['max_client_conn']}{' (given)' * row['given']}"
        alike.setdefault((count, limit), []).append(row["pooler"])
    for numbers, hosts in alike.items():
        view.add_row(some_of(hosts), *numbers)
    return view


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
    if budget["clients"]:
        console.print()
        console.print(_client_table(budget["clients"]))
    if budget["notes"]:
        console.print()
    for note in budget["notes"]:
        console.print(note, markup=False, highlight=False)
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
                more_than_counted,
                serves_asgi,
            )
        }

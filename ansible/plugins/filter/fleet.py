"""Filters that derive the fleet from the inventory, once a run.

`fleet` reads each host's variables once. ansible/playbooks/tasks/derive.yml keeps what it returns
on every host of the run; ansible/playbooks/vars/derived.yml gives the roles their part of it.
"""

from __future__ import annotations

import base64
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleError, AnsibleFilterError

from ..plugin_utils.applications import applications, password_of, server_of
from ..plugin_utils.ecs_tasks import with_tasks
from ..plugin_utils.pools import has_auto_pools
from ..plugin_utils.role_defaults import known_variables, options, role_constants
from ..plugin_utils.roles import application_roles
from ..plugin_utils.stand_ins import with_stand_ins
from ..plugin_utils.topology import (
    Groups,
    Hostvars,
    batches,
    client_addresses,
    endpoints,
    hba_rules,
    listen_addr,
    poolers_of,
    serial_of,
    uses_database,
)
from ..plugin_utils.values import SERVER_TIMEOUTS, kind_of

KINDS = ("applications", "pgbouncer", "postgres", "database_admin", "ecs")
"""The groups of an inventory that poolkit reads."""

PREFIXES = re.compile("app_|pgbouncer_|postgres_|database_|ecs_")

SECRETS = (
    "app_databases",
    "app_database_password",
    "app_database_owner_password",
    "database_admin_password",
    "pgbouncer_auth_query_password",
    "scram_salt_seed",
)
"""Read to be checked, and not kept."""

FACTS = (
    *SECRETS,
    "app_connection_pool_size",
    "app_connection_strategy",
    "app_database",
    "app_database_adopt_from",
    "app_database_connect_roles",
    "app_database_connection_limit",
    "app_database_fallback_enabled",
    "app_database_owner",
    "app_database_owner_connection_limit",
    "app_database_settings",
    "app_database_sslmode",
    "app_database_user",
    "app_fallback_connections",
    "app_framework",
    "app_migration_lock_timeout",
    "app_migration_statement_timeout",
    "app_module",
    "app_name",
    "app_pool_mode",
    "app_processes",
    "app_serial",
    "app_threads",
    "app_workers",
    "ecs_tasks",
    "ecs_tasks_max",
    "pgbouncer_auth_query_connections",
    "pgbouncer_auth_query_enabled",
    "pgbouncer_database_host",
    "pgbouncer_database_port",
    "pgbouncer_databases",
    "pgbouncer_hba_rules",
    "pgbouncer_listen_port",
    "pgbouncer_processes",
    "pgbouncer_serial",
    "pgbouncer_settings",
    "pgbouncer_socket_auth_method",
    "pgbouncer_users",
    "postgres_max_connections",
)
"""The variables of the other roles that other hosts, or the fleet as a whole, depend on."""


TYPES = {
    "app_databases": Mapping,
    "app_database_settings": Mapping,
    "database_security_group_sources": list,
    "database_security_groups": list,
    "pgbouncer_databases": Mapping,
    "pgbouncer_hba_rules": list,
    "pgbouncer_settings": Mapping,
    "pgbouncer_users": Mapping,
}
"""Those that are no single values."""


def _plain(value: Any) -> Any:
    """Return a value without Ansible's lazy containers, which template on each access."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _needed() -> list[str]:
    """Return the variables that the inventory has to give the group all."""
    return [name for name, option in options("database").items() if option.get("required")]


def _read(hostvars: Hostvars, groups: Groups) -> tuple[dict[str, dict], set[str]]:
    """Return ({host: those of its variables that matter here}, the names of poolkit's variables).

    Each host's variables are fetched once: a fetch takes Ansible about a millisecond.
    """
    facts: dict[str, dict] = {}
    names: set[str] = set()
    wanted = (*FACTS, *(name for name in options("database") if name not in FACTS))
    for host in dict.fromkeys(host for kind in KINDS for host in groups[kind]):
        variables = hostvars[host]
        names.update(name for name in variables if PREFIXES.match(name))
        facts[host] = {}
        for name in wanted:
            try:
                if name in variables:
                    facts[host][name] = _plain(variables[name])
            except AnsibleError as error:
                raise AnsibleFilterError(f"{host}: {name}: {error}") from error
            if problem := _wrong_type(name, facts[host].get(name)):
                raise AnsibleFilterError(f"{host}: {problem}")
    return facts, names


def _wrong_type(name: str, value: Any) -> str:
    """Return what is wrong with the type of a variable that is no single value; "" if nothing."""
    if name not in TYPES or value is None:
        return ""
    if not isinstance(value, TYPES[name]):
        # Not the value: text for a database may hold a password.
        wanted = "a list" if TYPES[name] is list else "a mapping"
        return f"{name} is {kind_of(value)}: give {wanted}"
    if name.endswith("_settings") or name.startswith("database_"):
        return ""
    for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
        if not isinstance(entry, Mapping | None):
            return f"{name}[{key!r}] is {kind_of(entry)}: give a mapping"
    return ""


def _without_secrets(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in facts.items() if name not in SECRETS}
    databases = kept.get("pgbouncer_databases")
    if isinstance(databases, Mapping):
        kept["pgbouncer_databases"] = {
            name: {key: value for key, value in entry.items() if key != "password"}
            if isinstance(entry, Mapping)
            else entry
            for name, entry in databases.items()
        }
    return kept


def fleet(
    hostvars: Hostvars, groups: Groups, rotation: Mapping[str, bool] | None = None
) -> dict[str, Any]:
    """Derive what the hosts of an inventory are to each other. Raises nothing.

    rotation: while passwords change, the users of `with_stand_ins`; None where they do not.
    Returns:
    errors: what is wrong with the facts that the hosts share, with the variable to change;
    contradiction: the one of them that leaves parts of the following empty, or "";
    security_groups: those of the database, for AWS to be asked who reaches it;
    foreign: the names of variables that begin as poolkit's do and are not known;
    groups, facts: {group: hosts} and {host: variables}, those that the connection budget needs.
      Each task of a service of ECS that may run at once is a host here;
    uses_database: whether some application has a database of the inventory, and not a platform's;
    auto_pools: whether some pool's size is `auto`, so that PostgreSQL has to be asked;
    query_wait_timeout: the longest of the poolers, in seconds; 0: no end;
    applications: {name: as `applications` returns it}, those of the strategy managed left out, and
      NAME.ALIAS for each further database of one;
    hosts_of: {name of any application: its hosts};
    hosts: {host of an application: {poolers: [{host, port}], as it reaches them}};
    poolers: {host: {listen_addr, client_addresses, applications (names)}};
    hba_rules: of the inventory's own PostgreSQL server, where it has one;
    rotation: as given.
    Nothing of it is a secret.
    """
    groups = {kind: list(groups.get(kind) or []) for kind in KINDS}
    found: dict[str, Any] = {"errors": [], "foreign": [], "groups": groups, "facts": {}}
    found["contradiction"], found["security_groups"] = "", []
    found["rotation"] = None if rotation is None else dict(rotation)
    found |= {"uses_database": False, "auto_pools": False, "applications": {}, "hosts_of": {}}
    found |= {"hosts": {}, "poolers": {}, "hba_rules": [], "query_wait_timeout": 0}
    try:
        facts, names = _read(hostvars, groups)
        facts, groups = with_tasks(facts, groups)
    except AnsibleFilterError as error:
        return {**found, "errors": [str(error)], "contradiction": str(error)}
    found["groups"] = groups
    for admin in groups["database_admin"][:1]:
        found["security_groups"] = facts[admin].get("database_security_groups") or []
    found["foreign"] = foreign_variables(names)
    found["facts"] = {host: _without_secrets(of_host) for host, of_host in facts.items()}
    for host in groups["applications"]:
        found["hosts_of"].setdefault(str(facts[host].get("app_name")), []).append(host)
    found["errors"] = fleet_errors(facts, groups, names)
    if not groups["applications"]:
        return {**found, "contradiction": found["errors"][0]}
    for part in (_ways, functools.partial(_served, rotation=found["rotation"] or {})):
        try:
            found |= part(facts, groups)
        except AnsibleFilterError as error:
            found["errors"] = found["errors"] or [str(error)]
            found["contradiction"] = found["contradiction"] or str(error)
    return found


def _ways(facts: Hostvars, groups: Groups) -> dict[str, Any]:
    """Return the parts of `fleet` on how applications' hosts reach PostgreSQL."""
    used = poolers_of(facts, groups)
    return {
        "uses_database": uses_database(facts, groups),
        "query_wait_timeout": _query_wait_timeout(facts, groups),
        "hosts": {
            host: {"poolers": endpoints(facts, poolers, host)} for host, poolers in used.items()
        },
    }


def _served(facts: Hostvars, groups: Groups, rotation: Mapping[str, bool]) -> dict[str, Any]:
    """Return the parts of `fleet` on what poolers and PostgreSQL serve."""
    apps = with_stand_ins(applications(facts, groups), rotation)
    clients: dict[str, list[str]] = {pooler: [] for pooler in groups["pgbouncer"]}
    for host, poolers in poolers_of(facts, groups).items():
        for pooler in poolers:
            clients[pooler].append(host)
    # A pooler beside an application listens for its own host, also where that goes past it.
    beside = set(groups["applications"])
    poolers = {
        pooler: {
            "listen_addr": listen_addr(facts, groups, pooler),
            "client_addresses": client_addresses(
                facts, [pooler] if pooler in beside else hosts, pooler
            ),
            "applications": [],
        }
        for pooler, hosts in clients.items()
    }
    for app in apps:
        for pooler in app["poolers"]:
            poolers[pooler]["applications"].append(app["name"])
    admin = facts[groups["database_admin"][0]] if groups["database_admin"] else {}
    admin_user = admin.get("database_admin_user") or ""
    return {
        "applications": {app["name"]: _without_passwords(app) for app in apps},
        "poolers": poolers,
        "hba_rules": hba_rules(
            [app for app in apps if not app["server"]], facts, groups, admin_user
        )
        if groups["postgres"]
        else [],
        "auto_pools": _auto_pools(apps, facts, groups),
    }


def _without_passwords(app: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: app[key] for key in app if key not in ("password", "owner_password")}
    if server := app["server"]:
        kept["server"] = {key: server[key] for key in ("host", "port", "dbname")}
    return kept


def _auto_pools(apps: list[dict], facts: Hostvars, groups: Groups) -> bool:
    try:
        return has_auto_pools(apps, facts, groups)
    except AnsibleFilterError:
        return False  # what cannot be added up is the connection budget's to refuse


def _query_wait_timeout(facts: Hostvars, groups: Groups) -> int:
    """Return the longest query_wait_timeout of the inventory's poolers, in seconds; 0: no end."""
    usual = role_constants("pgbouncer")["_pgbouncer_settings"]["query_wait_timeout"]
    settings = [facts[host].get("pgbouncer_settings") or {} for host in groups["pgbouncer"]]
    given = [settings_of_host.get("query_wait_timeout", usual) for settings_of_host in settings]
    # What is no number is the role's to refuse.
    waits = [int(value) for value in given if re.fullmatch(r"\d+", str(value))]
    return 0 if 0 in waits else max(waits, default=usual)


MISSPELT = 0.85
"""Least similarity (difflib's ratio) of a misspelt variable to the one that was meant.

app_prot and app_port have 0.88; names of an inventory's own have less, such as app_hostname 0.80
(to app_name) and app_domain 0.60.
"""


def misspelt_variables(names: Iterable[str], role: str) -> list[str]:
    """Return a message for each variable that is nearly spelt as one of the role's.

    Argument specs accept an unknown top-level variable in silence, so a misspelt one would be a
    setting that never takes effect. An inventory may hold variables of its own with the same
    beginning (app_domain, say): `foreign_variables` returns those.
    """
    return _misspelt(names, set(options(role)))


def _misspelt(names: Iterable[str], known: set[str]) -> list[str]:
    messages = []
    for name in sorted(set(names) - known):
        words = name.split("_")
        # A name that lacks a word is another one: database_password, database_admin_password.
        kin = [
            other
            for other in known
            if other.split("_")[0] == words[0] and not set(words) < set(other.split("_"))
        ]
        near = difflib.get_close_matches(name, sorted(kin), n=1, cutoff=MISSPELT)
        if near:
            messages.append(f"{name} (did you mean {near[0]}?)")
    return messages


def foreign_variables(names: Iterable[str]) -> list[str]:
    """Return the names that begin as poolkit's variables do and are not known.

    Those that misspelt_variables refuses are left out.
    """
    known = known_variables()
    unknown = set(names) - known
    misspelt = {message.partition(" ")[0] for message in _misspelt(unknown, known)}
    return sorted(unknown - misspelt)


def fleet_errors(hostvars: Hostvars, groups: Groups, names: Iterable[str]) -> list[str]:
    """Return what is wrong with the facts that the hosts share; asks no host.

    names: the variables of the inventory. A message for each: a missing group, a missing or
    misspelt variable of the database, poolers that have nothing to serve, a wrong pgbouncer_serial,
    and what `applications` and `application_roles` refuse.
    """
    if not groups.get("applications"):
        return [_no_host("applications")]
    first = hostvars[groups["applications"][0]]
    try:
        for host in groups.get("pgbouncer", []):
            serial_of(hostvars[host], host, "pgbouncer")
        names = [name for name in names if name.startswith("database_")]
        errors = [
            f"unknown variable {message}; inventories/production/group_vars/all/main.yml lists the "
            "known ones"
            for message in misspelt_variables(names, "database")
        ]
        if not uses_database(hostvars, groups):
            return errors + _poolers_without_database(hostvars, groups)
        errors += [] if groups.get("database_admin") else [_no_host("database_admin")]
        admins = groups.get("database_admin") or []
        asking = [first, *(hostvars[host] for host in admins[:1])]
        errors += [
            f"{name} is missing: set it for the inventory's group all"
            for name in _needed()
            if any(str(facts.get(name) or "") == "" for facts in asking)
        ]
        # PostgreSQL and the poolers must hold the same verifiers.
        seeds = {
            str(facts.get("scram_salt_seed"))
            for facts in (*asking, *(hostvars[host] for host in groups.get("pgbouncer", [])))
        }
        if len(seeds) > 1 and not errors:
            errors.append("scram_salt_seed differs between hosts: set it once, for the group all")
        if not errors:
            apps = applications(hostvars, groups, first["database_admin_user"])
            application_roles(
                [{**app, "connection_limit": None} for app in apps if not app["server"]],
                first["scram_salt_seed"],
            )
    except AnsibleFilterError as error:
        return [str(error)]
    return errors


def _no_host(group: str) -> str:
    return f"The inventory has no host in the group {group}; inventories/local/hosts.yml shows one"


def _poolers_without_database(hostvars: Hostvars, groups: Groups) -> list[str]:
    poolers = groups.get("pgbouncer", [])
    if not poolers or "database_host" in hostvars[poolers[0]]:
        return []
    return [
        "Every application has the strategy managed, so the hosts of the group pgbouncer "
        f"({', '.join(poolers)}) have nothing to serve: leave the group out, or set database_host "
        "for pgbouncer_databases of your own"
    ]


def pooler_batches(hostvars: Hostvars, groups: Groups, begun: str) -> list[list[str]]:
    """Return the hosts of the group `pgbouncer` in the batches of a deployment.

    First those that share their clients (a tier, or the database's host), one after the other.
    Then those beside applications: in each batch the next pgbouncer_serial poolers of every
    application, a number or a percentage, all at once by default. begun: as in
    `rollout_batches`.
    """
    served, shared = set(groups.get("applications") or []), []
    beside: dict[str, list[str]] = {}
    for host in groups.get("pgbouncer", []):
        facts = hostvars[host]
        if begun in facts and host in served:
            beside.setdefault(str(facts.get("app_name")), []).append(host)
        elif begun in facts:
            shared.append([host])
    sets = (
        (hosts, serial_of(hostvars[hosts[0]], hosts[0], "pgbouncer")) for hosts in beside.values()
    )
    return shared + batches(sets)


def rollout_batches(hostvars: Hostvars, groups: Groups, begun: str) -> list[list[str]]:
    """Return the hosts of the group `applications` in the batches of a rollout.

    Each batch holds the next app_serial hosts of every application: a number, or a percentage of
    its hosts, at least one. The applications are rolled out side by side, in the inventory's order.
    begun: a variable that an earlier play has registered on the hosts that take part; Ansible
    would fill a batch up with other hosts where --limit leaves some out.
    """
    hosts_of: dict[str, list[str]] = {}
    for host in groups.get("applications") or []:
        facts = hostvars[host]
        if begun in facts:
            hosts_of.setdefault(str(facts.get("app_name")), []).append(host)
    return batches((hosts, serial_of(hostvars[hosts[0]], hosts[0])) for hosts in hosts_of.values())


def pooler_applications(
    fleet: Mapping[str, Any], host: str, hostvars: Hostvars
) -> list[dict[str, Any]]:
    """Return what a pooler host needs to know of the applications that it serves.

    fleet: as of `fleet`. Each: name, database, user, password, owner, pool_mode, statement_timeout
    and idle_in_transaction_session_timeout (as the inventory gives them, "0" for none), and for a
    database on another server its part of a [databases] entry as server. The owner roles do not
    pass through a pooler; it gets their names to refuse them. One whose user waits for the
    inventory's password has the verifier of the pooler's user list as `secret`
    (hostvars[host].__pooler_userlist, which ansible.builtin.slurp has registered).
    """
    kept = userlist_secrets(hostvars[host].get("__pooler_userlist") or {})
    apps = [fleet["applications"][name] for name in fleet["poolers"][host]["applications"]]
    keys = ("name", "database", "user", "owner", "pool_mode")
    found = []
    for app in apps:
        facts = hostvars[app["hosts"][0]]
        entry = {key: app[key] for key in keys}
        entry["password"] = password_of(facts, app, "")
        entry |= {name: str(app["settings"].get(name, 0)) for name in SERVER_TIMEOUTS}
        if app["server"]:
            entry["server"] = server_of(facts, app)
        if app.get("waits") and app["user"] in kept:
            entry["secret"] = kept[app["user"]]
        found.append(entry)
    return found


def userlist_secrets(slurped: Mapping[str, Any]) -> dict[str, str]:
    """Return {user: password or verifier} of a user list that ansible.builtin.slurp has read."""
    text = base64.b64decode(slurped.get("content", "")).decode()
    pairs = re.findall(r'^"((?:[^"]|"")*)"\s+"((?:[^"]|"")*)"', text, re.MULTILINE)
    return {user.replace('""', '"'): secret.replace('""', '"') for user, secret in pairs}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                fleet,
                misspelt_variables,
                pooler_applications,
                pooler_batches,
                rollout_batches,
            )
        }

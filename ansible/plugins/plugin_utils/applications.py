"""The applications of an inventory, from the variables of their hosts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from .names import (
    OWN_ENDINGS,
    PGBOUNCER_PLAIN_NAME,
    RESERVED_DATABASE,
    RESERVED_NAMES,
    RESERVED_ROLE,
)
from .topology import (
    FRAMEWORKS,
    POOL_MODES,
    Groups,
    Hostvars,
    batch_size,
    choice,
    poolers_of,
    serial_of,
    strategy_of,
    value_of,
    whole_number,
)
from .values import WORKERS


def applications(hostvars: Hostvars, groups: Groups, admin_user: str | None = None) -> list[dict]:
    """Collect the applications of the inventory: one entry for each distinct `app_name`.

    Left out are those of the strategy `managed`, whose database is the platform's. Each entry:
    name, hosts (of the group `applications`), poolers (the pooler hosts that serve it; none for
    the strategies native and direct), clients ({pooler: the hosts that may use it}), database,
    user, password, owner, owner_password, connection_limit (None where the inventory gives none:
    `connection_limits` derives it), fallback_connections (of one host), owner_connection_limit,
    settings (of the user), owner_settings, connect_roles (others that may connect), schema (the
    first of a declared search_path, or public), strategy, pool_mode, framework, module, workers
    ({host: number or "auto"}), threads, connection_pool_size, process_connections ({host: of all
    its app_processes together}), hosts_at_once (in a batch of a rollout).
    Refused: two hosts of one application that state different facts, two applications with one
    database or role, a role that is the administrator's, and a host that no pooler serves.
    """
    found: dict[str, dict] = {}
    for host in groups["applications"]:
        entry = _application(hostvars, host)
        each: dict[str, Any] = {"hosts": [], "workers": {}, "process_connections": {}}
        known = found.setdefault(entry["name"], {**entry, **each})
        keys = ["strategy"] if known["strategy"] != entry["strategy"] else list(entry)
        differing = sorted(key for key in keys if known[key] != entry[key])
        if differing:
            raise AnsibleFilterError(
                f"{host} and {known['hosts'][0]} both run the application {entry['name']!r} but "
                f"differ in {', '.join(differing)}: state them once, in the application's "
                "group_vars"
            )
        known["hosts"].append(host)
        known["workers"][host] = _workers(hostvars[host], host)
        known["process_connections"][host] = _process_connections(hostvars[host], host)
    entries = [entry for entry in found.values() if entry["strategy"] != "managed"]
    used = poolers_of(hostvars, groups)
    order = {pooler: number for number, pooler in enumerate(groups.get("pgbouncer", []))}
    for entry in entries:
        clients: dict[str, list[str]] = {}
        for host in entry["hosts"]:
            for pooler in used[host]:
                clients.setdefault(pooler, []).append(host)
        entry["clients"] = {pooler: clients[pooler] for pooler in sorted(clients, key=order.get)}
        entry["poolers"] = list(entry["clients"])
        entry["hosts_at_once"] = batch_size(entry.pop("serial"), len(entry["hosts"]))
    _refuse_shared(entries, admin_user)
    return entries


def _application(hostvars: Hostvars, host: str) -> dict:
    """Return the facts of one host's application; if it is managed, its name alone."""
    facts = hostvars[host]
    name = _required(facts, "app_name", host)
    strategy = strategy_of(hostvars, host)
    if strategy == "managed":
        return {"name": name, "strategy": strategy}
    settings = dict(facts.get("app_database_settings") or {})
    owner_settings = {
        "lock_timeout": _duration(facts, "app_migration_lock_timeout", host),
        "statement_timeout": _duration(facts, "app_migration_statement_timeout", host),
    }
    if "search_path" in settings:
        owner_settings["search_path"] = settings["search_path"]
    entry = {
        "name": name,
        "database": facts.get("app_database", name),
        "user": facts.get("app_database_user", name),
        "password": _required(facts, "app_database_password", host),
        "owner": facts.get("app_database_owner", f"{name}_owner"),
        "owner_password": _required(facts, "app_database_owner_password", host),
        "connection_limit": _count(facts, "app_database_connection_limit", host),
        "fallback_connections": _count(facts, "app_fallback_connections", host),
        "owner_connection_limit": _count(facts, "app_database_owner_connection_limit", host),
        "settings": settings,
        "owner_settings": owner_settings,
        "schema": _schema(settings, host),
        "strategy": strategy,
        "pool_mode": choice(facts, "app_pool_mode", POOL_MODES, host),
        "framework": facts.get("app_framework", "")
        and choice(facts, "app_framework", FRAMEWORKS, host),
        "module": facts.get("app_module", ""),
        "threads": _count(facts, "app_threads", host),
        "connection_pool_size": _count(facts, "app_connection_pool_size", host),
        "connect_roles": _connect_roles(facts, host),
        "serial": serial_of(facts, host),
    }
    for key in ("database", "user", "owner"):
        _check_name(entry[key], f"app_database{'' if key == 'database' else '_' + key}", host)
    if entry["user"] == entry["owner"]:
        raise AnsibleFilterError(
            f"{host}: app_database_user and app_database_owner are both {entry['user']!r}: the "
            "owner runs migrations, the user only reads and writes rows; give them two names"
        )
    return entry


def _workers(facts: Mapping[str, Any], host: str) -> int | str:
    value = value_of(facts, "app_workers")
    if not re.fullmatch(WORKERS, str(value)):
        raise AnsibleFilterError(
            f"{host}: app_workers is {value!r}: give a number of processes, or auto"
        )
    return value if value == "auto" else int(value)


def _duration(facts: Mapping[str, Any], variable: str, host: str) -> str:
    value = str(value_of(facts, variable))
    if not re.fullmatch(r"\d+(us|ms|s|min|h|d)?", value):
        raise AnsibleFilterError(
            f"{host}: {variable} is {value!r}: give it as PostgreSQL does, 500ms, 5s or 15min"
        )
    return value


def _schema(settings: Mapping[str, Any], host: str) -> str:
    """Return the first schema of a declared search_path that is the application's own."""
    path = settings.get("search_path", ["public"])
    names = path if isinstance(path, list) else [path]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise AnsibleFilterError(
            f"{host}: app_database_settings.search_path is {path!r}: give a list of schemas"
        )
    if any("," in name for name in names):
        raise AnsibleFilterError(
            f"{host}: app_database_settings.search_path is {path!r}, which PostgreSQL would take "
            "for the name of one schema: give a list, [shop, public]"
        )
    return next((name for name in names if not COMMON_SCHEMA.fullmatch(name)), "public")


COMMON_SCHEMA = re.compile(r'public|"?\$user"?|pg_.*|information_schema')
"""Names in a search_path that are no application's own schema."""


def _required(facts: Mapping[str, Any], variable: str, host: str) -> str:
    value = facts.get(variable)
    if not isinstance(value, str) or not value:
        raise AnsibleFilterError(
            f"{host}: {variable} is missing: set it in the group_vars of the host's application "
            f"(inventories/local/group_vars/django.yml shows one)"
        )
    return value


def _count(facts: Mapping[str, Any], variable: str, host: str) -> int | None:
    """Return a number; None for the limit that derives where the inventory gives none."""
    derives = variable == "app_database_connection_limit"
    value = facts.get(variable) if derives else value_of(facts, variable)
    if derives and value is None:
        return None
    if not re.fullmatch(r"\d+", str(value)):
        raise AnsibleFilterError(f"{host}: {variable} is {value!r}: give a number of connections")
    return int(value)


def _connect_roles(facts: Mapping[str, Any], host: str) -> list[str]:
    """Return the roles that may connect to the application's database beside its own."""
    roles = facts.get("app_database_connect_roles") or []
    if not isinstance(roles, list | tuple) or not all(isinstance(r, str) and r for r in roles):
        raise AnsibleFilterError(
            f"{host}: app_database_connect_roles is {roles!r}: give a list of roles, such as "
            "[monitor]"
        )
    return list(roles)


def _process_connections(facts: Mapping[str, Any], host: str) -> int:
    """Return what the further processes of a host may open together, 1 each where not given."""
    processes = facts.get("app_processes") or {}
    if not isinstance(processes, Mapping):
        raise AnsibleFilterError(
            f"{host}: app_processes is {processes!r}: give {{name: {{command: …}}}}"
        )
    total = 0
    for name, given in processes.items():
        variable = f"app_processes.{name}.connections"
        value = given.get("connections", 1) if isinstance(given, Mapping) else 1
        total += whole_number(value, variable, host)
    return total


def _check_name(value: Any, variable: str, host: str) -> None:
    reserved = RESERVED_DATABASE if variable == "app_database" else RESERVED_ROLE
    if value in RESERVED_NAMES or reserved.fullmatch(str(value)):
        raise AnsibleFilterError(
            f"{host}: {variable} is {value!r}, which has a meaning of its own for PostgreSQL, "
            "PgBouncer or the platform of a managed server: choose another name"
        )
    if not isinstance(value, str) or not PGBOUNCER_PLAIN_NAME.fullmatch(value) or len(value) > 63:
        raise AnsibleFilterError(
            f"{host}: {variable} is {value!r}: use 1 to 63 of the characters A-Z a-z 0-9 _ . -, "
            "the ones that every PgBouncer version reads"
        )


def _refuse_shared(entries: Iterable[dict], admin_user: str | None) -> None:
    """Each role has one password and each database one owner, so neither can be shared."""
    first: dict[tuple[str, str], str] = {}
    entries = list(entries)
    names = {entry["name"] for entry in entries}
    for name in sorted(names):
        for other in (name + ending for ending in OWN_ENDINGS):
            if other in names:
                raise AnsibleFilterError(
                    f"the application {other!r} has the name of a unit or account of {name!r}: "
                    "set another app_name"
                )
    for entry in entries:
        for kind, key in (("database", "database"), ("role", "user"), ("role", "owner")):
            other = first.setdefault((kind, entry[key]), entry["name"])
            if other != entry["name"]:
                raise AnsibleFilterError(
                    f"the applications {other!r} and {entry['name']!r} both use the {kind} "
                    f"{entry[key]!r}: give each its own app_database, app_database_user and "
                    "app_database_owner"
                )
            if kind == "role" and entry[key] == admin_user:
                raise AnsibleFilterError(
                    f"the application {entry['name']!r} uses the role {admin_user!r}, which is "
                    f"database_admin_user: give it its own app_database_{key}"
                )

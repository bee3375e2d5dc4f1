"""The applications of an inventory, from the variables of their hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    settings (of the user), owner_settings, connect_roles (others that may connect), adopt_from
    (whose objects become the owner's), schema (the first of a declared search_path, or public),
    strategy, pool_mode, framework, module, workers ({host: number or "auto"}), threads,
    connection_pool_size, process_connections ({host: of all its app_processes together}),
    hosts_at_once (in a batch of a rollout), alias ("") and server (None).
    Each further database of an application (app_databases) follows as an entry of its own: its name
    is NAME.ALIAS, and its facts are the application's where it does not give them. server is {host,
    port, dbname, password} where it is on another server, and poolkit makes nothing there.
    Refused: two hosts of one application that state different facts, two applications with one
    database, unless they have the same owner, or with one role, a role that is the
    administrator's, and a host that no pooler serves.
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
    entries = []
    for entry in found.values():
        if entry["strategy"] != "managed":
            entries += [entry, *_further(entry, entry.pop("databases"), hostvars)]
    used = poolers_of(hostvars, groups)
    order = {pooler: number for number, pooler in enumerate(groups.get("pgbouncer", []))}
    for entry in entries:
        clients: dict[str, list[str]] = {}
        for host in entry["hosts"]:
            for pooler in used[host]:
                clients.setdefault(pooler, []).append(host)
        entry["clients"] = {pooler: clients[pooler] for pooler in sorted(clients, key=order.get)}
        entry["poolers"] = list(entry["clients"])
        serial = entry.pop("serial")
        # The tasks of ECS that a deployment adds are among its hosts.
        tasks = "ecs_task" in hostvars[entry["hosts"][0]]
        entry["hosts_at_once"] = 0 if tasks else batch_size(serial, len(entry["hosts"]))
    _refuse_shared([entry for entry in entries if not entry["server"]], admin_user)
    _refuse_on_one_pooler(entries)
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
        "connect_roles": _roles(facts, "app_database_connect_roles", host),
        "adopt_from": _roles(facts, "app_database_adopt_from", host),
        "serial": serial_of(facts, host),
        "databases": facts.get("app_databases") or {},
        "alias": "",
        "server": None,
    }
    _check_names(entry, "app_database", "app_database_", host)
    return entry


def _check_names(entry: Mapping[str, Any], database: str, prefix: str, host: str) -> None:
    """Refuse names that PostgreSQL or PgBouncer reads as something else.

    database: the variable of the database's name. prefix: of the variables of its roles' names.
    """
    _check_name(entry["database"], database, host, RESERVED_DATABASE)
    for key in ("user", "owner"):
        _check_name(entry[key], f"{prefix}{key}", host, RESERVED_ROLE)
    if entry["user"] == entry["owner"]:
        raise AnsibleFilterError(
            f"{host}: {prefix}user and {prefix}owner are both {entry['user']!r}: the "
            "owner runs migrations, the user only reads and writes rows; give them two names"
        )


FURTHER = ("database", "user", "password", "owner", "owner_password", "settings", "host", "port")
"""The keys of an entry of app_databases."""

ALIAS = re.compile(r"(?!(default|direct|database)$|.*_(direct|owner)$)[a-z][a-z0-9_]{0,30}")
"""Names of further databases: they begin environment variables, are Django's aliases, and end the
names of services, beside those of NAME_direct and NAME_owner."""


def further_databases(
    databases: Any, main: Mapping[str, Any], where: str = "app_databases"
) -> dict[str, dict[str, Any]]:
    """Return an application's further databases by alias, with what they do not give themselves.

    databases: app_databases. main: database, user, owner, password and owner_password of the
    application. Each: database (its name for PgBouncer), user, owner, password, owner_password,
    settings, server (None, or {host, port, dbname, password} on another server; password, where
    the entry has a user of its own, else None).
    One on another server is by default the application's own database there, as on a replica.
    Raises AnsibleFilterError; no message has a password.
    """
    if not isinstance(databases, Mapping):
        raise AnsibleFilterError(f"{where} is no mapping: give {{reports: {{}}}} or so")
    found = {}
    for alias, given in databases.items():
        name, given = f"{where}.{alias}", given or {}
        if not ALIAS.fullmatch(str(alias)):
            raise AnsibleFilterError(
                f"{name}: use a lower-case letter, then at most 30 lower-case letters, digits and "
                "_; default, direct, database and names that end with _direct or _owner are taken"
            )
        if not isinstance(given, Mapping):
            raise AnsibleFilterError(f"{name} is no mapping: give {{}}, or {{database: …}}")
        if unknown := sorted(set(given) - set(FURTHER), key=str):
            raise AnsibleFilterError(f"{name}.{unknown[0]} is unknown: use {', '.join(FURTHER)}")
        for key in ("database", "user", "password", "owner", "owner_password", "host"):
            if key in given and not (isinstance(given[key], str) and given[key]):
                raise AnsibleFilterError(f"{name}.{key} is no text: give it in quotes")
        if not isinstance(given.get("settings", {}), Mapping):
            raise AnsibleFilterError(f"{name}.settings is no mapping")
        found[alias] = _elsewhere(given, main, name, alias) or {
            "database": (database := given.get("database", f"{main['database']}_{alias}")),
            "user": given.get("user", database),
            "owner": given.get("owner", f"{database}_owner"),
            "password": given.get("password", main["password"]),
            "owner_password": given.get("owner_password", main["owner_password"]),
            "settings": dict(given.get("settings", {})),
            "server": None,
        }
    return found


def _elsewhere(
    given: Mapping[str, Any], main: Mapping[str, Any], name: str, alias: str
) -> dict[str, Any] | None:
    """Return a further database on another server; None for one of the inventory's own."""
    if "host" not in given:
        if "port" in given:
            raise AnsibleFilterError(f"{name}.port is only for another server: give host, too")
        return None
    for key in ("owner", "owner_password", "settings"):
        if key in given:
            raise AnsibleFilterError(
                f"{name}.{key} is for a database that poolkit makes, and not for one on another "
                "server (host): remove it"
            )
    if ("user" in given) != ("password" in given):
        raise AnsibleFilterError(
            f"{name}: give user and password together, or none of them where the server has the "
            "application's own role, as a replica has"
        )
    if not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:]+|/[\w./-]+", given["host"], re.ASCII):
        raise AnsibleFilterError(f"{name}.host is {given['host']!r}: give a name or an address")
    port = whole_number(given.get("port", 5432), f"{name}.port", "inventory")
    database = given.get("database", main["database"])
    # PgBouncer knows a database by one name: that of the application is taken.
    return {
        "database": database if database != main["database"] else f"{database}_{alias}",
        "user": given.get("user", main["user"]),
        "owner": main["owner"],
        "password": given.get("password", main["password"]),
        "owner_password": main["owner_password"],
        # Those of a role are replicated with it.
        "settings": {} if "user" in given else dict(main.get("settings") or {}),
        "server": {
            "host": given["host"],
            "port": port,
            "dbname": database,
            "password": given.get("password") if "user" in given else None,
        },
    }


def _further(entry: Mapping[str, Any], databases: Any, hostvars: Hostvars) -> list[dict[str, Any]]:
    """Return the entries of an application's further databases."""
    found = []
    host = entry["hosts"][0]
    inventorys = [str(hostvars[host].get(name)) for name in ("database_host", "database_port")]
    for alias, own in further_databases(databases, entry, f"{host}: app_databases").items():
        variable = f"app_databases.{alias}."
        if own["server"] and [own["server"]["host"], str(own["server"]["port"])] == inventorys:
            raise AnsibleFilterError(
                f"{host}: {variable}host is the inventory's own server, whose connections are "
                "counted: leave host out, and poolkit makes the database there"
            )
        search_path = {key: value for key, value in own["settings"].items() if key == "search_path"}
        owner_settings = {k: v for k, v in entry["owner_settings"].items() if k != "search_path"}
        further = {
            **entry,
            **own,
            "name": f"{entry['name']}.{alias}",
            "alias": alias,
            "owner_settings": owner_settings | search_path,
            "schema": _schema(own["settings"], host, f"{variable}settings"),
            "connection_limit": None,
            # Mutable parts that each entry fills for itself.
            "hosts": list(entry["hosts"]),
        }
        _check_names(further, f"{variable}database", variable, host)
        found.append(further)
    return found


def _with_secrets(facts: Mapping[str, Any], app: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an entry's database with its passwords, from its host's variables."""
    main = {key: facts[f"app_database_{key}"] for key in ("password", "owner_password")}
    if not app["alias"]:
        return main
    names = {key: facts.get(f"app_database_{key}", "") for key in ("user", "owner")}
    names["database"] = facts.get("app_database", facts["app_name"])
    return further_databases(facts["app_databases"], {**names, **main})[app["alias"]]


def password_of(facts: Mapping[str, Any], app: Mapping[str, Any], kind: str) -> str:
    """Return a password of an entry's roles from its host's variables; kind: "" or "owner_"."""
    return _with_secrets(facts, app)[f"{kind}password"]


def server_of(facts: Mapping[str, Any], app: Mapping[str, Any]) -> dict[str, Any]:
    """Return the [databases] entry of a further database on another server.

    Where it has a user of its own there, every client becomes that user: its verifier there is not
    the pooler's, so that PgBouncer has to know the password.
    """
    found = _with_secrets(facts, app)
    server = {key: found["server"][key] for key in ("host", "port", "dbname")}
    forced = {"user": found["user"], "password": found["server"]["password"]}
    return server | (forced if found["server"]["password"] else {})


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


def _schema(settings: Mapping[str, Any], host: str, variable: str = "app_database_settings") -> str:
    """Return the first schema of a declared search_path that is the application's own."""
    path = settings.get("search_path", ["public"])
    names = path if isinstance(path, list) else [path]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise AnsibleFilterError(
            f"{host}: {variable}.search_path is {path!r}: give a list of schemas"
        )
    if any("," in name for name in names):
        raise AnsibleFilterError(
            f"{host}: {variable}.search_path is {path!r}, which PostgreSQL would take "
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


def _roles(facts: Mapping[str, Any], variable: str, host: str) -> list[str]:
    """Return a list of roles that are not the application's own; one alone comes from -e."""
    roles = facts.get(variable) or []
    roles = [roles] if isinstance(roles, str) else roles
    if not isinstance(roles, list | tuple) or not all(isinstance(r, str) and r for r in roles):
        raise AnsibleFilterError(
            f"{host}: {variable} is {roles!r}: give a list of roles, such as [monitor]"
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


def _check_name(value: Any, variable: str, host: str, reserved: re.Pattern[str]) -> None:
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


def _refuse_shared(entries: Sequence[dict], admin_user: str | None) -> None:
    """Each role has one password and each database one owner, so none has two meanings.

    Applications may share a database and its owner, each with a user of its own.
    """
    first: dict[tuple[str, str], dict] = {}
    names = {entry["name"] for entry in entries}
    for name in sorted(names):
        for other in (name + ending for ending in OWN_ENDINGS):
            if other in names:
                raise AnsibleFilterError(
                    f"the application {other!r} has the name of a unit or account of {name!r}: "
                    "set another app_name"
                )
    for entry in entries:
        shared = first.setdefault(("database", entry["database"]), entry)
        together = shared is not entry and shared["owner"] == entry["owner"]
        if together:
            _refuse_different(shared, entry)
        for kind, key in (("database", "database"), ("role", "user"), ("role", "owner")):
            other = first.setdefault((kind, entry[key]), entry)
            if other is not entry and (not together or key == "user" or other[key] != entry[key]):
                raise AnsibleFilterError(
                    f"the applications {other['name']!r} and {entry['name']!r} both use the {kind} "
                    f"{entry[key]!r}: give each its own app_database, app_database_user and "
                    "app_database_owner; or, to share one database, the same app_database and "
                    "app_database_owner and each its own app_database_user"
                )
            if kind == "role" and entry[key] == admin_user:
                raise AnsibleFilterError(
                    f"the application {entry['name']!r} uses the role {admin_user!r}, which is "
                    f"database_admin_user: give it its own app_database_{key}"
                )


SHARED = {
    "owner_password": "app_database_owner_password",
    "owner_settings": "app_migration_lock_timeout, app_migration_statement_timeout and the "
    "search_path of app_database_settings",
    "owner_connection_limit": "app_database_owner_connection_limit",
    "connect_roles": "app_database_connect_roles",
    "pool_mode": "app_pool_mode",
}
"""What applications that share a database have to agree on, and the variables of it."""


def _refuse_different(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for key, variable in SHARED.items():
        if one[key] != other[key]:
            raise AnsibleFilterError(
                f"the applications {one['name']!r} and {other['name']!r} share the database "
                f"{one['database']!r} and its owner, but differ in {variable}: give both the same"
            )
    if one["pool_mode"] == "session":
        raise AnsibleFilterError(
            f"the applications {one['name']!r} and {other['name']!r} share the database "
            f"{one['database']!r}, which has one pool_size: with app_pool_mode session it cannot "
            "be added up; use transaction"
        )


def _refuse_on_one_pooler(entries: Sequence[Mapping[str, Any]]) -> None:
    """A pooler knows one database and one user by a name, and lets no owner in."""
    owners = {entry["owner"]: entry for entry in entries if not entry["server"]}
    databases: dict[tuple[str, str], Mapping[str, Any]] = {}
    users: dict[tuple[str, str], Mapping[str, Any]] = {}
    for entry in entries:
        if entry["server"] and entry["user"] in owners:
            raise AnsibleFilterError(
                f"{entry['name']} logs in as {entry['user']!r}, the app_database_owner of "
                f"{owners[entry['user']]['name']}, whom poolers refuse: give another user"
            )
        for pooler in entry["poolers"]:
            _refuse_one_name(databases.setdefault((pooler, entry["database"]), entry), entry)
            other = users.setdefault((pooler, entry["user"]), entry)
            if other["password"] != entry["password"]:
                raise AnsibleFilterError(
                    f"{other['name']} and {entry['name']} both log in as {entry['user']!r} through "
                    f"{pooler}, with different passwords: a pooler knows one for a name. Give the "
                    "user on the other server another name"
                )


def _refuse_one_name(first: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Refuse two entries whose database has one name in a pooler and cannot be one there."""
    both, database = f"{first['name']} and {entry['name']}", entry["database"]
    if first["server"] != entry["server"]:
        raise AnsibleFilterError(
            f"{both} both have a database {database!r}, on two servers: a pooler knows one by that "
            "name; on the other server, make the database with another name"
        )
    if not entry["server"] or first is entry:
        return
    forced = entry["server"]["password"] and first["user"] != entry["user"]
    if forced or "session" in (first["pool_mode"], entry["pool_mode"]):
        raise AnsibleFilterError(
            f"{both} share {database!r} on another server, which has one entry in a pooler: give "
            "both the same user there, and app_pool_mode transaction"
        )

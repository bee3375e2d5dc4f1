"""Filters for what PostgreSQL holds of the applications: roles, and what prevents them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..plugin_utils.applications import password_of
from ..plugin_utils.names import AUTH_USER
from ..plugin_utils.role_defaults import defaults, options
from ..plugin_utils.roles import application_roles, auth_query_roles
from ..plugin_utils.scram import scram_verifier, verifier_fingerprint
from ..plugin_utils.sql import quote_ident
from ..plugin_utils.stand_ins import stand_in_of
from ..plugin_utils.topology import Hostvars, uses_auth_query

Fleet = Mapping[str, Any]
"""As the filter `fleet` returns it."""


def _with_passwords(fleet: Fleet, hostvars: Hostvars) -> list[dict]:
    """Return the applications with the passwords of their roles, which the fleet does not hold."""
    found = []
    for app in _own(fleet):
        facts = hostvars[app["hosts"][0]]
        passwords = {f"{kind}password": password_of(facts, app, kind) for kind in ("", "owner_")}
        found.append({**app, **passwords})
    return found


def _own(fleet: Fleet) -> list[Mapping[str, Any]]:
    """Return the entries whose database is on the inventory's server, and so is ours to make."""
    return [app for app in fleet["applications"].values() if not app["server"]]


CHANGING = ":changing"
"""The end of the fingerprint of a role that has the new password, and whose clients may not."""


def database_roles(
    fleet: Fleet,
    hostvars: Hostvars,
    limits: Mapping[str, int | None],
    seed: str,
    changing: Sequence[str] = (),
) -> dict[str, dict]:
    """Return the PostgreSQL roles by name: {verifier, fingerprint, connection_limit}.

    limits: {application: connection limit of its user}. seed: scram_salt_seed. changing: the roles
    whose new password has still to reach poolers and hosts; their fingerprint says so.
    """
    apps = [
        {**app, "connection_limit": limits.get(app["name"])}
        for app in _with_passwords(fleet, hostvars)
    ]
    asking = [
        hostvars[host]
        for host in fleet["groups"]["pgbouncer"]
        if host in hostvars and uses_auth_query(fleet["facts"][host])
    ]
    roles = application_roles(apps, seed) | auth_query_roles(asking, seed)
    for name in changing:
        roles[name]["fingerprint"] += CHANGING
    return roles


def database_variables(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a host's variables of the role database, the defaults where it gives none.

    For a task on another host, where the role's defaults would be that other host's values.
    """
    given = {name: facts[name] for name in options("database") if name in facts}
    return {**defaults("database"), **given}


def database_applications(fleet: Fleet, limits: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Return what the role database needs to know of each application; no passwords.

    Each: name, database, user, owner, schema, settings, owner_settings, connection_limit,
    owner_connection_limit, connect_roles, adopt_from. limits: {application: connection limit of
    its user}.
    """
    keys = ("name", "database", "user", "owner", "schema", "settings", "owner_settings")
    return [
        {key: app[key] for key in (*keys, "owner_connection_limit", "connect_roles", "adopt_from")}
        | {"connection_limit": limits.get(app["name"])}
        for app in _own(fleet)
        if "stands_in_for" not in app
    ]


def database_stand_ins(fleet: Fleet, limits: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
    """Return the roles that stand in for users whose password changes, by their names.

    Each: user, database, settings, connection_limit. limits: {application: connection limit}.
    """
    return {
        app["user"]: {
            "user": app["stands_in_for"],
            "database": app["database"],
            "settings": app["settings"],
            "connection_limit": limits.get(app["name"]),
        }
        for app in _own(fleet)
        if "stands_in_for" in app
    }


ENCODING = "UTF8"
"""Of the databases that are made; one of another encoding is the module's to refuse."""


def database_changes(
    server: Mapping[str, Any],
    apps: Sequence[Mapping[str, Any]],
    roles: Mapping[str, Mapping[str, Any]],
    reset: bool,
    check: bool,
) -> dict[str, list[str]]:
    """Return what PostgreSQL lacks, as names.

    server: as of `server_errors`, asked as the administrator; its rows of roles also have `usable`,
    whether the administrator is a member, and those of databases `encoding`. apps: as of
    `database_applications`. roles: as of `database_roles`. Returns:
    roles: those to make, or to give the inventory's password; all of them with reset;
    memberships: the owners that the administrator has to become a member of, former ones too;
    databases: the applications whose database is missing or differs;
    adopted: those whose database is there, and may have objects of app_database_adopt_from;
    ready: the applications that can be granted rights;
    left_over: roles that have stood in for a user and no longer do.
    Check mode makes nothing: an owner that is missing cannot be joined there, and an application
    that misses a role or its database is not ready.
    """
    found = {row["rolname"]: row for row in server["query_all_results"][0]}
    databases = {row["datname"]: row for row in server["query_all_results"][1]}
    usable = {name for name, row in found.items() if row["usable"]}
    owners = dict.fromkeys(app["owner"] for app in apps)
    former = {role: None for app in apps for role in app["adopt_from"] if role in found}
    has_auth = AUTH_USER not in roles or AUTH_USER in found

    def made(app: Mapping[str, Any]) -> bool:
        row = databases.get(app["database"], {})
        return (row.get("owner"), row.get("encoding")) == (app["owner"], ENCODING)

    def is_ready(app: Mapping[str, Any]) -> bool:
        has_roles = app["user"] in found and app["owner"] in usable
        if databases.get(app["database"], {}).get("owner") in app["adopt_from"]:
            return False  # as the owner nothing can be granted before it is handed over
        return has_auth and has_roles and app["database"] in databases

    return {
        "roles": [
            name
            for name, role in roles.items()
            if reset or found.get(name, {}).get("fingerprint") != role["fingerprint"]
        ],
        "memberships": [
            *(role for role in former if role not in usable),
            *(owner for owner in owners if owner not in usable and (owner in found or not check)),
        ],
        "databases": [app["name"] for app in apps if not made(app)],
        "adopted": [
            app["name"] for app in apps if app["adopt_from"] and app["database"] in databases
        ],
        "ready": [app["name"] for app in apps if is_ready(app) or not check],
        "left_over": [
            name
            for name in sorted({stand_in_of(app["user"]) for app in apps})
            if name in found and name not in roles
        ],
    }


def changed_settings(
    results: Iterable[Mapping[str, Any]], apps: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return the databases whose application's user has other settings than before the grants.

    results: of the loop over the names of apps in roles/database/tasks/grants.yml, each with the
    rows of access_snapshot.sql before and after; one that was skipped has none.
    """
    by_name = {app["name"]: app for app in apps}
    changed = []
    for result in results:
        app = by_name.get(result.get("item"))
        if app is None or "query_all_results" not in result:
            continue
        snapshots = (result["query_all_results"][index][0]["settings"] for index in (0, -1))
        before, after = (json.loads(text).get(app["user"]) for text in snapshots)
        if before != after:
            changed.append(app["database"])
    return changed


def copy_errors(contents: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return what a copy of a database lacks; it may have more.

    contents: the rows of sql/move_contents.sql.j2, of the database and of its copy. Each: name,
    kind, owner, rights (JSON: what the applications' users may do), number (a table's rows, null
    where they were not counted; where a sequence is). A sequence may be further in the copy.
    """
    original, copy = contents
    found = {row["name"]: row for row in copy}
    errors = []
    for row in original:
        name, other = f"{row['kind']} {row['name']}", found.get(row["name"])
        if other is None or other["kind"] != row["kind"]:
            errors.append(f"{name} is missing")
            continue
        if other["owner"] != row["owner"]:
            errors.append(f"{name} belongs to {other['owner']}, and not to {row['owner']}")
        rights = set(json.loads(row["rights"])) - set(json.loads(other["rights"]))
        if rights:
            errors.append(f"{name} lacks rights: {', '.join(sorted(rights))}")
        before, after = row["number"], other["number"]
        if row["kind"] == "sequence" and after < before:
            errors.append(f"{name} is at {after}, and not at {before}")
        elif row["kind"] == "large objects" and after < before:
            errors.append(f"it has {after} large objects, and not {before}")
        elif row["kind"] not in ("sequence", "large objects") and after != before:
            errors.append(f"{name} has {after} rows, and not {before}")
    return errors


PRIVILEGES = {
    "rolsuper": ("superuser", "NOSUPERUSER"),
    "rolreplication": ("role for replication", "NOREPLICATION"),
    "rolcreaterole": ("role that may create roles", "NOCREATEROLE"),
}
"""What an application's role must not be: column of pg_roles, its name, and ALTER ROLE's word."""


def server_errors(
    fleet: Fleet, hostvars: Hostvars, server: Mapping[str, Any], may_change_passwords: bool
) -> list[str]:
    """Return why the applications' databases and roles cannot be made as the server is.

    server: what roles/database/tasks/ask.yml registers; its query_all_results begin
    with the rows of roles [{rolname, fingerprint, rolsuper, rolreplication, rolcreaterole}] and of
    databases [{datname, owner}], of which those that were moved to another server have `moved_to`.
    Nothing is refused where the server did not answer. A message for each: a database that was
    moved away, one of somebody else, a role with privileges, and, unless
    may_change_passwords or while they are rotated, a rotation that was cut off and passwords of
    existing roles that differ from the inventory's.
    """
    if not server.get("query_all_results"):
        return []
    roles = {row["rolname"]: row for row in server["query_all_results"][0]}
    owners = {row["datname"]: row["owner"] for row in server["query_all_results"][1]}
    apps = _own(fleet)
    errors = _left(apps, hostvars[fleet["groups"]["applications"][0]], server)
    errors += [message for app in apps for message in _not_the_applications(app, roles, owners)]
    if fleet["rotation"] is not None:
        return errors
    facts = hostvars[fleet["groups"]["applications"][0]]
    errors += _cut_off(apps, roles, database_roles(fleet, hostvars, {}, facts["scram_salt_seed"]))
    if errors or may_change_passwords:
        return errors
    differing = _differing(fleet, hostvars, roles, facts["scram_salt_seed"])
    return [_changed_passwords(differing, roles, facts)] if differing else []


def _left(
    apps: Iterable[Mapping[str, Any]], facts: Mapping[str, Any], server: Mapping[str, Any]
) -> list[str]:
    """Return the refusal of a server that the databases were moved away from.

    facts: an application's host. A move back from where they are is none of its use.
    """
    here = f"{facts.get('database_host')}:{facts.get('database_port')}"
    port = facts.get("database_old_port") or facts.get("database_port")
    back = f"{facts.get('database_old_host')}:{port}"
    moved_to = {row["datname"]: row.get("moved_to") for row in server["query_all_results"][1]}
    left = {app["database"]: moved_to.get(app["database"]) for app in apps}
    return [
        f"The database {name} of {here} was moved to {there}, and is closed: give database_host "
        "(and database_port) of that server in the inventory (docs/runbooks/move_database.md)"
        for name, there in left.items()
        if there and there not in (here, back)
    ]


def _not_the_applications(
    app: Mapping[str, Any], roles: Mapping[str, Mapping[str, Any]], owners: Mapping[str, str]
) -> list[str]:
    name, database = app["name"], app["database"]
    errors = []
    if owners.get(database, app["owner"]) not in (app["owner"], *app["adopt_from"]):
        errors.append(
            f"The database {database} exists and belongs to {owners[database]}, not to "
            f"{app['owner']}, the app_database_owner of {name}. Set app_database_owner to its "
            f"owner, or have it handed over with its tables: app_database_adopt_from: "
            f"[{owners[database]}] (docs/databases.md)"
        )
    missing = [role for role in app["connect_roles"] if role not in roles]
    if missing:
        errors.append(
            f"app_database_connect_roles of {name} has {', '.join(missing)}, which PostgreSQL does "
            "not have: create the role, or take it out"
        )
    for key in ("user", "owner"):
        role = roles.get(app[key], {})
        found = [words for column, words in PRIVILEGES.items() if role.get(column)]
        if found:
            errors.append(
                f"The role {app[key]}, the app_database_{key} of {name}, exists and is a "
                f"{' and a '.join(kind for kind, _ in found)}, which no application's role may "
                f"be: set another app_database_{key}, or as a superuser run ALTER ROLE "
                f"{quote_ident(app[key])} {' '.join(word for _, word in found)}"
            )
    return errors


def password_rotation(
    fleet: Fleet, hostvars: Hostvars, server: Mapping[str, Any]
) -> dict[str, Any]:
    """Return which passwords the inventory changes.

    fleet: without rotation. server: as of `server_errors`. Returns:
    users: {user of an application: whether its password is still to change}; false where a rotation
      was cut off afterwards;
    logins: {such a user whose password is still to change: the role that stands in for it};
    stand_ins: these roles, of all users;
    others: the owners and auth_query's role, also where only poolers and hosts lack the new one;
    applications: those that log in anew, by app_name;
    errors: what cannot be rotated.
    """
    found: dict[str, Any] = {"applications": [], "errors": []}
    roles = {row["rolname"]: row for row in server["query_all_results"][0]}
    apps = _own(fleet)
    facts = hostvars[fleet["groups"]["applications"][0]]
    differing = _differing(fleet, hostvars, roles, facts["scram_salt_seed"])
    foreign = [name for name in differing if not _is_ours(roles[name])]
    if foreign:
        found["errors"].append(_changed_passwords(foreign, roles, facts))
    users = {app["user"]: app for app in apps}
    found["others"] = [name for name in differing if name not in users]
    found["users"] = {
        user: user in differing for user in users if user in differing or stand_in_of(user) in roles
    }
    found["logins"] = {user: stand_in_of(user) for user, waits in found["users"].items() if waits}
    found["stand_ins"] = [stand_in_of(user) for user in found["users"]]
    for user, stand_in in zip(found["users"], found["stand_ins"], strict=True):
        password = password_of(hostvars[users[user]["hosts"][0]], users[user], "")
        verifier = scram_verifier(password, stand_in, facts["scram_salt_seed"])
        known = roles.get(stand_in, {}).get("fingerprint")
        if known not in (None, verifier_fingerprint(verifier)):
            found["errors"].append(
                f"A change of the password of {user} to another one was cut off, and hosts may "
                f"still log in as {stand_in} with that one: give {user} that password again (and "
                "the scram_salt_seed of then), run this to its end, and only then choose another"
            )
    changed = {*found["users"], *found["others"]}
    for app in fleet["applications"].values():
        name, _, alias = app["name"].partition(".")
        if changed & {app["user"], app["owner"]} and name not in found["applications"]:
            found["applications"].append(name)
        entry = (hostvars[app["hosts"][0]].get("app_databases") or {}).get(alias) or {}
        if app["server"] and app["user"] in found["users"] and entry.get("user"):
            found["errors"].append(
                f"app_databases of {name}: {alias} is on another server with the user "
                f"{app['user']}, whose password changes here. A physical replica has the user of "
                f"{name} by itself: take user and password out there; on any other server use "
                "another name"
            )
        if app["user"] in found["users"] and "ecs_task" in fleet["facts"][app["hosts"][0]]:
            found["errors"].append(
                f"{app['name']} runs on ECS, where each task definition has its own user list: a "
                "password is changed there with a user of another name (docs/ecs.md)"
            )
    for host in fleet["groups"]["pgbouncer"]:
        facts = fleet["facts"][host]
        if AUTH_USER in found["others"] and "ecs_task" in facts and uses_auth_query(facts):
            found["errors"].append(
                f"{host} runs on ECS, where each task definition has its own user list: "
                "pgbouncer_auth_query_password cannot be changed while old tasks run"
            )
    return found


def _differing(
    fleet: Fleet, hostvars: Hostvars, roles: Mapping[str, Mapping[str, Any]], seed: str
) -> list[str]:
    """Return the roles of the server that have another password than the inventory."""
    return [
        name
        for name, role in database_roles(fleet, hostvars, {}, seed).items()
        if name in roles and roles[name]["fingerprint"] != role["fingerprint"]
    ]


def _is_ours(role: Mapping[str, Any]) -> bool:
    """Say whether poolkit has set a role's password."""
    return str(role["fingerprint"]).startswith("poolkit:")


def _cut_off(
    apps: Iterable[Mapping[str, Any]],
    roles: Mapping[str, Mapping[str, Any]],
    ours: Iterable[str],
) -> list[str]:
    """Return the refusal of anything else while a rotation of passwords is half done."""
    users = [app["user"] for app in apps if stand_in_of(app["user"]) in roles]
    others = [
        name for name in ours if str(roles.get(name, {}).get("fingerprint")).endswith(CHANGING)
    ]
    hosts = [f"log in as {', '.join(map(stand_in_of, users))}"] if users else []
    hosts += [f"have the old one of {', '.join(others)}"] if others else []
    if not hosts:
        return []
    return [
        f"The change of the password of {', '.join(users + others)} was cut off: hosts may still "
        f"{' and '.join(hosts)}. Run ansible/playbooks/rotate_password.yml again, which ends it"
    ]


def _changed_passwords(
    names: Sequence[str], roles: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]
) -> str:
    """Return the refusal of changed passwords; a role without poolkit's mark is said to be so."""
    own = [name for name in names if _is_ours(roles[name])]
    other = [name for name in names if name not in own]
    server = f"PostgreSQL at {facts.get('database_host')}:{facts.get('database_port')}"
    parts, steps = [], []
    if own:
        parts.append(
            f"The inventory has another password than {server} for {', '.join(own)} "
            "(app_database_password, app_database_owner_password, "
            "pgbouncer_auth_query_password or scram_salt_seed was changed)"
        )
        steps.append(
            "ansible/playbooks/rotate_password.yml changes them while the applications serve"
        )
    if other:
        parts.append(
            f"{server} has {', '.join(other)} already, with a password that poolkit has not set "
            "and would replace by the inventory's"
        )
        steps.append(
            "What logs in with the old password is refused from then on: at a quiet time run the "
            "whole site.yml with -e database_password_change=true, and again if it is cut off"
        )
    return ". ".join([*parts, *steps]) + ". Until then keep the old password in the inventory"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                changed_settings,
                copy_errors,
                database_applications,
                database_changes,
                database_roles,
                database_stand_ins,
                database_variables,
                password_rotation,
                server_errors,
                stand_in_of,
            )
        }

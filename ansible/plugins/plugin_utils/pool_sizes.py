"""Which of PgBouncer's limits holds for a pool, and who may have one: for budget and files alike.

A pool belongs to a pair of database and user. PgBouncer takes the user's limit first ([users] knows
pool_size from 1.23 and reserve_pool_size from 1.24 on), then that of [databases], then the general
one (src/objects.c: pool_pool_size, pool_res_pool_size).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Entries = Mapping[str, Mapping[str, Any]]
"""[databases] or [users]: name -> settings."""

SIZE = ("pool_size", "default_pool_size")
SERVER_LIMITS = (
    *("default_pool_size", "min_pool_size", "reserve_pool_size", "pool_size", "reserve_pool"),
    *("max_db_connections", "max_user_connections"),
)
CLIENT_LIMITS = ("max_client_conn", "max_db_client_connections", "max_user_client_connections")
"""Limits that PgBouncer counts in each process, and that the inventory states for the host."""

RESERVE = ("reserve_pool_size", "reserve_pool")
"""One setting under the name of its section, or under its older one."""


def holding(
    database: str,
    user: str,
    databases: Entries,
    users: Entries,
    settings: Mapping[str, Any],
    *names: str,
) -> tuple[str, Any]:
    """Return (variable, value) of the first of `names` in the first section that has one of them.

    ("", None) if none has. A user that the database's entry forces replaces every client's user.
    """
    entry = databases.get(database) or {}
    user = entry.get("user") or user
    sections = {
        f"pgbouncer_users[{user!r}]": users.get(user) or {},
        f"pgbouncer_databases[{database!r}]": entry,
        "pgbouncer_settings": settings,
    }
    for section, values in sections.items():
        for name in names:
            if values.get(name) is not None:
                return f"{section}.{name}", values[name]
    return "", None


def connections(
    database: str, user: str, databases: Entries, users: Entries, settings: Mapping[str, Any]
) -> int:
    """Return the server connections of a pool: its size and its reserve."""
    sections = (database, user, databases, users, settings)
    return sum(int(holding(*sections, *names)[1] or 0) for names in (SIZE, RESERVE))


def users_of(
    database: str,
    databases: Entries,
    apps: Iterable[Mapping[str, Any]],
    rules: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Return the users that may have a pool in a database: its application's, the one that its
    entry forces, or those whom pgbouncer_hba_rules let in; "" for an entry that is for nobody yet.

    apps: those that the pooler serves; only their users are in its user list. Beside the user of
    the database's own application others count where a rule names both: a rule for `all` is no
    sign that PostgreSQL lets them in. auth_query lets in others, which max_db_connections bounds.
    """
    forced = (databases.get(database) or {}).get("user")
    if forced:
        return [forced]
    apps = list(apps)
    own = [app["user"] for app in apps if app["database"] == database]
    found = list(own)
    for user in (app["user"] for app in apps if app["user"] not in own):
        for rule in rules:
            if rule.get("method") == "reject":
                continue
            named = [_names(rule.get("database")), _names(rule.get("user"))]
            wanted = (database, user)
            if all(
                name in names or (names == ["all"] and not own)
                for name, names in zip(wanted, named, strict=True)
            ):
                found.append(user)
                break
    return found or [""]


def _names(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]

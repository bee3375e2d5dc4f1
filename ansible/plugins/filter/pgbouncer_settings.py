"""The typed catalogue of PgBouncer's settings: what a value may be, on which version.

PgBouncer has no way to check a file, reads `pool_size = abc` as 0 and `admin_users = a ; ops` as
a name, and goes back to its defaults when a reload fails. So every name and value is checked before
a file is made.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

Catalogue = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""roles/pgbouncer/files/settings.yml: section -> name -> {type, since, reloadable, values}."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")

NUMBER = {
    "bool01": (r"[01]", "0 or 1"),
    "int": (r"\d+", "a whole number"),
    "uint": (r"\d+", "a whole number"),
    "int_seconds": (r"\d+", "whole seconds without a unit"),
    "seconds": (r"\d+(\.\d+)?", "seconds without a unit"),
    "octal": (r"0[0-7]{3}", 'an octal number in quotes, such as "0777"'),
}
"""The form that PgBouncer reads without surprise, and its name, for each numeric type."""

ADVICE = {
    ("pgbouncer", "idle_in_transaction_session_timeout"): (
        "it is PostgreSQL's: use idle_transaction_timeout here, or set it on the role"
    ),
    ("databases", "idle_transaction_timeout"): "use it in pgbouncer_settings or pgbouncer_users",
    ("databases", "query_timeout"): "use it in pgbouncer_settings or pgbouncer_users",
    ("pgbouncer", "statement_timeout"): "it is PostgreSQL's: use query_timeout here, or the role",
    ("pgbouncer", "max_connections"): "use max_client_conn (clients) or max_db_connections",
    ("pgbouncer", "pool_size"): "use default_pool_size, or pool_size of a database",
    ("databases", "default_pool_size"): "use pool_size",
    (
        "users",
        "max_db_connections",
    ): "use max_user_connections, or the database's max_db_connections",
    ("databases", "max_client_conn"): "use max_db_client_connections (1.24 and later)",
    ("databases", "password"): "poolkit passes each client's own SCRAM keys through: leave it out",
    ("users", "password"): "passwords belong to the user list, which poolkit makes",
}
"""What common advice gets wrong (section, name), and the right way."""


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: "1.24.1-1+deb13u2" gives (1, 24, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    if not match:
        raise AnsibleFilterError(f"{version!r} is no PgBouncer version")
    return tuple(int(part) for part in match.group().split("."))


def value_error(spec: Mapping[str, Any], value: Any) -> str | None:
    """Return what is wrong with a value of a setting; None when PgBouncer reads it as meant."""
    kind = spec["type"]
    text = str(value)
    if kind in NUMBER:
        pattern, form = NUMBER[kind]
        if isinstance(value, bool) or not re.fullmatch(pattern, text):
            return f"is {value!r}: PgBouncer reads {form}"
        return None
    if kind == "enum":
        if text not in spec["values"]:
            return f"is {value!r}: use one of {', '.join(spec['values'])}"
        return None
    if isinstance(value, bool | int | float | Mapping) or value is None:
        return f"is {value!r}: give it as text, in quotes"
    if isinstance(value, list):
        if kind != "comma_list":
            return f"is a list: PgBouncer reads one {kind} here"
        wrong = [part for part in value if not isinstance(part, str) or re.search(r"[,\s]", part)]
        return f"holds {wrong[0]!r}: no blanks and commas inside a name" if wrong else None
    if re.search(r"[\r\n\0]", text) or text != text.strip():
        return (
            "has a line break, or a blank at its start or end: PgBouncer's files cannot hold that"
        )
    if re.search(r"\s[;#]", text) and kind != "string":
        return f"is {value!r}: a comment at the end of a line becomes part of the value"
    if kind == "path" and text and not text.startswith("/"):
        return f"is {value!r}: give an absolute path"
    return None


def section_errors(
    where: str,
    section: str,
    settings: Mapping[str, Any],
    catalogue: Catalogue,
    version: str,
) -> list[str]:
    """Return a message for each setting of one section, database or user that is not right."""
    known = catalogue[section]
    errors = []
    for name, value in settings.items():
        spec = known.get(name)
        if (section, name) in ADVICE:
            errors.append(f"{where}.{name}: {ADVICE[section, name]}")
        elif spec is None:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            errors.append(f"{where}.{name}: PgBouncer has no such setting{hint}")
        elif version_tuple(version) < version_tuple(spec["since"]):
            other = (
                "; use reserve_pool"
                if (section, name) == ("databases", "reserve_pool_size")
                else ""
            )
            errors.append(
                f"{where}.{name}: needs PgBouncer {spec['since']}, the host has {version}{other}"
            )
        elif problem := value_error(spec, value):
            errors.append(f"{where}.{name} {problem}")
    return errors


def pgbouncer_errors(
    settings: Mapping[str, Any],
    databases: Mapping[str, Mapping[str, Any]],
    users: Mapping[str, Mapping[str, Any]],
    catalogue: Catalogue,
    version: str,
    fixed: Mapping[str, str],
) -> list[str]:
    """Return a message for everything in the variables that PgBouncer would not read as meant.

    fixed: settings that the role makes, each with the variable to use instead. version: of the
    installed package, or of the one that would be installed.
    """
    errors = [
        f"pgbouncer_settings.{name}: the role sets it: use {fixed[name]}"
        for name in settings
        if name in fixed
    ]
    rest = {name: value for name, value in settings.items() if name not in fixed}
    errors += section_errors("pgbouncer_settings", "pgbouncer", rest, catalogue, version)
    for variable, section, entries in (
        ("pgbouncer_databases", "databases", databases),
        ("pgbouncer_users", "users", users),
    ):
        for name, entry in entries.items():
            where = f"{variable}[{name!r}]"
            reserved = {"pgbouncer", "*"} if section == "databases" else set()
            if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or name in reserved:
                errors.append(
                    f"{where}: use the characters A-Z a-z 0-9 _ . - and not the name pgbouncer: "
                    "other names need quotes that PgBouncer does not read in every version"
                )
            elif not isinstance(entry, Mapping):
                errors.append(f"{where} is {entry!r}: give a mapping of its settings")
            else:
                errors += section_errors(where, section, entry, catalogue, version)
    return errors


def pgbouncer_value(value: Any) -> str:
    """Return a checked value of the [pgbouncer] section as the file holds it."""
    return ", ".join(value) if isinstance(value, list) else str(value)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"pgbouncer_errors": pgbouncer_errors, "pgbouncer_value": pgbouncer_value}

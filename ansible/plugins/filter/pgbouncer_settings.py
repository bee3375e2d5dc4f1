"""The typed catalogue of PgBouncer's settings: what a value may be, on which version.

PgBouncer has no way to check a file, reads `pool_size = abc` as 0 and `admin_users = a ; ops` as
a name, and goes back to its defaults when a reload fails. So every name and value is checked before
a file is made.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ..module_utils import pgbouncer_version
from ..plugin_utils.names import CONTROL, PGBOUNCER_PLAIN_NAME
from ..plugin_utils.pool_sizes import SERVER_LIMITS
from ..plugin_utils.role_defaults import role_file
from ..plugin_utils.values import kind_of

Catalogue = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""roles/pgbouncer/files/settings.yml: section -> name -> {type, since, reloadable, values}."""

HOST_NAME = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
"""A host name as resolvers take it; one whose last label is a number is read as an address."""

NUMBER = {
    "bool01": (r"[01]", "0 or 1"),
    "int": (r"[0-9]+", "a whole number"),
    "uint": (r"[0-9]+", "a whole number"),
    "int_seconds": (r"[0-9]+", "whole seconds without a unit"),
    "seconds": (r"[0-9]+(\.[0-9]+)?", "seconds without a unit"),
    "octal": (r"0[0-7]{3}", 'an octal number in quotes, such as "0777"'),
}
"""The form that PgBouncer reads without surprise, and its name, for each numeric type."""

LARGEST = {False: 2**31 - 1, True: 2**32 - 1}
"""What fits into PgBouncer's int and unsigned int; more becomes another number in silence."""

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


def version_tuple(version: str) -> pgbouncer_version.Version:
    """Return the numbers of a version: "1.24.1-1+deb13u2" gives (1, 24, 1)."""
    try:
        return pgbouncer_version.parse(version)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


def pgbouncer_has_peers(version: str) -> bool:
    """Tell whether processes of a version pass a cancel request on to the right peer."""
    return version_tuple(version) >= pgbouncer_version.PEERS


def value_error(spec: Mapping[str, Any], value: Any) -> str | None:
    """Return what is wrong with a value of a setting; None when PgBouncer reads it as meant."""
    kind = spec["type"]
    text = str(value)
    if kind in NUMBER:
        pattern, form = NUMBER[kind]
        if isinstance(value, bool) or not re.fullmatch(pattern, text):
            return f"is {value!r}: PgBouncer reads {form}"
        if kind != "octal" and float(text) > LARGEST[kind == "uint"]:
            return f"is {value!r}: the largest number is {LARGEST[kind == 'uint']}"
        return None
    if kind == "enum":
        if text not in spec["values"]:
            return f"is {value!r}: use one of {', '.join(spec['values'])}"
        return None
    if isinstance(value, bool | int | float | Mapping) or value is None:
        # Not the value: a password of digits alone is a number in YAML.
        return f"is {kind_of(value)}: give it as text, in quotes"
    if isinstance(value, list):
        if kind != "comma_list":
            return f"is a list: PgBouncer reads one {kind} here"
        wrong = [
            part
            for part in value
            if not isinstance(part, str) or re.search(r"[,\s]", part) or CONTROL.search(part)
        ]
        return f"holds {wrong[0]!r}: no blanks and commas inside a name" if wrong else None
    if CONTROL.search(text) or text != text.strip():
        return (
            "has a line break or control character, or a blank at its start or end: PgBouncer's "
            "files cannot hold that"
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
        elif section != "pgbouncer" and value in ("", None):
            errors.append(f"{where}.{name} is empty: give a value, or leave it out")
        elif problem := value_error(spec, value):
            errors.append(f"{where}.{name} {problem}")
    return errors


MAY_BE_ZERO = ("min_pool_size", "reserve_pool_size", "reserve_pool")
"""Server limits whose zero means none; that of the others means no limit."""

HBA_METHODS = {
    "local": ("scram-sha-256", "md5", "peer", "reject"),
    "host": ("scram-sha-256", "md5", "reject"),
    "hostssl": ("scram-sha-256", "md5", "cert", "reject"),
    "hostnossl": ("scram-sha-256", "md5", "reject"),
}
"""Methods by type of connection; trust and password are left out on purpose."""


def hba_errors(rules: Iterable[Any]) -> list[str]:
    """Return a message for each rule that PgBouncer would skip or read differently.

    A rule: {type, database, user, address, method}; database and user are names, lists of them, or
    "all"; address is a network, and is left out for type local.
    """
    errors = []
    for number, rule in enumerate(rules):
        where = f"pgbouncer_hba_rules[{number}]"
        kind, method = rule.get("type"), rule.get("method")
        if method in ("trust", "any", "password", "plain"):
            errors.append(f"{where}: {method} lets anyone in or sends passwords in clear text")
        elif method not in HBA_METHODS[kind]:
            errors.append(
                f"{where}: the method {method!r} does not go with {kind}: use one of "
                f"{', '.join(HBA_METHODS[kind])}"
            )
        if (kind == "local") == bool(rule.get("address")):
            need = "takes no address" if kind == "local" else "needs an address, 10.0.0.0/8"
            errors.append(f"{where}: {kind} {need}")
        elif rule.get("address") and (problem := network_error(rule["address"])):
            errors.append(f"{where}: {problem}")
        for key in ("database", "user"):
            names = rule[key] if isinstance(rule.get(key), list) else [rule.get(key)]
            for name in names or [None]:
                keyword = name == "all" and isinstance(rule.get(key), list)
                plain = isinstance(name, str) and name and not CONTROL.search(name)
                if keyword or not plain:
                    errors.append(f"{where}.{key} is {name!r}: give a name, names, or all")
    return errors


def network_error(text: Any) -> str | None:
    """Return what is wrong with an address in CIDR notation."""
    try:
        # No mask and no scope: PgBouncer would read another network, or none.
        if not re.fullmatch(r"[0-9A-Fa-f:.]+/[0-9]{1,3}", str(text)):
            raise ValueError
        ipaddress.ip_network(str(text))
    except ValueError:
        return f"{text!r} is no network in CIDR notation, such as 10.0.1.0/24 or 10.0.1.5/32"
    return None


def host_error(text: Any) -> str | None:
    """Return what is wrong with one address or host name; None when every reader reads it alike."""
    if not isinstance(text, str) or not text:
        return f"holds {text!r}: give an address or a host name"
    literal, percent, scope = text.partition("%")
    try:
        version = ipaddress.ip_address(literal).version
        if not percent or (version == 6 and re.fullmatch(r"[A-Za-z0-9_.-]+", scope)):
            return None
    except ValueError:
        pass
    if re.fullmatch(r"[0-9A-Fa-fXx.]+", text):
        try:  # the resolver reads 0, 127.1 and 0x7f000001 as addresses
            meant = socket.inet_ntoa(socket.inet_aton(text))
            return f"holds {text!r}, which is read as {meant}: write it so"
        except OSError:
            pass
    number = re.fullmatch(r"[0-9]+|0[Xx][0-9A-Fa-f]*", text.rstrip(".").rpartition(".")[2])
    if number or not HOST_NAME.fullmatch(text):
        return f"holds {text!r}: that is no IP address and no host name"
    return None


def is_every_address(text: str) -> bool:
    """Tell whether to listen on an address means to listen on every one of the host."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text == "*"
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_unspecified or bool(mapped and mapped.is_unspecified)


def listen_errors(variable: str, value: Any, every_allowed: bool) -> Iterator[str]:
    """Yield what is wrong with a list of addresses to listen on, separated by commas."""
    for part in value.split(",") if isinstance(value, str) else [value]:
        part = part.strip(" ") if isinstance(part, str) else part
        if part != "*" and (problem := host_error(part)):
            yield f"{variable} {problem}"
        elif is_every_address(part) and not every_allowed:
            yield (
                f"{variable} is {value}: every network of the host could reach it, also one that "
                "is added later; name the addresses, or set pgbouncer_listen_on_all_addresses: true"
            )


def number_error(value: Any, smallest: int, largest: int) -> str | None:
    """Return what is wrong with a whole number, which -e gives as text."""
    whole = not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,10}", str(value))
    if whole and smallest <= int(value) <= largest:
        return None
    return f"is {value!r}: give a whole number from {smallest} to {largest}"


def input_errors(inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a variable that a file would hold unchanged.

    A line break in any of them would be a line of the file: `auth_type = any`, a rule, a command.
    """
    every = inputs["listen_on_all_addresses"]
    yield from listen_errors("pgbouncer_listen_addr", inputs["listen_addr"], every)
    exporter = inputs["exporter_listen_addr"]
    yield from listen_errors("pgbouncer_exporter_listen_addr", exporter, every)
    if any(mark in str(exporter) for mark in ":,*"):
        yield f"pgbouncer_exporter_listen_addr is {exporter!r}: give one IPv4 address or host name"
    for name, smallest, largest in (
        ("listen_port", 1024, 65535),  # the units have no right to a lower one
        ("exporter_port", 1024, 65535),
        ("watchdog_interval_seconds", 1, 60),
        ("watchdog_silent_answers", 2, 100),
        ("database_port", 1, 65535),
        ("drain_seconds", 0, 86400),
        ("auth_query_connections", 0, 65535),
    ):
        if problem := number_error(inputs[name], smallest, largest):
            yield f"pgbouncer_{name} {problem}"
    host = inputs["database_host"]
    for part in host.split(",") if isinstance(host, str) else [host]:
        folder = isinstance(part, str) and part.startswith("/") and not CONTROL.search(part)
        if not folder and (problem := host_error(part)):
            yield f"pgbouncer_database_host (database_host) {problem}"
    for app in inputs["applications"]:
        for key in ("database", "user", "owner", "password"):
            if CONTROL.search(str(app.get(key, ""))):
                yield f"application {app['name']}: {key} has a line break or control character"
    if CONTROL.search(str(inputs["auth_query_password"])):
        yield "pgbouncer_auth_query_password has a line break or control character"


def hba_line(rule: Mapping[str, Any]) -> str:
    """Return a rule as a line of the HBA file; names are quoted, so that none is a keyword."""

    def names(value: Any) -> str:
        if value == "all":
            return "all"
        values = value if isinstance(value, list) else [value]
        return ",".join('"' + name.replace('"', '""') + '"' for name in values)

    words = [rule["type"], names(rule["database"]), names(rule["user"])]
    return one_line(" ".join([*words, *filter(None, [rule.get("address")]), rule["method"]]))


def name_errors(inputs: Mapping[str, Any]) -> list[str]:
    """Return a message for each name that belongs to no application: most often a typing error."""
    apps = inputs["applications"]
    errors = []
    for name, entry in inputs["databases"].items():
        known = [app["database"] for app in apps]
        if name not in known and isinstance(entry, Mapping) and "host" not in entry:
            errors.append(
                f"pgbouncer_databases[{name!r}]: no application of this pooler has this database "
                f"(it has {', '.join(sorted(known)) or 'none'}): correct the name, or give a host"
            )
    users = [app["user"] for app in apps]
    if not inputs["auth_query_enabled"]:
        errors += [
            f"pgbouncer_users[{name!r}]: no application of this pooler has this user "
            f"(it has {', '.join(sorted(users)) or 'none'})"
            for name in inputs["users"]
            if name not in users
        ]
    return errors


def process_errors(inputs: Mapping[str, Any], version: str) -> list[str]:
    """Return what rules out several processes: the version, or limits that are too small."""
    processes = inputs["processes"]
    if processes < 1:
        return [f"pgbouncer_processes is {processes}: at least one"]
    if processes > 1 and not pgbouncer_has_peers(version):
        needed = pgbouncer_version.written(pgbouncer_version.PEERS)
        return [
            f"pgbouncer_processes is {processes}: needs PgBouncer {needed}, the host has "
            f"{version}. Without peering a cancel request reaches the wrong process"
        ]
    groups = {"pgbouncer_settings": inputs["effective_settings"]}
    groups |= {f"pgbouncer_databases[{k!r}]": v for k, v in inputs["databases"].items()}
    groups |= {f"pgbouncer_users[{k!r}]": v for k, v in inputs["users"].items()}
    return [
        f"{where}.{name} is {entry[name]}: less than pgbouncer_processes ({processes}), so that a "
        "process would have none, which PgBouncer reads as no limit"
        for where, entry in groups.items()
        for name in SERVER_LIMITS
        if name in entry
        and name not in MAY_BE_ZERO
        and re.fullmatch(r"\d+", str(entry[name]))
        and 0 < int(entry[name]) < processes
    ]


def relation_errors(inputs: Mapping[str, Any], version: str) -> list[str]:
    """Return what is wrong between variables that are each right by themselves."""
    errors = [
        f"pgbouncer_client_addresses: {problem}"
        for address in inputs["client_addresses"]
        if (problem := network_error(address))
    ]
    settings = inputs["effective_settings"]
    by_certificate = [rule for rule in inputs["hba_rules"] if rule.get("method") == "cert"]
    mode = settings.get("client_tls_sslmode")
    if inputs["tcp_auth_method"] == "cert" or by_certificate:
        where = "pgbouncer_hba_rules" if by_certificate else "pgbouncer_tcp_auth_method"
        if not inputs["tls_client_ca_file"] or not inputs["tls_certificate_file"]:
            errors.append(
                f"{where} is cert: it needs pgbouncer_tls_client_ca_file, the authority that signs "
                "the clients' certificates, and pgbouncer_tls_certificate_file"
            )
        elif mode not in ("verify-ca", "verify-full"):
            errors.append(
                f"{where} is cert: it needs pgbouncer_settings.client_tls_sslmode verify-full, "
                f"which is {mode}; below that PgBouncer asks no client for a certificate"
            )
    if inputs["auth_query_enabled"]:
        errors += [
            f"pgbouncer_databases[{name!r}].max_db_connections is 0: with auth_query the database "
            "must be bounded; leave it out, or give a number"
            for name, entry in inputs["databases"].items()
            if str(entry.get("max_db_connections", "")) == "0"
        ]
    if inputs["exporter_enabled"] and "pgbouncer-exporter" not in str(settings.get("stats_users")):
        errors.append("pgbouncer_settings.stats_users: add pgbouncer-exporter, or leave it out")
    if inputs["auth_query_enabled"] and not inputs["auth_query_password"]:
        errors.append(
            "pgbouncer_auth_query_password is missing: the password of the role that looks logins "
            "up, in the vault"
        )
    if bool(inputs["tls_certificate_file"]) != bool(inputs["tls_key_file"]):
        errors.append("pgbouncer_tls_certificate_file and pgbouncer_tls_key_file: give both")
    if settings.get("server_tls_sslmode") in ("verify-ca", "verify-full") and not settings.get(
        "server_tls_ca_file"
    ):
        errors.append(
            f"server_tls_sslmode is {settings['server_tls_sslmode']}: needs database_ca_file"
        )
    ignored = settings.get("ignore_startup_parameters", [])
    ignored = ignored if isinstance(ignored, list) else [p.strip() for p in ignored.split(",")]
    first, mended = pgbouncer_version.OPTIONS_LOOP
    vulnerable = first <= version_tuple(version) < mended
    if vulnerable and any(ignored) and "options" not in ignored:
        errors.append(
            "pgbouncer_settings.ignore_startup_parameters: without the word options in it, anyone "
            f"who reaches the port can make PgBouncer {version} loop (CVE-2026-107349): add it, or "
            "leave the setting out"
        )
    return errors


def pgbouncer_errors(
    inputs: Mapping[str, Any], catalogue: Catalogue, version: str, fixed: Mapping[str, str]
) -> list[str]:
    """Return a message for everything in the variables that PgBouncer would not read as meant.

    inputs: the role's variables without their prefix, and effective_settings (with its defaults).
    fixed: settings that the role makes, each with the variable to use instead. version: of the
    installed package, or of the one that would be installed.
    """
    settings, databases, users = (inputs[key] for key in ("settings", "databases", "users"))
    errors = [
        f"pgbouncer_settings.{name}: the role sets it: use {fixed[name]}"
        for name in settings
        if name in fixed
    ]
    rest = {name: value for name, value in settings.items() if name not in fixed}
    errors += section_errors("pgbouncer_settings", "pgbouncer", rest, catalogue, version)
    mode = inputs["effective_settings"].get("server_tls_sslmode", "prefer")
    problem = value_error(catalogue["pgbouncer"]["server_tls_sslmode"], mode)
    if problem and "server_tls_sslmode" not in settings:
        errors.append(f"database_sslmode {problem}")
    errors += input_errors(inputs)
    for variable, section, entries in (
        ("pgbouncer_databases", "databases", databases),
        ("pgbouncer_users", "users", users),
    ):
        for name, entry in entries.items():
            where = f"{variable}[{name!r}]"
            reserved = {"pgbouncer", "*"} if section == "databases" else set()
            plain = isinstance(name, str) and PGBOUNCER_PLAIN_NAME.fullmatch(name)
            if not plain or name in reserved:
                errors.append(
                    f"{where}: use the characters A-Z a-z 0-9 _ . - and not the name pgbouncer: "
                    "other names need quotes that PgBouncer does not read in every version"
                )
            elif not isinstance(entry, Mapping):
                errors.append(f"{where} is {entry!r}: give a mapping of its settings")
            else:
                errors += section_errors(where, section, entry, catalogue, version)
    if errors:  # what follows reads the numbers that were just refused
        return errors + hba_errors(inputs["hba_rules"])
    return [
        *name_errors(inputs),
        *process_errors(inputs, version),
        *hba_errors(inputs["hba_rules"]),
        *relation_errors(inputs, version),
    ]


def one_line(text: str) -> str:
    """Return a line of a file; raise where it would be more than one, whoever made it."""
    if CONTROL.search(text):
        raise AnsibleFilterError(
            f"{text!r} has a line break or control character, which PgBouncer's files cannot hold"
        )
    return text


def pgbouncer_value(value: Any) -> str:
    """Return a checked value of the [pgbouncer] section as the file holds it."""
    return one_line(", ".join(value) if isinstance(value, list) else str(value))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                hba_line,
                pgbouncer_errors,
                pgbouncer_has_peers,
                pgbouncer_value,
                role_file,
            )
        }

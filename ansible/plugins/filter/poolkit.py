"""Filters that derive one fact from another: pure functions, no host and no network needed.

Every function raises AnsibleFilterError with the name of the variable to change when its input is
wrong, so that a playbook stops before anything has changed.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean

SCRAM_ITERATIONS = 4096
"""PostgreSQL's default scram_iterations; verifiers on both sides must agree for pass-through."""

PGBOUNCER_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""Names that every PgBouncer version reads without quoting (upstream issue 971)."""


def scram_verifier(password: str, user: str, seed: str) -> str:
    """Return the SCRAM-SHA-256 verifier of a password, as pg_authid and userlist.txt hold it.

    The salt is HMAC-SHA-256(seed, user), cut to PostgreSQL's 16 bytes: stable over runs, different
    for each role and each installation. The same verifier on both sides lets PgBouncer pass the
    client's SCRAM keys through, so no pooler host holds a password in clear text.
    """
    import scramp  # here: Ansible loads this file for every task that uses a filter

    if len(seed) < 16:
        raise AnsibleFilterError(
            "scram_salt_seed must have at least 16 characters: it keeps the salts of this "
            "installation apart from those of every other one"
        )
    if not password:
        raise AnsibleFilterError(f"the password of the database role {user!r} is empty")
    salt = hmac.new(seed.encode(), user.encode(), hashlib.sha256).digest()[:16]
    try:
        salt, stored_key, server_key, _ = scramp.ScramMechanism("SCRAM-SHA-256").make_auth_info(
            password, iteration_count=SCRAM_ITERATIONS, salt=salt
        )
    except scramp.ScramException as error:
        raise AnsibleFilterError(
            f"the password of the database role {user!r} holds a character that SASLprep "
            f"(RFC 4013) forbids: use printable characters. ({type(error).__name__})"
        ) from None
    salt64, stored64, server64 = (
        base64.b64encode(part).decode() for part in (salt, stored_key, server_key)
    )
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt64}${stored64}:{server64}"


def verifier_fingerprint(verifier: str) -> str:
    """Return a short public mark of a verifier, kept as the role's comment in PostgreSQL.

    A managed database hides pg_authid; the mark tells whether the password was already set.
    """
    return "poolkit:" + hashlib.sha256(verifier.encode()).hexdigest()[:16]


def pgpass_field(value: Any) -> str:
    r"""Escape one field of a libpq password file: `\` and `:` get a backslash."""
    text = str(value)
    if "\n" in text or "\0" in text:
        raise AnsibleFilterError("a password file cannot hold a line break or a NUL character")
    return text.replace("\\", "\\\\").replace(":", "\\:")


def pg_uri(
    user: str,
    password: str,
    dbname: str,
    hosts: Iterable[tuple[str, int]],
    parameters: Mapping[str, Any] | None = None,
    scheme: str = "postgresql",
) -> str:
    """Return a connection URI; several hosts are tried in their order.

    Several hosts stand in the query, `…@/name?host=h1,h2&port=6432,5432`, which libpq, SQLAlchemy
    and dj-database-url read alike; libpq's own form `h1:6432,h2:5432` is libpq's alone. One host
    has the plain form, a directory with a unix socket never. Every other character outside
    RFC 3986's unreserved set is percent-encoded, so a password may hold any of them. scheme: with
    SQLAlchemy's driver where an application wants it; with +asyncpg of libpq's parameters only
    sslmode is left, under asyncpg's name, since SQLAlchemy hands each of them to asyncpg.connect.
    """
    found = [(str(host), int(port)) for host, port in hosts]
    given = parameters or {}
    if scheme.endswith("+asyncpg"):
        given = {"ssl": given["sslmode"]} if "sslmode" in given else {}
    parts = {key: quote(str(value), safe="") for key, value in given.items()}
    if len(found) == 1 and not found[0][0].startswith("/"):
        host, port = found[0]
        address = f"[{host}]:{port}" if ":" in host else f"{quote(host, safe='')}:{port}"
    else:
        address = ""
        lists = {
            "host": ",".join(quote(host, safe=":/") for host, _ in found),
            "port": ",".join(str(port) for _, port in found),
        }
        parts = {**lists, **parts}
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    query = "&".join(f"{key}={value}" for key, value in parts.items())
    return f"{scheme}://{login}@{address}/{quote(dbname, safe='')}" + (f"?{query}" if query else "")


def env_file_quote(value: Any) -> str:
    r"""Quote a value for systemd's EnvironmentFile=.

    Inside double quotes systemd takes `\` before one of `"`, `\`, `` ` `` and `$` as an escape and
    everything else literally (systemd.exec(5), src/basic/env-file.c).
    """
    text = str(value)
    if "\0" in text:
        raise AnsibleFilterError("an environment variable cannot hold a NUL character")
    return '"' + re.sub(r'(["\\`$])', r"\\\1", text) + '"'


ENVIRONMENT_NAMES = {"systemd": r"[A-Za-z_][A-Za-z0-9_]*", "docker": r"[^\s=#][^\s=]*"}
"""Formats of environment files, and the names that each can hold: systemd skips any other."""


def environment_file(variables: Mapping[str, Any], format: str) -> str:
    """Return the text of an environment file, one line for each variable in the order of names.

    format: `systemd` (EnvironmentFile=), quoted as `env_file_quote` does; `docker`, NAME=value as
    it is, without quotes and escapes, for `docker run --env-file` and the environmentFiles of ECS.
    Refused: a name that the format cannot hold, and for docker a value with a line break.
    """
    if format not in ENVIRONMENT_NAMES:
        raise AnsibleFilterError(f"no environment file has the format {format!r}: systemd, docker")
    lines = []
    for name, value in sorted(variables.items()):
        text = str(value)
        if not re.fullmatch(ENVIRONMENT_NAMES[format], str(name)):
            raise AnsibleFilterError(
                f"{name!r} is no name of a variable in {format}'s environment file: use letters, "
                "digits and _"
            )
        if format == "docker" and re.search(r"[\r\n\0]", text):
            raise AnsibleFilterError(
                f"{name} has a line break or a NUL character, which Docker's environment file "
                "cannot hold: encode it, or leave out app_docker_environment_file"
            )
        lines.append(f"{name}={env_file_quote(text) if format == 'systemd' else text}\n")
    return "".join(lines)


def userlist_quote(value: str) -> str:
    """Quote a name or verifier for PgBouncer's auth_file: a double quote is doubled."""
    if "\n" in value or "\0" in value:
        raise AnsibleFilterError("PgBouncer's user list cannot hold a line break or NUL character")
    return '"' + value.replace('"', '""') + '"'


def connstr_quote(value: Any) -> str:
    """Quote a value inside a [databases] connection string: a single quote is doubled."""
    text = str(value)
    if not text or "\n" in text or "\0" in text:
        raise AnsibleFilterError(
            "a [databases] value cannot be empty and cannot hold a line break: PgBouncer would "
            "refuse the whole file"
        )
    return "'" + text.replace("'", "''") + "'"


def setting_literal(value: Any) -> str:
    """Return the right side of `ALTER ROLE … SET name =`: a literal, or several for a list."""
    if isinstance(value, list):
        return ", ".join(setting_literal(part) for part in value)
    if isinstance(value, bool):
        return "'on'" if value else "'off'"
    text = str(value)
    if isinstance(value, Mapping) or value is None or "\0" in text:
        raise AnsibleFilterError(f"app_database_settings: {value!r} is no value of a setting")
    escaped = text.replace("'", "''")
    return f"E'{escaped.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{escaped}'"


def quote_ident(value: str) -> str:
    """Quote an SQL identifier."""
    if not value or "\0" in value:
        raise AnsibleFilterError("an SQL identifier cannot be empty and cannot hold NUL")
    return '"' + value.replace('"', '""') + '"'


POOLER_PORT = 6432
"""Default of pgbouncer_listen_port in roles/pgbouncer/defaults, which other plays cannot see."""

Groups = Mapping[str, Sequence[str]]
"""Ansible's `groups`: the names of the hosts of each group, in the inventory's order."""


POOLED = ("pgbouncer", "pgbouncer_nopool")
"""Strategies that go through a PgBouncer of the inventory."""
STRATEGIES = (*POOLED, "native", "managed", "direct")
"""What app_connection_strategy may be; docs/strategies.md describes them."""
POOL_MODES = ("transaction", "session")
"""What app_pool_mode may be."""


def _choice(facts: Mapping[str, Any], variable: str, choices: Sequence[str], host: str) -> str:
    """Return a variable that has one of several values, the first where it is not given."""
    value = facts.get(variable, choices[0])
    if value not in choices:
        raise AnsibleFilterError(
            f"{host}: {variable} is {value!r}: use one of {', '.join(choices)}"
        )
    return value


def _strategy(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> str:
    return _choice(hostvars[host], "app_connection_strategy", STRATEGIES, host)


def uses_database(hostvars: Mapping[str, Mapping[str, Any]], groups: Groups) -> bool:
    """Say whether some application has a database of the inventory, and not a platform's."""
    return any(_strategy(hostvars, host) != "managed" for host in groups["applications"])


def _poolers(hostvars: Mapping[str, Mapping[str, Any]], groups: Groups, host: str) -> list[str]:
    """Return the pooler hosts that an application's host uses, in the order it tries them.

    None where the application's strategy goes past poolers. A host that is itself in the group
    pgbouncer has its pooler beside it and uses no other. Every other one uses all pooler hosts
    without an application (a tier, or the database's own host), each from another one on, so that
    the load spreads and the list stays the same between runs.
    """
    if _strategy(hostvars, host) not in POOLED:
        return []
    poolers = groups.get("pgbouncer", [])
    if host in poolers:
        return [host]
    tier = [pooler for pooler in poolers if pooler not in groups["applications"]]
    if not tier:
        raise AnsibleFilterError(
            f"{host}: no pooler serves this host of the group applications: put it into the group "
            "pgbouncer (a pooler beside the application), put a host without an application there "
            "(a tier of poolers, or the database's host), or choose an app_connection_strategy "
            "without poolers"
        )
    turn = list(groups["applications"]).index(host) % len(tier)
    return tier[turn:] + tier[:turn]


def _private_address(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> str:
    value = hostvars[host].get("private_address")
    if not value:
        raise AnsibleFilterError(
            f"{host}: private_address is missing: the address at which the other hosts see it, "
            "set in the inventory beside the host's name"
        )
    return str(value)


def _network(address: str) -> str:
    """Return one address in CIDR notation."""
    return f"{address}/{128 if ':' in address else 32}"


def pooler_endpoints(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Groups, host: str
) -> list[dict]:
    """Return the poolers of an application's host as it reaches them: [{host, port}, …]."""
    return [
        {
            "host": "127.0.0.1" if pooler == host else _private_address(hostvars, pooler),
            "port": int(hostvars[pooler].get("pgbouncer_listen_port", POOLER_PORT)),
        }
        for pooler in _poolers(hostvars, groups, host)
    ]


def pooler_client_addresses(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Groups, host: str
) -> list[str]:
    """Return the addresses, in CIDR notation, of the applications' hosts that use a pooler."""
    if host in groups["applications"]:
        return ["127.0.0.1/32"]
    return [
        _network(_private_address(hostvars, client))
        for client in groups["applications"]
        if host in _poolers(hostvars, groups, client)
    ]


def pooler_listen_addr(hostvars: Mapping[str, Mapping[str, Any]], groups: Groups, host: str) -> str:
    """Return PgBouncer's listen_addr: loopback, and the own address where others come in."""
    if host in groups["applications"]:
        return "127.0.0.1"
    return f"127.0.0.1,{_private_address(hostvars, host)}"


def applications(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Groups, admin_user: str | None = None
) -> list[dict]:
    """Collect the applications of the inventory: one entry for each distinct `app_name`.

    Left out are those of the strategy `managed`, whose database is the platform's. Each entry:
    name, hosts (of the group `applications`), poolers (the pooler hosts that serve it; none for
    the strategies native and direct), clients ({pooler: the hosts that may use it}), database,
    user, password, owner, owner_password, connection_limit (None where the inventory gives none:
    `connection_limits` derives it), fallback_connections (of one host), owner_connection_limit,
    settings (of the user), owner_settings, schema (the first of a declared search_path, or
    public), strategy, pool_mode, framework, module, workers ({host: number or "auto"}), threads,
    connection_pool_size, hosts_at_once (in a batch of a rollout). Defaults equal those in
    roles/app/defaults/main.yml, which other plays cannot see (a unit test compares them).
    Refused: two hosts of one application that state different facts, two applications with one
    database or role, a role that is the administrator's, and a host that no pooler serves.
    """
    found: dict[str, dict] = {}
    for host in groups["applications"]:
        entry = _application(hostvars, host)
        known = found.setdefault(entry["name"], {**entry, "hosts": [], "workers": {}})
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
    entries = [entry for entry in found.values() if entry["strategy"] != "managed"]
    for entry in entries:
        used = {host: _poolers(hostvars, groups, host) for host in entry["hosts"]}
        entry["clients"] = {
            pooler: [host for host in entry["hosts"] if pooler in used[host]]
            for pooler in groups.get("pgbouncer", [])
            if any(pooler in poolers for poolers in used.values())
        }
        entry["poolers"] = list(entry["clients"])
        entry["hosts_at_once"] = _batch_size(entry.pop("serial"), len(entry["hosts"]))
    _refuse_shared(entries, admin_user)
    return entries


def _application(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> dict:
    """Return what one host says of its application; of a managed one its name alone."""
    facts = hostvars[host]
    name = _required(facts, "app_name", host)
    strategy = _strategy(hostvars, host)
    if strategy == "managed":
        return {"name": name, "strategy": strategy}
    settings = dict(facts.get("app_database_settings", {}))
    owner_settings = {
        "lock_timeout": _duration(facts, "app_migration_lock_timeout", "5s", host),
        "statement_timeout": _duration(facts, "app_migration_statement_timeout", "15min", host),
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
        "connection_limit": _count(facts, "app_database_connection_limit", None, host),
        "fallback_connections": _count(facts, "app_fallback_connections", 8, host),
        "owner_connection_limit": _count(facts, "app_database_owner_connection_limit", 5, host),
        "settings": settings,
        "owner_settings": owner_settings,
        "schema": _schema(settings, host),
        "strategy": strategy,
        "pool_mode": _choice(facts, "app_pool_mode", POOL_MODES, host),
        "framework": facts.get("app_framework", ""),
        "module": facts.get("app_module", ""),
        "threads": _count(facts, "app_threads", 4, host),
        "connection_pool_size": _count(facts, "app_connection_pool_size", 5, host),
        "serial": _serial(facts, host),
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
    value = facts.get("app_workers", "auto")
    if value != "auto" and not re.fullmatch(r"[1-9]\d*", str(value)):
        raise AnsibleFilterError(
            f"{host}: app_workers is {value!r}: give a number of processes, or auto"
        )
    return value if value == "auto" else int(value)


def _serial(facts: Mapping[str, Any], host: str) -> str:
    value = str(facts.get("app_serial", 1))
    if not re.fullmatch(r"[1-9]\d*|([1-9]\d?|100)%", value):
        raise AnsibleFilterError(
            f"{host}: app_serial is {value!r}: give a number or a percentage such as 25%"
        )
    return value


def _batch_size(serial: str, hosts: int) -> int:
    """Return how many of an application's hosts one batch has, as Ansible's `serial` counts."""
    if serial.endswith("%"):
        return max(hosts * int(serial[:-1]) // 100, 1)
    return min(int(serial), hosts)


def rollout_batches(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Groups, begun: str
) -> list[list[str]]:
    """Return the hosts of the group `applications` in the batches of a rollout.

    Each batch holds the next app_serial hosts of every application: a number, or a percentage of
    its hosts, at least one. The applications are rolled out side by side, in the inventory's order.
    begun: a variable that an earlier play has registered on the hosts that take part; Ansible
    would fill a batch up with other hosts where --limit leaves some out.
    """
    hosts_of: dict[str, list[str]] = {}
    for host in (host for host in groups["applications"] if begun in hostvars[host]):
        hosts_of.setdefault(str(hostvars[host].get("app_name")), []).append(host)
    batches: list[list[str]] = []
    for hosts in hosts_of.values():
        size = _batch_size(_serial(hostvars[hosts[0]], hosts[0]), len(hosts))
        for number, start in enumerate(range(0, len(hosts), size)):
            if number == len(batches):
                batches.append([])
            batches[number] += hosts[start : start + size]
    return batches


def _duration(facts: Mapping[str, Any], variable: str, default: str, host: str) -> str:
    value = str(facts.get(variable, default))
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


def _count(facts: Mapping[str, Any], variable: str, default: int | None, host: str) -> int | None:
    value = facts.get(variable, default)
    if value is not None and not re.fullmatch(r"\d+", str(value)):
        raise AnsibleFilterError(f"{host}: {variable} is {value!r}: give a number of connections")
    return None if value is None else int(value)


def _check_name(value: Any, variable: str, host: str) -> None:
    if value in RESERVED_NAMES:
        raise AnsibleFilterError(f"{host}: {variable} is {value!r}, which has a meaning of its own")
    if not isinstance(value, str) or not PGBOUNCER_PLAIN_NAME.fullmatch(value) or len(value) > 63:
        raise AnsibleFilterError(
            f"{host}: {variable} is {value!r}: use 1 to 63 of the characters A-Z a-z 0-9 _ . -, "
            "the ones that every PgBouncer version reads"
        )


def _refuse_shared(entries: Iterable[dict], admin_user: str | None) -> None:
    """Each role has one password and each database one owner, so neither can be shared."""
    first: dict[tuple[str, str], str] = {}
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


def database_roles(apps: Iterable[Mapping[str, Any]], seed: str) -> dict[str, dict]:
    """Return the PostgreSQL roles of the applications by name.

    Each: verifier, fingerprint, connection_limit.
    """
    roles: dict[str, dict] = {}
    for app in apps:
        for kind in ("", "owner"):
            name = app[kind or "user"]
            verifier = scram_verifier(app[f"{kind}_password".lstrip("_")], name, seed)
            roles[name] = {
                "verifier": verifier,
                "fingerprint": verifier_fingerprint(verifier),
                "connection_limit": app[f"{kind}_connection_limit".lstrip("_")],
            }
    return roles


def changed_settings(
    results: Iterable[Mapping[str, Any]], apps: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return the databases whose application's user has other settings than before the grants.

    results: of database.yml's loop over the names of apps, each with the rows of
    access_snapshot.sql before and after; one that was skipped has none.
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


RESERVED_NAMES = ("all", "pgbouncer", "pgbouncer_auth", "pgbouncer-exporter")
"""A keyword of access rules, the console and its user, and the roles that poolkit makes."""

AUTH_USER = "pgbouncer_auth"
"""The role that looks logins up; _pgbouncer_auth_user in roles/pgbouncer/vars."""


def auth_query_roles(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Groups, seed: str
) -> dict[str, dict]:
    """Return the role of auth_query, as `database_roles`, or nothing where no pooler uses it.

    Its connection limit: two for each process of each pooler, and as many during a restart.
    """
    poolers = [
        hostvars[host]
        for host in groups.get("pgbouncer", [])
        if boolean(hostvars[host].get("pgbouncer_auth_query_enabled", False))
    ]
    if not poolers:
        return {}
    passwords = {facts.get("pgbouncer_auth_query_password") or "" for facts in poolers}
    if len(passwords) > 1 or "" in passwords:
        raise AnsibleFilterError(
            "pgbouncer_auth_query_password is missing, or differs between poolers: set it once, in "
            "the group_vars of the group pgbouncer"
        )
    verifier = scram_verifier(passwords.pop(), AUTH_USER, seed)
    processes = sum(int(facts.get("pgbouncer_processes", 1)) for facts in poolers)
    return {
        AUTH_USER: {
            "verifier": verifier,
            "fingerprint": verifier_fingerprint(verifier),
            "connection_limit": 4 * processes,
        }
    }


def pooler_applications(apps: Iterable[Mapping[str, Any]], host: str) -> list[dict]:
    """Return what a pooler host needs to know of the applications that it serves.

    apps: as of `applications`. Each: name, database, user, password, owner, pool_mode. The owner
    roles do not pass through a pooler; it gets their names to refuse them.
    """
    return [
        {key: app[key] for key in ("name", "database", "user", "password", "owner", "pool_mode")}
        for app in apps
        if host in app["poolers"]
    ]


def hba_rules(
    apps: Iterable[Mapping[str, Any]],
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Groups,
    admin_user: str,
) -> list[dict]:
    """Return the pg_hba.conf rules that let exactly the hosts in that need the server.

    An application's user comes from its own hosts (the fallback) and from the poolers that serve
    it, its owner from its own hosts (migrations), the administrator from the group database_admin.
    Each rule: database, user, address (one host), in the order of the applications.
    """

    def rule(database: str, user: str, host: str) -> dict:
        address = _network(_private_address(hostvars, host))
        return {"database": database, "user": user, "address": address}

    rules = []
    for app in apps:
        for host in app["hosts"]:
            rules += [rule(app["database"], user, host) for user in (app["user"], app["owner"])]
        rules += [
            rule(app["database"], app["user"], pooler)
            for pooler in app["poolers"]
            if pooler not in app["hosts"]
        ]
    for host in groups.get("pgbouncer", []):
        if boolean(hostvars[host].get("pgbouncer_auth_query_enabled", False)):
            # Whom the pooler lets in is PgBouncer's own HBA file's matter.
            rules += [rule(app["database"], "all", host) for app in apps if host in app["poolers"]]
    admins = groups.get("database_admin", []) if admin_user else []
    return rules + [rule("all", admin_user, host) for host in admins]


def pooler_database(app: Mapping[str, Any], host: str, port: int) -> dict[str, Any]:
    """Return the [databases] entry of an application: where PgBouncer finds its database.

    pool_mode stands in it where the application asks for sessions; the pooler's own setting is
    transaction.
    """
    mode = {"pool_mode": "session"} if app.get("pool_mode") == "session" else {}
    return {"host": host, "port": port, "dbname": app["database"], **mode}


def unknown_variables(names: Iterable[str], spec: Mapping[str, Any]) -> list[str]:
    """Return a message for each variable that no option of the argument spec explains.

    Argument specs accept an unknown top-level variable in silence, so a misspelt one would be a
    setting that never takes effect.
    """
    messages = []
    for name in sorted(set(names) - set(spec)):
        near = difflib.get_close_matches(name, spec, n=1)
        messages.append(name + (f" (did you mean {near[0]}?)" if near else ""))
    return messages


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                applications,
                auth_query_roles,
                changed_settings,
                connstr_quote,
                database_roles,
                env_file_quote,
                environment_file,
                hba_rules,
                pg_uri,
                pgpass_field,
                pooler_applications,
                pooler_client_addresses,
                pooler_database,
                pooler_endpoints,
                pooler_listen_addr,
                rollout_batches,
                quote_ident,
                scram_verifier,
                setting_literal,
                unknown_variables,
                userlist_quote,
                uses_database,
                verifier_fingerprint,
            )
        }

"""Which pooler serves which application's host, and in which batches they change.

Pure functions: no host and no network needed. What contradicts itself raises AnsibleFilterError
with the variable to change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean

from .role_defaults import default
from .stand_ins import stand_in_of
from .values import SERIAL

Hostvars = Mapping[str, Mapping[str, Any]]
"""{host: its variables}."""

Groups = Mapping[str, Sequence[str]]
"""Ansible's `groups`: the names of the hosts of each group, in the inventory's order."""

POOLED = ("pgbouncer", "pgbouncer_nopool")
"""Strategies that go through a PgBouncer of the inventory."""

STRATEGIES = (*POOLED, "native", "managed", "direct")
"""What app_connection_strategy may be; docs/strategies.md describes them."""

FRAMEWORKS = ("django", "fastapi", "flask")
"""What app_framework may be; the role app itself demands one."""

VERIFYING = ("verify-ca", "verify-full")
"""libpq's sslmodes that look at the server's certificate."""

POOL_MODES = ("transaction", "session")
"""What app_pool_mode may be."""


def choice(facts: Mapping[str, Any], variable: str, choices: Sequence[str], host: str) -> str:
    """Return a variable that has one of several values, the first where it is not given."""
    value = facts.get(variable, choices[0])
    if value not in choices:
        raise AnsibleFilterError(
            f"{host}: {variable} is {value!r}: use one of {', '.join(choices)}"
        )
    return value


def strategy_of(hostvars: Hostvars, host: str) -> str:
    return choice(hostvars[host], "app_connection_strategy", STRATEGIES, host)


def uses_database(hostvars: Hostvars, groups: Groups) -> bool:
    """Say whether some application has a database of the inventory, and not a platform's."""
    return any(strategy_of(hostvars, host) != "managed" for host in groups["applications"])


def poolers_of(hostvars: Hostvars, groups: Groups) -> dict[str, list[str]]:
    """Return the pooler hosts that each application's host uses, in the order it tries them.

    None where the application's strategy goes past poolers. A host that is itself in the group
    pgbouncer has its pooler beside it and uses no other. Every other one uses all pooler hosts
    without an application (a tier, or the database's own host), each from another one on, so that
    the load spreads and the list stays the same between runs.
    """
    served, poolers = set(groups["applications"]), groups.get("pgbouncer", [])
    beside, tier = set(poolers), [pooler for pooler in poolers if pooler not in served]
    found: dict[str, list[str]] = {}
    for number, host in enumerate(groups["applications"]):
        if strategy_of(hostvars, host) not in POOLED:
            found[host] = []
        elif host in beside:
            found[host] = [host]
        elif tier:
            turn = number % len(tier)
            found[host] = tier[turn:] + tier[:turn]
        else:
            raise AnsibleFilterError(
                f"{host}: no pooler serves this host of the group applications: put it into the "
                "group pgbouncer (a pooler beside the application), put a host without an "
                "application there (a tier of poolers, or the database's host), or choose an "
                "app_connection_strategy without poolers"
            )
    return found


def _private_address(hostvars: Hostvars, host: str) -> str:
    value = hostvars[host].get("private_address")
    if not value:
        raise AnsibleFilterError(
            f"{host}: private_address is missing: the address at which the other hosts see it, "
            "set in the inventory beside the host's name"
        )
    return str(value)


def _network(address: str) -> str:
    """Return one address in CIDR notation; a network, that of a service's tasks, as it is."""
    return address if "/" in address else f"{address}/{128 if ':' in address else 32}"


def address_beside(facts: Mapping[str, Any], host: str) -> str:
    """Return the address of the pooler on the application's own host: loopback, or its socket.

    Drivers take one `sslmode` for all hosts of a URL, and ignore it on a unix socket. So a fallback
    that verifies PostgreSQL needs the socket. Several processes share a port, and have a socket
    each: there the fallback stays unverified, as where not everybody may log in on the socket.
    """
    sslmode = facts.get("app_database_sslmode", facts.get("database_sslmode"))
    verified = sslmode in VERIFYING and flag_of(facts, "app_database_fallback_enabled")
    variable = "pgbouncer_processes"
    lone = verified and whole_number(value_of(facts, variable), variable, host) == 1
    return "/run/pgbouncer/1" if lone and _open_socket(facts) else "127.0.0.1"


def _open_socket(facts: Mapping[str, Any]) -> bool:
    """Say whether an application logs in on its pooler's socket as it does over TCP."""
    settings = facts.get("pgbouncer_settings") or {}
    rules = facts.get("pgbouncer_hba_rules") or []
    return (
        value_of(facts, "pgbouncer_socket_auth_method") == "scram-sha-256"
        and not {"unix_socket_mode", "unix_socket_group"} & set(settings)
        and not any(isinstance(rule, Mapping) and rule.get("type") == "local" for rule in rules)
    )


def endpoints(hostvars: Hostvars, poolers: Sequence[str], host: str) -> list[dict]:
    """Return pooler hosts as an application's host reaches them: [{host, port}, …]."""
    return [
        {
            "host": address_beside(hostvars[host], host)
            if pooler == host
            else _private_address(hostvars, pooler),
            "port": whole_number(
                value_of(hostvars[pooler], "pgbouncer_listen_port"), "pgbouncer_listen_port", pooler
            ),
        }
        for pooler in poolers
    ]


def client_addresses(hostvars: Hostvars, clients: Iterable[str], pooler: str) -> list[str]:
    """Return the addresses, in CIDR notation, of the applications' hosts that use a pooler."""
    return [
        "127.0.0.1/32" if client == pooler else _network(_private_address(hostvars, client))
        for client in clients
    ]


def listen_addr(hostvars: Hostvars, groups: Groups, pooler: str) -> str:
    """Return PgBouncer's listen_addr: loopback, and the own address where others come in."""
    if pooler in groups["applications"]:
        return "127.0.0.1"
    return f"127.0.0.1,{_private_address(hostvars, pooler)}"


def value_of(facts: Mapping[str, Any], variable: str) -> Any:
    """Return a role's variable, its default where the inventory does not give it."""
    return facts[variable] if variable in facts else default(variable)


def whole_number(value: Any, variable: str, host: str) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)):
        raise AnsibleFilterError(f"{host}: {variable} is {value!r}: give a whole number")
    return int(value)


def flag_of(facts: Mapping[str, Any], variable: str) -> bool:
    """Return a variable that is true or false, its default where the inventory does not give it."""
    try:
        return boolean(value_of(facts, variable))
    except TypeError:
        raise AnsibleFilterError(f"{variable} is {facts[variable]!r}: give true or false") from None


def uses_auth_query(facts: Mapping[str, Any]) -> bool:
    """Say whether a pooler looks logins up in PostgreSQL (auth_query)."""
    return flag_of(facts, "pgbouncer_auth_query_enabled")


def serial_of(facts: Mapping[str, Any], host: str, role: str = "app") -> str:
    value = str(value_of(facts, f"{role}_serial"))
    if not re.fullmatch(SERIAL, value):
        raise AnsibleFilterError(
            f"{host}: {role}_serial is {value!r}: give a number or a percentage such as 25%"
        )
    return value


def batch_size(serial: str, hosts: int) -> int:
    """Return how many of an application's hosts one batch has, as Ansible's `serial` counts."""
    if serial.endswith("%"):
        return max(hosts * int(serial[:-1]) // 100, 1)
    return min(int(serial), hosts)


def batches(sets: Iterable[tuple[Sequence[str], str]]) -> list[list[str]]:
    """Return batches that hold the next hosts of every set: pairs of hosts and a `serial`."""
    batches: list[list[str]] = []
    for hosts, serial in sets:
        size = batch_size(serial, len(hosts))
        for number, start in enumerate(range(0, len(hosts), size)):
            if number == len(batches):
                batches.append([])
            batches[number] += hosts[start : start + size]
    return batches


def hba_rules(
    apps: Iterable[Mapping[str, Any]],
    hostvars: Hostvars,
    groups: Groups,
    admin_user: str,
) -> list[dict]:
    """Return the pg_hba.conf rules that let exactly the hosts in that need the server.

    An application's user comes from its own hosts (the fallback) and from the poolers that serve
    it, its owner from its own hosts (migrations), the administrator from the group database_admin.
    Who stands in for a user while its password changes comes from where the user does, at any
    time, so that no deployment in between locks it out. Each rule: database, user, address (one
    host), in the order of the applications.
    """

    def rule(database: str, user: str, host: str) -> dict:
        address = _network(_private_address(hostvars, host))
        return {"database": database, "user": user, "address": address}

    rules = []
    apps = [app for app in apps if "stands_in_for" not in app]
    for app in apps:
        users = (app["user"], stand_in_of(app["user"]))
        for host in app["hosts"]:
            rules += [rule(app["database"], user, host) for user in (*users, app["owner"])]
        for pooler in app["poolers"]:
            if pooler not in app["hosts"]:
                rules += [rule(app["database"], user, pooler) for user in users]
    for host in groups.get("pgbouncer", []):
        if uses_auth_query(hostvars[host]):
            # Whom the pooler lets in is PgBouncer's own HBA file's matter.
            rules += [rule(app["database"], "all", host) for app in apps if host in app["poolers"]]
    admins = groups.get("database_admin", []) if admin_user else []
    return rules + [rule("all", admin_user, host) for host in admins]

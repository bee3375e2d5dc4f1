#!/usr/bin/python
"""Log in as an application on each of its ways to the database, and compare what it gets there."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_login
short_description: Log in as an application on each of its ways to the database
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Fails where a pooler or PostgreSQL refuses the role, and where a pooler gives it other settings
    than PostgreSQL itself, since what the role has by ALTER ROLE … SET has to arrive through the
    poolers as well.
  - Changes nothing. Check mode skips it.
options:
  host:
    description: The host's name in the inventory, for messages.
    type: str
    required: true
  database:
    description: The database, for messages.
    type: str
    required: true
  user:
    description: The role, for messages.
    type: str
    required: true
  sslmode:
    description: What the direct connection asks for, for messages.
    type: str
    required: true
  poolers:
    description: The [host, port] of each pooler.
    type: list
    elements: list
    default: []
  pooler_service:
    description: Service of service_file with everything but the address, for poolers.
    type: str
    required: true
  direct:
    description: The [host, port] of PostgreSQL itself, of which there is one at most.
    type: list
    elements: list
    default: []
  direct_service:
    description: The same for PostgreSQL itself.
    type: str
    required: true
  service_file:
    description: libpq's connection service file.
    type: path
    required: true
  password_file:
    description: libpq's password file.
    type: path
    required: true
  settings:
    description: Names of the settings that are compared.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Log in as the application
  poolkit.poolkit.app_login:
    host: "{{ inventory_hostname }}"
    database: shop
    user: shop
    sslmode: prefer
    poolers: [[127.0.0.1, 6432]]
    pooler_service: shop
    direct: [[db.example.com, 5432]]
    direct_service: shop_direct
    service_file: /etc/poolkit/shop/migrate.pg_service.conf
    password_file: /etc/poolkit/shop/migrate.pgpass
    settings: [search_path, statement_timeout]
"""

RETURN = r"""
settings:
  description: The settings that the role has on each way, {address, settings}.
  type: list
  elements: dict
  returned: success
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..module_utils.libpq_login import log_in
from ..module_utils.unlogged_module import UnloggedModule

CERTIFICATE_WORDS = "certificate|SSL error|support SSL"
"""psql says one of them where it does not take the server's certificate."""


QUERY = (
    "SELECT string_agg(name || '=' || setting, ', ' ORDER BY name) FROM pg_settings "
    "WHERE name IN ({names})"
)
"""Asks for settings by name as one value, in the order of names."""


def question(settings: Sequence[str]) -> str:
    """Return the query for settings by name."""
    quoted = ["'" + name.replace("'", "''") + "'" for name in settings]
    return QUERY.format(names=", ".join(quoted) or "NULL")


def refusal(given: Mapping[str, Any], refused: Sequence[tuple[dict[str, str], str]]) -> str:
    """Return what is to be said of the ways that are refused: each with psql's words."""
    who = "PgBouncer" if refused[0][0]["service"] == given["pooler_service"] else "PostgreSQL"
    said = "; ".join(f"{way['address']}: {words}" for way, words in refused)
    hint = (
        f"app_database_sslmode is {given['sslmode']} (database_sslmode): give a database_host that "
        "PostgreSQL's certificate names, and in database_ca_file the authority that signed it"
        if re.search(CERTIFICATE_WORDS, said)
        else "Check the group pgbouncer and app_database_password, then run "
        "ansible/playbooks/database.yml and ansible/playbooks/pgbouncer.yml"
    )
    return (
        f"{given['host']}: {who} refuses the role {given['user']} of the database "
        f"{given['database']} at {said}. {hint}"
    )


def staleness(
    given: Mapping[str, Any], direct: str, stale: Sequence[tuple[dict[str, str], str]]
) -> str:
    """Return what is to be said of poolers whose connections are older than the settings."""
    said = "; ".join(f"{way['address']}: {words}" for way, words in stale)
    return (
        f"{given['host']}: the role {given['user']} has other settings through PgBouncer than it "
        f"has directly ({direct}): {said}. These connections are older than the change: have them "
        "replaced with ansible pgbouncer -b -m poolkit.poolkit.pgbouncer_admin "
        f"-a 'command=reconnect database={given['database']}'"
    )


def ways(given: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return {host, port, address, service} of each way, the poolers before PostgreSQL itself."""
    return [
        {"host": host, "port": port, "address": f"{host}:{port}", "service": given[service]}
        for addresses, service in (("poolers", "pooler_service"), ("direct", "direct_service"))
        for host, port in given[addresses]
    ]


def main() -> None:
    addresses = {"type": "list", "elements": "list", "default": []}
    module = UnloggedModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "database": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "sslmode": {"type": "str", "required": True},
            "poolers": addresses,
            "pooler_service": {"type": "str", "required": True},
            "direct": addresses,
            "direct_service": {"type": "str", "required": True},
            "service_file": {"type": "path", "required": True},
            "password_file": {"type": "path", "required": True},
            "settings": {"type": "list", "elements": "str", "default": []},
        },
    )
    given = module.params
    environment = {"PGSERVICEFILE": given["service_file"], "PGPASSFILE": given["password_file"]}
    query = question(given["settings"])
    answers = [(way, *log_in(way, query, environment)) for way in ways(given)]
    refused = [(way, said) for way, open_, said in answers if not open_]
    if refused:
        module.fail_json(msg=refusal(given, refused))
    direct = [said for way, _, said in answers if way["service"] == given["direct_service"]]
    stale = [(way, said) for way, _, said in answers if direct and said != direct[-1]]
    if stale:
        module.fail_json(msg=staleness(given, direct[-1], stale))
    module.exit_json(
        changed=False,
        settings=[{"address": way["address"], "settings": said} for way, _, said in answers],
    )


if __name__ == "__main__":
    main()

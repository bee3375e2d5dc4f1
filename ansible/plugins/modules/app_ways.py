#!/usr/bin/python
"""Tell which ways to the database an application uses now, and which ones do not let it in."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_ways
short_description: Tell which ways to the database an application uses now
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Counts the connections of the application's user on this host, to its poolers and past them, so
    that a fallback is seen wherever the pooler is. The kernel knows them; PostgreSQL is asked for
    nothing but since when.
  - Logs in as the application on each way, and tells what is refused. A driver that tries the next
    host after a wrong password would hide it.
  - Changes nothing and never fails for what it finds.
options:
  user:
    description: The operating system's user that the application runs as.
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
    description: The [host, port] of PostgreSQL itself.
    type: list
    elements: list
    required: true
  direct_allowed:
    description: Whether the application may go to PostgreSQL itself; a login is then tried.
    type: bool
    default: true
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
"""

EXAMPLES = r"""
- name: Look which way the application goes
  poolkit.poolkit.app_ways:
    user: shop
    poolers: [[127.0.0.1, 6432]]
    pooler_service: shop
    direct: [[db.example.com, 5432]]
    direct_service: shop_direct
    service_file: /etc/poolkit/shop/migrate.pg_service.conf
    password_file: /etc/poolkit/shop/migrate.pgpass
"""

RETURN = r"""
pooled:
  description: How many connections the application has to its poolers.
  type: int
  returned: success
direct:
  description: How many it has to PostgreSQL itself.
  type: int
  returned: success
cores:
  description: The host's processor cores, of which app_workers C(auto) is made.
  type: int
  returned: success
since:
  description: When the oldest of these was made, in UTC; empty where nobody tells.
  type: str
  returned: success
refused:
  description: A sentence for each way that does not let the application in, or leads to a server
    that takes no writes.
  type: list
  elements: str
  returned: success
"""

import os
import pwd

from ..module_utils.libpq_login import log_in
from ..module_utils.tcp_connections import addresses, open_connections
from ..module_utils.unlogged_module import UnloggedModule

AUTHENTICATION_HINT = (
    " (its password for the application is another one: run ansible/playbooks/database.yml and "
    "ansible/playbooks/pgbouncer.yml)"
)
"""PgBouncer says "SASL authentication failed", PostgreSQL "password authentication failed"."""

QUERY = (
    "SELECT current_setting('transaction_read_only'), "
    "(SELECT to_char(min(backend_start) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') "
    "FROM pg_stat_activity WHERE usename = session_user AND client_port IN ({ports}))"
)
"""Asks whether the server takes writes, and when the oldest of the role's connections from these
ports was made."""


def main() -> None:
    addresses_of = {"type": "list", "elements": "list"}
    module = UnloggedModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "poolers": {**addresses_of, "default": []},
            "pooler_service": {"type": "str", "required": True},
            "direct": {**addresses_of, "required": True},
            "direct_allowed": {"type": "bool", "default": True},
            "direct_service": {"type": "str", "required": True},
            "service_file": {"type": "path", "required": True},
            "password_file": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    environment = {"PGSERVICEFILE": given["service_file"], "PGPASSFILE": given["password_file"]}
    try:
        user = pwd.getpwnam(given["user"]).pw_uid
    except KeyError:
        user = -1
    open_now = [(own, peer) for uid, own, peer in open_connections() if uid == user]
    poolers, direct = addresses(given["poolers"]), addresses(given["direct"])
    ports = [own[1] for own, peer in open_now if peer in direct]
    since, refused = "", []
    kinds = [("PgBouncer", "pooler"), ("PostgreSQL", "direct")]
    for who, kind in kinds if given["direct_allowed"] else kinds[:1]:
        for host, port in given["poolers" if kind == "pooler" else "direct"]:
            way = {"host": host, "port": port, "service": given[f"{kind}_service"]}
            listed = ", ".join(map(str, ports if kind == "direct" else [])) or "NULL"
            is_open, said = log_in(way, QUERY.format(ports=listed), environment)
            if not is_open:
                if "authentication failed" in said:
                    said += AUTHENTICATION_HINT
                refused.append(f"{who} at {host}:{port} does not let the application in: {said}")
                continue
            read_only, _, oldest = said.partition("|")
            if kind == "direct":
                since = oldest
            if read_only == "on":
                refused.append(
                    f"the PostgreSQL behind {host}:{port} takes no writes: it is a standby, or was "
                    "demoted (docs/runbooks/failover.md)"
                )
    module.exit_json(
        changed=False,
        pooled=sum(peer in poolers for _, peer in open_now),
        direct=len(ports),
        cores=len(os.sched_getaffinity(0)),
        since=since,
        refused=refused,
    )


if __name__ == "__main__":
    main()

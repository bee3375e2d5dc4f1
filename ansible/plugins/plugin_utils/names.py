"""Names and characters that PostgreSQL, PgBouncer and the platforms keep for themselves."""

from __future__ import annotations

import re

PGBOUNCER_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""Names that every PgBouncer version reads without quoting (upstream issue 971)."""

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
"""What ends a line for one reader or another, and characters that nobody sees; a tab may stay."""

AUTH_USER = "pgbouncer_auth"
"""The role that looks logins up; _pgbouncer_auth_user in roles/pgbouncer/vars."""

RESERVED_NAMES = ("all", "pgbouncer", AUTH_USER, "pgbouncer-exporter")
"""A keyword of access rules, the console and its user, and the roles that poolkit makes."""

OWN_ENDINGS = ("-next", "-migrate", "-pending", "-build")
"""Ends of the names of an application's own further units and accounts."""

RESERVED_ROLE = re.compile(
    r"public|none|user|(current|session)_user|current_role|postgres|pg_.*"
    r"|rdsadmin|rds_(superuser|replication|password|ad|iam|reserved)|rdsrepladmin|rdstopmgr"
    r"|azuresu|azure_(superuser|pg_admin)|cloudsql(admin|superuser|replica|agent|iam\w+)"
    r"|alloydb(admin|superuser|iam\w+)"
    r"|.*_rotation"
)
"""Keywords where SQL takes a role, PostgreSQL's own roles, those of RDS, Azure and Google, and the
ones that stand in while a password changes (stand_ins.py)."""

RESERVED_DATABASE = re.compile(
    r"postgres|template[01]|sameuser|samerole|samegroup|replication"
    r"|rdsadmin|azure_(maintenance|sys)|cloudsqladmin|alloydbadmin"
)
"""Databases that every server has, keywords of access rules, and databases of the platforms."""

"""A trial run of an application through a pooler of its own, and what its sessions were left with.

The functions are pure. In transaction mode the clients take turns on a few server connections, one
after the other (server_round_robin), so that state of a session is not where it was left. Whatever
stays on a server connection would reach another client.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .pgbouncer_text import parse_connstr, parse_ini
from .session_audit import RULES, TRACKED

MODES = ("session", "transaction")

KEPT = ("host", "port", "dbname", "user", "password", "client_encoding", "datestyle", "timezone")
KEPT += ("connect_query", "auth_user", "auth_query", "auth_dbname", "application_name")
"""Of a database's entry: where it leads. Its limits and its mode are those of the trial."""

OWN = re.compile(
    r"listen_\w+|unix_socket_\w+|so_reuseport|peer_id|pool_mode|\w*pool_size|max_\w*connections|"
    r"max_client_conn|reserve_pool_timeout|server_(?:lifetime|idle_timeout|round_robin)|"
    r"server_reset_query_always|logfile|pidfile|syslog\w*|user|stats_users|admin_users"
)
"""Settings of the live pooler that the trial does not take over."""

STATE = {
    "settings": "SELECT json_object_agg(name, current_setting(name)) FROM pg_settings"
    " WHERE source = 'session'",
    "role": "SELECT json_agg(current_user) WHERE current_user <> session_user",
    "prepared": "SELECT json_agg(name ORDER BY name) FROM pg_prepared_statements WHERE from_sql",
    "locks": "SELECT json_agg(CASE objsubid WHEN 1 THEN ((classid::int8 << 32) | objid::int8)::text"
    " ELSE classid || ', ' || objid END) FROM pg_locks"
    " WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()",
    "channels": "SELECT json_agg(channel) FROM pg_listening_channels() channel",
    "tables": "SELECT json_agg(relname ORDER BY relname) FROM pg_class"
    " WHERE relnamespace = pg_my_temp_schema() AND relkind IN ('r', 'p', 'v', 'S')",
    "cursors": "SELECT json_agg(name ORDER BY name) FROM pg_cursors WHERE is_holdable",
}
"""What a session may keep: a query of one value, which is JSON or NULL."""

WORDS = {
    "settings": ("session-setting", "the settings"),
    "custom": ("session-setting", "the settings"),
    "role": ("session-setting", "the role"),
    "prepared": ("sql-prepare", "the prepared statements"),
    "locks": ("advisory-lock", "the advisory locks"),
    "channels": ("listen", "LISTEN on"),
    "tables": ("temporary-table", "the temporary tables"),
    "cursors": ("cursor-with-hold", "the cursors WITH HOLD"),
}
"""Kind of state -> (the rule with its reason and remedy, how a report names it)."""


def trial_ini(
    text: str, databases: Iterable[str], directory: str, port: int, mode: str, connections: int
) -> str:
    """Return the pgbouncer.ini of a trial beside the live pooler.

    text: of the live one. databases: the entries that the application uses. directory: for the
    socket. connections: of each pool. Raises KeyError for a database without an entry.
    """
    sections = parse_ini(text)
    settings = {
        name: value
        for name, value in sections.get("pgbouncer", {}).items()
        if not OWN.fullmatch(name)
    }
    settings |= {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": directory,
        "pool_mode": mode,
        "default_pool_size": str(connections),
        # All are open from the first client on: the first of them would do all the work otherwise.
        "min_pool_size": str(connections if mode == "transaction" else 0),
        "reserve_pool_size": "0",
        "server_round_robin": "1",
        "server_lifetime": "86400",
        "server_idle_timeout": "0",
    }
    lines = ["[databases]"]
    for name in databases:
        entry = parse_connstr(sections["databases"][name])
        kept = {key: value.replace("'", "''") for key, value in entry.items() if key in KEPT}
        lines.append(f"{name} = " + " ".join(f"{key}='{value}'" for key, value in kept.items()))
    lines += ["", "[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
    return "\n".join(lines) + "\n"


def state_sql(custom: Iterable[str]) -> str:
    """Return the query of what a session keeps: one line of JSON.

    custom: names of settings with a dot, which pg_settings does not list. Raises ValueError for
    what is no such name.
    """
    names = sorted(custom)
    for name in names:
        if not re.fullmatch(r"\w+\.\w+", name):
            raise ValueError(f"{name} is no name of a custom setting")
    parts = [f"'{kind}', ({query})" for kind, query in STATE.items()]
    asked = ", ".join(f"'{name}', current_setting('{name}', true)" for name in names)
    parts.append(f"'custom', json_build_object({asked})")
    return f"SELECT json_build_object('pid', pg_backend_pid(), {', '.join(parts)})"


def left(before: Mapping[str, Any], after: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return what server connections were left with: kind of WORDS -> names.

    before: the state of a new connection. after: that of each connection, as state_sql() asks.
    """
    found: dict[str, set[str]] = {}
    for state in after:
        for kind in WORDS:
            value, known = state.get(kind) or [], before.get(kind) or []
            if isinstance(value, Mapping):
                known = known if isinstance(known, Mapping) else {}
                names = {
                    f"{name} = {text}"
                    for name, text in value.items()
                    if text not in (None, "") and known.get(name) != text
                    if name.lower() not in TRACKED
                }
            else:
                names = {str(name) for name in value} - {str(name) for name in known}
            if names:
                found.setdefault(kind, set()).update(names)
    return {kind: sorted(found[kind]) for kind in WORDS if kind in found}


def problems(codes: Mapping[str, int], state: Mapping[str, list[str]]) -> list[str]:
    """Return a sentence for each reason against transaction mode.

    codes: mode -> the command's exit code. state: what left() returns of transaction mode.
    """
    said = []
    session, transaction = (codes[mode] for mode in MODES)
    if session:
        said.append(
            f"the command fails with {session} in session mode as well, so its exit code tells "
            "nothing of transaction mode. Make it succeed first"
        )
    elif transaction:
        said.append(
            f"the command succeeds in session mode and fails with {transaction} in transaction "
            "mode. Its output says where"
        )
    for kind, names in state.items():
        rule, words = WORDS[kind]
        said.append(
            f"it left {words} {', '.join(names)} on a server connection: {RULES[rule].why}. "
            f"Instead: {RULES[rule].remedy}"
        )
    return said

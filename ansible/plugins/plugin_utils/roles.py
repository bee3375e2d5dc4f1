"""The PostgreSQL roles that poolkit makes, with their verifiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from .names import AUTH_USER
from .scram import scram_verifier, verifier_fingerprint
from .topology import value_of


def application_roles(apps: Iterable[Mapping[str, Any]], seed: str) -> dict[str, dict]:
    """Return the PostgreSQL roles of the applications by name.

    Each: verifier, fingerprint, connection_limit. Left out is a user that keeps its password for
    now, since another role stands in for it.
    """
    roles: dict[str, dict] = {}
    for app in apps:
        for kind in ("owner",) if app.get("waits") else ("", "owner"):
            name = app[kind or "user"]
            verifier = scram_verifier(app[f"{kind}_password".lstrip("_")], name, seed)
            roles[name] = {
                "verifier": verifier,
                "fingerprint": verifier_fingerprint(verifier),
                "connection_limit": app[f"{kind}_connection_limit".lstrip("_")],
            }
    return roles


def auth_query_roles(poolers: Sequence[Mapping[str, Any]], seed: str) -> dict[str, dict]:
    """Return the role of auth_query, as `application_roles`, or nothing without a pooler.

    poolers: the variables of those that `uses_auth_query`. Its connection limit: two for each
    process of each pooler, and as many during a restart.
    """
    if not poolers:
        return {}
    passwords = {facts.get("pgbouncer_auth_query_password") or "" for facts in poolers}
    if len(passwords) > 1 or "" in passwords:
        raise AnsibleFilterError(
            "pgbouncer_auth_query_password is missing, or differs between poolers: set it once, in "
            "the group_vars of the group pgbouncer"
        )
    verifier = scram_verifier(passwords.pop(), AUTH_USER, seed)
    processes = sum(int(value_of(facts, "pgbouncer_processes")) for facts in poolers)
    return {
        AUTH_USER: {
            "verifier": verifier,
            "fingerprint": verifier_fingerprint(verifier),
            "connection_limit": 4 * processes,
        }
    }

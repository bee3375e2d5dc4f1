"""Filters of the role app: what its variables must not contradict, and where a rollback goes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

QUERY_WAIT_TIMEOUT = 10
"""query_wait_timeout in roles/pgbouncer/vars, seconds; a unit test compares them."""

FACTS = ("host", "port", "dbname", "user", "password")
"""What app_environment_names can give further names to: libpq's keywords."""

RESOURCE_LIMITS = (
    "CPUQuota",
    "CPUWeight",
    "IOWeight",
    "LimitCORE",
    "LimitNOFILE",
    "LimitNPROC",
    "MemoryHigh",
    "MemoryMax",
    "MemorySwapMax",
    "Nice",
    "OOMPolicy",
    "OOMScoreAdjust",
    "TasksMax",
)
"""Of systemd.resource-control(5) and systemd.exec(5)."""

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
"""PostgreSQL's units of time; a number without one is milliseconds for the time-outs."""


def seconds(value: Any) -> float:
    """Return a time-out of PostgreSQL in seconds; raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?\s*", str(value))
    if not found:
        raise ValueError(f"{value!r} is no time: give a number and one of {', '.join(UNITS)}")
    return float(found[1]) * UNITS[found[2] or "ms"]


def _count_or_share(value: Any) -> bool:
    return bool(re.fullmatch(r"[1-9]\d*|([1-9]\d?|100)%", str(value)))


def _strategy_errors(given: Mapping[str, Any]) -> Iterable[str]:
    managed = given["strategy"] == "managed"
    for name in ("database_url", "database_direct_url"):
        if managed and not given[name]:
            yield (
                f"app_{name} is missing: app_connection_strategy managed takes the platform's own "
                "URLs, the pooled one and the direct one for migrations"
            )
        if given[name] and not managed:
            yield f"app_{name} is only for app_connection_strategy managed; remove it"
    if managed and given["environment_names"]:
        yield "app_environment_names needs a database of the inventory, not app_database_url"
    for name, fact in given["environment_names"].items():
        if fact not in FACTS:
            yield f"app_environment_names.{name} is {fact!r}: give one of {', '.join(FACTS)}"


def _timeout_errors(given: Mapping[str, Any]) -> Iterable[str]:
    """Each time-out must end before the one around it: docs/timeouts.md has the table."""
    limit = int(given["timeout_seconds"])
    connect = int(given["connect_timeout_seconds"])
    for variable, value in (
        ("app_timeout_seconds", limit),
        ("app_connect_timeout_seconds", connect),
    ):
        if value < 1:
            yield f"{variable} is {value}, which would wait without end: give at least 1"
    if connect * int(given["hosts"]) >= limit:
        yield (
            f"app_timeout_seconds is {limit}, but connecting may take {connect * given['hosts']} s "
            f"({given['hosts']} hosts x app_connect_timeout_seconds {connect}): a deployment would "
            "cut the request off first; raise it"
        )
    wait = int(given["query_wait_timeout_seconds"])
    if given["poolers"] and not wait:
        yield (
            "query_wait_timeout is 0 in pgbouncer_settings, so that a query may wait in PgBouncer "
            "without end: give it less than app_timeout_seconds"
        )
    if given["poolers"] and wait >= limit:
        yield (
            f"app_timeout_seconds is {limit}, but a query may wait {wait} s in PgBouncer "
            "(query_wait_timeout): a deployment would cut it off first; lower that or raise this"
        )
    for name, value in given["database_settings"].items():
        if not name.endswith("_timeout"):
            continue
        try:
            if seconds(value) >= limit and name in ("statement_timeout", "transaction_timeout"):
                yield (
                    f"app_database_settings.{name} is {value}, not less than app_timeout_seconds "
                    f"({limit}): a deployment would cut the request off while PostgreSQL goes on"
                )
        except ValueError as error:
            yield f"app_database_settings.{name}: {error}"


def app_errors(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the role's variables, each with the variable to change.

    given: strategy, database_url, database_direct_url, environment_names, database_settings,
    workers, serial, resource_limits, migration_command, migration_pending_command,
    timeout_seconds, connect_timeout_seconds, hosts and poolers (numbers of the URL's hosts),
    query_wait_timeout_seconds (the pooler's).
    """
    errors = [*_strategy_errors(given), *_timeout_errors(given)]
    if not re.fullmatch(r"auto|[1-9]\d*", str(given["workers"])):
        errors.append(f"app_workers is {given['workers']!r}: give a number or auto")
    if not _count_or_share(given["serial"]):
        errors.append(
            f"app_serial is {given['serial']!r}: give a number or a percentage such as 25%"
        )
    if given["migration_pending_command"] and not given["migration_command"]:
        errors.append("app_migration_pending_command needs app_migration_command beside it")
    for name, value in given["resource_limits"].items():
        if name not in RESOURCE_LIMITS:
            errors.append(
                f"app_resource_limits.{name} is unknown: use {', '.join(RESOURCE_LIMITS)}"
            )
        elif not re.fullmatch(r"[\w.%+-]+", str(value)):
            errors.append(f"app_resource_limits.{name} is {value!r}: give one value of systemd's")
    return errors


def pooler_query_wait_timeout(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> int:
    """Return the longest query_wait_timeout of the inventory's poolers, in seconds; 0: no end."""
    settings = [
        hostvars[host].get("pgbouncer_settings") or {} for host in groups.get("pgbouncer", [])
    ]
    waits = [int(given.get("query_wait_timeout", QUERY_WAIT_TIMEOUT)) for given in settings]
    return 0 if 0 in waits else max(waits, default=QUERY_WAIT_TIMEOUT)


def rollback_release(hosts: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the release to which every host of an application goes back.

    hosts: (name, state) in the order of the rollout. state: what app_release with `previous` says
    in check mode: previous (the release that serves), release (the one before; missing where there
    is none) and releases (those on the host). The first host leads. A rollback that was cut off is
    finished, not turned round: the hosts that it did not reach would go back to what the first one
    serves already, and that one has withdrawn what they serve.
    """
    hosts = list(hosts)
    first, last = hosts[0][1], hosts[-1][1]
    serves, target = first.get("previous"), first.get("release")
    if serves and last.get("release") == serves and last.get("previous") != target:
        target = serves
    if not target:
        raise AnsibleFilterError(first.get("msg") or "no release has served before")
    without = [name for name, state in hosts if target not in state.get("releases", [])]
    if without:
        raise AnsibleFilterError(
            f"the release {target} is not on {', '.join(without)}: nothing was changed. Deploy its "
            "source instead (ansible/playbooks/app.yml)"
        )
    return target


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                app_errors,
                pooler_query_wait_timeout,
                rollback_release,
            )
        }

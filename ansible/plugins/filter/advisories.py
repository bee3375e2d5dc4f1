"""A filter that tells which of PgBouncer's advisories a pooler is exposed to.

The data is roles/pgbouncer/files/advisories.yml. An advisory counts where both the version and the
configuration are affected. Every function is pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..module_utils.pgbouncer_version import parse

Settings = Mapping[str, Any]
Rules = Iterable[Mapping[str, Any]]

LARGEST_PACKET = 2**31
"""From this max_packet_size on, a length overflows (CVE-2026-107348)."""

OWN_READERS = {"pgbouncer-exporter"}
"""Of stats_users: poolkit's own, which nobody logs in as but the exporter, over a unix socket."""


def _words(value: Any) -> list[str]:
    """Return the words of a setting that is a list."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [str(word) for word in value or []]


def _numbers(package: str) -> list[int]:
    """Return the numbers of a package's version in their order; `deb12u10` is after `deb12u2`."""
    return [int(number) for number in re.findall(r"\d+", package)]


def _any_database(_: Settings, rules: Rules) -> bool:
    """Say whether a rule lets a client begin SCRAM for a database that does not exist.

    With the role's own rules it is refused before: they name each database.
    """
    return any(
        "all" in (_words(rule.get("database")) or ["all"]) and rule.get("method") != "reject"
        for rule in rules
    )


def _ignored(settings: Settings, _: Rules) -> bool:
    words = _words(settings.get("ignore_startup_parameters"))
    return bool(words) and "options" not in words


CONDITIONS: dict[str, Callable[[Settings, Rules], bool]] = {
    "always": lambda settings, rules: True,
    "never": lambda settings, rules: False,
    "rule_for_any_database": _any_database,
    "startup_parameters_ignored": _ignored,
    "huge_packets": lambda settings, rules: (
        max(_numbers(str(settings.get("max_packet_size"))), default=0) > LARGEST_PACKET
    ),
    "server_not_verified": lambda settings, rules: (
        settings.get("server_tls_sslmode") not in ("verify-ca", "verify-full")
    ),
    "console_readers": lambda settings, rules: bool(
        set(_words(settings.get("stats_users"))) - OWN_READERS
    ),
    "search_path_tracked": lambda settings, rules: (
        "search_path" in _words(settings.get("track_extra_parameters"))
        and bool(settings.get("auth_user"))
    ),
}
"""What exposes a pooler, by the names of the data's exposed_by."""


def pooler_advisories(
    advisories: Iterable[Mapping[str, Any]],
    version: str,
    distribution: str,
    settings: Settings,
    rules: Rules,
) -> list[dict[str, Any]]:
    """Return the advisories that a pooler is exposed to, in the data's order.

    version: of the installed package, or of the one that would be installed. distribution: as
    `debian 12`. settings: those of [pgbouncer], in force. rules: pgbouncer_hba_rules. Each: text (a
    line for people), opened (by the configuration, and not by the version alone) and refused.
    """
    rules, number, found = list(rules), parse(version), []
    for advisory in advisories:
        first, mended = (parse(text) for text in advisory["affected"])
        package = (advisory.get("packages") or {}).get(distribution)
        if not first <= number < mended:
            continue
        if package and version.startswith(package.partition("-")[0]) and "-" not in version:
            continue  # only PgBouncer's own number is known, and that package has had the fix
        if package and "-" in version and _numbers(version) >= _numbers(package):
            continue
        if CONDITIONS[advisory["exposed_by"]](settings, rules):
            text = (
                f"{advisory['id']}: {advisory['fault']} (PgBouncer {version}; fixed in "
                f"{advisory['affected'][1]}). Until then: {advisory['remedy']}"
            )
            opened, refused = advisory["exposed_by"] != "always", advisory.get("refused", False)
            found.append({"text": text, "opened": opened, "refused": refused})
    return found


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"pooler_advisories": pooler_advisories}

"""PgBouncer's advisories: which pooler is exposed, and that the data is what the filter reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plugins.filter.advisories import CONDITIONS, pooler_advisories
from plugins.module_utils.pgbouncer_version import parse
from plugins.plugin_utils.role_defaults import role_constants

ROOT = Path(__file__).resolve().parents[2]
DATA = yaml.safe_load((ROOT / "roles/pgbouncer/files/advisories.yml").read_text())
ANY_DATABASE = {"type": "host", "database": "all", "user": "ann", "address": "10.0.0.0/8"}
VERIFIED = {"server_tls_sslmode": "verify-full"}


def exposed(
    version: str, settings: dict, *rules: dict, distribution: str = "debian 13"
) -> list[str]:
    found = pooler_advisories(DATA, version, distribution, settings, rules)
    return [each["text"].partition(":")[0] for each in found]


def test_packages_are_compared_by_their_numbers() -> None:
    """A tenth update of a distribution is newer than its second."""
    fixed = [{**DATA[0], "exposed_by": "always", "packages": {"debian 12": "1.18.0-1+deb12u2"}}]
    for package, is_exposed in (("u1", True), ("u2", False), ("u10", False)):
        version = f"1.18.0-1+deb12{package}"
        assert bool(pooler_advisories(fixed, version, "debian 12", VERIFIED, [])) is is_exposed


def test_data_is_complete() -> None:
    for advisory in DATA:
        first, mended = (parse(text) for text in advisory["affected"])
        assert first < mended
        assert advisory["exposed_by"] in CONDITIONS
        assert advisory["fault"] and advisory["remedy"]
    assert {row["exposed_by"] for row in DATA} == set(CONDITIONS)
    assert len({row["id"] for row in DATA}) == len(DATA)


@pytest.mark.parametrize(
    ("id_", "inside", "outside", "settings", "rules"),
    [
        ("CVE-2026-107350", "1.24.1", "1.26.1", {}, [{**ANY_DATABASE, "method": "scram-sha-256"}]),
        ("CVE-2026-107349", "1.20.0", "1.18.0", {"ignore_startup_parameters": "a, b"}, []),
        ("CVE-2026-107348", "1.24.1", "1.20.1", {"max_packet_size": 2147483649}, []),
        ("CVE-2026-6665", "1.18.0", "1.25.2", {"server_tls_sslmode": "prefer"}, []),
        ("CVE-2026-6667", "1.24.1", "1.23.1", {"stats_users": ["ann"]}, []),
        (
            "CVE-2025-12819",
            "1.22.0",
            "1.25.1",
            {"track_extra_parameters": ["search_path"], "auth_user": "pgbouncer_auth"},
            [],
        ),
    ],
)
def test_version_and_configuration_count_both(
    id_: str, inside: str, outside: str, settings: dict, rules: list[dict]
) -> None:
    assert id_ in exposed(inside, VERIFIED | settings, *rules)
    assert id_ not in exposed(outside, VERIFIED | settings, *rules)
    assert id_ not in exposed(inside, VERIFIED)


def test_what_hides_a_condition() -> None:
    ignored = {"ignore_startup_parameters": ["extra_float_digits", "options"]}
    assert "CVE-2026-107349" not in exposed("1.24.1", ignored)
    assert "CVE-2026-6667" not in exposed("1.24.1", {"stats_users": "pgbouncer-exporter"})
    refusing = {**ANY_DATABASE, "method": "reject"}
    assert "CVE-2026-107350" not in exposed("1.24.1", {}, refusing)


def test_package_of_a_distribution_has_its_fix() -> None:
    settings = {"track_extra_parameters": "search_path", "auth_user": "pgbouncer_auth"}
    assert "CVE-2025-12819" not in exposed("1.18.0", settings, distribution="debian 12")
    assert "CVE-2025-12819" in exposed("1.18.0", settings, distribution="ubuntu 24.04")


def test_default_configuration_is_exposed_only_to_who_reaches_the_port() -> None:
    """What the role renders by default, on the version of Debian 13, with a verified server."""
    settings = role_constants("pgbouncer")["_pgbouncer_settings"] | VERIFIED
    assert exposed("1.24.1", settings) == ["CVE-2026-19888", "CVE-2026-6668", "CVE-2026-6664"]
    assert exposed("1.26.1", settings) == []


def test_own_rules_name_every_database() -> None:
    """So a client that asks for an unknown database is refused before SCRAM (CVE-2026-107350)."""
    template = (ROOT / "roles/pgbouncer/templates/etc/pgbouncer/pg_hba.conf.j2").read_text()
    rules = [line for line in template.splitlines() if "hba_line" in line and "'method'" in line]
    letting = [line for line in rules if "'reject'" not in line]
    assert len(letting) == 3  # the exporter's, and two for each application
    assert not [line for line in letting if "'database': 'all'" in line]

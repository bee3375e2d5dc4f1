"""How a version is read, and that its meaning is written down once."""

from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import pgbouncer_settings
from plugins.module_utils import pgbouncer_version

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.24.1-1+deb13u2", (1, 24, 1)),
        ("1.25.0-1.pgdg13+1", (1, 25, 0)),
        ("PgBouncer 1.18.0", (1, 18, 0)),
        ("PgBouncer 1.24.1\nlibevent 2.1.12-stable\n", (1, 24, 1)),
        ("PgBouncer 2.0", (2, 0)),
    ],
)
def test_version_is_read(text: str, version: tuple[int, ...]) -> None:
    assert pgbouncer_version.parse(text) == version


@pytest.mark.parametrize("text", ["", "libevent 2.1.12-stable", "PgBouncer", "v1.24.1"])
def test_other_text_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is no PgBouncer version"):
        pgbouncer_version.parse(text)
    with pytest.raises(AnsibleFilterError, match="is no PgBouncer version"):
        pgbouncer_settings.version_tuple(text)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("PgBouncer 1.18.0", False), ("PgBouncer 1.19.0", True), ("PgBouncer 2.0", True)],
)
def test_version_with_state_and_peers(version: str, expected: bool) -> None:
    assert (pgbouncer_version.parse(version) >= pgbouncer_version.STATE) is expected
    assert pgbouncer_settings.pgbouncer_has_peers(version) is expected


@pytest.mark.parametrize(
    ("version", "written"), [((1, 19), "1.19.0"), ((1, 26, 1), "1.26.1"), ((2,), "2.0.0")]
)
def test_version_is_written_with_three_numbers(version: tuple[int, ...], written: str) -> None:
    assert pgbouncer_version.written(version) == written


def test_catalogue_agrees() -> None:
    catalogue = yaml.safe_load((ROOT / "roles/pgbouncer/files/settings.yml").read_text())
    since = {catalogue["pgbouncer"]["peer_id"]["since"]}
    since |= {spec["since"] for spec in catalogue["peers"].values()}
    assert since == {pgbouncer_version.written(pgbouncer_version.PEERS)}


def test_template_asks_the_same_place() -> None:
    template = ROOT / "roles/pgbouncer/templates/etc/pgbouncer/pgbouncer.ini.j2"
    assert (
        "{% if _pgbouncer_version | poolkit.poolkit.pgbouncer_has_peers %}" in template.read_text()
    )

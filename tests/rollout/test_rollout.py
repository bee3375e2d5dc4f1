"""Releases under traffic: nothing is refused, lost or doubled, whatever becomes of the release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

REQUESTS = 5000
"""At least so many in a rollout of each framework."""

Sites = Callable[[str], "object"]

VIEWS = {
    "django": "items/views.py",
    "fastapi": "app/main.py",
    "flask": "app/views.py",
}

MIGRATION = {
    "django": (
        "items/migrations/0003_rollout.py",
        "from django.db import migrations\n\n\n"
        "class Migration(migrations.Migration):\n"
        "    atomic = False\n"
        '    dependencies = [("items", "0002_created_at_index")]\n'
        "    operations = [migrations.RunSQL({statements})]\n",
    ),
    "fastapi": (
        "migrations/versions/0003_rollout.py",
        "from alembic import op\n\n"
        'revision, down_revision = "0003", "0002"\n\n\n'
        "def upgrade():\n"
        "    with op.get_context().autocommit_block():\n"
        "        for statement in {statements}:\n"
        "            op.execute(statement)\n",
    ),
}
MIGRATION["flask"] = MIGRATION["fastapi"]

CONCURRENTLY = [
    "SELECT pg_advisory_lock(4711)",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS items_name_idx ON items (name)",
    "SELECT pg_advisory_unlock(4711)",
]


@pytest.mark.parametrize("framework", ["django", "fastapi", "flask"])
def test_release_and_rollback_under_traffic(
    sites: Sites, release: Callable[..., Path], framework: str
) -> None:
    """A release with a migration that builds an index CONCURRENTLY and locks, then back again."""
    site = sites(framework)
    before = site.releases()
    file, text = MIGRATION[framework]
    source = release(framework, "good", {file: lambda _: text.format(statements=CONCURRENTLY)})
    with site.traffic() as traffic:
        run = site.deploy(source)
        after = site.releases()
        back = site.play("ansible/playbooks/rollback.yml")
        again = site.releases()
        traffic.wait_for(REQUESTS)
    assert run.code == 0, run.output[-3000:]
    assert back.code == 0, back.output[-3000:]
    assert len(before) == len(after) == 1
    assert after != before
    assert again == before
    assert site.rows(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'items_name_idx'::regclass"
    ) == ["t"]
    assert traffic.requests >= REQUESTS
    site.assert_nothing_lost(traffic)

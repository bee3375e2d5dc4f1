"""The commands of docs/applications.md, one after the other, as a newcomer runs them.

POOLKIT_FRAMEWORK chooses the column of the page's table: django where not given, fastapi or flask.
The hosts have other names, another network and other ports than the page says, so that those of a
reader of the page are left alone; they are removed at the end, also after a failure.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from applications_page import Step, copy_of_project, missing_line, steps
from traffic import Traffic

FRAMEWORK = os.environ.get("POOLKIT_FRAMEWORK", "django")
STEPS = steps(FRAMEWORK)
INVENTORY = "inventories/mine"

NETWORK = "poolkit-page"
REPLACED = {
    "docker_prefix: mine-": "docker_prefix: poolkit-page-",
    "docker_network: mine": f"docker_network: {NETWORK}",
    "172.29.219": "172.29.220",
    "docker_first_port: 8100": "docker_first_port: 28100",
    ":8101": ":28101",
}
URL = "http://127.0.0.1:28101"

ALEMBIC = (
    "migrations/versions/0003_newcomer.py",
    'from alembic import op\n\nrevision, down_revision = "0003", "0002"\n\n\n'
    'def upgrade():\n    op.execute("CREATE TABLE newcomer (id int)")\n',
    "0003",
)
MIGRATION = {
    "django": (
        "items/migrations/0003_newcomer.py",
        "from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n"
        '    dependencies = [("items", "0002_created_at_index")]\n'
        '    operations = [migrations.RunSQL("CREATE TABLE newcomer (id int)")]\n',
        "items.0003_newcomer",
    ),
    "fastapi": ALEMBIC,
    "flask": ALEMBIC,
}
"""A further migration of the example: its file, its text, and how it is shown."""


@dataclass(frozen=True)
class Page:
    """A copy of the project with ../shop beside it, and what the steps printed so far."""

    project: Path
    printed: list[str] = field(default_factory=list, repr=False)

    def run(self, command: str) -> str:
        """Run commands as a newcomer's shell does and return what they printed."""
        for old, new in REPLACED.items():
            command = command.replace(old, new)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_"))}
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.project,
            env={**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}"
        return done.stdout

    def remove_hosts(self) -> None:
        """Remove the hosts, also of a run that was interrupted."""
        found = subprocess.run(["docker", "network", "inspect", NETWORK], capture_output=True)
        if found.returncode == 0:
            self.run(f"ansible-playbook -i {INVENTORY} ansible/playbooks/docker_down.yml")

    def printed_by(self, word: str) -> str:
        """Return what the steps printed that have a word in their commands."""
        pairs = zip(STEPS, self.printed, strict=False)
        return "\n".join(text for step, text in pairs if word in step.command)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    said = "".join(step.command for step in STEPS)
    assert all(old in said for old in REPLACED), "the page has other names: correct REPLACED"
    page = Page(copy_of_project(tmp_path_factory.mktemp("newcomer")))
    yield page
    page.remove_hosts()


def name(number: int, step: Step) -> str:
    return f"{number}-{step.heading or 'a project'}"


@pytest.mark.parametrize("number", range(len(STEPS)), ids=map(name, range(len(STEPS)), STEPS))
def test_step(page: Page, number: int) -> None:
    """The commands succeed and print what the page says."""
    if number > len(page.printed):
        pytest.fail("a step before this one failed", pytrace=False)
    step = STEPS[number]
    if "docker_up.yml" in step.command:
        page.remove_hosts()
    if "build.yml" in step.command:
        file, text, _ = MIGRATION[FRAMEWORK]
        (page.project.parent / "shop" / file).write_text(text)
    if "app_pool_mode: transaction" in step.command:  # "while requests go on"
        with Traffic([URL], clients=2, pause_seconds=0.25) as traffic:
            output = page.run(step.command)
        assert traffic.failures == []
        assert traffic.requests > 50
    else:
        output = page.run(step.command)
    expected = step.expected
    for old, new in REPLACED.items():
        expected = expected.replace(old, new)
    assert missing_line(expected, output) == "", output[-8000:]
    page.printed.append(output)


def test_a_deployment_and_the_way_back_change_the_version(page: Page) -> None:
    versions = re.findall(r'"version": ?"(\w+)"', page.printed_by("curl "))
    assert len(versions) == 3
    assert versions[0] != versions[1]
    assert versions[2] == versions[0]


def test_the_new_migration_was_pending_and_ran(page: Page) -> None:
    said = " ".join(page.printed_by("migrate.yml").split())
    migration = re.escape(MIGRATION[FRAMEWORK][2])
    pending = re.search(rf"pending in shop (\w+): {migration}\b", said)
    migrated = re.search(rf"migrated shop (\w+): {migration}\b", said)
    assert pending, said[-4000:]
    assert migrated, said[-4000:]
    assert pending[1] == migrated[1]


def test_no_host_is_left(page: Page) -> None:
    command = ("docker", "ps", "--all", "--quiet", "--filter", f"name=^{NETWORK}-")
    assert subprocess.check_output(command, text=True) == ""

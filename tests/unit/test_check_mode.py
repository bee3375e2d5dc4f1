"""--check on a host that was never deployed: it passes, says what it cannot know, makes nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The controller stands in for every host. Nothing listens on the port of the database, and the
# names are of nothing that could be there.
INVENTORY = """
all:
  vars:
    ansible_connection: local
    ansible_become: false
    secrets_dir: {folder}/secrets
    private_address: 127.0.0.1
    scram_salt_seed: 0123456789abcdef
    database_host: 127.0.0.1
    database_port: 1
    database_admin_user: poolkit_admin
    database_admin_password: administrators-word
    app_name: never-deployed
    app_framework: flask
    app_module: app:create_app()
    app_source: {folder}/source
    app_port: 59180
    _app_packages: []  # apt looks at its database only, which is enough
    app_database_password: p
    app_database_owner_password: o
    app_database_settings: {{search_path: [own, public]}}
  children:
    applications: {{hosts: {{web1: }}}}
    pgbouncer: {{hosts: {{web1: }}}}
    postgres: {{hosts: {{db1: }}}}
    database_admin: {{hosts: {{db1: }}}}
"""

# As on a host that has no lists of packages yet; apt reads them for seconds where there are any.
APT = """
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::Cache { srcpkgcache ""; pkgcache ""; };
"""

BOOKS = ("database", "app", "rollback", "public_tables", "certificates")


@pytest.fixture(scope="module")
def checked(
    tmp_path_factory: pytest.TempPathFactory,
    ansible_playbook: Callable[..., CompletedProcess[str]],
) -> tuple[CompletedProcess[str], Path]:
    """Return a check of the playbooks that need what another one makes, and its folder."""
    folder = tmp_path_factory.mktemp("check")
    shutil.copytree(ROOT / "examples/flask", folder / "source")
    (folder / "hosts.yml").write_text(INVENTORY.format(folder=folder))
    apt = tmp_path_factory.mktemp("apt") / "apt.conf"
    apt.write_text(APT)
    books = [ROOT / f"ansible/playbooks/{book}.yml" for book in BOOKS]
    arguments = ("-i", folder / "hosts.yml", *books, "--check", "--diff")
    run = ansible_playbook(*arguments, HOME=str(folder / "home"), APT_CONFIG=str(apt))
    return run, folder


def test_they_pass_and_make_nothing(checked: tuple[CompletedProcess[str], Path]) -> None:
    run, folder = checked
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["home", "hosts.yml", "source"]
    assert not Path("/srv/never-deployed").exists()
    assert not Path("/etc/poolkit/never-deployed").exists()


@pytest.mark.parametrize(
    "words",
    [
        "db1: which roles, databases and grants are missing is known once it can ask PostgreSQL",
        r"web1: the release \w{12} of never-deployed is not built here yet",
        r"never-deployed: pending migrations are not known yet: the release \w{12} is not on web1 "
        "yet: ansible/playbooks/build.yml puts it there",
        "web1: a rollback would be refused: never-deployed: there is no /etc/poolkit/",
        "never-deployed: what is in the schema public is known once its database answers",
        "ca, web1, db1, never-deployed: not in [^ ]*/secrets/tls yet",
        # The tasks behind what could not run are still shown.
        r"\+Description=never-deployed \(",
        "/etc/poolkit/never-deployed/app.env differs .its content is secret.",
        r"/srv/never-deployed/releases/\w{12} is not there yet",
    ],
)
def test_it_says_what_it_cannot_know(
    checked: tuple[CompletedProcess[str], Path], words: str
) -> None:
    output = re.sub(r"\s+", " ", checked[0].stdout).replace("''", "'")
    assert re.search(words, output), output[-4000:]


ADMINISTRATOR = """
- hosts: db1
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: postgres, tasks_from: administrator}
      vars:
        postgres_admin_user: poolkit_admin
        postgres_admin_password: administrators-word
        postgres_port: 1
        postgres_scram_salt_seed: 0123456789abcdef
"""


def test_administrator_of_a_server_that_does_not_run(
    tmp_path: Path, ansible_playbook: Callable[..., CompletedProcess[str]]
) -> None:
    (tmp_path / "hosts.yml").write_text(INVENTORY.format(folder=tmp_path))
    (tmp_path / "play.yml").write_text(ADMINISTRATOR)
    arguments = ("-i", tmp_path / "hosts.yml", tmp_path / "play.yml")
    run = ansible_playbook(*arguments, "--check")
    assert run.returncode == 0, run.stdout + run.stderr
    output = " ".join(run.stdout.split())
    assert "whether the role poolkit_admin is there as it should be is known once" in output
    assert ansible_playbook(*arguments).returncode != 0

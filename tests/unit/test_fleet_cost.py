"""The controller's work grows with the hosts, and not with their square.

The real playbooks and the roles' variables and templates derive one fact from another. The
roles' tasks are stand-ins: for each role its largest check, and the rendering of its files.
"""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from fleet_cost import inventory

ROOT = Path(__file__).resolve().parents[2]
CHECKS = {"ansible.builtin.assert", "ansible.builtin.fail"}
TEMPLATES = {
    "pgbouncer": ("pgbouncer/pgbouncer.ini", "pgbouncer/pg_hba.conf", "pgbouncer/userlist.txt"),
    "app": ("poolkit/app.env", "poolkit/pg_service.conf", "poolkit/pgpass"),
}
REGISTERS = {
    "__pgbouncer_host": {
        **{"distribution": "debian 13", "version": "1.24.1", "candidate": ""},
        **{"foreign": "", "port_users": []},
    },
    "__app_packed": {"release": "0" * 12, "requirements_checksum": "0" * 64, "python_path": []},
}


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    """The roles pgbouncer and app without the tasks that need a host."""
    for role, names in TEMPLATES.items():
        folder = tmp_path / "roles" / role
        (folder / "tasks").mkdir(parents=True)
        for part in (ROOT / "roles" / role).iterdir():
            if part.name != "tasks":
                (folder / part.name).symlink_to(part)
        tasks = yaml.safe_load((ROOT / f"roles/{role}/tasks/variables.yml").read_text())
        check = max(
            (task for task in tasks if CHECKS & task.keys()), key=lambda task: len(str(task))
        )
        files = [f"lookup('ansible.builtin.template', 'etc/{name}.j2')" for name in names]
        render = {"ansible.builtin.debug": {"msg": f"{{{{ [{', '.join(files)}] | length }}}}"}}
        register = {"ansible.builtin.set_fact": {"__app_host": {}}}
        parts = {"preflight": [check, register], "main": [render]}
        parts |= {name: [render] for name in ("build", "migrate", "serve")}
        for name, content in parts.items():
            (folder / f"tasks/{name}.yml").write_text(yaml.safe_dump(content))
    for name in ("attempt", "outcome"):
        path = tmp_path / f"roles/app/tasks/{name}.yml"
        path.symlink_to(ROOT / f"roles/app/tasks/{name}.yml")
    return tmp_path / "roles"


@pytest.fixture
def counts(
    tmp_path: Path, roles: Path, ansible_playbook: Callable[..., CompletedProcess[str]]
) -> Callable[..., dict[str, int]]:
    """Run playbooks; return {f: fetches of a host's variables, v: SCRAM verifiers}."""

    def run(hosts: int, *names: str) -> dict[str, int]:
        file, path = tmp_path / "counts", tmp_path / "hosts.yml"
        file.write_text("")
        facts = yaml.safe_load(inventory(hosts))
        facts["all"]["vars"] |= {**REGISTERS, "database_host": "127.0.0.1", "database_port": 1}
        path.write_text(yaml.safe_dump(facts))
        done = ansible_playbook(
            *("-i", path, *(f"ansible/playbooks/{name}.yml" for name in names)),
            *("--limit", "localhost,applications"),
            ANSIBLE_ROLES_PATH=f"{roles}:{ROOT / 'roles'}",
            ANSIBLE_CALLBACK_PLUGINS=str(ROOT / "tests/unit/files/callbacks"),
            ANSIBLE_CALLBACKS_ENABLED="count_fetches",
            POOLKIT_COUNTS=str(file),
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        return {letter: file.read_text().count(letter) for letter in "fv"}

    return run


@pytest.mark.parametrize(
    ("sizes", "books", "fetches"),
    [
        ((2, 8, 32), ("plan",), 8),
        # What each host asks for, at sizes at which a share of the square shows and a run is short.
        ((2, 3, 5), ("preflight", "pgbouncer", "app"), 60),
    ],
)
def test_a_host_costs_the_same_among_many(
    counts: Callable[..., dict[str, int]], sizes: tuple, books: tuple, fetches: int
) -> None:
    few, more, many = (counts(hosts, *books) for hosts in sizes)
    for letter in "fv":
        first = (more[letter] - few[letter]) / (sizes[1] - sizes[0])
        later = (many[letter] - more[letter]) / (sizes[2] - sizes[1])
        assert 0 < later <= first, (few, more, many)
    assert later <= 3  # the verifiers of an application's two roles, and its user's for the pooler
    assert many["f"] <= fetches * sizes[2], many

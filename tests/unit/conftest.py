"""Runs playbooks and modules as Ansible does, also with stand-ins for roles."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from ansible.module_utils.testing import patch_module_args
from collection import FOLDER
from hypothesis import settings

from plugins.modules import source_archive

ROOT = Path(__file__).resolve().parents[2]

# A busy machine is no fault of what is tested.
settings.register_profile("poolkit", deadline=None)
settings.load_profile("poolkit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run whole playbooks: `make check` leaves them to `make test`."""
    for item in items:
        if "ansible_playbook" in getattr(item, "fixturenames", ()):
            item.add_marker("playbooks")


def with_roles(folders: list[Path]) -> Path:
    """Return a folder of collections beside the first of these: ours, with their roles alone.

    Of two roles of one name the first counts, as for ANSIBLE_ROLES_PATH.
    """
    assert ROOT not in folders[0].parents, "the stand-ins come first, in a folder of the test's"
    ours = folders[0].parent / FOLDER
    (ours / "roles").mkdir(parents=True, exist_ok=True)
    links = {name: ROOT / name for name in ("meta", "playbooks", "plugins")}
    for folder in reversed(folders):
        links |= {f"roles/{role.name}": role for role in folder.iterdir()}
    for name, target in links.items():
        (ours / name).unlink(missing_ok=True)
        (ours / name).symlink_to(target)
    return folders[0].parent


@pytest.fixture(scope="session")
def ansible_playbook() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ansible-playbook from the project's directory, with further environment variables.

    The collections in ANSIBLE_COLLECTIONS_PATH go before the checkout, and so do the roles in
    ANSIBLE_ROLES_PATH: those stand in for the collection's own.
    """

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_INVENTORY_ENABLED": "yaml"}
        # Without compiled files, each start of Ansible compiles itself anew: a third of its time.
        kept = {name: os.environ[name] for name in os.environ.keys() - {"PYTHONDONTWRITEBYTECODE"}}
        collections = [environment.get("ANSIBLE_COLLECTIONS_PATH"), str(ROOT / ".collections")]
        if roles := environment.get("ANSIBLE_ROLES_PATH"):
            collections.insert(0, str(with_roles([Path(folder) for folder in roles.split(":")])))
        environment["ANSIBLE_COLLECTIONS_PATH"] = ":".join(filter(None, collections))
        return subprocess.run(
            ["ansible-playbook", *arguments],
            cwd=ROOT,
            env={**kept, "PATH": path, **settings, **environment},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Run a module's main() as Ansible does; return its result."""

    def run(module: ModuleType, check: bool = False, **parameters: object) -> dict:
        arguments = {**parameters, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def pack_source(tmp_path: Path, run_module: Callable[..., dict]) -> Callable[..., dict]:
    """Run the module source_archive as Ansible does; return its result."""

    def module(**parameters: object) -> dict:
        arguments = {"archive_directory": str(tmp_path / "cache/archives"), **parameters}
        return run_module(source_archive, **arguments)

    return module

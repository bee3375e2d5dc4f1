"""Makes our module_utils importable under the name that the modules use, and runs playbooks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ansible.module_utils
import pytest
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parents[2]

ansible.module_utils.__path__.append(str(ROOT / "ansible/plugins/module_utils"))


@pytest.fixture(scope="session")
def ansible_playbook() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ansible-playbook from the project's directory, with further environment variables."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["ansible-playbook", *arguments],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "ANSIBLE_NOCOLOR": "1", **environment},
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
    import source_archive  # needs what the lines above do

    def module(**parameters: object) -> dict:
        arguments = {"archive_directory": str(tmp_path / "cache/archives"), **parameters}
        return run_module(source_archive, **arguments)

    return module

"""Makes our module_utils importable under the name that the modules use."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ansible.module_utils
import pytest
from ansible.module_utils.testing import patch_module_args

ansible.module_utils.__path__.append(
    str(Path(__file__).resolve().parents[2] / "ansible/plugins/module_utils")
)


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

"""What our modules write to the journal of a host: nothing."""

import ast
import json
import sys
from pathlib import Path

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from plugins.module_utils.unlogged_module import UnloggedModule

MODULES = sorted((Path(__file__).resolve().parents[2] / "ansible/plugins/modules").glob("*.py"))
SECRET = "first line of a secret\nsecond line of a secret"
ARGUMENTS = {"files": [{"content": SECRET}], "given": {"key": SECRET}, "_ansible_no_log": False}
SPEC = {
    "files": {
        "type": "list",
        "elements": "dict",
        "options": {"content": {"type": "str", "no_log": True}},
    },
    "given": {"type": "dict"},
}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to syslog or to the journal."""
    lines: list[str] = []
    monkeypatch.setattr(basic, "has_journal", False)
    monkeypatch.setattr(basic.syslog, "syslog", lambda *given: lines.append(str(given[-1])))
    return lines


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_module_is_an_unlogged_one(path: Path) -> None:
    """One that is added later as well."""
    tree = ast.parse(path.read_text())
    imported = {
        f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    } | {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert "module_utils.unlogged_module.UnloggedModule" in imported
    assert not [name for name in imported if name.startswith("ansible.module_utils.basic")]
    called = [
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert called.count("UnloggedModule") == 1


def test_ansible_would_log_the_secret(logged: list[str]) -> None:
    """Why the class is there: no_log of an option inside a list, or of the module, is no help."""
    with patch_module_args(ARGUMENTS):
        basic.AnsibleModule(SPEC, no_log=True)
    assert "second line of a secret" in "".join(logged)


def test_nothing_is_logged(logged: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the call nor what a module logs itself; the result is as ever."""
    with patch_module_args({**ARGUMENTS, "_ansible_debug": True}), pytest.raises(SystemExit):
        module = UnloggedModule(SPEC)
        module.log("a word of the module")
        module.debug("another word")
        module.run_command([sys.executable, "-c", "pass"])
        module.exit_json(changed=True, said=f"before {SECRET} after")
    assert logged == []
    result = json.loads(capsys.readouterr().out)
    assert (result["changed"], result["said"]) == (True, "before ******** after")
    assert "files" in result["invocation"]["module_args"]


def test_nothing_is_logged_of_a_failure(
    logged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with patch_module_args({**ARGUMENTS, "filez": SECRET}), pytest.raises(SystemExit):
        UnloggedModule(SPEC)
    assert logged == []
    assert "filez" in json.loads(capsys.readouterr().out)["msg"]

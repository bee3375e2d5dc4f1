"""The project's own files agree with each other."""

import os
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
TEMPLATES = sorted(ROOT.glob("**/templates/**/*.j2"))


@pytest.mark.parametrize("role", ROLES)
def test_every_default_has_a_spec_of_its_type(role: str) -> None:
    defaults = yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text())
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert set(defaults) <= set(options)
    assert all(name.startswith(f"{role}_") for name in options)
    for name, option in options.items():
        assert option.get("description"), name
        assert option.get("type"), name
        if "default" in option and not str(defaults[name]).startswith("{{"):
            assert option["default"] == defaults[name], name


@pytest.mark.parametrize("role", ROLES)
def test_preflight_checks_the_same_variables(role: str) -> None:
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    entries = specs["argument_specs"]
    assert entries["preflight"] == entries["main"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_template_parses(template: Path) -> None:
    jinja2.Environment(extensions=["jinja2.ext.do"]).parse(template.read_text())


def test_templates_were_found() -> None:
    assert len(TEMPLATES) >= 9


def test_tasks_that_carry_secrets_are_silent() -> None:
    """Each task that renders a file with secrets has no_log: a diff would print it otherwise."""
    secret = ("pgpass.j2", "app.env.j2", "pip.env.j2")
    found = 0
    for path in sorted((ROOT / "roles").glob("*/tasks/*.yml")):
        for task in yaml.safe_load(path.read_text()):
            source = str((task.get("ansible.builtin.template") or {}).get("src", ""))
            if source.endswith(secret):
                found += 1
                assert task.get("no_log") is True, f"{path}: {task['name']}"
    assert found == 4


def test_example_inventory_asks_for_its_secrets() -> None:
    """inventories/production as it stands is refused for the secrets that are to be filled in."""
    programs = Path(sys.executable).parent
    run = subprocess.run(
        ["ansible-playbook", "-i", "inventories/production", "ansible/playbooks/preflight.yml"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "database_admin_password is missing" in run.stdout
    assert "scram_salt_seed is missing" in run.stdout

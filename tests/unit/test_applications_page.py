"""docs/applications.md holds what it promises, as far as this shows without hosts.

Every command runs in a copy of the project. Those that need hosts or the network have a stand-in:
ansible-playbook checks the syntax of the playbooks against the page's own inventory, the others
check that the files which they are given exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from applications_page import (
    FRAMEWORKS,
    PAGE,
    ROOT,
    blocks,
    columns,
    commands,
    copy_of_project,
    missing_line,
)

PROGRAMS = Path(sys.executable).parent
PLAYBOOK = shutil.which("ansible-playbook", path=f"{PROGRAMS}:{os.environ['PATH']}")

STAND_INS = {
    "ansible-playbook": f'exec {PLAYBOOK} --syntax-check "$@"',
    "python": f'exec {sys.executable} "$1" --help',
    "curl": ":",
    "uv": """
test "$1 $2" = "pip compile"
for word in "$@"; do case $word in *.in) test -f "$word" ;; esac; done
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which the commands find the stand-ins."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/sh\nset -e\n{script}\n")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{PROGRAMS}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(tmp_path / "poolkit/ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
    }


def run(command: list[str], project: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_commands_make_an_inventory_of_the_project(
    tmp_path: Path, environment: dict[str, str], framework: str
) -> None:
    """Up to the first playbook the commands need no hosts; what they made describes the project."""
    project = copy_of_project(tmp_path)
    for command in commands(framework):
        if command.startswith("ansible-playbook"):
            break
        run(["bash", "-ec", command], project, environment)

    listed = run(["ansible-inventory", "-i", "inventories/mine", "--list"], project, environment)
    inventory = json.loads(listed)
    assert inventory["_meta"]["hostvars"].keys() == {"db1", "shop1"}
    assert inventory["pgbouncer"]["children"] == ["applications"]
    variables = inventory["_meta"]["hostvars"]["shop1"]
    assert variables["app_framework"] == framework
    local = yaml.safe_load((ROOT / f"inventories/local/group_vars/{framework}.yml").read_text())
    assert variables["app_module"] == local["app_module"]
    source = variables["app_source"].replace("{{ inventory_dir }}", "inventories/mine")
    assert (project / source).resolve() == tmp_path / "shop"
    assert (tmp_path / "shop/requirements.txt").is_file()
    # Its hosts, network and ports are not those of `make up` or of the tests.
    names = ("docker_prefix", "docker_network", "docker_subnet_prefix", "docker_first_port")
    for other in ("inventories/local", "molecule/inventory"):
        others = yaml.safe_load((ROOT / other / "group_vars/all.yml").read_text())
        assert all(variables[name] != others[name] for name in names)


def test_the_settings_of_the_table_are_the_examples_own() -> None:
    rows = columns()
    assert len(rows) >= 5
    examples, fragments, imports = rows[:3]
    for example, fragment, how in zip(examples, fragments, imports, strict=True):
        assert (ROOT / example / fragment).is_file()
        modules = (ROOT / example).glob("*/*.py")
        assert any(how in module.read_text() for module in modules), how


def test_every_variable_of_the_page_is_known() -> None:
    spec = yaml.safe_load((ROOT / "roles/app/meta/argument_specs.yml").read_text())
    known = set(spec["argument_specs"]["main"]["options"])
    named = set(re.findall(r"\bapp_[a-z_]+", PAGE.read_text()))
    assert len(named) > 8
    assert named <= known, sorted(named - known)


def test_the_other_blocks_are_yaml() -> None:
    for text in blocks("yaml"):
        assert isinstance(yaml.safe_load(text), dict), text
    fences = re.findall(r"^ *```(\w+)$", PAGE.read_text(), re.MULTILINE)
    assert set(fences) == {"sh", "text", "yaml"}


@pytest.mark.parametrize(
    ("expected", "output", "missing"),
    [
        ("", "anything", ""),
        ("a … c\nd", "x a b\n  c x\nd", ""),
        ("long message", "a long\n    message", ""),
        ("first\nsecond", "second\nfirst", "second"),
        ("10 + 2", "1+2", "10 + 2"),
    ],
)
def test_what_the_page_shows_is_compared(expected: str, output: str, missing: str) -> None:
    assert missing_line(expected, output) == missing


@pytest.mark.parametrize("name", ["applications.md", "timeouts.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    text = (PAGE.parent / name).read_text()
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text):
        page = PAGE.parent / (target or name)
        assert page.is_file(), target
        if anchor:
            text = page.read_text()
            headings = [
                re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
                for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            ]
            assert f'id="{anchor}"' in text or anchor in headings, anchor


def test_refusals_that_the_page_explains_are_what_the_project_says() -> None:
    """Of the table in section 8: the first words of each, where they are the project's own."""
    section = PAGE.read_text().partition("What a first run says")[2].partition("###")[0]
    said = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    ours = [words.strip("… ") for words in said]
    plugins = "\n".join(path.read_text() for path in (ROOT / "ansible/plugins").rglob("*.py"))
    others = {
        "KeyError",  # Python's
        "ModuleNotFoundError",
        "Read-only file system",
        "permission denied for table",  # PostgreSQL's
        "prepared statement … does not exist",
    }
    for words in set(ours) - others:
        assert words.replace("has no manage.py", "has no {shown}").split(" … ")[-1] in plugins, (
            words
        )
    assert len(set(ours) - others) >= 6

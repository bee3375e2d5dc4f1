"""The commands of docs/applications.md, in their order, and a place to run them in.

A scenario with Docker hosts runs them for real: in copy_of_project(directory), with `bash -ec`, the
programs of poolkit's environment on PATH, and ANSIBLE_CONFIG unset or that of the copy.
tests/unit/test_applications_page.py runs what needs no hosts.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/applications.md"
FRAMEWORKS = ("django", "fastapi", "flask")  # the columns of the page's table


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks of a language, in their order; lists may indent them."""
    fence = rf"^( *)```{language}\n(.*?)^\1```$"
    found = re.finditer(fence, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(match[2]) for match in found]


def columns() -> list[tuple[str, str, str]]:
    """Return the table's rows whose three cells hold one code span each."""
    cell = r" `([^`|]+)` "
    row = re.compile(rf"^\|[^|]*\|{cell}\|{cell}\|{cell}\|$", re.MULTILINE)
    return row.findall(PAGE.read_text(encoding="utf-8"))


def commands(framework: str = "django") -> list[str]:
    """Return the ```sh blocks, with what the table's column of a framework says in its place.

    The blocks say what the first column says. Each may hold several commands.
    """
    column = FRAMEWORKS.index(framework)
    script = "\0".join(blocks("sh"))
    for cells in columns():
        script = script.replace(cells[0], cells[column])
    return script.split("\0")


def copy_of_project(directory: Path) -> Path:
    """Copy the project to directory/poolkit, so that ../shop is in directory; return the copy.

    The copy has an empty .venv/bin/activate: whoever runs the commands gives their PATH.
    """
    target = directory / "poolkit"
    left_out = (".git", ".venv", ".cache", ".secrets", "*_cache", "__pycache__", "mine")
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*left_out))
    (target / ".venv/bin").mkdir(parents=True)
    (target / ".venv/bin/activate").touch()
    return target

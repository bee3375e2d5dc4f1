"""The commands of docs/applications.md in their order, what the page says that they print, and a
place to run them in.

tests/newcomer runs them for real: in copy_of_project(directory), with `bash -ec`, the programs of
poolkit's environment on PATH, and ANSIBLE_CONFIG unset. tests/unit/test_applications_page.py runs
what needs no hosts.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/applications.md"
FRAMEWORKS = ("django", "fastapi", "flask")  # the columns of the page's table

PARTS = re.compile(
    r"^## (?P<heading>[^\n]+)$|^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Step:
    """A ```sh block: its heading, its commands, and the ```text block below it ("" for none)."""

    heading: str
    command: str
    expected: str


def _parts() -> Iterator[tuple[str, str, str]]:
    """Yield (heading above, language, text) of each fenced block; lists may indent them."""
    heading = ""
    for part in PARTS.finditer(PAGE.read_text(encoding="utf-8")):
        heading = part["heading"] or heading
        if part["language"]:
            yield heading, part["language"], textwrap.dedent(part["text"])


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks of a language, in their order."""
    return [text for _, found, text in _parts() if found == language]


def columns() -> list[tuple[str, str, str]]:
    """Return the table's rows whose three cells hold one code span each."""
    cell = r" `([^`|]+)` "
    row = re.compile(rf"^\|[^|]*\|{cell}\|{cell}\|{cell}\|$", re.MULTILINE)
    return row.findall(PAGE.read_text(encoding="utf-8"))


def steps(framework: str = "django") -> list[Step]:
    """Return the ```sh blocks, with what the table's column of a framework says in its place.

    The blocks say what the first column says. Each may hold several commands.
    """
    column = FRAMEWORKS.index(framework)
    found: list[Step] = []
    for heading, language, text in _parts():
        for cells in columns():
            text = text.replace(cells[0], cells[column])
        if language == "sh":
            found.append(Step(heading, text, ""))
        elif language == "text":
            found[-1] = Step(found[-1].heading, found[-1].command, text)
    return found


def commands(framework: str = "django") -> list[str]:
    """Return the commands alone."""
    return [step.command for step in steps(framework)]


def missing_line(expected: str, output: str) -> str:
    """Return the first line that the output lacks, or has before the one above it; "" for none.

    `…` stands for anything. Spaces and line breaks do not count: Ansible folds long messages.
    """
    rest = re.sub(r"\s", "", output)
    for line in expected.splitlines():
        words = [re.escape(re.sub(r"\s", "", part)) for part in line.split("…")]
        found = re.search(".*?".join(words), rest)
        if not found:
            return line
        rest = rest[found.end() :]
    return ""


def copy_of_project(directory: Path) -> Path:
    """Copy the project to directory/poolkit, so that ../shop is in directory; return the copy.

    The copy has an empty .venv/bin/activate: whoever runs the commands gives their PATH.
    """
    target = directory / "poolkit"
    left_out = (".git", ".venv", ".cache", ".secrets", "*_cache", "__pycache__", "mine")
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    (target / ".venv/bin").mkdir(parents=True)
    (target / ".venv/bin/activate").touch()
    return target

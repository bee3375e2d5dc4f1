"""The pages of docs/runbooks have the parts that one looks for, and commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/runbooks").glob("[a-z]*.md"))
SECTIONS = ["Symptom", "Check", "Action", "Proof", "Undo"]
TESTS = "".join(path.read_text() for path in (ROOT / "tests/runbooks").glob("*.py"))


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path) -> None:
    text = page.read_text()
    assert [name for name in re.findall(r"^## (.*)$", text, re.MULTILINE)][:5] == SECTIONS
    assert f"({page.name})" in (ROOT / "docs/runbooks/README.md").read_text()
    named = commands(text)
    assert named
    for command in named:
        program, first, *rest = shlex.split(command)
        assert program in ("ansible-playbook", "python"), command
        assert (ROOT / first).is_file(), command
        given = re.findall(r"\b(\w+)=", " ".join(rest))
        known = (ROOT / first).read_text() + (ROOT / "docs/variables.md").read_text()
        assert all(name in known for name in given), command


@pytest.mark.parametrize("section", ["Check", "Action", "Proof"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_rehearsed(page: Path, section: str) -> None:
    """The scenario `runbooks` runs its commands, as the page has them or by their playbooks."""
    text = page.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    named = {Path(shlex.split(line)[1]).stem for line in commands(text)}
    followed = re.search(rf'follow\(\s*"{page.stem}", "{section}"', TESTS)
    followed = followed or (page.stem == "move_database" and f'follow("{section}", ' in TESTS)
    assert named and (followed or all(f'"{name}"' in TESTS for name in named)), page


def test_index_leads_somewhere() -> None:
    index = (ROOT / "docs/runbooks/README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)", index):
        assert (ROOT / "docs/runbooks" / link).is_file(), link

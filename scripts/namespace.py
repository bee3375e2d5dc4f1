"""Rename the collection: galaxy.yml, the links in .collections, every full name in the project.

Run it in a clean checkout and look at `git diff`. Exit code 0 when everything has the new name, 2
for a name that Ansible does not take.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
COLLECTIONS = ".collections/ansible_collections"
LEFT_ALONE = (".git", ".venv", ".cache", ".secrets", "__pycache__")


def texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the project's text files."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_ALONE]
        for path in (Path(folder) / name for name in names):
            try:
                if not path.is_symlink():
                    yield path, path.read_text()
            except UnicodeDecodeError:
                continue


def rename(root: Path, namespace: str, name: str) -> None:
    """Give the collection below `root` another namespace and name."""
    galaxy = yaml.safe_load((root / "galaxy.yml").read_text())
    old = (galaxy["namespace"], galaxy["name"])
    first, last = map(re.escape, old)
    forms = {
        ".": rf"(?<![\w.]){first}\.{last}(?!\w)",  # a full name
        "/": rf"(?<=ansible_collections/){first}/{last}(?!\w)",
        "-": rf"(?<!\w){first}-{last}(?=-\d)",  # an archive, as ansible-galaxy names it
    }
    for path, text in texts(root):
        new = text
        for separator, form in forms.items():
            new = re.sub(form, f"{namespace}{separator}{name}", new)
        if path == root / "galaxy.yml":
            new = re.sub(r"^namespace: .*", f"namespace: {namespace}", new, flags=re.MULTILINE)
            new = re.sub(r"^name: .*", f"name: {name}", new, flags=re.MULTILINE)
        if new != text:
            path.write_text(new)
    links, target = (root / COLLECTIONS / "/".join(pair) for pair in (old, (namespace, name)))
    if links != target:
        target.parent.mkdir(exist_ok=True)
        links.rename(target)
        if not any(links.parent.iterdir()):
            links.parent.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("new", metavar="NAMESPACE[.NAME]", help="without NAME, the name stays")
    namespace, _, name = parser.parse_args().new.partition(".")
    name = name or yaml.safe_load((ROOT / "galaxy.yml").read_text())["name"]
    for part in (namespace, name):
        if not re.fullmatch(r"[a-z][a-z0-9_]+", part):
            print(f"{part!r}: use a-z, 0-9 and _, a letter first", file=sys.stderr)
            return 2
    rename(ROOT, namespace, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write ansible/plugins/filter/NAME.yml for each filter, where ansible-doc looks for it.

The filter's docstring and signature are the only sources. `make docs` runs it. Exit code 0 when the
files are right or were written, 1 with --check when one is stale.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "ansible/plugins/filter"
AUTHOR = "The poolkit authors (@poolkit)"


class Dumper(yaml.SafeDumper):
    """Indents lists, as yamllint wants it, and keeps lines."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if data.endswith("\n") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


Dumper.add_representer(str, Dumper.represent_str)


def type_of(hint: Any) -> str:
    """Return a type hint as a type of Ansible's documentation."""
    if get_origin(hint) in (Union, UnionType):
        first, *others = [part for part in get_args(hint) if part is not NoneType]
        return "raw" if others else type_of(first)
    kind = get_origin(hint) or hint
    if not isinstance(kind, type):
        return "raw"
    for name in (bool, int, float, str):
        if issubclass(kind, name):
            return name.__name__
    return "dict" if issubclass(kind, Mapping) else "list" if issubclass(kind, Iterable) else "raw"


def paragraphs(text: str) -> list[str]:
    """Return the parts of a docstring: paragraphs, and lines that begin with `name: `."""
    parts = re.split(r"\n\n|\n(?=[a-z_, ]+: )", text)
    return [" ".join(part.split()) for part in parts]


def document(name: str, function: Callable, version: str, collection: str) -> dict[str, Any]:
    """Return the documentation of a filter, as ansible-doc reads it."""
    first, *others = paragraphs(inspect.getdoc(function) or "")
    hints = get_type_hints(function)
    given, *arguments = inspect.signature(function).parameters.values()

    def option(parameter: inspect.Parameter) -> dict[str, Any]:
        facts = {"description": "See the description.", "type": type_of(hints[parameter.name])}
        if parameter.default is parameter.empty:
            return {**facts, "required": True}
        plain = parameter.default not in (None, ())
        return {**facts, "default": parameter.default} if plain else facts

    call = f"({', '.join(argument.name for argument in arguments)})" if arguments else ""
    documentation: dict[str, Any] = {
        "name": name,
        "short_description": first.rstrip("."),
        "version_added": version,
        "author": AUTHOR,
        "description": others or [first],
    }
    if arguments:
        documentation["positional"] = ", ".join(argument.name for argument in arguments)
    documentation["options"] = {
        "_input": option(given),
        **{argument.name: option(argument) for argument in arguments},
    }
    return {
        "DOCUMENTATION": documentation,
        "EXAMPLES": f'result: "{{{{ {given.name} | {collection}.{name}{call} }}}}"\n',
        "RETURN": {"_value": {"description": first, "type": type_of(hints["return"])}},
    }


def render() -> dict[Path, str]:
    """Return the text of each file."""
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    collection = f"{galaxy['namespace']}.{galaxy['name']}"
    sys.path.insert(0, str(ROOT))
    pages = {}
    for path in sorted(FOLDER.glob("*.py")):
        module = importlib.import_module(f"plugins.filter.{path.stem}")
        for name, function in module.FilterModule().filters().items():
            page = document(name, function, galaxy["version"], collection)
            text = yaml.dump(page, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)
            pages[FOLDER / f"{name}.yml"] = (
                f"# Made by `make docs` from {path.name}: edit that.\n{text}"
            )
    return pages


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when one is stale")
    options = parser.parse_args()
    pages = render()
    there = {path: path.read_text() for path in FOLDER.glob("*.yml")}
    if options.check:
        stale = sorted(p.name for p in pages.keys() | there.keys() if pages.get(p) != there.get(p))
        if stale:
            print(f"stale, run `make docs`: {', '.join(stale)}", file=sys.stderr)
        return 1 if stale else 0
    for path in there.keys() - pages.keys():
        path.unlink()
    for path, text in pages.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

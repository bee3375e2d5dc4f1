"""Write docs/variables.md: every variable of the roles, every setting of PgBouncer.

The argument specs and defaults of the roles and roles/pgbouncer/files/settings.yml are its only
sources. `make docs` runs it. Exit code 0 when the file is right or was written, 1 with --check when
it is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs/variables.md"
SETTINGS = "roles/pgbouncer/files/settings.yml"

INTRODUCTION = """\
# Variables

`make docs` writes this page from the roles' argument specs and defaults: edit those. An expression
is evaluated on each host. If the column *default* is empty, there is no default, and the
description tells what happens then.
"""

SETTINGS_INTRODUCTION = f"""\
## PgBouncer's settings

Every setting that poolkit knows, from [{SETTINGS}](../{SETTINGS}), under
PgBouncer's own name. Times are numbers without a unit: `seconds` may have decimals, `int_seconds`
may not. *since* is the first version that has the setting. poolkit refuses a setting that the
installed version does not have.
"""

SECTION_VARIABLES = {
    "pgbouncer": "pgbouncer_settings",
    "databases": "pgbouncer_databases",
    "users": "pgbouncer_users",
}
"""Section of pgbouncer.ini -> variable that sets it."""


def escape(text: str) -> str:
    """Return text as a cell of a table can hold it: in one line, its pipes escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(value: object) -> str:
    """Return a value as YAML in a code span."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    text = text.removesuffix("...\n").strip()
    fence = "``" if "`" in text else "`"
    return escape(f"{fence}{text}{fence}")


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a Markdown table; its cells are escaped already."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def type_of(option: dict) -> str:
    """Return an option's type, with that of its elements: `list of dict`."""
    elements = f" of {option['elements']}" if "elements" in option else ""
    return option.get("type", "str") + elements


def default_of(name: str, option: dict, defaults: dict) -> str:
    """Return the cell with the default: of the spec, else of the role's defaults, else nothing."""
    if "default" in option:
        return code(option["default"])
    if isinstance(defaults.get(name), str) and "{{" in defaults[name]:
        return escape(f"`{defaults[name]}`")
    if name in defaults:
        return code(defaults[name])
    return "*required*" if option.get("required") else ""


def variable_rows(options: dict, defaults: dict, parent: str = "") -> list[list[str]]:
    """Return a row for each variable, followed by rows for its nested options."""
    rows = []
    for name, option in options.items():
        path = f"{parent}{name}"
        description = option.get("description", "")
        text = " ".join(description) if isinstance(description, list) else str(description)
        text = escape(text).replace("<", "&lt;")
        if "choices" in option:
            text += f" One of {', '.join(code(choice) for choice in option['choices'])}."
        if option.get("no_log"):
            text += " Secret."
        if name in SECTION_VARIABLES.values():
            section = next(key for key, value in SECTION_VARIABLES.items() if value == name)
            text += f" [Its settings](#settings-{section})."
        anchor = "" if parent else f'<a id="{name}"></a>'
        default = default_of(name, option, defaults)
        rows.append([f"{anchor}`{path}`", type_of(option), default, text])
        nested = f"{path}[]." if option.get("elements") == "dict" else f"{path}."
        rows += variable_rows(option.get("options", {}), {}, nested)
    return rows


def role_section(role: str, specs: dict, defaults: dict) -> str:
    """Return the section of a role. Entry points that repeat `main`'s options are left out."""
    main = specs["argument_specs"]["main"]
    description = main["description"]
    text = " ".join(description) if isinstance(description, list) else description
    header = ("variable", "type", "default", "description")
    rows = variable_rows(main["options"], defaults)
    return f"## Role {role}\n\n{text}\n\n{table(header, rows)}"


def settings_section(section: str, settings: dict) -> str:
    """Return the table of one section of pgbouncer.ini."""
    variable = SECTION_VARIABLES.get(section)
    source = f"Set by [`{variable}`](#{variable})." if variable else "The inventory sets none."
    rows = [
        [
            f"`{name}`",
            setting["type"],
            str(setting["since"]),
            "reload" if setting.get("reloadable", True) else "restart",
            ", ".join(code(value) for value in setting.get("values", [])),
        ]
        for name, setting in sorted(settings.items())
    ]
    header = ("setting", "type", "since", "applied by", "choices")
    return f'### <a id="settings-{section}"></a>[{section}]\n\n{source}\n\n{table(header, rows)}'


def render(root: Path) -> str:
    """Return the whole page for the roles under a directory."""
    parts = [INTRODUCTION]
    for path in sorted((root / "roles").glob("*/meta/argument_specs.yml")):
        role = path.parent.parent
        file = role / "defaults/main.yml"
        defaults = yaml.safe_load(file.read_text()) if file.exists() else None
        parts.append(role_section(role.name, yaml.safe_load(path.read_text()), defaults or {}))
    parts.append(SETTINGS_INTRODUCTION)
    catalogue = yaml.safe_load((root / SETTINGS).read_text())
    parts += [settings_section(name, settings) for name, settings in catalogue.items()]
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when it is stale")
    options = parser.parse_args()
    text = render(ROOT)
    if not options.check:
        TARGET.write_text(text)
        return 0
    if TARGET.exists() and TARGET.read_text() == text:
        return 0
    print("docs/variables.md is stale: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

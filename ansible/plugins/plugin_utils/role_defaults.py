"""The roles' own defaults and argument specs, for filters that work on the whole inventory.

A number is given in one place: roles/NAME/defaults/main.yml.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

ROLES = (
    next(path for path in Path(__file__).resolve().parents if (path / "roles").is_dir()) / "roles"
)


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C loader takes a tenth of the time; each worker of Ansible loads anew."""


@functools.cache
def role_file(role: str, name: str) -> dict[str, Any]:
    """Return a YAML file of a role, templates as they are."""
    return yaml.load((ROLES / role / name).read_text(), Loader=LOADER)  # noqa: S506 safe: see LOADER


def defaults(role: str) -> dict[str, Any]:
    """Return a role's defaults/main.yml, templates as they are."""
    return role_file(role, "defaults/main.yml")


def default(variable: str) -> Any:
    """Return the default of a role's variable; its prefix names the role.

    KeyError where the role has none, ValueError where the default is a template.
    """
    value = defaults(variable.partition("_")[0])[variable]
    if "{{" in str(value):
        raise ValueError(f"the default of {variable} is a template: {value}")
    return value


def role_constants(role: str) -> dict[str, Any]:
    """Return a role's vars/main.yml, templates as they are."""
    return role_file(role, "vars/main.yml")


def options(role: str) -> dict[str, dict[str, Any]]:
    """Return {variable: its type, description and so on} of a role's argument spec."""
    return role_file(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def known_variables() -> set[str]:
    """Return the names of the variables that the roles' argument specs describe."""
    paths = ROLES.glob("*/meta/argument_specs.yml")
    return {name for path in paths for name in options(path.parents[1].name)}

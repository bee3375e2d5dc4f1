#!/usr/bin/python
"""Refuse to go on where another deployment has put its own release on an application's host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: app_overtaken
short_description: Refuse to go on where another deployment has put its own release on a host
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Runs on the host of an application that changes over first, and fails where that one has another
    release by now.
  - Changes nothing. Check mode skips it.
options:
  host:
    description: The name in the inventory of the host that would go on, for the message.
    type: str
    required: true
  first_host:
    description: The name in the inventory of the host that this runs on, for the message.
    type: str
    required: true
  root:
    description: Directory with the link current.
    type: path
    required: true
  release:
    description: Name of the release that this deployment has put there.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse to go on with another release
  poolkit.poolkit.app_overtaken:
    host: "{{ inventory_hostname }}"
    first_host: web1
    root: /srv/shop
    release: 0123456789ab
  delegate_to: web1
"""

RETURN = r""" # """

from pathlib import Path

from ..module_utils.unlogged_module import UnloggedModule


def current(root: Path) -> str:
    """Return the name of the release that the link current leads to; empty without one."""
    link = root / "current"
    return link.readlink().name if link.is_symlink() else ""


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "first_host": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
        }
    )
    given = module.params
    found = current(Path(given["root"]))
    if found != given["release"]:
        module.fail_json(
            msg=f"{given['host']}: another deployment has put {found} on {given['first_host']} "
            f"meanwhile; this one ({given['release']}) stops here and leaves the other hosts to "
            "it. Should they differ when both have ended, deploy once more"
        )
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Make a systemd service run with the files that are on the disk."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: service_current
short_description: Make a systemd service run with the files that are on the disk
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Starts and enables a service, and restarts or reloads it where one of its files was written
    after its last start or reload.
  - A handler forgets its notification when a run is interrupted between the file and the restart;
    the next run finds the file unchanged and the service goes on with what it read before. Here the
    times on the host decide, so that run is caught up.
options:
  name:
    description: Name of the service.
    type: str
    required: true
  state:
    description: C(absent) stops the service and removes its O(files).
    type: str
    choices: [present, absent]
    default: present
  files:
    description:
      - Files of the service that this module puts there first (root's, 0644), its unit among them,
        as a list of {path, content}. A change of one needs a restart.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file goes.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
  restart_files:
    description: Files that a restart makes the service read. Its unit file is always one of them.
    type: list
    elements: path
    default: []
  restart_changed:
    description:
      - Whether this run replaces one of restart_files. Check mode has not written it, so its time
        does not tell.
    type: bool
    default: false
  reload_files:
    description: Files that a reload makes the service read.
    type: list
    elements: path
    default: []
  reload_changed:
    description: The same for reload_files.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Run PgBouncer with its files
  poolkit.poolkit.service_current:
    name: pgbouncer
    reload_files: [/etc/pgbouncer/pgbouncer.ini, /etc/pgbouncer/userlist.txt]
"""

RETURN = r"""
action:
  description: What was done, or would be. One of none, start, restart, reload, remove.
  type: str
  returned: success
newer:
  description: The files that the service had not read.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ..module_utils.service_state import log_end, newer_than, properties, systemctl, timestamp
from ..module_utils.text_files import difference, same_owner, write
from ..module_utils.unlogged_module import UnloggedModule


def decide(
    active: bool,
    restart: list[str],
    reload: list[str],
    started: float,
    changed: float,
    foreseen: str = "none",
) -> tuple[str, list[str]]:
    """Return (action, files not read yet) from the service's state and the files' times.

    started: last start; changed: last start or reload, both in seconds since the epoch.
    foreseen: none, restart or reload: what files need that this run replaces.
    """
    if not active:
        return "start", []
    unread = newer_than(restart, started)
    if unread or foreseen == "restart":
        return "restart", unread
    unread = newer_than(reload, changed)
    if unread or foreseen == "reload":
        return "reload", unread
    return "none", []


def remove(module: UnloggedModule, name: str, paths: list[Path]) -> None:
    """Stop a service and remove its files; ends the module."""
    present = [path for path in paths if path.exists()]
    if present and not module.check_mode:
        systemctl("disable", "--now", "--quiet", name)  # fails where a run was cut off half-way
        for path in present:
            path.unlink()
        systemctl("daemon-reload")
        if properties(name, "ActiveState").get("ActiveState") == "active":
            module.fail_json(msg=f"{name} could not be stopped: {log_end(name)}")
    action = "remove" if present else "none"
    module.exit_json(changed=bool(present), action=action, newer=[])


def main() -> None:
    file = {"path": {"type": "path", "required": True}}
    file["content"] = {"type": "str", "required": True}
    module = UnloggedModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
            "restart_files": {"type": "list", "elements": "path", "default": []},
            "restart_changed": {"type": "bool", "default": False},
            "reload_files": {"type": "list", "elements": "path", "default": []},
            "reload_changed": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    files = {Path(file["path"]): file["content"] for file in module.params["files"]}
    if module.params["state"] == "absent":
        remove(module, name, list(files))
    changes = {
        path: difference(path, content)
        for path, content in files.items()
        if difference(path, content) or not same_owner(path, 0o644, None)
    }
    for path in changes if not module.check_mode else ():
        write(path, files[path], 0o644)

    names = "ActiveState,UnitFileState,FragmentPath,NeedDaemonReload"
    state = properties(name, f"{names},ActiveEnterTimestamp,StateChangeTimestamp")
    foreseen = "reload" if module.params["reload_changed"] else "none"
    # A run that has written the files sees it from their times.
    foreseen = "restart" if module.params["restart_changed"] or changes else foreseen
    restart_files = module.params["restart_files"] + [str(path) for path in files]
    restart_files.append(state.get("FragmentPath") or "")
    action, newer = decide(
        state.get("ActiveState") in ("active", "reloading"),
        [path for path in restart_files if path],
        module.params["reload_files"],
        timestamp(state.get("ActiveEnterTimestamp", "")),
        timestamp(state.get("StateChangeTimestamp", "")),
        foreseen if module.check_mode else "none",
    )
    enable = state.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "indirect")
    changed = action != "none" or enable or bool(changes)
    if changed and not module.check_mode:
        steps = [("daemon-reload",)] if state.get("NeedDaemonReload") != "no" or newer else []
        steps += [("enable", "--quiet", name)] if enable else []
        steps += [(action, name)] if action != "none" else []
        for step in steps:
            done = systemctl(*step)
            if done.returncode:
                module.fail_json(
                    msg=f"systemctl {' '.join(step)} failed: {done.stderr.strip()}. "
                    f"The log of {name} ends with: {log_end(name)}"
                )
    shown = [{"prepared": text} for text in changes.values()]
    module.exit_json(changed=changed, action=action, newer=newer, diff=shown)


if __name__ == "__main__":
    main()

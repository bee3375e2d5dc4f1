#!/usr/bin/python
"""Make a systemd service run with the files that are on the disk."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.service_state import (
    log_end,
    newer_than,
    properties,
    systemctl,
    timestamp,
)

DOCUMENTATION = r"""
---
module: service_current
short_description: Make a systemd service run with the files that are on the disk
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
  restart_files:
    description: Files that a restart makes the service read. Its unit file is always one of them.
    type: list
    elements: path
    default: []
  reload_files:
    description: Files that a reload makes the service read.
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Run PgBouncer with its files
  service_current:
    name: pgbouncer
    reload_files: [/etc/pgbouncer/pgbouncer.ini, /etc/pgbouncer/userlist.txt]
"""

RETURN = r"""
action:
  description: What was done, or would be in check mode. One of none, start, restart, reload.
  type: str
  returned: success
newer:
  description: The files that the service had not read.
  type: list
  elements: str
  returned: success
"""


def decide(
    active: bool, restart: list[str], reload: list[str], started: float, changed: float
) -> tuple[str, list[str]]:
    """Return (action, files not read yet) from the service's state and the files' times.

    started: last start; changed: last start or reload, both in seconds since the epoch.
    """
    if not active:
        return "start", []
    if unread := newer_than(restart, started):
        return "restart", unread
    if unread := newer_than(reload, changed):
        return "reload", unread
    return "none", []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "restart_files": {"type": "list", "elements": "path", "default": []},
            "reload_files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]

    names = "ActiveState,UnitFileState,FragmentPath,NeedDaemonReload"
    state = properties(name, f"{names},ActiveEnterTimestamp,StateChangeTimestamp")
    restart_files = module.params["restart_files"] + [state.get("FragmentPath") or ""]
    action, newer = decide(
        state.get("ActiveState") in ("active", "reloading"),
        [path for path in restart_files if path],
        module.params["reload_files"],
        timestamp(state.get("ActiveEnterTimestamp", "")),
        timestamp(state.get("StateChangeTimestamp", "")),
    )
    enable = state.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "indirect")
    changed = action != "none" or enable
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
    module.exit_json(changed=changed, action=action, newer=newer)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Apply a whole PgBouncer configuration as one transaction."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pgbouncer_config
short_description: Apply a whole PgBouncer configuration as one transaction
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Tries the candidate with the installed binary, swaps the files, reloads or restarts process by
    process, reads the result back from each and, when anything is off, puts the old files back.
  - PgBouncer itself has no check option, and a reload that fails leaves it half on its defaults
    (upstream issue 1482).
  - A reload is used wherever it suffices; the process's own SHOW CONFIG tells which settings need a
    restart. The limits of a user whose line was removed are reset, which a reload alone does not do
    (upstream issue 1594).
  - A restart waits for clients where PgBouncer is 1.23 or later. The process stops listening and
    waits up to drain_seconds for its clients to leave, then for their transactions, while another
    takes the new ones; a lone process is stood in for by a second one meanwhile. A connect that
    falls into the moment when it stops listening has to be tried again. Older versions finish the
    running transactions, then close the connections.
  - Each process is a unit pgbouncer@N.service with its socket in /run/pgbouncer/N. The
    distribution's pgbouncer.service is stopped and masked, so that a package upgrade restarts
    nothing; the next run of this module replaces processes of the old binary.
  - A PgBouncer that somebody else configured is refused before anything changes. With take_over it
    is replaced, and its files are kept in before-poolkit beside the new ones, for root alone.
  - Whatever the files say, a process that serves with another auth_type than hba, with other files
    for users and rules than those beside the configuration, or on an address that listen_addr does
    not name, is a failure.
  - Two runs at once wait for each other. Check mode tries the candidate and changes nothing.
options:
  config:
    description: The file that all processes share, as {path, content}; it ends in [pgbouncer].
    type: dict
    required: true
    suboptions:
      path:
        description: Where the file goes.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
  files:
    description: Further files without secrets, units included, as a list of {path, content}.
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
  secret_files:
    description: Files with secrets (user list, private keys); their content appears in no output.
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
  processes:
    description: How many processes share the port.
    type: int
    default: 1
  user:
    description:
      - Operating system user of the processes; it reads the files and the admin console.
      - Made as a system user where it is missing.
    type: str
    default: pgbouncer
  timeout_seconds:
    description: How long a start, a reload and the proof may each take.
    type: int
    default: 20
  drain_seconds:
    description: How long a process that ends waits for its clients; then for transactions only.
    type: int
    default: 60
  take_over:
    description: Whether to replace a PgBouncer that poolkit did not configure.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Apply the configuration
  poolkit.poolkit.pgbouncer_config:
    config:
      path: /etc/pgbouncer/pgbouncer.ini
      content: "{{ lookup('ansible.builtin.template', 'pgbouncer.ini.j2') }}"
    secret_files:
      - path: /etc/pgbouncer/userlist.txt
        content: "{{ lookup('ansible.builtin.template', 'userlist.txt.j2') }}"
    processes: 2
"""

RETURN = r"""
action:
  description: What was done, or would be in check mode. One of none, reload, restart, start.
  type: str
  returned: success
processes:
  description: What was done to each process, as {process, action, seconds}.
  type: list
  elements: dict
  returned: success
settings:
  description: Names of the settings, databases and users that changed, as section.name.
  type: list
  elements: str
  returned: success
restart_reason:
  description: Settings that a reload cannot change, and other reasons for a restart.
  type: list
  elements: str
  returned: success
problems:
  description: Where processes differed from files that did not change, as after SET in the console.
  type: list
  elements: str
  returned: success
seconds:
  description: How long the change and its proof took.
  type: float
  returned: success
kept_files:
  description: The folder with the files of a PgBouncer that was taken over; empty otherwise.
  type: str
  returned: success
restored:
  description: Whether the old configuration serves, proved like the new one.
  type: bool
  returned: failure after the files were swapped
"""

import contextlib
import grp
import pwd
import subprocess
from pathlib import Path
from typing import Any

from ..module_utils.locking import Locked, lock
from ..module_utils.pgbouncer_console import PATH
from ..module_utils.pgbouncer_pooler import running
from ..module_utils.pgbouncer_process import pgbouncer_path
from ..module_utils.pgbouncer_report import CLEAR_PASSWORD, first_time
from ..module_utils.pgbouncer_transaction import Transaction
from ..module_utils.pgbouncer_trial import remove_trials
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule


def lock_seconds(processes: int, drain_seconds: int, timeout_seconds: int) -> int:
    """Return how long to wait for another run: the processes are replaced one after the other."""
    return max(1, processes) * (drain_seconds + 3 * timeout_seconds)


def create_user(name: str) -> None:
    """Create the system user of the processes: no home, no shell, a group of its own."""
    command = ["useradd", "--system", "--no-create-home"]
    with contextlib.suppress(KeyError):
        command += ["--gid", str(grp.getgrnam(name).gr_gid)]
    if "--gid" not in command:
        command.append("--user-group")
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name]
    subprocess.run(command, check=True, env={"PATH": PATH})


def has_user(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def argument_spec() -> dict[str, Any]:
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
    }
    secret = {**file, "content": {"type": "str", "required": True, "no_log": True}}
    files = {"type": "list", "elements": "dict", "default": []}
    return {
        "config": {"type": "dict", "required": True, "options": file},
        "files": {**files, "options": file},
        "secret_files": {**files, "options": secret, "no_log": False},
        "processes": {"type": "int", "default": 1},
        "user": {"type": "str", "default": "pgbouncer"},
        "timeout_seconds": {"type": "int", "default": 20},
        "drain_seconds": {"type": "int", "default": 60},
        "take_over": {"type": "bool", "default": False},
    }


def hide_passwords(params: dict[str, Any]) -> None:
    """Take the passwords of [databases] out of the parameters, which Ansible prints at -vvv."""
    config = params["config"]
    config["content"] = CLEAR_PASSWORD.sub("password=***", config["content"])


def main() -> None:
    module = UnloggedModule(argument_spec=argument_spec(), supports_check_mode=True)
    params = module.params
    installed, known = pgbouncer_path() is not None, has_user(params["user"])
    if module.check_mode and not (installed and known):
        result = first_time(params)
        hide_passwords(params)
        module.exit_json(**result)
    if not installed:
        module.fail_json(msg="PgBouncer is not installed on this host")
    if not known:
        create_user(params["user"])
    try:
        # The other run may have more processes to replace than this one will leave.
        processes = max(params["processes"], len(running()))
        seconds = lock_seconds(processes, params["drain_seconds"], params["timeout_seconds"])
        with lock(Path("/run/poolkit-pgbouncer.lock"), seconds):
            remove_trials()
            result = Transaction(module).run()
            hide_passwords(params)
            module.exit_json(**result)
    except (Refused, Locked, OSError, ValueError, subprocess.SubprocessError) as error:
        hide_passwords(params)
        # What happens after the swap is caught by restore().
        module.fail_json(msg=f"{error}. Nothing was changed.")


if __name__ == "__main__":
    main()

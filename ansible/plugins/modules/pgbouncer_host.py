#!/usr/bin/python
"""Read what a host has, before PgBouncer is installed or changed there."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pgbouncer_host
short_description: Read what a host has, before PgBouncer is installed or changed there
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Changes nothing, also in check mode. Needs root, for the files and processes of others.
options:
  port:
    description: The port that PgBouncer is to listen on.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Read what the host has
  poolkit.poolkit.pgbouncer_host:
    port: 6432
  register: __host
"""

RETURN = r"""
distribution:
  description: Name and version of the distribution, C(debian 13).
  type: str
  returned: always
codename:
  description: The distribution's name, C(trixie).
  type: str
  returned: always
version:
  description: Version of the installed package pgbouncer; empty where there is none.
  type: str
  returned: always
candidate:
  description: Version that apt would install, where none is installed and apt knows one.
  type: str
  returned: always
psql_found:
  description: Whether the host has psql.
  type: bool
  returned: always
exporter_found:
  description: Whether the host has the exporter's unit.
  type: bool
  returned: always
port_users:
  description: The units that listen on the port and are neither poolkit's nor the package's.
  type: list
  elements: str
  returned: always
foreign:
  description: What somebody else configured and poolkit would replace, without secrets; else empty.
  type: str
  returned: always
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from ..module_utils.pgbouncer_console import PATH
from ..module_utils.pgbouncer_foreign import UNITS, foreign_pooler
from ..module_utils.unlogged_module import UnloggedModule


def output(*command: str) -> str:
    """Return what a command prints; nothing where it fails or is missing."""
    path = shutil.which(command[0], path=PATH)
    if not path:
        return ""
    environment = {"PATH": PATH, "LC_ALL": "C"}
    done = subprocess.run(
        [path, *command[1:]], capture_output=True, text=True, errors="replace", env=environment
    )
    return done.stdout if done.returncode == 0 else ""


def candidate(policy: str) -> str:
    """Return the version in the output of `apt-cache policy` that would be installed."""
    match = re.search(r"^\s*Candidate: (\d\S*)", policy, re.MULTILINE)
    return match.group(1) if match else ""


def port_users(listeners: str) -> list[str]:
    """Return who listens, from `ss --cgroup`, without the PgBouncers that the role replaces."""
    found = re.findall(r"cgroup:(\S*)", listeners)
    names = {re.sub(r"^\S*/", "", group) or "a program without a unit" for group in found}
    own = re.compile(r"pgbouncer(@[0-9]+)?\.service")
    return sorted(name for name in names if not own.fullmatch(name))


def main() -> None:
    module = UnloggedModule(
        argument_spec={"port": {"type": "int", "required": True}}, supports_check_mode=True
    )
    words = shlex.split(Path("/etc/os-release").read_text(), comments=True)
    release = dict(word.split("=", 1) for word in words if "=" in word)
    version = output("dpkg-query", "--show", "--showformat=${Version}", "pgbouncer").strip()
    # A package that was removed and not purged keeps its version.
    installed = version and shutil.which("pgbouncer", path=PATH)
    module.exit_json(
        changed=False,
        distribution=f"{release.get('ID', '')} {release.get('VERSION_ID', '')}",
        codename=release.get("VERSION_CODENAME", ""),
        version=version if installed else "",
        candidate="" if installed else candidate(output("apt-cache", "policy", "pgbouncer")),
        psql_found=shutil.which("psql", path=PATH) is not None,
        exporter_found=(Path(UNITS) / "pgbouncer-exporter.service").exists(),
        port_users=port_users(
            output("ss", "-Hltn", "--cgroup", f"sport = :{module.params['port']}")
        ),
        foreign=foreign_pooler(),
    )


if __name__ == "__main__":
    main()

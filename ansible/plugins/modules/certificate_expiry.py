#!/usr/bin/python
"""Tell when certificates end: those in files, and the ones that PostgreSQL servers show."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: certificate_expiry
short_description: Tell when certificates end
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Reads files with certificates, and asks PostgreSQL servers for theirs, without a login and
    whether or not it passes.
  - Of a file with several certificates the one that ends first counts.
  - Changes nothing and never fails for what it finds.
options:
  files:
    description: Files in PEM form. Those that are not there are left out.
    type: list
    elements: path
    default: []
  servers:
    description: The [host, port] of each server. Directories of unix sockets are left out.
    type: list
    elements: list
    default: []
"""

EXAMPLES = r"""
- name: Read when the certificates end
  poolkit.poolkit.certificate_expiry:
    files: [/etc/pgbouncer/tls/server.crt]
    servers: [[db.example.com, 5432]]
"""

RETURN = r"""
certificates:
  description:
    - "One for each file and server: {certificate: the file or the server, not_after: when it ends,
      in UTC as 2027-01-31T12:00:00Z, subject, error}. Where error is not empty, nothing else is
      known."
  type: list
  elements: dict
  returned: always
"""

from pathlib import Path

from ..module_utils.certificates import Certificate, first_to_end, parse
from ..module_utils.pgbouncer_tls import served_certificate
from ..module_utils.refused import Refused
from ..module_utils.unlogged_module import UnloggedModule


def told(name: str, found: Certificate | None, error: object = "") -> dict[str, str]:
    return {
        "certificate": name,
        "not_after": found.not_after.strftime("%Y-%m-%dT%H:%M:%SZ") if found else "",
        "subject": found.subject if found else "",
        "error": str(error),
    }


def of_file(path: str) -> dict[str, str]:
    try:
        return told(path, first_to_end(Path(path).read_text(errors="replace")))
    except (OSError, Refused) as error:
        return told(path, None, error)


def of_server(host: str, port: int) -> dict[str, str]:
    name = f"PostgreSQL at {host}:{port}"
    try:
        return told(name, parse(served_certificate(host, port)))
    except (OSError, ValueError, Refused) as error:
        return told(name, None, error)


def main() -> None:
    module = UnloggedModule(
        argument_spec={
            "files": {"type": "list", "elements": "path", "default": []},
            "servers": {"type": "list", "elements": "list", "default": []},
        },
        supports_check_mode=True,
    )
    files = [path for path in module.params["files"] if Path(path).exists()]
    servers = [pair for pair in module.params["servers"] if not str(pair[0]).startswith("/")]
    module.exit_json(
        changed=False,
        certificates=[of_file(path) for path in files]
        + [of_server(str(host), int(port)) for host, port in servers],
    )


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""Wait until PgBouncer can listen on all of its addresses; say which one is missing and fail.

PgBouncer logs an address that it cannot have and goes on without it for good, as at a boot where
one comes late. So its unit asks first, and systemd asks again until this passes. Argument: the
pgbouncer.ini with listen_addr and listen_port. Needs the rights of PgBouncer's own user.
"""

from __future__ import annotations

import errno
import re
import socket
import sys
import time
from pathlib import Path

WAIT_SECONDS = 2.0
"""How long one attempt takes: an address that comes is taken at once, and the log stays short."""


def listeners(text: str) -> tuple[list[str], str]:
    """Return the addresses and the port of a pgbouncer.ini."""
    lines = dict(re.findall(r"^(listen_addr|listen_port)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.M))
    parts = [part.strip() for part in lines.get("listen_addr", "").split(",")]
    return [part for part in parts if part], lines.get("listen_port", "6432")


def problem(address: str, port: str) -> str | None:
    """Return why PgBouncer could not listen on an address; None when it could.

    Of a name, or of `*`, one address is enough where the host has no other: some have no IPv6.
    """
    reason, bound = None, False
    try:
        found = socket.getaddrinfo(
            None if address == "*" else address,
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        for family, kind, protocol, _, target in found:
            try:
                with socket.socket(family, kind, protocol) as listener:
                    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                        listener.setsockopt(socket.SOL_SOCKET, option, 1)
                    if family == socket.AF_INET6:
                        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    listener.bind(target)
                    bound = True
            except OSError as error:
                reason = error.strerror
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    bound = False
                    break
    except OSError as error:
        reason = error.strerror
    if bound:
        return None
    return f"cannot listen on {address}, port {port}: {reason}"


def main() -> int:
    addresses, port = listeners(Path(sys.argv[1]).read_text())
    deadline = time.monotonic() + WAIT_SECONDS
    while problems := [text for text in (problem(address, port) for address in addresses) if text]:
        if time.monotonic() > deadline:
            print("; ".join(problems), file=sys.stderr)
            return 1
        time.sleep(0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

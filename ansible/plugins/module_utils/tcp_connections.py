"""The TCP connections of this host and whose they are, from the kernel.

The exporter's service has a copy of this file: it imports nothing of ours.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path

ESTABLISHED = "01"
"""The kernel's number of the state, in hexadecimal."""

Address = tuple[str, int]
"""(IP address, port)."""


def plain(host: str) -> str:
    """Return an IP address in its one spelling; one that is mapped into IPv6 as IPv4."""
    address = ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def address_of(text: str) -> Address:
    """Return an address of /proc/net/tcp or tcp6: words of the host's byte order, and a port."""
    host, _, port = text.partition(":")
    words = [struct.pack("=I", int(host[i : i + 8], 16)) for i in range(0, len(host), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return plain(socket.inet_ntop(family, b"".join(words))), int(port, 16)


def connections(table: str) -> Iterator[tuple[int, Address, Address]]:
    """Yield (uid, own address, peer) of the open connections in /proc/net/tcp or tcp6."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] == ESTABLISHED:
            yield int(fields[7]), address_of(fields[1]), address_of(fields[2])


def open_connections() -> list[tuple[int, Address, Address]]:
    """Return (uid, own address, peer) of every open TCP connection of this host."""
    tables = [path.read_text() for path in Path("/proc/net").glob("tcp*")]
    return [connection for table in tables for connection in connections(table)]


def addresses(ways: Iterable[Sequence[str]]) -> set[Address]:
    """Return the addresses of hosts and ports; of a name that does not resolve now, none."""
    found = set()
    for host, port in ways:
        try:
            entries = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError:
            continue
        found |= {(plain(entry[4][0]), int(port)) for entry in entries}
    return found

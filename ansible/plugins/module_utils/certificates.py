"""When certificates end, read of their PEM or DER form with Python's own library alone.

Hosts need not have openssl, and Python's ssl tells the end of authorities only. So the few bytes
on the way to a certificate's validity are read here (RFC 5280, 4.1, in the encoding of X.690).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import datetime, timezone

from .refused import Refused

BLOCK = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END ")
UTC_TIME, GENERALIZED_TIME, BMP_STRING, VERSION = 0x17, 0x18, 0x1E, 0xA0
"""Tags (X.690, 8.1.2)."""


@dataclass(frozen=True)
class Certificate:
    """not_after: in UTC, whole seconds. subject: the values of its name, most general first."""

    not_after: datetime
    subject: str


def first_to_end(text: str) -> Certificate:
    """Return the certificate of a PEM file that ends first; raise Refused where it has none."""
    blocks = BLOCK.findall(text)
    if not blocks:
        raise Refused("holds no certificate")
    try:
        found = [parse(base64.b64decode(block)) for block in blocks]
    except ValueError as error:  # base64's error is one, too
        raise Refused(f"holds a damaged certificate: {error}") from None
    return min(found, key=lambda each: each.not_after)


def parse(der: bytes) -> Certificate:
    """Return what a certificate says (DER); raise ValueError where it is none."""
    try:
        certificate = _parts(der, 0, len(der))[0]
        fields = _parts(der, *_parts(der, *certificate[1:])[0][1:])
        if fields[0][0] == VERSION:  # version 1 leaves it out
            fields = fields[1:]
        _, _, _, validity, subject = fields[:5]
        kind, start, end = _parts(der, *validity[1:])[1]
        return Certificate(_time(kind, der[start:end].decode()), _name(der, *subject[1:]))
    except IndexError:
        raise ValueError("it is cut off") from None


def _parts(der: bytes, start: int, end: int) -> list[tuple[int, int, int]]:
    """Return (tag, first byte of the value, first byte after it) of each element in a range."""
    found = []
    while start < end:
        tag, length, first = der[start], der[start + 1], start + 2
        if length & 0x80:  # X.690, 8.1.3.5: so many bytes have the length
            size = length & 0x7F
            length, first = int.from_bytes(der[first : first + size], "big"), first + size
        start = first + length
        if start > end:
            raise ValueError("it is cut off")
        found.append((tag, first, start))
    return found


def _time(kind: int, text: str) -> datetime:
    if kind not in (UTC_TIME, GENERALIZED_TIME):
        raise ValueError("it has no end")
    if kind == UTC_TIME:  # RFC 5280, 4.1.2.5.1: two digits of the year, from 1950 on
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)  # noqa: UP017 (Python 3.9)


def _name(der: bytes, start: int, end: int) -> str:
    values = []
    for _, first, after in _parts(der, start, end):
        for _, *attribute in _parts(der, first, after):
            tag, *place = _parts(der, *attribute)[1]
            coding = "utf-16-be" if tag == BMP_STRING else "utf-8"
            value = der[slice(*place)].decode(coding, errors="replace")
            values.append("".join(letter if letter.isprintable() else "?" for letter in value))
    return ", ".join(values)

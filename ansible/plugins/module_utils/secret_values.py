"""Keeps what an application's environment holds out of messages that quote its log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

PUBLIC = (
    *("APP_NAME", "APP_VERSION", "PGSERVICEFILE", "PGPASSFILE", "DATABASE_POOL_SIZE"),
    *("DATABASE_CONNECTION_MAX_AGE_SECONDS", "DATABASE_TRANSACTION_POOLING"),
)
"""Variables of the role that hold no secret."""

SHORTEST = 8
"""Characters; to hide a shorter value such as `true` would make a log unreadable."""

VARIABLE = re.compile(r'^([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"', re.MULTILINE | re.DOTALL)
"""A variable as the filter env_file_quote writes it."""


def of_url(url: str) -> set[str]:
    """Return the password of a URL, as it stands there and decoded."""
    try:
        netloc = urlsplit(url).netloc
    except ValueError:
        return set()
    password = netloc.rpartition("@")[0].partition(":")[2]
    return {text for text in (password, unquote(password)) if len(text) >= SHORTEST}


def of_environment(text: str) -> set[str]:
    """Return the values in an environment file in systemd's format, and the passwords in them."""
    found: set[str] = set()
    for name, quoted in VARIABLE.findall(text):
        if name not in PUBLIC:
            value = re.sub(r'\\(["\\`$])', r"\1", quoted)
            found |= {value} | of_url(value)
    return {value for value in found if len(value) >= SHORTEST}


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return a text with asterisks in the place of secrets, also as Python and JSON write them."""
    written = {form for secret in secrets for form in (secret, repr(secret)[1:-1], dumps(secret))}
    for secret in sorted(written, key=len, reverse=True):
        text = text.replace(secret, "********")
    return text


def dumps(text: str) -> str:
    """Return a text as JSON writes it, without the quotes."""
    return json.dumps(text)[1:-1]

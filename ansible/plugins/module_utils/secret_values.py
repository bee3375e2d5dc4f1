"""Keeps what an application's environment holds out of messages that quote its log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

PUBLIC = (
    *("APP_NAME", "APP_VERSION", "PGSERVICEFILE", "PGPASSFILE", "DATABASE_POOL_SIZE"),
    *("DATABASE_CONNECTION_MAX_AGE_SECONDS", "DATABASE_TRANSACTION_POOLING"),
    "APP_STATE_DIRECTORY",
)
"""Variables of the role that hold no secret."""

OWN_URLS = ("DATABASE_URL", "DATABASE_DIRECT_URL")
"""Variables whose user, hosts, ports and database are no secrets, wherever else they occur."""

SHORTEST = 8
"""Characters of a value that is hidden; without `true` and `8000` a log would be unreadable."""

SHORTEST_LINE = 16
"""Characters of a line that is hidden of a value with several."""

PASSWORD_NAME = re.compile(r"(?i)(password|passwd|passphrase|pass|pwd)\d*$")
"""Names of variables whose value is hidden, however short it is."""

KEY_NAME = re.compile(r"(?i)(secret|token|key|pin|credentials?)\d*$")
"""Names of variables whose value is hidden from SHORTEST_KEY characters on."""

SHORTEST_KEY = 4

WORDS = ("true", "false", "yes", "no", "on", "off", "none", "null")
"""Values that are no secrets, as of REQUIRE_PASSWORD."""

VARIABLE = re.compile(r'^([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"', re.MULTILINE | re.DOTALL)
"""A variable as the filter env_file_quote writes it."""

WORD_OF_A_CONNECTION = re.compile(r"(?:^|\s)password\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)+)")
"""A password in libpq's keyword notation."""


def variables(text: str) -> dict[str, str]:
    """Return the variables of an environment file in systemd's format."""
    return {name: re.sub(r'\\(["\\`$])', r"\1", quoted) for name, quoted in VARIABLE.findall(text)}


def of_url(url: str) -> set[str]:
    """Return the passwords of a URL, of any length, as written there and decoded.

    A user of an http URL without a password is a token.
    """
    found = set(re.findall(r"[?&](?:ssl)?password=([^&#]*)", url))
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    found.add(password if colon and password else user if parts.scheme.startswith("http") else "")
    return {text for word in found for text in (word, unquote(word)) if text}


def of_value(value: str) -> set[str]:
    """Return the passwords in a value: of a URL, or of a connection in libpq's keywords."""
    words = (
        re.sub(r"\\(.)", r"\1", word.strip("'")) for word in WORD_OF_A_CONNECTION.findall(value)
    )
    urls = re.findall(r"\w+://\S+", value)
    return {word for word in words if word}.union(*map(of_url, urls), of_url(value))


def names_of_url(url: str) -> set[str]:
    """Return what is no secret in a database's URL: user, hosts, ports, database, options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return set()
    login, _, hosts = parts.netloc.rpartition("@")
    options = {k: v for k, v in parse_qsl(parts.query) if "password" not in k}
    lists = [hosts, options.get("host", ""), options.get("port", "")]
    found = {unquote(login.partition(":")[0]), unquote(parts.path[1:]), *lists, *options.values()}
    for word in ",".join(lists).split(","):
        host, colon, port = word.rpartition(":")
        found |= {word, *((host, host.strip("[]"), port) if colon else ())}
    hosts_alone = [re.sub(r":\d*$", "", word) for word in hosts.split(",")]
    return found | {",".join(hosts_alone)}


def passwords(text: str) -> set[str]:
    """Return what is secret at any length in an environment file in systemd's format.

    That is a password in a URL, and the value of a variable whose name tells that it is secret.
    """
    return passwords_of(variables(text))


def passwords_of(given: Mapping[str, str]) -> set[str]:
    """Return what is secret at any length in variables."""
    found: set[str] = set()
    for name, value in given.items():
        found |= of_value(value)
        secret = PASSWORD_NAME.search(name) or (
            KEY_NAME.search(name) and len(value) >= SHORTEST_KEY
        )
        if name not in PUBLIC and secret and value.lower() not in WORDS:
            found |= {value, *lines(value)}
    return {value for value in found if value.strip()}


def of_environment(text: str) -> set[str]:
    """Return the secrets of an application's environment file in systemd's format."""
    return of_variables(variables(text))


def of_variables(given: Mapping[str, str]) -> set[str]:
    """Return the secrets of an application's environment.

    Beside the passwords, any other value is one from 8 characters on, unless it names the
    application or its database: messages that hide a host or a path are of no use.
    """
    names = {given[name] for name in PUBLIC if name in given}
    for name in OWN_URLS:
        names |= names_of_url(given.get(name, ""))
    found = passwords_of(given)
    for name, value in given.items():
        if value.startswith("/") and is_path(value):
            continue  # of the host, which messages name
        if name not in PUBLIC and len(value) >= SHORTEST and value.strip() not in names:
            found |= {value, *lines(value)}
    return {value for value in found if value.strip()}


def is_path(value: str) -> bool:
    """Say whether a path of this host has this name; one that is too long is none."""
    try:
        return Path(value).exists()
    except (OSError, ValueError):
        return False


def lines(value: str) -> set[str]:
    """Return the long lines of a value with several: a log may be cut between two."""
    every = value.strip().splitlines()
    return {line.strip() for line in every if len(every) > 1 and len(line) >= SHORTEST_LINE}


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return a text with asterisks in the place of secrets, also as programs quote them."""
    written = {form for secret in secrets for form in forms(secret) if form}
    for secret in sorted(written, key=len, reverse=True):
        # Not yet asterisks: a secret may be one.
        text = text.replace(secret, "\0")
    return re.sub("\0+", "********", text)


def forms(secret: str) -> set[str]:
    """Return a secret as it is and as Python, JSON, URLs, SQL and sh write it, without quotes."""
    return {
        secret,
        secret.strip("\r\n"),
        repr(secret)[1:-1],
        repr(f"{secret}'\"")[1:-4],  # in a text with both kinds of quotes
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        secret.replace("'", "''"),
        secret.replace("'", "'\\''"),
        secret.replace("'", "'\"'\"'"),
    }

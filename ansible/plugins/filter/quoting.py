"""Filters that quote a value for the file or statement that holds it, and make verifiers.

Every function raises AnsibleFilterError where the format cannot hold the value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from ansible.errors import AnsibleFilterError

from ..plugin_utils.names import CONTROL
from ..plugin_utils.scram import scram_verifier, verifier_fingerprint
from ..plugin_utils.sql import quote_ident


def pgpass_field(value: Any) -> str:
    r"""Escape one field of a libpq password file: `\` and `:` get a backslash."""
    text = str(value)
    if "\n" in text or "\0" in text:
        raise AnsibleFilterError("a password file cannot hold a line break or a NUL character")
    return text.replace("\\", "\\\\").replace(":", "\\:")


def pg_uri(
    user: str,
    password: str,
    dbname: str,
    hosts: Iterable[tuple[str, int]],
    parameters: Mapping[str, Any] | None = None,
    scheme: str = "postgresql",
) -> str:
    """Return a connection URI; several hosts are tried in their order.

    Several hosts are in the query, `…@/name?host=h1,h2&port=6432,5432`, which libpq, SQLAlchemy
    and dj-database-url read alike; libpq's own form `h1:6432,h2:5432` is libpq's alone. One host
    has the plain form, a directory with a unix socket never. Every other character outside
    RFC 3986's unreserved set is percent-encoded, so a password may hold any of them; not the `/` of
    a parameter's path, which app_release looks for. scheme: with SQLAlchemy's driver where an
    application wants it; with +asyncpg of libpq's parameters only sslmode is left, under asyncpg's
    name, since SQLAlchemy hands each of them to asyncpg.connect, which takes sslrootcert from
    PGSSLROOTCERT alone.
    """
    found = [(str(host), int(port)) for host, port in hosts]
    given = parameters or {}
    if scheme.endswith("+asyncpg"):
        given = {"ssl": given["sslmode"]} if "sslmode" in given else {}
    parts = {key: quote(str(value), safe="/") for key, value in given.items()}
    if len(found) == 1 and not found[0][0].startswith("/"):
        host, port = found[0]
        address = f"[{host}]:{port}" if ":" in host else f"{quote(host, safe='')}:{port}"
    else:
        address = ""
        lists = {
            "host": ",".join(quote(host, safe=":/") for host, _ in found),
            "port": ",".join(str(port) for _, port in found),
        }
        parts = {**lists, **parts}
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    query = "&".join(f"{key}={value}" for key, value in parts.items())
    return f"{scheme}://{login}@{address}/{quote(dbname, safe='')}" + (f"?{query}" if query else "")


def env_file_quote(value: Any) -> str:
    r"""Quote a value for systemd's EnvironmentFile=.

    Inside double quotes systemd takes `\` before one of `"`, `\`, `` ` `` and `$` as an escape and
    everything else literally (systemd.exec(5), src/basic/env-file.c).
    """
    text = str(value)
    if "\0" in text:
        raise AnsibleFilterError("an environment variable cannot hold a NUL character")
    return '"' + re.sub(r'(["\\`$])', r"\\\1", text) + '"'


ENVIRONMENT_NAMES = {
    "systemd": r"[A-Za-z_][A-Za-z0-9_]*",
    "docker": r"[^\s=#][^\s=]*",
    "json": r"[A-Za-z_][A-Za-z0-9_]*",
}
"""Formats of environment files, and the names that each can hold: systemd skips any other."""


def environment_file(variables: Mapping[str, Any], format: str) -> str:
    """Return the text of an environment file, one line for each variable in the order of names.

    format: `systemd` (EnvironmentFile=), quoted as `env_file_quote` does; `docker`, NAME=value as
    it is, without quotes and escapes, for `docker run --env-file` and the environmentFiles of ECS;
    `json`, one object, for a secret that a task of ECS reads.
    Refused: a name that the format cannot hold, and for docker a value with a line break.
    """
    if format not in ENVIRONMENT_NAMES:
        raise AnsibleFilterError(
            f"no environment file has the format {format!r}: systemd, docker, json"
        )
    lines = []
    for name, value in sorted(variables.items()):
        text = str(value)
        if not re.fullmatch(ENVIRONMENT_NAMES[format], str(name)):
            raise AnsibleFilterError(
                f"{name!r} is no name of a variable in {format}'s environment file: use letters, "
                "digits and _"
            )
        if format == "docker" and re.search(r"[\r\n\0]", text):
            raise AnsibleFilterError(
                f"{name} has a line break or a NUL character, which Docker's environment file "
                "cannot hold: encode it, or leave out app_docker_environment_file"
            )
        lines.append(f"{name}={env_file_quote(text) if format == 'systemd' else text}\n")
    if format == "json":
        return json.dumps({str(name): str(value) for name, value in sorted(variables.items())})
    return "".join(lines)


def unit_quote(text: str) -> str:
    """Quote a word of a systemd command line; systemd puts in nothing of its own for $ and %."""
    if CONTROL.search(text):
        raise AnsibleFilterError("a command cannot hold a line break or control character")
    for character, quoted in (("\\", "\\\\"), ("'", "\\'"), ("%", "%%"), ("$", "$$")):
        text = text.replace(character, quoted)
    return f"'{text}'"


def userlist_quote(value: str) -> str:
    """Quote a name or verifier for PgBouncer's auth_file: a double quote is doubled."""
    if CONTROL.search(value):
        raise AnsibleFilterError(
            "PgBouncer's user list cannot hold a line break or control character"
        )
    return '"' + value.replace('"', '""') + '"'


def connstr_quote(value: Any) -> str:
    """Quote a value inside a [databases] connection string: a single quote is doubled."""
    text = str(value)
    if not text or CONTROL.search(text):
        raise AnsibleFilterError(
            "a [databases] value cannot be empty and cannot hold a line break or control "
            "character: PgBouncer would refuse the whole file"
        )
    return "'" + text.replace("'", "''") + "'"


def setting_literal(value: Any) -> str:
    """Return the right side of `ALTER ROLE … SET name =`: a literal, or several for a list."""
    if isinstance(value, list):
        return ", ".join(setting_literal(part) for part in value)
    if isinstance(value, bool):
        return "'on'" if value else "'off'"
    text = str(value)
    if isinstance(value, Mapping) or value is None or "\0" in text:
        raise AnsibleFilterError(f"app_database_settings: {value!r} is no value of a setting")
    escaped = text.replace("'", "''")
    return f"E'{escaped.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{escaped}'"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {
            function.__name__: function
            for function in (
                connstr_quote,
                env_file_quote,
                environment_file,
                pg_uri,
                pgpass_field,
                quote_ident,
                scram_verifier,
                setting_literal,
                unit_quote,
                userlist_quote,
                verifier_fingerprint,
            )
        }

"""What an application asks for in its connection options, and a pooler refuses or forgets.

A pure function: it names settings and variables, and never a value, which may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

TRACKED = (
    *("application_name", "client_encoding", "datestyle", "intervalstyle"),
    *("standard_conforming_strings", "timezone"),
)
"""Settings that PgBouncer keeps for each client; since 1.20 also when they come in `options`."""

SETTING = re.compile(r"(?:^|[\s'\"=])(?:-c\s*|--)([A-Za-z_][\w.-]*)\s*=")
"""One setting of libpq's `options`: -c name=value or --name=value."""


def _settings(options: str) -> list[str]:
    """Return the settings in an `options` text that PgBouncer does not keep for its clients."""
    names = [name.lower().replace("-", "_") for name in SETTING.findall(options)]
    return sorted({name for name in names if name not in TRACKED})


def _url(text: str) -> tuple[set[tuple[str, str]], list[str]] | None:
    """Return (addresses, settings in its options) of a PostgreSQL URL; None of anything else."""
    if not re.match(r"postgres(ql)?(\+\w+)?://", text):
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    query = parse_qsl(parts.query)
    hosts = [host for key, value in query if key == "host" for host in value.split(",")]
    ports = [port for key, value in query if key == "port" for port in value.split(",")]
    if len(ports) == 1:
        ports *= len(hosts)
    pairs = [*zip(hosts, ports or [""] * len(hosts), strict=False)]
    for address in filter(None, parts.netloc.rpartition("@")[2].split(",")):
        host, port = re.fullmatch(r"(\[[^]]*\]|[^:]*):?(.*)", address).groups()
        pairs.append((unquote(host.strip("[]")), port))
    addresses = {("127.0.0.1" if h == "localhost" else h, p or "5432") for h, p in pairs}
    options = " ".join(value for key, value in query if key == "options")
    return addresses, _settings(options)


def connection_options(
    environment: Mapping[str, Any],
    endpoints: Iterable[Mapping[str, Any]],
    database_url: str,
) -> dict[str, list[str]]:
    """Return {errors, warnings} about settings that an application asks for when it connects.

    environment: app_environment. endpoints: the application's poolers, [{host, port}, …]; none
    where its strategy goes past them. database_url: app_database_url, a platform's pooler.
    An error is what is certain to break: PGOPTIONS, which libpq sends with every connection, and a
    URL of one of the poolers, that set more than PgBouncer keeps for a client. It answers
    `unsupported startup parameter`, or drops the setting where ignore_startup_parameters tells it
    to. A warning is what looks like it, and whose use only the application knows.
    """
    poolers = {(str(pooler["host"]), str(pooler["port"])) for pooler in endpoints}
    # One that is reached over its socket listens on loopback as well.
    poolers |= {("127.0.0.1", port) for host, port in poolers if host.startswith("/")}
    errors, warnings = [], []
    values = {f"app_environment.{name}": str(value) for name, value in environment.items()}
    if database_url:
        values["app_database_url"] = database_url
    elif not poolers:
        return {"errors": [], "warnings": []}
    for variable, value in sorted(values.items()):
        url = _url(value)
        settings = url[1] if url else _settings(value)
        if not settings:
            continue
        what = f"{variable} sets {', '.join(settings)} in its connection options"
        certain = variable == "app_environment.PGOPTIONS" or (url and url[0] & poolers)
        if certain and poolers:
            errors.append(
                f"{what}, which PgBouncer refuses (unsupported startup parameter): take them out "
                "and declare them in app_database_settings, which hold on every connection"
            )
        elif poolers:
            warnings.append(
                f"{what}. Where the application sends them to the pooler it is refused "
                "(unsupported startup parameter): declare them in app_database_settings instead"
            )
        else:
            warnings.append(
                f"{what}. A platform's pooler may refuse or forget them: set them on the role, "
                "ALTER ROLE … IN DATABASE … SET"
            )
    return {"errors": errors, "warnings": warnings}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"connection_options": connection_options}

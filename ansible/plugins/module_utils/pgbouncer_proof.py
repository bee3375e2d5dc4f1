"""The proof that a running process has a configuration, and what it takes to give it one."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from .pgbouncer_configuration import Configuration
from .pgbouncer_process import Process, pgbouncer_path
from .pgbouncer_text import drift, restart_only
from .pgbouncer_tls import served_certificate
from .refused import Refused


def problems(
    process: Process, wanted: Configuration, candidate: Configuration, raise_limit: bool = True
) -> list[str]:
    """Return where one process differs from the files, as readable statements.

    candidate: what a new configuration must never be is asked of a process that has its text, by
    name, whatever the files say. raise_limit: whether to give the process the open files that it
    lacks.
    """
    try:
        rows = process.rows()
    except Refused as error:
        return [str(error)]
    found = drift(wanted.sections(process.number), rows)
    if wanted.text == candidate.text:
        live = {name: row["value"] for name, row in rows["CONFIG"].items()}
        found += candidate.access_problems(live)
    found += process.misheard(*wanted.listens(process.number))
    if not process.has_open_files(wanted.open_files, raise_limit):
        found.append(
            f"{process.unit} may open fewer than {wanted.open_files} files: lower "
            "max_client_conn, or raise the hard limit of this host (or container)"
        )
    return found


def restart_reasons(process: Process, wanted: Configuration, unit_changes: bool) -> list[str]:
    """Return why a running process must be replaced to have the files that are in place.

    unit_changes: whether it was started by another unit than it would be now.
    """
    try:
        reasons = restart_only(wanted.sections(process.number), process.rows())
        if process.older_than(pgbouncer_path()):
            reasons.append("the installed PgBouncer is newer than the process")
        if unit_changes:
            reasons.append("pgbouncer@.service")
        return reasons or process.misheard(*wanted.listens(process.number))
    except Refused as error:  # one that cannot tell is replaced as well
        return [str(error)]


def stale_certificate(wanted: Configuration) -> str | None:
    """Return a statement when clients are shown another certificate than the file's.

    The kernel picks the process, so it is asked four times for each.
    """
    settings = wanted.settings(1)
    listen, port = wanted.listens(1)
    path = settings.get("client_tls_cert_file")
    off = settings.get("client_tls_sslmode", "disable") == "disable"
    addresses = re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", listen)
    if not path or off or not addresses:
        return None
    pem = re.search(r"-----BEGIN CERT.*?-----END CERT[^\r\n]*", Path(path).read_text(), re.S)
    if not pem:
        return f"{path} holds no certificate"
    expected = ssl.PEM_cert_to_DER_cert(pem.group())
    host = addresses[0].replace("0.0.0.0", "127.0.0.1")  # noqa: S104 (compared, not bound)
    for _ in range(4 * len(wanted.numbers)):
        try:
            served = served_certificate(host, int(port))
        except (OSError, Refused) as error:
            return f"{host} does not accept TLS: {error}"
        if served != expected:
            return f"{host} does not show the certificate in {path}"
    return None

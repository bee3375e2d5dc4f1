"""The trial of a configuration: the installed binary loads it beside the live processes."""

from __future__ import annotations

import os
import pwd
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from .pgbouncer_configuration import Configuration
from .pgbouncer_console import PATH
from .pgbouncer_text import Sections, parse_connstr, trial_config, trial_error
from .pgbouncer_tls import pem_pair_error, server_tls_error
from .refused import Refused

RUN = Path("/run")
PREFIX = "poolkit-pgbouncer."
"""Begin of the name of a trial's folder in RUN."""


def remove_trials() -> None:
    """Remove what a trial left that was killed. Nobody else may be trying anything."""
    for left_over in RUN.glob(f"{PREFIX}*/"):
        shutil.rmtree(left_over, ignore_errors=True)


def try_candidate(
    candidate: Configuration, user: str, timeout: int, warn: Callable[[str], None] | None = None
) -> None:
    """Let the installed binary load the candidate; raise Refused with what it said.

    PgBouncer does not look into the files of a TLS setting before the first connection.
    warn: takes what is wrong with a server's certificate, which is refused otherwise.
    """
    refuse_statements(candidate)
    sections, settings = candidate.sections(1), candidate.settings(1)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=str(RUN)))
    try:
        owner = pwd.getpwnam(user)
        moved = copies(candidate, directory, owner)
        try_certificates(settings, moved)
        try:
            try_servers(sections, moved)
        except Refused as error:
            if not warn:
                raise
            # postgres.yml, in the same check, has not changed the server's certificate either.
            warn(f"{error}, unless the server gets another certificate before")
        said = load(moved[candidate.process_path(1)], owner, timeout)
        if error := trial_error(said, moved):
            raise Refused(f"PgBouncer refuses the new configuration: {error}")
    finally:
        shutil.rmtree(directory)


def refuse_statements(candidate: Configuration) -> None:
    """Refuse what the text itself shows, before the binary is asked."""
    if twice := candidate.repeated_names():
        raise Refused(f"{candidate.path} states {', '.join(twice)} twice")
    settings = candidate.settings(1)
    if problems := candidate.access_problems(settings):
        raise Refused(f"{candidate.path}: {'; '.join(problems)}")
    for name, value in settings.items():
        named = name.endswith("_file") and value and value not in candidate.files
        if named and not Path(value).is_file():
            raise Refused(f"{name}: there is no file {value} on this host")


def copies(candidate: Configuration, directory: Path, owner: pwd.struct_passwd) -> dict[str, str]:
    """Copy the candidate's files for its owner into a folder; return {live path: the copy's}."""
    # The longest first: no path may be taken for the end of another.
    moved = {
        path: str(directory / f"{index}-{Path(path).name}")
        for index, path in enumerate(sorted(candidate.present, key=len, reverse=True))
    }
    for path, trial in moved.items():
        text = candidate.present[path]
        Path(trial).write_text(trial_config(text, moved) if path.endswith("ini") else text)
        os.chown(trial, owner.pw_uid, owner.pw_gid)
        Path(trial).chmod(0o400)
    os.chown(directory, owner.pw_uid, owner.pw_gid)
    return moved


def load(path: str, owner: pwd.struct_passwd, timeout: int) -> str:
    """Return what the installed binary prints of a trial's file."""
    try:
        done = subprocess.run(
            ["pgbouncer", path],
            user=owner.pw_uid,
            group=owner.pw_gid,
            env={"PATH": PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise Refused("the trial of the new configuration did not end") from None
    return done.stdout


def try_certificates(settings: Mapping[str, str], moved: Mapping[str, str]) -> None:
    """Refuse what PgBouncer would only notice at the first connection."""
    for side in ("client", "server"):
        names = [f"{side}_tls_{kind}_file" for kind in ("cert", "key", "ca")]
        cert, key, ca = (moved.get(p, p) for p in (settings.get(n, "") for n in names))
        if cert and (error := pem_pair_error(cert, key or cert)):
            raise Refused(f"{names[0]} and {names[1]} do not belong together: {error}")
        if ca:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
            except (ssl.SSLError, OSError) as error:
                raise Refused(f"{names[2]} holds no certificate: {error}") from None


def try_servers(sections: Sections, moved: Mapping[str, str]) -> None:
    """Refuse a PostgreSQL whose certificate does not pass server_tls_sslmode's check."""
    settings = sections.get("pgbouncer", {})
    mode = settings.get("server_tls_sslmode", "")
    if not mode.startswith("verify-"):
        return
    ca = settings.get("server_tls_ca_file", "")
    entries = [parse_connstr(text) for text in sections.get("databases", {}).values()]
    servers = {
        (host, int(entry.get("port", 5432)))
        for entry in entries
        for host in entry.get("host", "").split(",")
        if host and not host.startswith("/")
    }
    for host, port in sorted(servers):
        if error := server_tls_error(host, port, moved.get(ca, ca), mode == "verify-full"):
            raise Refused(f"server_tls_sslmode is {mode}, and PgBouncer would refuse {error}")

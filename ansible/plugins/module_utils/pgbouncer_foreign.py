"""Whether the PgBouncer of a host is poolkit's, the package's untouched one, or somebody's own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from .pgbouncer_text import parse_ini
from .text_files import read

CONFIG = Path("/etc/pgbouncer/pgbouncer.ini")
UNITS = Path("/etc/systemd/system")
PROC = Path("/proc")

KEPT = "before-poolkit"
"""Folder beside the configuration with what was there before a take-over."""

PENDING = ".poolkit-pending"
"""File of a change that has not ended yet."""

OWN_WORDS = "process-N.ini includes it"
"""What the role's pgbouncer.ini has about itself at its start."""

REPLACED = ("userlist.txt", "pg_hba.conf", "process-*.ini", "tls/*")
"""What poolkit writes or removes beside pgbouncer.ini, as patterns."""

MOST_NAMES = 20
"""How many databases a message names."""


def masked(units: Path) -> bool:
    """Tell whether the distribution's own unit is out of the way, as poolkit puts it."""
    mask = units / "pgbouncer.service"
    return mask.is_symlink() and str(mask.readlink()) == "/dev/null"


def is_poolkits(config: Path, units: Path) -> bool:
    """Tell whether poolkit made what the host has: its files, or a change that was cut off.

    Files of its processes alone may be left over; with the mask, or its own words in pgbouncer.ini,
    they are in use.
    """
    with contextlib.suppress(ValueError):
        if "files" in json.loads(read(config.parent / PENDING) or "{}"):
            return True
    processes = config.parent.glob("process-*.ini")
    included = any(f"%include {config}\n" in (read(path) or "") for path in processes)
    return included and (masked(units) or OWN_WORDS in (read(config) or ""))


def package_checksums() -> dict[str, str]:
    """Return {path: MD5} of the configuration files as the package brought them."""
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Conffiles}\n", "pgbouncer"],
        capture_output=True,
        text=True,
    )
    return dict(re.findall(r"^ (\S+) ([0-9a-f]{32})", done.stdout, re.MULTILINE))


def own_files(config: Path, units: Path) -> list[Path]:
    """Return the files that poolkit would replace and that neither it nor the package has made."""
    names = [config.name, *REPLACED]
    found = [path for name in names for path in sorted(config.parent.glob(name)) if path.is_file()]
    found += [
        path
        for path in (units / "pgbouncer.service", units / "pgbouncer@.service")
        if path.is_file() and not str(path.resolve()).startswith("/usr/lib/")
    ]
    checksums = package_checksums()

    def untouched(path: Path) -> bool:
        content = path.read_bytes()
        checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return not content or checksums.get(str(path)) == checksum

    return [path for path in found if not untouched(path)]


def databases(config: Path) -> list[str]:
    """Return the names in [databases], those in the files that it includes as well."""
    text = read(config) or ""
    paths = re.findall(r"^%include[ \t]+(\S+)", text, re.MULTILINE)
    included = {path: read(Path(path)) or "" for path in paths if Path(path).is_file()}
    return sorted(parse_ini(text, included).get("databases", {}))


def other_processes(config: Path) -> list[str]:
    """Return a statement for each PgBouncer that runs and is not the package's own service.

    Those of containers have a network of their own and do not count.
    """
    found = []
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() != "pgbouncer":
                continue
            if (folder / "ns/net").readlink() != (PROC / "self/ns/net").readlink():
                continue
            arguments = (folder / "cmdline").read_text(errors="replace").split("\0")[1:]
            files = [word for word in arguments if word and not word.startswith("-")]
            unit = (folder / "cgroup").read_text().strip().rpartition("/")[2]
            if unit != "pgbouncer.service" or files != [str(config)]:
                found.append(f"a PgBouncer runs as {unit} with {' '.join(files) or 'no file'}")
    return sorted(set(found))


def foreign_pooler(config: Path = CONFIG, units: Path = UNITS) -> str:
    """Say what somebody else configured on this host, without secrets; "" where nothing is."""
    if is_poolkits(config, units):
        return ""
    statements = []
    if files := own_files(config, units):
        owners = sorted({str(path) for path in files})
        statements.append(f"{', '.join(owners)}: neither poolkit's nor as the package brings it")
        if names := databases(config):
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            statements.append(f"its databases are {', '.join(names[:MOST_NAMES])}{more}")
    return "; ".join([*statements, *other_processes(config)])


def keep(config: Path, units: Path) -> Path:
    """Copy what is there beside the configuration, owners and modes included; return the folder.

    Units that poolkit replaces go with it. Only root can open the folder.
    """
    folder, number = config.parent / KEPT, 1
    while folder.exists():
        number += 1
        folder = config.parent / f"{KEPT}-{number}"
    config.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    try:
        folder.chmod(0o700)
        entries = [p for p in config.parent.iterdir() if not p.name.startswith((KEPT, PENDING))]
        entries += [p for p in units.glob("pgbouncer*") if p.is_file() and not p.is_symlink()]
        for path in entries:
            copy(path, folder / path.name)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def copy(source: Path, target: Path) -> None:
    """Copy a file, link or folder with its owner and mode; what is none of them is left out."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir(mode=0o700)
        for path in source.iterdir():
            copy(path, target / path.name)
    elif source.is_file():
        shutil.copyfile(source, target)
    else:
        return
    stat = source.stat()
    os.chown(target, stat.st_uid, stat.st_gid)
    target.chmod(stat.st_mode & 0o7777)

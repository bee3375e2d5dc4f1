"""A whole set of PgBouncer's files for one host, read as PgBouncer reads them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .pgbouncer_console import RUNTIME_DIRECTORY
from .pgbouncer_foreign import UNITS
from .pgbouncer_text import Sections, parse_ini, repeated_names
from .pgbouncer_version import PEERS, Version

UNIT = str(UNITS / "pgbouncer@.service")
"""The unit of every process."""

ACCESS = {"auth_type": "hba", "auth_file": "userlist.txt", "auth_hba_file": "pg_hba.conf"}
"""What must hold for nobody to get in without a login; the files stand beside the configuration."""


def process_path(config_path: str, number: int) -> str:
    """Return the path of one process's own file, beside the one that all share."""
    return str(Path(config_path).parent / f"process-{number}.ini")


def process_ini(config_path: str, number: int, version: Version) -> str:
    """Return the file of one process: the shared one, and what tells it from its peers."""
    own = [f"%include {config_path}", f"unix_socket_dir = {RUNTIME_DIRECTORY / str(number)}"]
    if version >= PEERS:
        own.append(f"peer_id = {number}")
    return "\n".join(own) + "\n"


def given_files(params: Mapping[str, Any]) -> dict[str, str]:
    """Return {path: text} of the module's arguments config, files and secret_files."""
    given = [params["config"], *params["files"], *params["secret_files"]]
    return {file["path"]: file["content"] for file in given}


class Configuration:
    """The files of all processes of a host.

    path: of the file that all share. files: path -> text; None for one that must not be there.
    None of them changes: what has other files is another Configuration.
    """

    def __init__(self, path: str, files: Mapping[str, str | None]) -> None:
        self.path = path
        self.directory = Path(path).parent
        self.files = dict(files)
        self._sections: dict[int, Sections] = {}

    @classmethod
    def of(cls, params: Mapping[str, Any], version: Version) -> Configuration:
        """Return what the module's arguments ask for, with the file of each process."""
        path = params["config"]["path"]
        own = {
            process_path(path, number): process_ini(path, number, version)
            for number in range(1, params["processes"] + 1)
        }
        return cls(path, {**given_files(params), **own})

    def without(self, paths: Iterable[str]) -> Configuration:
        """Return this set, and of the paths that it does not have that they must not be there."""
        more = dict.fromkeys(path for path in paths if path not in self.files)
        return Configuration(self.path, {**self.files, **more})

    def process_path(self, number: int) -> str:
        return process_path(self.path, number)

    @property
    def text(self) -> str | None:
        """The text of the file that all processes share."""
        return self.files.get(self.path)

    @functools.cached_property
    def present(self) -> dict[str, str]:
        """The files that are to be there."""
        return {path: text for path, text in self.files.items() if text is not None}

    @functools.cached_property
    def numbers(self) -> list[int]:
        """The numbers of the processes."""
        names = [Path(path).name for path in self.present]
        found = [re.fullmatch(r"process-(\d+)\.ini", name) for name in names]
        return sorted(int(match.group(1)) for match in found if match)

    def sections(self, number: int) -> Sections:
        """Return what one process reads; nothing where it has no file. Not to be changed."""
        if number not in self._sections:
            texts = self.present
            self._sections[number] = parse_ini(texts.get(self.process_path(number), ""), texts)
        return self._sections[number]

    def settings(self, number: int) -> dict[str, str]:
        """Return the section [pgbouncer] of one process."""
        return self.sections(number).get("pgbouncer", {})

    def users(self, number: int) -> set[str]:
        """Return the names in [users]."""
        return set(self.sections(number).get("users", {}))

    def listens(self, number: int) -> tuple[str, str]:
        """Return (listen_addr, port) of one process."""
        settings = self.settings(number)
        return settings.get("listen_addr", ""), settings.get("listen_port", "6432")

    def repeated_names(self) -> list[str]:
        """Return section.name of what the first process would read twice."""
        return repeated_names(self.present.get(self.process_path(1), ""), self.present)

    @functools.cached_property
    def open_files(self) -> int:
        """How many open files the unit asks for; 0 where it does not say."""
        match = re.search(r"^LimitNOFILE=(\d+)", self.files.get(UNIT) or "", re.MULTILINE)
        return int(match.group(1)) if match else 0

    def same_unit(self, other: Configuration) -> bool:
        """Tell whether a process would start alike: the limit of files is changed without that."""

        def lines(unit: str | None) -> list[str]:
            every = (unit or "").splitlines()
            return [line for line in every if not line.startswith(("LimitNOFILE=", "#"))]

        return lines(self.files.get(UNIT)) == lines(other.files.get(UNIT))

    def access_problems(self, settings: Mapping[str, str]) -> list[str]:
        """Return what in settings would let others in than the user list and the rules here do."""
        wanted = {
            name: value if name == "auth_type" else str(self.directory / value)
            for name, value in ACCESS.items()
        }
        return [
            f"{name} is {settings.get(name)!r} and must be {value!r}"
            for name, value in wanted.items()
            if settings.get(name) != value
        ]

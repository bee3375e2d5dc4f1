"""The files of a configuration on the disk: whose they are, and how they are put in place."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .text_files import read, stage

Owner = tuple[int, int, int]
"""(uid, gid, mode)."""


def old(path: str | Path) -> Path:
    """Return where the old text of a file waits, as a link, until the change is proved."""
    return Path(path).with_name(f".{Path(path).name}.before")


class Files:
    """What is written for one PgBouncer: root's, and readable by the group of its user."""

    def __init__(self, directory: Path, user: str) -> None:
        self.directory = directory
        self.user = user

    @staticmethod
    def owner(path: str | Path) -> Owner:
        stat = Path(path).stat()
        return stat.st_uid, stat.st_gid, stat.st_mode & 0o777

    def wanted_owner(self, path: str) -> Owner:
        """Return (uid, gid, mode) of a file: what is no configuration is public, as units are."""
        if self.directory not in Path(path).parents:
            return 0, 0, 0o644
        return 0, pwd.getpwnam(self.user).pw_gid, 0o640

    def owners(self, paths: Iterable[str]) -> dict[str, Owner]:
        """Return whose those of the files are that exist."""
        return {path: self.owner(path) for path in paths if Path(path).exists()}

    def own_paths(self) -> list[str]:
        """Return the files of processes and of TLS that are there."""
        found = [path for each in ("process-*.ini", "tls/*") for path in self.directory.glob(each)]
        # Hidden ones are of a run that was killed, or of an editor.
        return [str(path) for path in found if path.is_file() and not path.name.startswith(".")]

    def folders(self) -> list[Path]:
        """Return the configuration's folders: who may write one may replace the files in it."""
        return [path for path in (self.directory, self.directory / "tls") if path.is_dir()]

    def open_folders(self) -> list[Path]:
        """Return the folders that somebody else than root may write."""
        owners = {path: self.owner(path) for path in self.folders()}
        return [path for path, (uid, _, mode) in owners.items() if uid or mode & 0o022]

    def close_folders(self) -> None:
        """Give the open folders to root, and let nobody else write there."""
        for path in self.open_folders():
            os.chown(path, 0, -1)
            path.chmod(self.owner(path)[2] & 0o755)

    def right_modes(self, paths: Iterable[str], owners: Mapping[str, Owner]) -> bool:
        """Tell whether files that have these owners are as they should be, the folders too."""
        right = all(owners.get(path) == self.wanted_owner(path) for path in paths)
        return right and not self.open_folders()

    def remove_left_overs(self, paths: Iterable[str], pending: Path) -> None:
        """Remove the half-written files, with their secrets, of runs that were killed."""
        paths = [Path(path) for path in paths]
        names = {path.name for path in paths} | {pending.name}
        for folder in {path.parent for path in paths}:
            for path in folder.glob(".*"):
                part = re.fullmatch(r"\.(.+)\.([0-9]+|before)", path.name)
                if part and path.is_file() and (part.group(1) in names or folder.name == "tls"):
                    path.unlink()

    def is_there(self, path: str | Path, content: str, wanted: Owner) -> bool:
        """Tell whether a file has this text, owner and mode."""
        return read(Path(path)) == content and self.owner(path) == wanted

    def write(
        self,
        contents: Mapping[str, str | None],
        owners: Mapping[str, Owner] | None = None,
        keep_old: bool = False,
    ) -> None:
        """Put each file in place at once; a reader sees the old one or the new one, never half.

        All of them are written before the first is put in place: where the disk is full nothing has
        changed. keep_old: leaves a link to each old text, with which an undo needs no space.
        """
        staged: dict[str, Path] = {}
        try:
            for path, content in contents.items():
                wanted = (owners or {}).get(path) or self.wanted_owner(path)
                if content is not None and not self.is_there(path, content, wanted):
                    staged[path] = self.staged(path, content, wanted, reuse=not keep_old)
            for path in contents if keep_old else ():
                with contextlib.suppress(OSError):  # the undo then writes the file anew
                    old(path).unlink(missing_ok=True)
                    os.link(path, old(path))
            for path, content in contents.items():
                if content is None:
                    Path(path).unlink(missing_ok=True)
                elif path in staged:
                    staged[path].replace(path)
        except BaseException:
            for path, partial in staged.items():
                if partial != old(path):
                    partial.unlink(missing_ok=True)
            raise

    def staged(self, path: str, content: str, wanted: Owner, reuse: bool) -> Path:
        """Return a file with the text that only has to be renamed.

        reuse: whether it may be the link to the old text.
        """
        if reuse and self.is_there(old(path), content, wanted):
            return old(path)
        parent = Path(path).parent
        if not parent.exists():
            parent.mkdir(mode=0o750)
            os.chown(parent, 0, wanted[1])
        return stage(Path(path), content, wanted[2], *wanted[:2])

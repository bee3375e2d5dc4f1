"""The static files of a release, and of the others on its host beside them, as hard links."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .virtual_environment import STATIC, built


def collected(release: Path) -> dict[str, Path]:
    """Return name -> path of what a whole release has collected itself; {} where that is unclear.

    Only what is really in it: the list is a file, and a source may have one as well.
    """
    if not built(release):
        return {}
    try:
        static = json.loads((release / STATIC).read_text())
        paths = {name: release / static["root"] / name for name in static["files"]}
        return {
            name: path
            for name, path in paths.items()
            if path.resolve() == path and release in path.parents and path.is_file()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep_others(release: Path) -> int:
    """Link what the other releases on the host have collected and this one has not; count it.

    So a page that another release has made finds its files, whichever of them serves now. Root
    makes no link and no directory behind a link that is in this release's files.
    """
    try:
        static = json.loads((release / STATIC).read_text())
        root, present = release / static["root"], set(static["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    if root.resolve() != root or release not in root.parents:
        return 0
    kept = 0
    for other in sorted(release.parent.glob("[!.]*"), key=os.path.getmtime, reverse=True):
        if other == release:
            continue
        for name, path in collected(other).items():
            goal = root / name
            if name in present or goal.resolve() != goal or os.path.lexists(goal):
                continue
            try:
                goal.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                os.link(path, goal)
            except (FileExistsError, NotADirectoryError):  # a file where there was a directory
                continue
            kept += 1
    return kept

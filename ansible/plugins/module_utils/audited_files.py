"""Reads the files of an application's source that the readiness audit looks at."""

from __future__ import annotations

import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from .session_audit import Finding, project_findings

SKIPPED = {"venv", "env", "node_modules", "site-packages", "bower_components"}
"""Directories that hold no source of the application; hidden ones are left out as well."""

LEFT_OUT = {"migrations", "alembic", "tests", "test", "testing"}
"""What goes past the pooler, and what does not serve."""

TEST_FILE = re.compile(r"(?:test_.*|.*_tests?|tests|conftest)\.py$")
MIGRATION = re.compile(
    r"^from alembic import\b.*\bop\b|^class Migration\((?:migrations\.)?Migration\)", re.MULTILINE
)
OTHERS = re.compile(r"(?:\.env|^Dockerfile|^Procfile)|\.(?:sh|ya?ml|toml|ini|cfg|conf)$")
"""Files that may set PGOPTIONS, or have a database's URL."""

LARGEST = 2_000_000
"""Bytes: a larger file is data, or generated."""


def _names(source: Path, everything: bool) -> Iterator[Path]:
    """Yield the files to read, without following links to directories."""
    skipped = SKIPPED if everything else SKIPPED | LEFT_OUT
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(
            name
            for name in folders
            if name not in skipped
            and not name.startswith(".")
            and not Path(folder, name, "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            python = name.endswith(".py")
            if python and not everything and TEST_FILE.match(name):
                continue
            if python or name.endswith(".sql") or OTHERS.search(name):
                yield Path(folder, name)


def _text(path: Path) -> str:
    """Return the text of a file, by its own declaration of an encoding if it is Python's.

    Raises OSError, UnicodeDecodeError, SyntaxError for an encoding that nobody knows.
    """
    if path.stat().st_size > LARGEST:
        raise OSError(f"larger than {LARGEST} bytes")
    content = path.read_bytes()
    if path.suffix != ".py":
        return content.decode(errors="replace")
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)


def read(source: Path, everything: bool = False) -> tuple[dict[str, str], list[str]]:
    """Return ({name below the source: text}, what could not be read).

    everything: also tests and migrations.
    """
    found: dict[str, str] = {}
    unread: list[str] = []
    for path in _names(source, everything):
        name = os.fsencode(path.relative_to(source)).decode(errors="replace")
        if not path.is_file():  # a link to nowhere, a pipe
            continue
        try:
            text = _text(path)
        except (OSError, UnicodeDecodeError, SyntaxError) as error:
            unread.append(f"{name}: {error}")
            continue
        if everything or path.suffix != ".py" or not MIGRATION.search(text):
            found[name] = text
    return found, unread


def audit(source: Path, everything: bool = False) -> tuple[list[Finding], list[str], set[str]]:
    """Return (findings, what could not be read, names of custom settings) of a source."""
    files, unread = read(source, everything)
    found, unparsed, custom = project_findings(files)
    return found, unread + unparsed, custom

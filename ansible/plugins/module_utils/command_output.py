"""What a command said, at a length that people read; all of it is in a file on the host."""

from __future__ import annotations

import re
from pathlib import Path

from .text_files import write

DIRECTORY = Path("/var/log/poolkit")
"""Where whole outputs are kept; root alone reads them."""

LINES = 20
LINE_CHARACTERS = 300
"""How much of an output is shown."""


def clipped(text: str, characters: int = LINE_CHARACTERS) -> str:
    """Return a text with each line cut to a number of characters."""
    return "\n".join(
        line
        if len(line) <= characters
        else f"{line[:characters]}… ({len(line) - characters} characters more)"
        for line in text.splitlines()
    )


def telling_line(output: str, patterns: tuple[str, ...]) -> str:
    """Return the first line that the first matching pattern finds, else ""."""
    lines = output.splitlines()
    for pattern in patterns:
        for line in lines:
            if re.search(pattern, line):
                return clipped(line.strip())
    return ""


def shortened(output: str, name: str = "", telling: tuple[str, ...] = ()) -> str:
    """Return an output as it is where it is short, else what matters of it.

    name: the whole of a long one goes to the file NAME.log of DIRECTORY; "" keeps none.
    telling: patterns of the line that comes first, the most telling one first.
    """
    output = output.strip()
    shown = clipped("\n".join(output.splitlines()[-LINES:]))
    if shown == output:
        return output
    line = telling_line(output, telling)
    kept = f"\nAll of it, for root on this host: {keep(output, name)}" if name else ""
    return f"{line}{' ' if line else ''}The output ends with:\n{shown}{kept}"


def keep(output: str, name: str) -> Path:
    """Write an output to the file NAME.log of DIRECTORY and return its path."""
    path = DIRECTORY / f"{name}.log"
    DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(path, f"{output}\n", 0o600)
    return path

"""Tell whether an application's source goes with transaction pooling, before the switch.

Reads a directory and prints a line for each place that needs a session: file, line, rule, why, and
what to do instead. `(check)` marks what is right in the case that the line names. Nothing is run or
changed, and no host is needed. A place that is right as it is gets a comment, on its line, at its
statement or on the line before:
    # poolkit: allow advisory-lock: taken over DATABASE_DIRECT_URL
Exit code 0 without a finding other than (check), 1 with one, 2 where the directory cannot be read.
Tests and migrations are left out unless --all: migrations go past the pooler.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "ansible/plugins"))

from module_utils.audited_files import audit  # noqa: E402 it needs the path
from module_utils.session_audit import BREAKS  # noqa: E402


def counted(number: int, one: str, more: str) -> str:
    """Return `1 place needs`, `2 places need`, `no place needs`."""
    return f"{number or 'no'} {more if number > 1 else one}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the application's directory")
    parser.add_argument("--all", action="store_true", help="also tests and migrations")
    parser.add_argument(
        "--json", action="store_true", help="print an object: findings and unread, two lists"
    )
    options = parser.parse_args()
    if not options.source.is_dir():
        print(f"{options.source} is no directory", file=sys.stderr)
        return 2
    found, unread, _ = audit(options.source, options.all)
    breaks = sum(finding.level == BREAKS for finding in found)
    if options.json:
        shown = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"findings": shown, "unread": unread}, indent=2))
    else:
        for finding in found:
            print(finding)
        said = [counted(breaks, "place needs a session", "places need a session")]
        if checks := len(found) - breaks:
            said.append(counted(checks, "place to check", "places to check"))
        if unread:
            said.append(counted(len(unread), "file was not read", "files were not read"))
        print("; ".join(said))
    for line in unread:
        print(f"not read: {line}", file=sys.stderr)
    return 1 if breaks else 0


if __name__ == "__main__":
    sys.exit(main())

"""Add up pytest's JUnit files and print the counts in one line: N passed, N failed, N skipped."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def counts(paths: list[Path]) -> tuple[int, int, int]:
    """Return (passed, failed, skipped) over all test suites of the files; errors are failures."""
    total = failed = skipped = 0
    for path in paths:
        for suite in ElementTree.parse(path).iter("testsuite"):  # noqa: S314 (our own files)
            total += int(suite.get("tests", 0))
            failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
    return total - failed - skipped, failed, skipped


def main() -> int:
    passed, failed, skipped = counts([Path(argument) for argument in sys.argv[1:]])
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())

"""One load on a URL, from a compiled generator: hey, which tells the time of each request."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import Any

ANSWER_SECONDS = 30
"""So long a request may take."""


class Unusable(Exception):
    """What is asked for cannot be measured; the message says what to change."""


def check(url: str, prefix: Sequence[str] = ()) -> None:
    """Refuse a URL that does not answer with 2xx, or a machine without the generator."""
    if not prefix and not shutil.which("hey"):
        raise Unusable("hey is not installed on this machine: apt install hey")
    found = load(url, 1, 1, 10, prefix)
    if found["errors"] or not found["requests"]:
        kinds = ", ".join(found["errors"]) or "no answer"
        raise Unusable(f"{url} does not answer with 2xx, but with: {kinds}")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of sorted values; share: 0 to 1. 0.0 of none."""
    if not values:
        return 0.0
    return values[max(0, math.ceil(share * len(values)) - 1)]


def summary(rows: list[dict[str, str]], wanted: int, cut: bool) -> dict[str, Any]:
    """Return what the rows of `hey -o csv` say.

    wanted: requests that were to be made. cut: whether time ran out before. hey lists only what was
    answered, so what is missing of a whole run got no answer; of a run that was cut off, it was not
    made. Times in milliseconds, over the answers with 2xx.
    """
    good = sorted(
        1000 * float(row["response-time"]) for row in rows if row["status-code"].startswith("2")
    )
    errors = Counter(row["status-code"] for row in rows if not row["status-code"].startswith("2"))
    if not cut and wanted > len(rows):
        errors["no answer"] = wanted - len(rows)
    seconds = max((float(row["offset"]) + float(row["response-time"]) for row in rows), default=0.0)
    return {
        "requests": len(rows),
        "requests_per_second": round(len(good) / seconds, 1) if seconds else 0.0,
        "p50_ms": round(percentile(good, 0.5), 2),
        "p95_ms": round(percentile(good, 0.95), 2),
        "p99_ms": round(percentile(good, 0.99), 2),
        "max_ms": round(good[-1], 2) if good else 0.0,
        "errors": dict(errors),
        "cut": cut,
    }


def load(
    url: str, requests: int, concurrency: int, seconds: float, prefix: Sequence[str] = ()
) -> dict[str, Any]:
    """Make requests over kept-alive connections, for some seconds at most; return `summary`.

    prefix: what runs the generator elsewhere, such as [docker, exec, HOST].
    """
    each = max(1, requests // concurrency)  # hey gives each connection the same number
    command = [*prefix, "timeout", "-s", "INT", str(seconds), "hey", "-o", "csv"]
    command += ["-n", str(each * concurrency), "-c", str(concurrency), "-t", str(ANSWER_SECONDS)]
    most = seconds + 2 * ANSWER_SECONDS
    try:
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=most)
    except subprocess.TimeoutExpired:
        raise Unusable(f"the generator did not end within {most:g} s") from None
    cut = done.returncode == 124  # timeout's own
    if done.returncode and not cut:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Unusable(f"the generator failed: {words[-1] if words else done.returncode}")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    return summary(rows, each * concurrency, cut)

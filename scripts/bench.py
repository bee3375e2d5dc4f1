"""Measure applications under each connection strategy, any URL, or two database endpoints.

  bench.py stack                  the applications of `make up`, every strategy in turn (make bench)
  bench.py http --url URL         any URL, the same way
  bench.py pool --dsn A --dsn B   two database endpoints in turn, such as ports 5432 and 6432
  bench.py compare OLD NEW        two results
  bench.py watch                  connections and pools of the hosts of `make up`, again and again

Results are written as JSON and as one HTML file. docs/benchmark.md explains the method. Exit code
2: it cannot go on, and the message says why; 130: interrupted. What was measured before is kept in
the JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark import pool, report, stack
from benchmark.load import Unusable, check, load
from benchmark.one_client import one_client
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent


def count(text: str) -> int:
    """Return a number of things, 1 at least; what else argparse shows as a wrong value."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = whole.add_subparsers(dest="kind", required=True)

    def kind(name: str, text: str) -> argparse.ArgumentParser:
        one = kinds.add_parser(name, help=text)
        one.add_argument("--output", type=Path, default=ROOT / ".cache/bench", metavar="NAME")
        one.add_argument("--rounds", type=count, default=3)
        return one

    for name in ("stack", "http"):
        one = kind(name, "measure requests")
        one.add_argument("--requests", type=count, default=5000)
        one.add_argument("--concurrency", type=count, nargs="+", default=[50, 200, 500])
        one.add_argument("--seconds", type=float, default=3, help="the most for one load")
        if name == "http":
            one.add_argument("--url", action="append", required=True)
        else:
            one.add_argument("--only", nargs="+", default=[], metavar="APPLICATION")
            names = list(stack.STRATEGIES)
            one.add_argument("--strategies", nargs="+", default=names, choices=names)
            one.add_argument("--quick", action="store_true", help="one round, 50 clients")
    one = kind("pool", "measure database endpoints")
    one.add_argument("--dsn", action="append", required=True, help="without a password")
    one.add_argument("--sessions", type=count, default=50)
    one.add_argument("--seconds", type=float, default=5)
    one = kinds.add_parser("compare", help="two results side by side")
    one.add_argument("old", type=Path)
    one.add_argument("new", type=Path)
    one = kinds.add_parser("watch", help="pg_stat_activity and SHOW POOLS")
    one.add_argument("--every", type=float, default=2, metavar="SECONDS")
    one.add_argument("--times", type=int, default=30)
    return whole


class Rows(list):
    """What was measured, in a file after each row: an interrupted run keeps it."""

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        super().__init__()
        self.path = output.with_suffix(".json")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        machine = {"cores": os.cpu_count(), "machine": platform.machine()}
        self.result = {"schema": report.SCHEMA, "started": now, "settings": settings}
        self.result |= {"versions": machine, "rows": self}
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, row: dict[str, Any]) -> None:
        super().append(row)
        self.write()

    def write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.result, indent=1) + "\n")
        part.replace(self.path)


def measure_urls(given: argparse.Namespace, rows: Rows, tell: Callable[..., None]) -> None:
    for url in given.url:
        check(url)
    every = [
        (number, concurrency, url)
        for number in range(1, given.rounds + 1)
        for concurrency in given.concurrency
        for url in given.url
    ]
    for done, (number, concurrency, url) in enumerate(every):
        tell(f"{url}, {concurrency} clients", done, len(every))
        row = load(url, given.requests, concurrency, given.seconds)
        rows.append({"name": url, "round": number, "concurrency": concurrency, **row})


def measure_stack(given: argparse.Namespace, rows: Rows, tell: Callable[..., None]) -> None:
    if given.quick:
        given.rounds, given.concurrency = 1, given.concurrency[:1]
    tell("looking at the hosts", 0, 1)
    apps = stack.prepare(given.only, given.concurrency)
    loads = list(stack.plan(apps, given.rounds, given.strategies, given.concurrency))
    rows.result["versions"] |= stack.versions(apps[0])
    tell("one client, one query at a time", 0, len(loads))
    rows.result["one_client"] = {"name": apps[0].name, **one_client(apps[0])}
    stack.run(apps, loads, given.requests, given.seconds, rows.append, tell)


def measure(given: argparse.Namespace, console: Console) -> int:
    words = {k: v for k, v in vars(given).items() if k in ("requests", "rounds", "seconds")}
    rows = Rows(given.output, words)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    code = 0
    with bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        try:
            if given.kind == "pool":
                for row in pool.compare(
                    given.dsn, given.sessions, given.seconds, given.rounds, tell
                ):
                    rows.append(row)
            else:
                (measure_stack if given.kind == "stack" else measure_urls)(given, rows, tell)
        except KeyboardInterrupt:
            code = 130
    if not rows:
        return code
    rows.write()
    if given.kind == "pool":  # there is no request in it
        console.print_json(json.dumps(list(rows)))
    else:
        console.print(report.table(rows.result))
        for words in report.one_client(rows.result):
            console.print(words)
        rows.path.with_suffix(".html").write_text(report.page(rows.result))
        console.print(f"The same as a page with plots: {rows.path.with_suffix('.html')}")
    console.print(f"As JSON: {rows.path}")
    return code


def watch(every: float, times: int, console: Console) -> None:
    apps = stack.applications()
    activity = (
        "SELECT datname, coalesce(state, '-'), count(*) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' GROUP BY 1, 2 ORDER BY 1, 2"
    )
    for _ in range(times):
        console.rule(time.strftime("%H:%M:%S"))
        console.print(apps[0].sql(activity).replace("|", "  "))
        for app in apps:
            for row in app.pooler("POOLS"):
                counts = ", ".join(
                    f"{name} {row[name]}"
                    for name in ("cl_active", "cl_waiting", "sv_active", "sv_idle", "maxwait")
                )
                console.print(f"{app.name}'s pool: {counts}")
        time.sleep(every)


def main() -> int:
    given = parser().parse_args()
    console = Console(width=max(Console().width, 160))
    try:
        if given.kind == "compare":
            console.print(report.comparison(report.read(given.old), report.read(given.new)))
            return 0
        if given.kind == "watch":
            watch(given.every, given.times, console)
            return 0
        return measure(given, console)
    except Unusable as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

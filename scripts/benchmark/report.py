"""Results: JSON, a table in the terminal, one HTML file with plots, and two results compared.

A result is {schema: 1, started, settings, versions, rows}; docs/benchmark.md describes the rows.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.box import SIMPLE
from rich.table import Table

from .load import Unusable
from .stack import SAMPLE_SECONDS

SCHEMA = 1
Key = tuple[str, str, int, str]
"""(name, path, concurrency, strategy)."""

TEXT = "#010203"
"""A colour that nothing else has: in the page it becomes that of the text, light or dark."""
COLOURS = ("#8a8f98", "#2f7ed8", "#1aa179", "#d98200", "#8e5bd0", "#d6453d")


def read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Unusable(f"{path} is no result: {error}") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise Unusable(f"{path} is no result of schema {SCHEMA}")
    return result


def key(row: dict[str, Any]) -> Key:
    return row["name"], row.get("path", ""), row["concurrency"], row.get("strategy", "")


def medians(rows: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """Return, for each cell, the median of its rounds; `spread`: least and most requests/s."""
    cells: dict[Key, list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(key(row), []).append(row)
    found = {}
    for cell, rounds in cells.items():
        numbers = {
            name: round(statistics.median(row[name] for row in rounds), 2)
            for name, value in rounds[0].items()
            if isinstance(value, int | float) and name not in ("round", "concurrency", "cut")
        }
        rates = [row["requests_per_second"] for row in rounds]
        errors: dict[str, int] = {}
        for row in rounds:
            for kind, number in row["errors"].items():
                errors[kind] = errors.get(kind, 0) + number
        cpu = [row["cpu_ms_per_request"] for row in rounds if "cpu_ms_per_request" in row]
        found[cell] = {
            **numbers,
            "spread": (min(rates), max(rates)),
            "errors": errors,
            "connections": rounds[-1].get("connections", []),
            "made": sum(row["requests"] for row in rounds),
            "cpu": {part: round(statistics.median(c[part] for c in cpu), 2) for part in cpu[0]}
            if cpu
            else {},
        }
    return found


def share(cell: dict[str, Any]) -> str:
    """Return the errors of a cell: which, and how many of the requests."""
    if not cell["errors"]:
        return "0"
    total = sum(cell["errors"].values())
    kinds = ", ".join(sorted(cell["errors"]))
    return f"{100 * total / max(1, cell['made']):.1f} % ({kinds})"


COLUMNS = ("requests/s", "least-most", "p50", "p95", "p99", "max", "errors", "connections")
FURTHER = ("queries", "CPU app", "pooler", "server")


def line(cell: dict[str, Any]) -> list[str]:
    low, high = cell["spread"]
    times = [f"{cell[f'{name}_ms']:.1f}" for name in ("p50", "p95", "p99", "max")]
    found = [f"{cell['requests_per_second']:.0f}", f"{low:.0f}-{high:.0f}", *times, share(cell)]
    if "connections_peak" not in cell:
        return found
    found += [f"{cell['connections_mean']:.0f}, {cell['connections_peak']:.0f}"]
    found += [f"{cell['pooler_queries_per_request']:.1f}"]
    return found + [
        f"{cell['cpu'][part]:.2f}" for part in ("application", "pgbouncer", "postgresql")
    ]


def columns(cells: dict[Key, dict[str, Any]]) -> list[str]:
    whole = any("connections_peak" in cell for cell in cells.values())
    return [*COLUMNS, *FURTHER] if whole else list(COLUMNS[:-1])


def table(result: dict[str, Any]) -> Table:
    """Return the medians of the rounds, as the terminal shows them; times in ms."""
    cells = medians(result["rows"])
    view = Table("service", "clients", "strategy", *columns(cells), box=SIMPLE, pad_edge=False)
    for (name, path, concurrency, strategy), cell in cells.items():
        view.add_row(f"{name} {path}", str(concurrency), strategy, *line(cell))
    return view


def one_client(result: dict[str, Any]) -> list[str]:
    """Return sentences on what one query and one login take, where that was measured."""
    if not (found := result.get("one_client")):
        return []
    direct = next(row["query_us"] for row in found["ways"] if row["way"] == "direct")
    return [
        f"One client of {found['name']}, {row['way']}: a query {row['query_us']:.0f} µs "
        f"({row['query_us'] - direct:+.0f} µs), a login {row['login_ms']:.1f} ms"
        for row in found["ways"]
    ] + [f"Of each login, {found['scram_key_ms']:.1f} ms are the client's part of SCRAM-SHA-256"]


def comparison(old: dict[str, Any], new: dict[str, Any]) -> Table:
    """Return requests/s and p99 of two results, and new divided by old."""
    view = Table("service", "clients", "strategy", box=SIMPLE, pad_edge=False)
    for name in ("requests/s", "new", "ratio", "p99", "new", "ratio"):
        view.add_column(name, justify="right")
    before, after = medians(old["rows"]), medians(new["rows"])
    for cell in before:
        if cell not in after:
            continue
        words = []
        for name in ("requests_per_second", "p99_ms"):
            a, b = before[cell][name], after[cell][name]
            words += [f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}" if a else ""]
        view.add_row(f"{cell[0]} {cell[1]}", str(cell[2]), cell[3], *words)
    return view


def figures(cells: dict[Key, dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return (title, function that draws it on axes) for each plot."""
    services = list(dict.fromkeys((name, path) for name, path, _, _ in cells))
    ways = list(dict.fromkeys(strategy for *_, strategy in cells))
    colours = {way: COLOURS[number % len(COLOURS)] for number, way in enumerate(ways)}
    least = min(concurrency for _, _, concurrency, _ in cells)

    def throughput(name: str, path: str) -> Any:
        def draw(axes: Any) -> None:
            found = [way for way in ways if (name, path, least, way) in cells]
            for number, way in enumerate(reversed(found)):
                cell = cells[name, path, least, way]
                low, high = cell["spread"]
                rate = cell["requests_per_second"]
                axes.barh(number, rate, color=colours[way], height=0.7)
                axes.plot([low, high], [number, number], color=axes.xaxis.label.get_color())
                axes.text(high, number, f"  {rate:.0f}", va="center")
            axes.set_yticks(range(len(found)), reversed(found))
            axes.margins(x=0.2)
            axes.set_xlabel("requests per second, median and spread of the rounds")

        return draw

    def tail(name: str, path: str) -> Any:
        def draw(axes: Any) -> None:
            for way in ways:
                points = sorted(
                    (concurrency, cell["p99_ms"])
                    for (n, p, concurrency, w), cell in cells.items()
                    if (n, p, w) == (name, path, way) and cell["p99_ms"]
                )
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", color=colours[way], label=way)
            axes.set_yscale("log")
            axes.set_xlabel("concurrent clients")
            axes.set_ylabel("p99 in ms")
            axes.legend(frameon=False, fontsize="small")

        return draw

    def connections(name: str, path: str) -> Any:
        def draw(axes: Any) -> None:
            for way in ways:
                series = cells.get((name, path, least, way), {}).get("connections", [])
                seconds = [number * SAMPLE_SECONDS for number in range(1, len(series) + 1)]
                axes.plot(seconds, series, "-", color=colours[way], label=way)
            axes.set_xlabel("seconds")
            axes.set_ylabel("connections in PostgreSQL")
            axes.legend(frameon=False, fontsize="small")

        return draw

    found = [
        (f"{name} {path}: throughput at {least} clients", throughput(name, path))
        for name, path in services
    ]
    for name, path in services:
        own = [cell for (n, p, *_), cell in cells.items() if (n, p) == (name, path)]
        if len({concurrency for n, p, concurrency, _ in cells if (n, p) == (name, path)}) > 1:
            found.append((f"{name} {path}: slowest percent", tail(name, path)))
        if any(cell["connections"] for cell in own):
            found.append(
                (f"{name} {path}: connections at {least} clients", connections(name, path))
            )
    return found


def svg(draw: Any, title: str) -> str:
    """Return one plot without a ground, in the colour of the text around it."""
    import matplotlib as mpl  # slow to load, and needed here alone
    from matplotlib.figure import Figure

    style = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT)
    style |= {"axes.edgecolor": TEXT, "axes.facecolor": "none", "svg.fonttype": "none"}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 11}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6, 3.4), facecolor="none", layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": title})
    text = out.getvalue().replace(TEXT, "currentColor")
    return "".join(text.partition("<svg")[1:])


def page(result: dict[str, Any]) -> str:
    """Return one HTML file that needs nothing else, for light and dark screens and phones."""
    cells = medians(result["rows"])
    plots = [(title, svg(draw, title)) for title, draw in figures(cells)]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return template.from_string(Path(__file__).with_name("report.html.j2").read_text()).render(
        started=result["started"],
        facts={**result["settings"], **result["versions"]},
        plots=plots,
        one_client=one_client(result),
        names=["service", "clients", "strategy", *columns(cells)],
        lines=[
            [f"{name} {path}", concurrency, strategy, *line(cell)]
            for (name, path, concurrency, strategy), cell in cells.items()
        ],
    )

"""Draw the Grafana dashboard of templates/monitoring with the data of a Prometheus.

Not Grafana draws it but matplotlib: each panel's own expression, title, unit, thresholds and place
in the grid, with all values of the dashboard's variables. So the picture in docs/monitoring.md
shows what the file asks for, and needs no Grafana. Exit code 1: the server does not answer.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

DASHBOARD = Path(__file__).resolve().parents[1] / "templates/monitoring/pgbouncer-dashboard.json"
COLORS = {"green": "#3f8f4f", "orange": "#d9822b", "red": "#c23030"}
COLUMNS = 24
"""Of Grafana's grid."""
CELL_INCHES = (0.55, 0.42)
"""Width and height of a cell of the grid."""
POINTS = 120
"""In each line, at most: the picture stays small."""

Series = tuple[str, list[float], list[float]]
"""Legend, times in seconds since 1970, values; NaN where there is none."""


def fill(text: str, values: dict[str, list[str]], rate_interval: str) -> str:
    """Return an expression with Grafana's variables replaced, as "All" does it."""
    text = text.replace("$__rate_interval", rate_interval)
    for name, found in values.items():
        text = text.replace(f"${name}", "|".join(map(re.escape, found)).replace("\\", "\\\\"))
    return text


def legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), pattern).strip()


def show(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a number with its unit, as short as Grafana writes it."""
    if unit == "percentunit":
        return f"{value * 100:.{decimals or 0}f}%"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    text = f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"
    return text + {"s": " s", "d": " days", "ops": " ops/s"}.get(unit, "")


def color(value: float, steps: list[dict]) -> str:
    """Return the colour of the last threshold that a value reaches."""
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return COLORS[reached[-1]["color"]]


class Source:
    """A Prometheus, and a range of time. Times in seconds since 1970."""

    def __init__(self, url: str, begin: float, end: float, rate_interval: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=20)
        self.begin, self.end = begin, end
        self.rate_interval = rate_interval
        self.values: dict[str, list[str]] = {}

    def get(self, path: str, **parameters: str | float) -> list:
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"{parameters}: {body['error']}")
        return body["data"]["result"] if path.startswith("query") else body["data"]

    def learn(self, variables: list[dict]) -> None:
        """Ask for the values of the dashboard's variables, in their order."""
        for variable in variables:
            if variable["type"] != "query":
                continue
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            selector = fill(found[1], self.values, self.rate_interval)
            times = {"start": self.begin, "end": self.end}
            self.values[variable["name"]] = self.get(
                f"label/{found[2]}/values", **{"match[]": selector}, **times
            )

    def ask(self, target: dict) -> list[Series]:
        """Return the series of a panel's target; of an instant one the newest values alone."""
        query = fill(target["expr"], self.values, self.rate_interval)
        if target.get("instant"):
            times = [self.end]
            found = self.get("query", query=query, time=self.end)
            rows = [(one["metric"], [one["value"]]) for one in found]
        else:
            step = math.ceil((self.end - self.begin) / POINTS)
            times = [float(second) for second in range(int(self.begin), int(self.end) + 1, step)]
            span = {"start": times[0], "end": times[-1], "step": step}
            found = self.get("query_range", query=query, **span)
            rows = [(one["metric"], one["values"]) for one in found]
        series = []
        for labels, points in rows:
            known = {float(second): float(value) for second, value in points}
            values = [known.get(second, math.nan) for second in times]
            series.append((legend(target["legendFormat"], labels), times, values))
        return series


def draw_stat(axes: Axes, panel: dict, found: list[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axes.set_xticks([])
    axes.set_yticks([])
    if found:
        value = found[0][2][-1]
        axes.set_facecolor(color(value, defaults["thresholds"]["steps"]))
        text = show(value, defaults["unit"], defaults.get("decimals"))
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=15, color="white")


def draw_bars(axes: Axes, panel: dict, found: list[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    for row, (name, _, values) in enumerate(found):
        axes.barh(row, values[-1], color=color(values[-1], defaults["thresholds"]["steps"]))
        text = show(values[-1], defaults["unit"], defaults.get("decimals"))
        axes.text(0, row, f" {name}: {text}", va="center", fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_lines(axes: Axes, panel: dict, found: list[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    below: dict[float, float] = {}
    for name, times, values in found:
        at = [datetime.fromtimestamp(second) for second in times]
        if stacked:
            floor = [below.get(second, 0.0) for second in times]
            top = [low + value for low, value in zip(floor, values, strict=True)]
            axes.fill_between(at, floor, top, alpha=0.6, linewidth=0, label=name)
            below |= dict(zip(times, top, strict=True))
        else:
            axes.plot(at, values, linewidth=1, label=name)
    locator = AutoDateLocator(minticks=2, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    unit = defaults["unit"]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value, unit)))
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=6)
    axes.grid(linewidth=0.3)
    if found:
        axes.set_xlim(at[0], at[-1])
        axes.legend(
            fontsize=5.5, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False
        )


DRAW = {"stat": draw_stat, "bargauge": draw_bars, "timeseries": draw_lines}


def draw(dashboard: dict, ask: Callable[[dict], list[Series]]) -> Figure:
    """Return the picture. ask: gives the series of a target."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(COLUMNS * CELL_INCHES[0], rows * CELL_INCHES[1]))
    for panel in panels:
        place, high = panel["gridPos"], panel["type"] == "timeseries"
        left, bottom, right, top = (0.9, 1.5, 0.3, 0.8) if high else (0.3, 0.3, 0.3, 0.8)
        axes = figure.add_axes(
            (
                (place["x"] + left) / COLUMNS,
                1 - (place["y"] + place["h"] - bottom) / rows,
                (place["w"] - left - right) / COLUMNS,
                (place["h"] - top - bottom) / rows,
            )
        )
        axes.spines[:].set_linewidth(0.4)
        axes.set_title(panel["title"], fontsize=8, loc="left", pad=3)
        found = [series for target in panel["targets"] for series in ask(target)]
        DRAW[panel["type"]](axes, panel, found)
        if not found:
            axes.text(0.5, 0.5, "No data", ha="center", va="center", transform=axes.transAxes)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the picture; an SVG keeps its texts, and is the same for the same data."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "dashboard", "path.simplify": True}
    with mpl.rc_context(settings):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, facecolor="white", metadata=metadata)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:9090", help="Prometheus")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (60)")
    parser.add_argument("--end", type=float, default=time.time(), help="seconds since 1970 (now)")
    parser.add_argument("--rate-interval", default="1m", help="four times the scrape interval (1m)")
    parser.add_argument("--output", type=Path, required=True, help="file, .svg or .png")
    given = parser.parse_args()
    dashboard = json.loads(DASHBOARD.read_text())
    begin = given.end - given.minutes * 60
    source = Source(given.url, begin, given.end, given.rate_interval)
    try:
        source.learn(dashboard["templating"]["list"])
        save(draw(dashboard, source.ask), given.output)
    except (httpx.HTTPError, ValueError) as error:
        print(f"ERROR: Prometheus at {given.url} (--url): {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

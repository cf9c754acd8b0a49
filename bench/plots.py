"""The pictures of the HTTP measurement: one panel a payload, one group of bars a server."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bench.cells import CONNECTIONS, CONSTANT
from bench.ink import FAINT, LIMIT, Canvas

# From few connections to many; ours stands out.
_SHADES = ("#b8c4d4", "#7f93ad", "#4a6079")
_OUR_SHADES = ("#9fd3b8", "#4fae80", "#1e7a4f")
_LABELS, _PLOT, _VALUES, _BAR, _GAP, _HEAD, _FOOT = 210, 420, 90, 11, 12, 44, 34


@dataclass(frozen=True)
class Bar:
    """From `start` to `end` on the panel's axis, with `text` behind it."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Panel:
    """Rows are a title, whether it is ours, and one bar for each number of connections.

    The axis begins at `zero`, and is a logarithmic one unless that is 0. `limit` is drawn as a line.
    """

    heading: str
    rows: Sequence[tuple[str, bool, Sequence[Bar]]]
    limit: float | None = None
    zero: float = 0

    def place(self, value: float) -> float:
        """Where a value stands on the axis, from 0 to 1."""
        largest = max([bar.end for _, _, bars in self.rows for bar in bars] + [self.limit or 0])
        if self.zero:
            return max(0, math.log(value / self.zero) / math.log(largest / self.zero))
        return value / largest


def draw_throughput(report: Mapping[str, Any], names: Sequence[str], headings: Mapping[str, str]) -> Image.Image:
    """Images a second, with the raw limit as a line. Servers without a model would not fit on the axis."""
    http = report["http"]
    panels = []
    for payload, heading in headings.items():
        rows = []
        for name in names:
            if name != CONSTANT and payload in http[name]:
                rates = [http[name][payload][f"c{number}"]["images_per_second"] for number in CONNECTIONS]
                rows.append(
                    (
                        report["servers"][name],
                        name.startswith("ours"),
                        [Bar(0.0, rate, f"{rate:.0f}") for rate in rates],
                    )
                )
        limit = http["raw"][f"images_per_second_batch_{payload.split('_')[1]}"]
        panels.append(Panel(f"{heading}: images a second", rows, limit))
    return _draw(panels, f"bars: {_connections()}; red: session.run without HTTP")


def draw_latency(report: Mapping[str, Any], names: Sequence[str], headings: Mapping[str, str]) -> Image.Image:
    """From p50 to p99 in ms, on a logarithmic axis."""
    http = report["http"]
    panels = []
    for payload, heading in headings.items():
        rows = []
        for name in names:
            if name != CONSTANT and payload in http[name]:
                cells = [http[name][payload][f"c{number}"] for number in CONNECTIONS]
                bars = [
                    Bar(cell["p50_ms"], cell["p99_ms"], f"{cell['p50_ms']:.1f} to {cell['p99_ms']:.1f}")
                    for cell in cells
                ]
                rows.append((report["servers"][name], name.startswith("ours"), bars))
        lowest = min(bar.start for _, _, bars in rows for bar in bars)
        panels.append(Panel(f"{heading}: p50 to p99, ms", rows, zero=lowest / 1.5))
    return _draw(panels, f"bars: {_connections()}; logarithmic axes")


def _connections() -> str:
    return ", ".join(map(str, CONNECTIONS)) + " connections, light to dark"


def _draw(panels: Sequence[Panel], note: str) -> Image.Image:
    group = _BAR * len(CONNECTIONS) + _GAP
    heights = [_HEAD + group * len(panel.rows) for panel in panels]
    canvas = Canvas(_LABELS + _PLOT + _VALUES, sum(heights) + _FOOT)
    top = 0
    for panel, height in zip(panels, heights, strict=True):
        _draw_panel(canvas, panel, top, height)
        top += height
    canvas.text(12, top + 17, note, 11)
    return canvas.image


def _draw_panel(canvas: Canvas, panel: Panel, top: int, height: int) -> None:
    def across(value: float) -> float:
        return _LABELS + _PLOT * panel.place(value)

    canvas.text(12, top + 22, panel.heading, 15)
    y = top + _HEAD
    for title, is_ours, bars in panel.rows:
        middle = y + _BAR * len(bars) / 2
        canvas.text(_LABELS - 10, middle, title, 12, anchor="rm")
        for bar, colour in zip(bars, _OUR_SHADES if is_ours else _SHADES, strict=True):
            canvas.box(across(bar.start), y + 1, max(across(bar.end), across(bar.start) + 1), y + _BAR, colour)
            canvas.text(across(bar.end) + 5, y + _BAR / 2 + 0.5, bar.text, 9)
            y += _BAR
        y += _GAP
    canvas.box(_LABELS, top + _HEAD - 4, _LABELS + 1, top + height - 6, FAINT)
    if panel.limit:
        x = across(panel.limit)
        canvas.box(x, top + _HEAD - 4, x + 1, top + height - 6, LIMIT)
        canvas.text(x, top + _HEAD - 12, f"{panel.limit:.0f}", 10, anchor="mm", colour=LIMIT)

"""The pictures of scale: lines over a doubling number of images, cores or models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bench.ink import FAINT, LIMIT, Canvas

_COLOURS = ("#1e7a4f", "#4a6079", "#c98a1b", "#8e5ea2")
_LEFT, _PLOT, _LEGEND, _HEAD, _HEIGHT, _TICKS = 78, 440, 190, 44, 190, 52

Points = Mapping[int, float]


@dataclass(frozen=True)
class Chart:
    """Named lines from how many there are to a number; `limit` names the one that is drawn as the limit."""

    heading: str
    along: str
    lines: Mapping[str, Points]
    limit: str | None = None

    def ticks(self) -> list[int]:
        return sorted({x for points in self.lines.values() for x in points})

    def steps(self) -> list[float]:
        """Round numbers from 0 to just above the largest, four or five of them."""
        largest = max(y for points in self.lines.values() for y in points.values())
        rough = largest / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
        return [step * number for number in range(math.ceil(largest / step) + 1)]


def draw_batch(scale: Mapping[str, Any]) -> Image.Image:
    names = {"npy": "npy", "json_images": "JSON, raw pixels", "json_data": "JSON, normalised"}
    inside = {"session.run": "session_run"} | {title: name for name, title in names.items()}
    outside = {title: f"http_{name}" for name, title in names.items() if f"http_{name}" in scale["batch"]}
    cores, connections = len(scale["method"]["server_cores"]), scale["method"]["batch_connections"]
    charts = [
        Chart(f"{heading}: images a second", "images in a request", _batch_lines(scale["batch"], ways), "session.run")
        for heading, ways in (
            ("One process, one thread, no HTTP", inside),
            (f"HTTP, {cores} cores, {connections} connections", outside),
        )
    ]
    return _draw(charts)


def draw_cores(scale: Mapping[str, Any]) -> Image.Image:
    titles = {"session.run": "session_run", "container": "container", "multi-model container": "multi_model"}
    charts = []
    for payload, heading in (("json_1", "JSON, 1 image"), ("binary_16", "npy, 16 images")):
        lines = {
            title: {
                int(count): cell[way][payload]["images_per_second"]
                for count, cell in scale["cores"].items()
                if payload in cell[way]
            }
            for title, way in titles.items()
        }
        filled = {title: points for title, points in lines.items() if points}
        charts.append(Chart(f"{heading}: images a second", "cores", filled, "session.run"))
    return _draw(charts)


def draw_models(scale: Mapping[str, Any]) -> Image.Image:
    charts = []
    for heading, key in (
        ("Memory of the container (PSS), MiB", "mebibytes"),
        ("Requests a second, going round over all models", "requests_per_second"),
        ("Time to load one more model, ms", "load_milliseconds"),
    ):
        points = {int(count): cell[key] for count, cell in scale["models"].items()}
        charts.append(Chart(heading, "models", {"multi-model container": points}))
    return _draw(charts)


def _batch_lines(batch: Mapping[str, Any], ways: Mapping[str, str]) -> dict[str, Points]:
    return {
        title: {
            int(count): cell["images_per_second"] for count, cell in batch[way].items() if "images_per_second" in cell
        }
        for title, way in ways.items()
    }


def _draw(charts: Sequence[Chart]) -> Image.Image:
    height = _HEAD + _HEIGHT + _TICKS
    canvas = Canvas(_LEFT + _PLOT + _LEGEND, height * len(charts))
    for number, chart in enumerate(charts):
        _draw_chart(canvas, chart, number * height)
    return canvas.image


def _draw_chart(canvas: Canvas, chart: Chart, top: int) -> None:
    ticks, steps = chart.ticks(), chart.steps()
    bottom = top + _HEAD + _HEIGHT

    def place(x: int, y: float) -> tuple[float, float]:
        # The distance from one number to its double is the same everywhere.
        width = math.log2(ticks[-1] / ticks[0]) or 1
        return _LEFT + _PLOT * math.log2(x / ticks[0]) / width, bottom - _HEIGHT * y / steps[-1]

    canvas.text(12, top + 22, chart.heading, 15)
    for step in steps:
        y = place(ticks[0], step)[1]
        canvas.box(_LEFT, y, _LEFT + _PLOT, y + 0.5, FAINT)
        canvas.text(_LEFT - 8, y, f"{step:g}", 10, anchor="rm")
    for tick in ticks:
        canvas.text(place(tick, 0)[0], bottom + 14, str(tick), 10, anchor="mm")
    canvas.text(_LEFT + _PLOT / 2, bottom + 32, chart.along, 11, anchor="mm")
    for number, (title, colour, points) in enumerate(_coloured(chart)):
        canvas.line([place(x, y) for x, y in sorted(points.items())], colour)
        if len(chart.lines) == 1:
            continue  # the heading says what it is
        y = top + _HEAD + 8 + 18 * number
        canvas.box(_LEFT + _PLOT + 18, y - 1, _LEFT + _PLOT + 34, y + 1, colour)
        canvas.text(_LEFT + _PLOT + 40, y, title, 11)


def _coloured(chart: Chart) -> Iterator[tuple[str, str, Points]]:
    colours = iter(_COLOURS)
    for title, points in chart.lines.items():
        yield title, LIMIT if title == chart.limit else next(colours), points

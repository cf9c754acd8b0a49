"""A picture of test images with the answers of both doors under each one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_COLUMNS = 10
_ROWS = 5
_MAX_MISSES = 20
_IMAGE = 84  # three times the 28 pixels of a digit
_CELL = (104, 140)
_MARGIN = (16, 64)
_INK, _PAPER, _MISS, _QUIET = "#1a1a1a", "#ffffff", "#c62828", "#666666"


def draw(
    path: Path,
    title: str,
    images: NDArray[np.uint8],
    labels: Sequence[Any],
    answers: dict[str, Sequence[Any]],
) -> None:
    """Write a PNG grid of 50 images (n, rows, columns); where an answer differs from the label the cell is framed in red and says what it is.

    Misses come first, at most 20 of them, so that the picture shows where the model fails and not only that it works.
    """
    right = np.array([all(given[i] == label for given in answers.values()) for i, label in enumerate(labels)])
    misses = np.flatnonzero(~right)[:_MAX_MISSES]
    chosen = [*misses, *np.flatnonzero(right)][: _COLUMNS * _ROWS]
    size = (2 * _MARGIN[0] + _COLUMNS * _CELL[0], _MARGIN[1] + _ROWS * _CELL[1] + 8)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    heading, text = ImageFont.load_default(20), ImageFont.load_default(13)
    pen.text((_MARGIN[0], 10), title, _INK, font=heading)
    legend = f"{len(labels) - int(right.sum())} of {len(labels):,} missed; up to {_MAX_MISSES} misses are shown first, framed in red"
    pen.text((_MARGIN[0], 38), legend, _QUIET, font=text)
    for place, index in enumerate(chosen):
        left = _MARGIN[0] + place % _COLUMNS * _CELL[0]
        top = _MARGIN[1] + place // _COLUMNS * _CELL[1]
        digit = Image.fromarray(255 - images[index]).resize((_IMAGE, _IMAGE), Image.Resampling.NEAREST)
        sheet.paste(digit, (left + 8, top + 6))
        if not right[index]:
            pen.rectangle((left, top, left + _CELL[0] - 5, top + _CELL[1] - 5), outline=_MISS, width=3)
            pen.text((left + 72, top + 6), f"is {labels[index]}", _MISS, font=text)
        for row, (name, given) in enumerate(answers.items()):
            colour = _INK if given[index] == labels[index] else _MISS
            pen.text((left + 8, top + 92 + 18 * row), f"{name} {given[index]}", colour, font=text)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

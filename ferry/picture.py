"""A picture of what both doors say about a test set: images with the answers under each one, or who was taken for whom."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model_code.inference.contract import Preprocessing

Label = int | str

_COLUMNS = 10
_ROWS = 5
_MAX_MISSES = 20
_IMAGE = 84  # three times 28 pixels
_CELL = (104, 140)
_SQUARE = 96  # of a table of labels
_MARGIN = (16, 64)
_INK, _PAPER, _MISS, _QUIET = "#1a1a1a", "#ffffff", "#c62828", "#666666"


def pixels(inputs: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Raw images, 0 to 255, whose normalised inputs (n, channels, rows, columns) these are."""
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (preprocessing.mean, preprocessing.std))
    return np.asarray(np.rint((inputs * std + mean) / preprocessing.scale).clip(0, 255), np.uint8)


def draw_images(
    path: Path,
    title: str,
    images: NDArray[np.uint8],
    labels: Sequence[Label],
    answers: Mapping[str, Sequence[Label]],
) -> None:
    """Write a PNG grid of 50 images (n, channels, rows, columns); where an answer differs from the label the cell is framed in red and says what it is.

    Misses come first, at most 20 of them, so that the picture shows where the model fails and not only that it works.
    """
    right = np.array([all(given[i] == label for given in answers.values()) for i, label in enumerate(labels)])
    misses = np.flatnonzero(~right)[:_MAX_MISSES]
    chosen = [*misses, *np.flatnonzero(right)][: _COLUMNS * _ROWS]
    legend = f"{len(labels) - int(right.sum())} of {len(labels):,} missed; up to {_MAX_MISSES} misses are shown first, framed in red"
    sheet, pen = _sheet(_COLUMNS * _CELL[0], _ROWS * _CELL[1], title, legend)
    text = ImageFont.load_default(13)
    for place, index in enumerate(chosen):
        left = _MARGIN[0] + place % _COLUMNS * _CELL[0]
        top = _MARGIN[1] + place // _COLUMNS * _CELL[1]
        sheet.paste(_image(images[index]).resize((_IMAGE, _IMAGE), Image.Resampling.NEAREST), (left + 8, top + 6))
        if not right[index]:
            pen.rectangle((left, top, left + _CELL[0] - 5, top + _CELL[1] - 5), outline=_MISS, width=3)
            pen.text((left + 72, top + 6), f"is {labels[index]}", _MISS, font=text)
        for row, (name, given) in enumerate(answers.items()):
            colour = _INK if given[index] == labels[index] else _MISS
            pen.text((left + 8, top + 92 + 18 * row), f"{name} {given[index]}", colour, font=text)
    _save(sheet, path)


def draw_confusion(
    path: Path,
    title: str,
    names: Sequence[Label],
    labels: Sequence[Label],
    answers: Mapping[str, Sequence[Label]],
) -> None:
    """Write a PNG with one table for each of `answers`: a row for each label, a column for each answer, how many of each.

    Misses are red. `names` are all labels, in the order of rows and columns.
    """
    side = len(names) * _SQUARE
    left_of, above = _SQUARE, 52  # room for the labels of the rows, and for the door and those of the columns
    legend = f"{len(labels):,} rows; a line for what it is, a column for what the door says"
    sheet, pen = _sheet(max(len(answers) * (left_of + side + _MARGIN[0]), 760), above + side, title, legend)
    text, heading = ImageFont.load_default(13), ImageFont.load_default(16)
    for table, (door, given) in enumerate(answers.items()):
        left, top = _MARGIN[0] + table * (left_of + side + _MARGIN[0]), _MARGIN[1]
        pen.text((left, top), door, _INK, font=heading)
        for row, label in enumerate(names):
            pen.text((left, top + above + row * _SQUARE + 38), str(label)[:12], _QUIET, font=text)
            pen.text((left + left_of + row * _SQUARE, top + 30), str(label)[:12], _QUIET, font=text)
            for column, answer in enumerate(names):
                count = sum(is_it == label and said == answer for is_it, said in zip(labels, given, strict=True))
                x, y = left + left_of + column * _SQUARE, top + above + row * _SQUARE
                missed = label != answer and count
                pen.rectangle(
                    (x, y, x + _SQUARE - 4, y + _SQUARE - 4),
                    outline=_MISS if missed else _INK,
                    width=3 if missed else 1,
                )
                colour = _MISS if missed else _INK if count else _QUIET
                pen.text((x + 40, y + 38), str(count), colour, font=heading)
    _save(sheet, path)


def _sheet(width: int, height: int, title: str, legend: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (2 * _MARGIN[0] + width, _MARGIN[1] + height + 8), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN[0], 10), title, _INK, font=ImageFont.load_default(20))
    pen.text((_MARGIN[0], 38), legend, _QUIET, font=ImageFont.load_default(13))
    return sheet, pen


def _image(channels: NDArray[np.uint8]) -> Image.Image:
    """One channel is ink on paper; three are red, green and blue."""
    if len(channels) == 1:
        return Image.fromarray(255 - channels[0])
    return Image.fromarray(np.ascontiguousarray(channels[:3].transpose(1, 2, 0)))


def _save(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

"""Reads labelled rows of numbers from CSV files, in the convention of SageMaker's own algorithms for text/csv: no header line,
the label in the first column (SageMaker Developer Guide, "Common data formats for training").
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_code.training.channels import find_files
from model_code.training.errors import BadData
from model_code.training.examples import Examples
from model_code.training.log import report

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_labelled_rows(folder: Path, channel: str, labels: Sequence[int | str], features: Sequence[str]) -> Examples:
    """All rows of the channel's *.csv files: label,feature,... with labels as text and `features` in this order.

    Several files are read in the order of their names. Raises BadData, which names file, line and column.
    """
    hint = f"A channel holds CSV files in UTF-8 without a header line; a line is label,{','.join(features)}."
    indices = {str(label): index for index, label in enumerate(labels)}
    found: list[int] = []
    rows: list[list[float]] = []
    for path in find_files(folder, channel, "*.csv", hint):
        for place, cells in _lines(path, hint):
            label, *values = cells
            if label not in indices:
                raise BadData(f"BAD_LABEL {place}: found {label[:40]!r}; allowed: {', '.join(indices)}", hint)
            if len(values) != len(features):
                raise BadData(
                    f"COLUMN_COUNT {place}: found {len(cells)} columns; allowed: {len(features) + 1}, the label and "
                    f"{len(features)} numbers",
                    hint,
                )
            found.append(indices[label])
            rows.append([_number(value, place, name, hint) for value, name in zip(values, features, strict=True)])
    if not rows:
        raise BadData(f"NO_ROWS channel {channel!r}: its files are empty; allowed: one line or more", hint)
    _report_doubts(found, labels, channel)
    return Examples(np.array(rows, np.float32), np.array(found, np.int64))


def _lines(path: Path, hint: str) -> list[tuple[str, list[str]]]:
    """Each line's place, for messages, and its cells."""
    name = f"{path.parent.name}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"NOT_UTF8 {name}: byte {error.start} is no UTF-8", hint) from error
    except OSError as error:
        raise BadData(f"UNREADABLE {name}: {error.strerror}", "Upload the file again.") from error
    if text.startswith("\ufeff"):
        raise BadData(f"BYTE_ORDER_MARK {name}: starts with one; allowed: UTF-8 without", hint)
    lines = text.removesuffix("\n").split("\n") if text else []
    return [(f"{name}, line {number}", line.split(",")) for number, line in enumerate(lines, start=1)]


def _number(cell: str, place: str, feature: str, hint: str) -> float:
    if _NUMBER.fullmatch(cell):
        value = float(cell)
        if math.isfinite(value) and abs(value) <= _FLOAT32_MAX:
            return value
        raise BadData(f"OUT_OF_RANGE {place}, {feature}: found {cell[:40]!r}; allowed: what float32 holds", hint)
    raise BadData(f"NOT_A_NUMBER {place}, {feature}: found {cell[:40]!r}; allowed: a finite number", hint)


def _report_doubts(found: list[int], labels: Sequence[int | str], channel: str) -> None:
    """Data may be poor and still be what somebody wants; only one class cannot be learned at all."""
    absent = [str(label) for index, label in enumerate(labels) if index not in found]
    if len(absent) >= len(labels) - 1:
        raise BadData(
            f"ONE_CLASS channel {channel!r}: every label is {labels[found[0]]!r}; allowed: two classes or more",
            "Check how the rows were split into training and testing: a sorted table has to be shuffled first.",
        )
    report(f"channel {channel!r}: {len(found):,} rows")
    if absent:
        report(f"warning: channel {channel!r} has no row of {', '.join(absent)}")

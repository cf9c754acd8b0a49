"""The results of a transform job as one table: which file, which record of it, which label, how probable each label is."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferry.errors import FerryError
from ferry.files import write_atomically
from model_code.inference.codecs import CSV, JSON_LINES

Answer = tuple[int | str, tuple[float, ...] | None]

FORMATS = ("csv", "jsonl")
_PROBABILITIES = "probabilities"
_OUTPUT = "SageMakerOutput"  # what JoinSource puts beside a record of JSON


@dataclass(frozen=True)
class Result:
    """What the model said to one record; `record` counts from 1 in its file, `probabilities` are there where asked for."""

    file: str
    record: int
    label: int | str
    probabilities: tuple[float, ...] | None


def read_results(file: str, content: bytes, accept: str, *, joined: bool) -> list[Result]:
    """The results in one .out object; `accept` and `joined` are what the job was asked for. Raises FerryError."""
    try:
        if accept == CSV:
            found = list(_from_csv(content))
        elif accept == JSON_LINES:
            found = [_from_json_line(json.loads(line), joined) for line in content.splitlines()]
        else:
            found = list(_from_json(json.loads(content)))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        shown = content[:200].decode(errors="replace")
        raise FerryError(f"{file}.out: no labels in the form of this model's answers ({error}): {shown}") from error
    return [Result(file, number, *each) for number, each in enumerate(found, start=1)]


def write_results(path: Path, results: Sequence[Result], labels: Sequence[int | str] | None) -> None:
    """Write the table as CSV or, where `path` ends with .jsonl, as a JSON object a line.

    `labels` are the model's, in the order of the probabilities; without them the columns are numbered.
    """
    text = _jsonl(results) if path.suffix == ".jsonl" else _csv(results, labels)
    write_atomically(path, text.encode())


def _from_csv(content: bytes) -> Iterator[Answer]:
    """The last column is the label: what is before it was joined."""
    for row in csv.reader(io.StringIO(content.decode())):
        yield _label(row[-1]), None


def _label(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() else text


def _from_json(document: dict[str, Any]) -> Iterator[Answer]:
    """{"<response key>": labels, "probabilities": rows}."""
    probabilities = document.pop(_PROBABILITIES, None)
    ((_, labels),) = document.items()
    for place, label in enumerate(labels):
        yield label, None if probabilities is None else tuple(map(float, probabilities[place]))


def _from_json_line(document: dict[str, Any], joined: bool) -> Answer:
    """{"<response key>": label, "probabilities": row}, beside its record where it was joined."""
    answer = dict(document[_OUTPUT]) if joined else document
    probabilities = answer.pop(_PROBABILITIES, None)
    ((_, label),) = answer.items()
    return label, None if probabilities is None else tuple(map(float, probabilities))


def _jsonl(results: Iterable[Result]) -> str:
    rows = []
    for each in results:
        row: dict[str, Any] = {"file": each.file, "record": each.record, "label": each.label}
        rows.append(row | ({} if each.probabilities is None else {_PROBABILITIES: each.probabilities}))
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _csv(results: Sequence[Result], labels: Sequence[int | str] | None) -> str:
    classes = max((len(each.probabilities) for each in results if each.probabilities is not None), default=0)
    named = labels if labels is not None and len(labels) == classes else range(classes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "record", "label", *(f"probability_{label}" for label in named)])
    for each in results:
        writer.writerow([each.file, each.record, each.label, *(each.probabilities or [""] * classes)])
    return text.getvalue()

"""application/jsonlines: one instance a line in, one record a line out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_code.inference.contract import MAX_INSTANCES, Request, Response
from model_code.inference.predictor import Predictor
from model_code.inference.respond import respond
from tests import serving_models

LINES, JSON = "application/jsonlines", "application/json"
IMAGES = np.random.default_rng(0).normal(size=(5, 1, 28, 28)).astype(np.float32)
RAW = np.random.default_rng(1).integers(0, 256, size=(5, 28, 28)).astype(np.uint8)
ROWS = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("images")
    serving_models.write_model(folder)
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("table")
    serving_models.write_table_model(folder)
    return Predictor.load(folder)


def ask(predictor: Predictor, body: bytes, accept: str | None = LINES, content_type: str = LINES) -> Response:
    return respond(predictor, Request(body, content_type, accept, "request-1"))


def lines(key: str, instances: Any, **more: Any) -> bytes:
    return b"".join(json.dumps({key: instance, **more}).encode() + b"\n" for instance in instances.tolist())


def records(response: Response) -> list[Any]:
    assert response.status == 200, response.body
    assert response.body.endswith(b"\n")
    return [json.loads(line) for line in response.body.splitlines()]


def test_every_line_gets_its_label_in_its_order(images: Predictor) -> None:
    expected = [{"digits": label} for label in serving_models.log_probabilities(IMAGES).argmax(axis=1).tolist()]
    assert records(ask(images, lines("data", IMAGES))) == expected


def test_raw_images_come_with_or_without_their_one_channel(images: Predictor) -> None:
    assert ask(images, lines("images", RAW)).body == ask(images, lines("images", RAW[:, None])).body


def test_rows_of_a_table_get_names_and_probabilities(table: Predictor) -> None:
    found = records(ask(table, lines("data", ROWS, probabilities=True)))
    expected = serving_models.table_probabilities(ROWS)
    assert [record["names"] for record in found] == [
        serving_models.TABLE_LABELS[index] for index in expected.argmax(axis=1)
    ]
    np.testing.assert_allclose([record["probabilities"] for record in found], expected, atol=1e-6)


def test_lines_are_one_batch_whatever_is_accepted(images: Predictor) -> None:
    from_json = ask(images, json.dumps({"data": IMAGES.tolist()}).encode(), JSON, JSON)
    assert ask(images, lines("data", IMAGES), JSON).body == from_json.body
    assert ask(images, lines("data", IMAGES), None).body == from_json.body  # JSON where nothing else is asked for


@pytest.mark.parametrize("change", [lambda body: body.rstrip(b"\n"), lambda body: body.replace(b"\n", b"\r\n")])
def test_the_last_line_may_lack_its_end_and_lines_may_end_as_on_windows(images: Predictor, change: Any) -> None:
    body = lines("data", IMAGES)
    assert ask(images, change(body)).body == ask(images, body).body


ROW = b'{"data": [1, 2, 3, 4]}\n'
BAD: dict[str, tuple[bytes, int, str, str]] = {
    "not-json": (ROW + b"{", 400, "BAD_JSON", "line 2: "),
    "empty-line": (ROW + b"\n" + ROW, 400, "BAD_JSON", "line 2: "),
    "two-objects": (ROW + ROW.strip() + ROW, 400, "BAD_JSON", "line 2: "),
    "byte-order-mark": (b"\xef\xbb\xbf" + ROW, 400, "BAD_JSON", "line 1: "),
    "array": (b"[1, 2, 3, 4]\n", 400, "BAD_FIELD", "line 1: "),
    "unknown-key": (ROW + b'{"data": [1, 2, 3, 4], "id": 7}\n', 400, "BAD_FIELD", "line 2: "),
    "duplicate-key": (b'{"data": [1, 2, 3, 4], "data": [1, 2, 3, 4]}\n', 400, "DUPLICATE_KEY", "line 1: "),
    "batch": (ROW + b'{"data": [[1, 2, 3, 4]]}\n', 400, "BAD_SHAPE", "line 2: data: expected shape [4]"),
    "value-less": (ROW + b'{"data": [1, 2, 3]}\n', 400, "BAD_SHAPE", "line 2: data: expected shape [4]"),
    "no-values": (ROW + b'{"data": []}\n', 400, "BAD_SHAPE", "line 2: "),
    "number": (ROW + b'{"data": 1}\n', 400, "BAD_SHAPE", "line 2: "),
    "text": (ROW + b'{"data": ["1", 2, 3, 4]}\n', 400, "BAD_DTYPE", "line 2: "),
    "nan": (ROW + b'{"data": [NaN, 2, 3, 4]}\n', 400, "NOT_FINITE", "line 2: "),
    "1e39": (ROW + b'{"data": [1e39, 2, 3, 4]}\n', 400, "OUT_OF_RANGE", "line 2: "),
    "images": (b'{"images": [1, 2, 3, 4]}\n', 400, "BAD_FIELD", "line 1: this model takes no raw images"),
    "mixed": (ROW + b'{"data": [1, 2, 3, 4], "probabilities": true}\n', 400, "BAD_FIELD", "on all lines or on none"),
    "nothing": (b"\n", 400, "EMPTY_BATCH", ""),
    "too-many": (ROW * (MAX_INSTANCES + 1), 413, "TOO_MANY_INSTANCES", ""),
}


@pytest.mark.parametrize(("body", "status", "code", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_refused_with_its_number(
    table: Predictor, body: bytes, status: int, code: str, message: str
) -> None:
    response = ask(table, body)
    error = json.loads(response.body)["error"]
    assert (response.status, error["code"]) == (status, code)
    assert message in error["message"]
    assert ask(table, ROW).status == 200


@pytest.mark.parametrize("nested", ["[[1, 2], [3, 4]]", "[1, [2, 3], 4]", "[[[1]], 2, 3, 4]"])
def test_another_nesting_of_as_many_numbers_is_another_shape(table: Predictor, nested: str) -> None:
    assert ask(table, f'{{"data": {nested}}}'.encode()).status == 400


def test_the_largest_batch_of_lines_is_answered(table: Predictor) -> None:
    assert len(records(ask(table, ROW * MAX_INSTANCES))) == MAX_INSTANCES


def test_no_label_can_break_a_line(tmp_path: Path, table: Predictor) -> None:
    body = lines("data", np.random.default_rng(4).normal(size=(200, 4)).astype(np.float32))
    found = {record["names"] for record in records(ask(table, body))}
    assert found == set(serving_models.TABLE_LABELS)

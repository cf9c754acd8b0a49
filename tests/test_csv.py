"""Models of tables: rows as text/csv, JSON and npy, labels that are names, and what is refused with which code."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_code.inference.contract import MAX_INSTANCES, Request, Response
from model_code.inference.predictor import Predictor
from model_code.inference.respond import respond
from tests import serving_models

JSON, NPY, CSV = "application/json", "application/x-npy", "text/csv"
ROWS = np.random.default_rng(9).normal(size=(5, 4)).astype(np.float32)
NAMES = [serving_models.TABLE_LABELS[index] for index in serving_models.table_probabilities(ROWS).argmax(axis=1)]
ROW = b"5.1,3.5,1.4,0.2"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    directory = tmp_path_factory.mktemp("table")
    serving_models.write_table_model(directory)
    return Predictor.load(directory)


def ask(predictor: Predictor, body: bytes, content_type: str = CSV, accept: str | None = None) -> Response:
    return respond(predictor, Request(body, content_type, accept, "request-1"))


def names(response: Response) -> Any:
    assert response.status == 200, response.body
    return json.loads(response.body)["names"]


def refusal(response: Response) -> tuple[int, str]:
    return response.status, json.loads(response.body)["error"]["code"]


def as_csv(rows: Any, end: str = "\n") -> bytes:
    return "".join(",".join(map(repr, row)) + end for row in rows.tolist()).encode()


def as_npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# What is answered.


@pytest.mark.parametrize(
    "body",
    [as_csv(ROWS), as_csv(ROWS, "\r\n"), as_csv(ROWS).removesuffix(b"\n"), as_csv(ROWS, "\r\n").removesuffix(b"\r\n")],
    ids=["lf", "crlf", "no-newline-at-the-end", "crlf-no-newline-at-the-end"],
)
def test_each_line_is_one_instance(predictor: Predictor, body: bytes) -> None:
    assert names(ask(predictor, body)) == NAMES


def test_json_npy_and_csv_say_the_same(predictor: Predictor) -> None:
    bodies = {CSV: as_csv(ROWS), JSON: json.dumps({"data": ROWS.tolist()}).encode(), NPY: as_npy(ROWS)}
    answers = {ask(predictor, body, content_type).body for content_type, body in bodies.items()}
    assert len(answers) == 1


def test_json_gives_probabilities_beside_the_names(predictor: Predictor) -> None:
    body = json.dumps({"data": ROWS.tolist(), "probabilities": True}).encode()
    document = json.loads(ask(predictor, body, JSON).body)
    assert document["names"] == NAMES
    assert np.allclose(document["probabilities"], serving_models.table_probabilities(ROWS), atol=1e-6)


@pytest.mark.parametrize("cell", ["1", "+1", "-1.5", ".5", "5.", "1e3", "1E-3", "-0", "3e30", "0" * 5000 + "1"])
def test_a_number_may_be_written_in_every_usual_way(predictor: Predictor, cell: str) -> None:
    assert len(names(ask(predictor, f"{cell},0,0,0".encode()))) == 1


def test_the_largest_batch_is_taken(predictor: Predictor) -> None:
    assert len(names(ask(predictor, (ROW + b"\n") * MAX_INSTANCES))) == MAX_INSTANCES


def test_a_csv_answer_has_one_label_a_line(predictor: Predictor) -> None:
    response = ask(predictor, as_csv(ROWS), accept=CSV)
    assert response.headers["content-type"] == CSV
    assert [label for (label,) in csv.reader(io.StringIO(response.body.decode()))] == NAMES


def test_an_npy_answer_of_names_is_read_without_pickle(predictor: Predictor) -> None:
    response = ask(predictor, as_csv(ROWS), accept=NPY)
    assert np.load(io.BytesIO(response.body), allow_pickle=False).tolist() == NAMES


# What is refused.

BAD: dict[str, tuple[int, str, bytes]] = {
    "empty": (400, "EMPTY_BODY", b""),
    "only a newline": (400, "EMPTY_BATCH", b"\r\n"),
    "a header": (400, "BAD_CSV", b"a,b,c,d\n" + ROW),
    "a label": (400, "BAD_CSV", b"setosa,5.1,3.5,1.4"),
    "quotes": (400, "BAD_CSV", b'"5.1",3.5,1.4,0.2'),
    "a space": (400, "BAD_CSV", b"5.1, 3.5,1.4,0.2"),
    "a tab": (400, "BAD_CSV", b"5.1,3.5,1.4,0.2\t"),
    "an empty value": (400, "BAD_CSV", b"5.1,,1.4,0.2"),
    "an underscore": (400, "BAD_CSV", b"1_0,3.5,1.4,0.2"),
    "two signs": (400, "BAD_CSV", b"--1,3.5,1.4,0.2"),
    "half an exponent": (400, "BAD_CSV", b"1e,3.5,1.4,0.2"),
    "hexadecimal": (400, "BAD_CSV", b"0x10,3.5,1.4,0.2"),
    "a lone carriage return": (400, "BAD_CSV", b"5.1\r,3.5,1.4,0.2"),
    "a byte order mark": (400, "BAD_CSV", b"\xef\xbb\xbf" + ROW),
    "no UTF-8": (400, "BAD_CSV", b"\xff,3.5,1.4,0.2"),
    "Arabic digits": (400, "BAD_CSV", "٥,3.5,1.4,0.2".encode()),
    "a null byte": (400, "BAD_CSV", b"5.1,3.5,1.4,0.2\0"),
    "a value less": (400, "BAD_SHAPE", b"5.1,3.5,1.4"),
    "a value more": (400, "BAD_SHAPE", ROW + b",1"),
    "a comma at the end": (400, "BAD_SHAPE", ROW + b","),
    "a blank line": (400, "BAD_SHAPE", ROW + b"\n\n" + ROW),
    "decimal commas": (400, "BAD_SHAPE", b"5,1,3,5,1,4,0,2"),
    "semicolons": (400, "BAD_SHAPE", b"5.1;3.5;1.4;0.2"),
    "nan": (400, "NOT_FINITE", b"nan,3.5,1.4,0.2"),
    "infinity": (400, "NOT_FINITE", b"5.1,-Infinity,1.4,0.2"),
    "1e400": (400, "NOT_FINITE", b"1e400,3.5,1.4,0.2"),
    "1e39": (400, "OUT_OF_RANGE", b"5.1,3.5,1.4,1e39"),
    "a row too many": (413, "TOO_MANY_INSTANCES", (ROW + b"\n") * (MAX_INSTANCES + 1)),
    "newlines only": (413, "TOO_MANY_INSTANCES", b"1" + b"\n" * 1_000_000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_refused_with_its_code(predictor: Predictor, name: str) -> None:
    status, code, body = BAD[name]
    assert refusal(ask(predictor, body)) == (status, code)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (ROW + b"\n5.1,x,1.4,0.2\n", "csv: line 2, value 2: not a number"),
        (ROW + b"\r\n5.1,3.5,1.4,inf\r\n", "csv: line 2, value 4: NaN and infinity"),
        (ROW + b"\n" + ROW + b"\n5.1", "csv: line 3: 1 values; expected 4"),
    ],
)
def test_a_refusal_says_where(predictor: Predictor, body: bytes, where: str) -> None:
    message = json.loads(ask(predictor, body).body)["error"]["message"]
    assert message.startswith(where)


def test_a_refusal_repeats_nothing_of_the_body(predictor: Predictor) -> None:
    assert b"secret" not in ask(predictor, b"secret,1,2,3").body


@pytest.mark.parametrize("body", [b"1" * 4_000_000 + b",1,1,1", b"," * 4_000_000, b"x" * 4_000_000])
def test_a_large_bad_body_is_refused(predictor: Predictor, body: bytes) -> None:
    assert ask(predictor, body).status == 400


def test_images_are_refused_by_a_model_of_tables(predictor: Predictor) -> None:
    for body, content_type in (
        (b'{"images": [[1, 2, 3, 4]]}', JSON),
        (as_npy(np.zeros((1, 4), np.uint8)), NPY),
    ):
        response = ask(predictor, body, content_type)
        assert refusal(response) == (400, "BAD_FIELD")
        assert "this model takes no raw images; send data, numbers of shape [n, 4]" in response.body.decode()


def test_probabilities_do_not_fit_a_csv_answer(predictor: Predictor) -> None:
    body = json.dumps({"data": ROWS.tolist(), "probabilities": True}).encode()
    assert refusal(ask(predictor, body, JSON, CSV)) == (400, "BAD_FIELD")


def test_a_model_of_images_takes_no_csv_and_says_what_it_takes(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path)
    response = ask(Predictor.load(tmp_path), ROW)
    assert refusal(response) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert "this one takes application/json and application/x-npy" in response.body.decode()

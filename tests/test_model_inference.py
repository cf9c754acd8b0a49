"""The serving core on plain bytes: what it accepts, what it refuses and with which code, and which models it loads."""

import hashlib
import io
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from infra.settings import ROOT
from model_code.inference import contract, errors
from model_code.inference.codecs import DECODERS, ENCODERS
from model_code.inference.contract import (
    DEADLINE_SECONDS,
    MAX_INSTANCES,
    Golden,
    Limits,
    Request,
    Response,
    model_json_bytes,
    parse_model_json,
)
from model_code.inference.predictor import Predictor
from model_code.inference.preprocess import normalise
from model_code.inference.respond import STATUS, error_response, health, respond
from tests import serving_models

JSON = "application/json"
NPY = "application/x-npy"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    directory = tmp_path_factory.mktemp("model")
    serving_models.write_model(directory)
    return Predictor.load(directory)


@pytest.fixture(scope="module")
def inputs() -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=(3, 1, 28, 28)).astype(np.float32)


def ask(
    predictor: Predictor | None, body: bytes, content_type: str | None = JSON, accept: str | None = None
) -> Response:
    return respond(predictor, Request(body, content_type, accept, "request-1"))


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def as_npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def code(response: Response) -> str:
    error = json.loads(response.body)["error"]
    assert sorted(error) == ["code", "message", "request_id"]
    assert error["request_id"] == "request-1"
    return str(error["code"])


def image(value: float = 0.5) -> list[Any]:
    return [[[value] * 28 for _ in range(28)]]


def with_pixel(text: str, key: str = "data") -> bytes:
    """A body of one image whose last pixel is this text."""
    rows = json.dumps(image(1))
    return f'{{"{key}": [{rows[:-5]} {text}]]]]}}'.encode()


def labels_of(inputs: NDArray[Any]) -> list[int]:
    labels: list[int] = serving_models.log_probabilities(inputs).argmax(axis=1).tolist()
    return labels


# What is accepted


def test_normalised_json_gets_the_labels_under_the_key_of_the_model(predictor: Predictor, inputs: NDArray[Any]) -> None:
    response = ask(predictor, as_json({"data": inputs.tolist()}))
    assert response.status == 200
    assert json.loads(response.body) == {"digits": labels_of(inputs)}
    assert response.headers["content-type"] == JSON
    assert response.headers["x-release-id"] == predictor.release_id


@pytest.mark.parametrize("order", ["before", "after"])
def test_probabilities_come_when_they_are_asked_for(predictor: Predictor, inputs: NDArray[Any], order: str) -> None:
    data, wanted = {"data": inputs.tolist()}, {"probabilities": True}
    document = json.loads(ask(predictor, as_json(wanted | data if order == "before" else data | wanted)).body)
    assert document["digits"] == labels_of(inputs)
    expected = np.exp(serving_models.log_probabilities(inputs))
    np.testing.assert_allclose(document["probabilities"], expected, atol=1e-5)


def test_probabilities_false_means_labels_only(predictor: Predictor, inputs: NDArray[Any]) -> None:
    assert list(json.loads(ask(predictor, as_json({"data": inputs.tolist(), "probabilities": False})).body)) == [
        "digits"
    ]


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 28, 28)])
@pytest.mark.parametrize(
    "encode", [lambda raw: (as_json({"images": raw.tolist()}), JSON), lambda raw: (as_npy(raw), NPY)]
)
def test_raw_images_are_normalised_with_the_constants_of_the_model(
    predictor: Predictor, shape: tuple[int, ...], encode: Callable[[NDArray[Any]], tuple[bytes, str]]
) -> None:
    raw = np.random.default_rng(3).integers(0, 256, size=shape).astype(np.uint8)
    response = ask(predictor, *encode(raw))
    assert json.loads(response.body) == {"digits": labels_of((raw / 255 - 0.1307) / 0.3081)}


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_float_and_order_gets_the_same_labels(
    predictor: Predictor, inputs: NDArray[Any], dtype: str, order: str
) -> None:
    body = as_npy(np.asarray(inputs, dtype=dtype, order=order))  # type: ignore[call-overload]
    assert json.loads(ask(predictor, body, NPY).body) == {"digits": labels_of(inputs)}


def test_npy_of_every_format_version_is_read(predictor: Predictor, inputs: NDArray[Any]) -> None:
    for version in ((1, 0), (2, 0), (3, 0)):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, inputs, version=version)
        assert json.loads(ask(predictor, stream.getvalue(), NPY).body) == {"digits": labels_of(inputs)}


def test_an_npy_answer_holds_the_labels(predictor: Predictor, inputs: NDArray[Any]) -> None:
    response = ask(predictor, as_npy(inputs), NPY, accept=NPY)
    assert response.headers["content-type"] == NPY
    assert np.load(io.BytesIO(response.body), allow_pickle=False).tolist() == labels_of(inputs)


def test_probabilities_and_an_npy_answer_exclude_each_other(predictor: Predictor, inputs: NDArray[Any]) -> None:
    body = as_json({"data": inputs.tolist(), "probabilities": True})
    assert code(ask(predictor, body, accept=NPY)) == "BAD_FIELD"


@pytest.mark.parametrize(
    "content_type",
    [None, "", JSON, "Application/JSON", f"{JSON}; charset=utf-8", f'{JSON};charset="UTF-8"', f"{JSON};"],
)
def test_json_is_what_a_body_without_another_content_type_is(predictor: Predictor, content_type: str | None) -> None:
    assert ask(predictor, as_json({"data": [image()]}), content_type).status == 200


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (f"{NPY}, {JSON}", JSON),
        (f"{NPY};q=0.9, {JSON};q=0.8", NPY),
        (f"{JSON};q=0, */*", NPY),
        ("text/html, */*;q=0.1", JSON),
        (f"{JSON}; charset=utf-8", JSON),
    ],
)
def test_the_answer_has_the_media_type_that_the_caller_prefers(
    predictor: Predictor, accept: str | None, media_type: str
) -> None:
    assert ask(predictor, as_json({"data": [image()]}), accept=accept).headers["content-type"] == media_type


@pytest.mark.parametrize("pixel", ["-0.0", "1e5", "3.4e38", "1E-400", "-12", "18446744073709551615"])
def test_every_spelling_of_a_finite_float32_is_a_pixel(predictor: Predictor, pixel: str) -> None:
    assert ask(predictor, with_pixel(pixel)).status == 200


def test_the_largest_batch_is_answered(predictor: Predictor) -> None:
    body = as_npy(np.zeros((contract.MAX_INSTANCES, 28, 28), np.uint8))
    assert len(json.loads(ask(predictor, body, NPY).body)["digits"]) == contract.MAX_INSTANCES


# What is refused

BAD_JSON_BODIES = {
    "not-json": (b"hello", "BAD_JSON"),
    "only-space": (b"  ", "BAD_JSON"),
    "cut-off": (b'{"data": [[', "BAD_JSON"),
    "trailing-bytes": (as_json({"data": [image()]}) + b"x", "BAD_JSON"),
    "trailing-document": (as_json({"data": [image()]}) * 2, "BAD_JSON"),
    "trailing-nul": (as_json({"data": [image()]}) + b"\0", "BAD_JSON"),
    "trailing-comma": (b'{"data": [[[[1,]]]]}', "BAD_JSON"),
    "leading-zero": (with_pixel("01"), "BAD_JSON"),
    "leading-plus": (with_pixel("+1"), "BAD_JSON"),
    "hexadecimal": (with_pixel("0x1"), "BAD_JSON"),
    "single-quotes": (b"{'data': []}", "BAD_JSON"),
    "comment": (b'{"data": [] /* none */}', "BAD_JSON"),
    "invalid-utf-8": (b'{"data": "\xff"}', "BAD_JSON"),
    "byte-order-mark": (b"\xef\xbb\xbf" + as_json({"data": [image()]}), "BAD_JSON"),
    "utf-16": (json.dumps({"data": [image()]}).encode("utf-16"), "BAD_JSON"),
    "half-a-surrogate": (b'{"\\ud800": 1}', "BAD_JSON"),
    "too-deep": (b'{"data": ' + b"[" * 2000 + b"]" * 2000 + b"}", "BAD_JSON"),
    "very-deep": (b"[" * 1_000_000, "BAD_JSON"),
    "nan": (with_pixel("NaN"), "NOT_FINITE"),
    "infinity": (with_pixel("Infinity"), "NOT_FINITE"),
    "minus-infinity": (with_pixel("-Infinity"), "NOT_FINITE"),
    "1e400": (with_pixel("1e400"), "NOT_FINITE"),
    "minus-1e400": (with_pixel("-1e400"), "NOT_FINITE"),
    "duplicate-data": (b'{"data": [], "data": []}', "DUPLICATE_KEY"),
    "duplicate-by-escape": (b'{"data": [], "\\u0064ata": []}', "DUPLICATE_KEY"),
    "no-object": (b"[[1]]", "BAD_FIELD"),
    "a-text": (b'"data"', "BAD_FIELD"),
    "null": (b"null", "BAD_FIELD"),
    "no-key": (b"{}", "BAD_FIELD"),
    "unknown-key": (b'{"data": [], "extra": 1}', "BAD_FIELD"),
    "both-keys": (b'{"data": [], "images": []}', "BAD_FIELD"),
    "probabilities-number": (b'{"data": [], "probabilities": 1}', "BAD_DTYPE"),
    "probabilities-null": (b'{"data": [], "probabilities": null}', "BAD_DTYPE"),
    "783-values": (as_json({"data": [[[[0.5] * 28] * 27 + [[0.5] * 27]]]}), "BAD_SHAPE"),
    "785-values": (as_json({"data": [[[[0.5] * 28] * 27 + [[0.5] * 29]]]}), "BAD_SHAPE"),
    "ragged-with-the-right-count": (as_json({"data": [[[[0.5] * 28] * 26 + [[0.5] * 27, [0.5] * 29]]]}), "BAD_SHAPE"),
    "flat": (as_json({"data": [0.5] * 784}), "BAD_SHAPE"),
    "flat-rows": (as_json({"data": [[0.5] * 784]}), "BAD_SHAPE"),
    "no-channel": (as_json({"data": [[[0.5] * 28] * 28]}), "BAD_SHAPE"),
    "two-channels": (as_json({"data": [image()[0:1] * 2]}), "BAD_SHAPE"),
    "rank-5": (as_json({"data": [[image()]]}), "BAD_SHAPE"),
    "array-as-pixel": (with_pixel("[1]"), "BAD_SHAPE"),
    "empty-array-beside-a-pair": (with_pixel("[], 1"), "BAD_SHAPE"),
    "pixels-beside-rows": (as_json({"data": [[[[0.5] * 28] * 27 + [0.5] * 28]]}), "BAD_SHAPE"),
    "second-image-differs": (as_json({"data": [image(), [[[0.5] * 28] * 27]]}), "BAD_SHAPE"),
    "an-empty-image": (as_json({"data": [[]]}), "BAD_SHAPE"),
    "rows-of-nothing": (as_json({"data": [[[[]] * 28]]}), "BAD_SHAPE"),
    "a-number-instead": (as_json({"data": 5}), "BAD_SHAPE"),
    "text-instead": (as_json({"data": "5"}), "BAD_DTYPE"),
    "null-instead": (as_json({"data": None}), "BAD_DTYPE"),
    "true-instead": (as_json({"data": True}), "BAD_DTYPE"),
    "object-instead": (as_json({"data": {}}), "BAD_DTYPE"),
    "text-as-pixel": (with_pixel('"1"'), "BAD_DTYPE"),
    "null-as-pixel": (with_pixel("null"), "BAD_DTYPE"),
    "true-as-pixel": (with_pixel("true"), "BAD_DTYPE"),
    "object-as-pixel": (with_pixel("{}"), "BAD_DTYPE"),
    "object-with-brackets-as-pixel": (with_pixel('{"[": "]"}'), "BAD_DTYPE"),
    "float32-overflow": (with_pixel("1e39"), "OUT_OF_RANGE"),
    "float32-underflow-side": (with_pixel("-3.5e38"), "OUT_OF_RANGE"),
    "past-64-bits": (with_pixel("18446744073709551616"), "OUT_OF_RANGE"),
    "past-64-bits-negative": (with_pixel("-9223372036854775809"), "OUT_OF_RANGE"),
    "five-thousand-digits": (with_pixel("9" * 5000), "OUT_OF_RANGE"),
    "raw-256": (with_pixel("256", "images"), "OUT_OF_RANGE"),
    "raw-minus-1": (with_pixel("-1", "images"), "OUT_OF_RANGE"),
    "raw-nan": (with_pixel("NaN", "images"), "NOT_FINITE"),
    "raw-text": (with_pixel('"a"', "images"), "BAD_DTYPE"),
    "raw-rank-2": (as_json({"images": [[1.0] * 784]}), "BAD_SHAPE"),
    "no-instances": (as_json({"data": []}), "EMPTY_BATCH"),
    "no-images": (as_json({"images": []}), "EMPTY_BATCH"),
    "empty": (b"", "EMPTY_BODY"),
}


@pytest.mark.parametrize(("body", "expected"), BAD_JSON_BODIES.values(), ids=BAD_JSON_BODIES.keys())
def test_a_bad_json_body_is_400_with_its_code(predictor: Predictor, body: bytes, expected: str) -> None:
    response = ask(predictor, body)
    assert (response.status, code(response)) == (400, expected)


def test_a_bad_shape_names_the_shape_that_is_expected(predictor: Predictor) -> None:
    message = json.loads(ask(predictor, as_json({"images": [[1]]})).body)["error"]["message"]
    assert "[n, 1, 28, 28] or [n, 28, 28]" in message


@pytest.mark.parametrize(
    ("body", "position"), [(b'{"data" []}', "character 8"), (b'{"data": "\xff"}', "byte 10"), (b"{} x", "character 3")]
)
def test_bad_json_names_the_position(predictor: Predictor, body: bytes, position: str) -> None:
    assert position in json.loads(ask(predictor, body).body)["error"]["message"]


def npy_header(text: str, payload: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode() + payload


def descr(dtype: str = "<f4", shape: str = "(1, 1, 28, 28)", order: str = "False") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}\n"


BAD_NPY_BODIES = {
    "not-npy": (b"hello world, hello", "BAD_NPY"),
    "magic-only": (b"\x93NUMPY", "BAD_NPY"),
    "npz": (b"PK\x03\x04" + bytes(100), "BAD_NPY"),
    "version-9": (npy_header(descr(), version=b"\x09\x00"), "BAD_NPY"),
    "header-cut-off": (npy_header(descr())[:30], "BAD_NPY"),
    "header-of-4-gib": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "BAD_NPY"),
    "header-not-literal": (npy_header("__import__('os').system('true')\n"), "BAD_NPY"),
    "header-nested": (npy_header("(" * 900), "BAD_NPY"),
    "header-unhashable": (npy_header("{[]: 1}"), "BAD_NPY"),
    "header-not-utf-8": (b"\x93NUMPY\x03\x00\x02\x00\x00\x00\xff\xfe", "BAD_NPY"),
    "header-list": (npy_header("[]"), "BAD_NPY"),
    "header-extra-key": (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (), 'x': 1}"), "BAD_NPY"),
    "negative-size": (npy_header(descr(shape="(-1, 1, 28, 28)")), "BAD_NPY"),
    "float-size": (npy_header(descr(shape="(1.0, 1, 28, 28)")), "BAD_NPY"),
    "list-shape": (npy_header(descr(shape="[1, 1, 28, 28]")), "BAD_NPY"),
    "order-1": (npy_header(descr(order="1")), "BAD_NPY"),
    "more-promised-than-sent": (npy_header(descr(), bytes(3135)), "BAD_NPY"),
    "more-sent-than-promised": (npy_header(descr(), bytes(3137)), "BAD_NPY"),
    "huge-batch-promised": (npy_header(descr(shape="(1024, 1, 28, 28)")), "BAD_NPY"),
    "huge-image-promised": (npy_header(descr(shape="(1, 1, 9999999999, 9999999999)")), "BAD_SHAPE"),
    "pickle": (as_npy(np.array([{}]), allow_pickle=True), "BAD_DTYPE"),
    "object-dtype": (npy_header(descr("|O")), "BAD_DTYPE"),
    "structured-dtype": (as_npy(np.zeros(1, [("a", "<f4")])), "BAD_DTYPE"),
    "int64": (as_npy(np.zeros((1, 1, 28, 28), np.int64)), "BAD_DTYPE"),
    "float16": (as_npy(np.zeros((1, 1, 28, 28), np.float16)), "BAD_DTYPE"),
    "complex": (as_npy(np.zeros((1, 1, 28, 28), np.complex64)), "BAD_DTYPE"),
    "bool": (as_npy(np.zeros((1, 1, 28, 28), np.bool_)), "BAD_DTYPE"),
    "text": (as_npy(np.array(["a"])), "BAD_DTYPE"),
    "scalar": (as_npy(np.float32(1)), "BAD_SHAPE"),
    "flat": (as_npy(np.zeros((1, 784), np.float32)), "BAD_SHAPE"),
    "27-rows": (as_npy(np.zeros((1, 1, 27, 28), np.float32)), "BAD_SHAPE"),
    "float-without-channel": (as_npy(np.zeros((1, 28, 28), np.float32)), "BAD_SHAPE"),
    "no-instances": (as_npy(np.zeros((0, 1, 28, 28), np.float32)), "EMPTY_BATCH"),
    "nan": (as_npy(np.full((1, 1, 28, 28), np.nan, np.float32)), "NOT_FINITE"),
    "infinity": (as_npy(np.full((1, 1, 28, 28), -np.inf)), "NOT_FINITE"),
    "float64-past-float32": (as_npy(np.full((1, 1, 28, 28), 1e39)), "OUT_OF_RANGE"),
}


@pytest.mark.parametrize(("body", "expected"), BAD_NPY_BODIES.values(), ids=BAD_NPY_BODIES.keys())
def test_a_bad_npy_body_is_400_with_its_code(predictor: Predictor, body: bytes, expected: str) -> None:
    response = ask(predictor, body, NPY)
    assert (response.status, code(response)) == (400, expected)


@pytest.mark.parametrize("size", [contract.MAX_BODY_BYTES - 1, contract.MAX_BODY_BYTES])
def test_a_body_up_to_the_limit_is_answered(predictor: Predictor, size: int) -> None:
    assert ask(predictor, as_json({"data": [image()]}).ljust(size)).status == 200


def test_a_body_over_the_limit_is_refused_with_413(predictor: Predictor) -> None:
    response = ask(predictor, as_json({"data": [image()]}).ljust(contract.MAX_BODY_BYTES + 1))
    assert (response.status, code(response)) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"data": [' + b"[]," * contract.MAX_INSTANCES + b"[]]}", JSON),
        (as_npy(np.zeros((contract.MAX_INSTANCES + 1, 28, 28), np.uint8)), NPY),
    ],
)
def test_one_instance_too_many_is_refused_with_413(predictor: Predictor, body: bytes, content_type: str) -> None:
    response = ask(predictor, body, content_type)
    assert (response.status, code(response)) == (413, "TOO_MANY_INSTANCES")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/xml",
        "application/x-npy-pickle",
        f"{JSON}; charset=utf-7",
        f"{JSON};charset=utf-8;charset=latin-1",
        "json",
        ";",
    ],
)
def test_an_unsupported_content_type_is_415_and_lists_what_is(predictor: Predictor, content_type: str) -> None:
    response = ask(predictor, as_json({"data": [image()]}), content_type)
    assert (response.status, code(response)) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert all(media_type in json.loads(response.body)["error"]["message"] for media_type in DECODERS)


@pytest.mark.parametrize(
    "accept", ["text/xml", f"{JSON};q=0", "image/*", f"{JSON};q=nonsense", f"{JSON};q=nan", f"*/*;q=0, {NPY};q=0.0"]
)
def test_an_answer_that_the_caller_does_not_accept_is_406(predictor: Predictor, accept: str) -> None:
    response = ask(predictor, as_json({"data": [image()]}), accept=accept)
    assert (response.status, code(response)) == (406, "NOT_ACCEPTABLE")
    assert all(media_type in json.loads(response.body)["error"]["message"] for media_type in ENCODERS)


def test_a_bad_request_leaves_no_trace_in_the_next_one(predictor: Predictor, inputs: NDArray[Any]) -> None:
    golden = as_json({"data": inputs.tolist(), "probabilities": True})
    before = ask(predictor, golden).body
    kept = []
    for body, _ in BAD_JSON_BODIES.values():
        response = ask(predictor, body)
        try:  # an error that somebody keeps, with its traceback, keeps the parser's document alive
            DECODERS[JSON](body, predictor.description.signature, MAX_INSTANCES)
        except errors.RequestError as error:
            kept.append(error)
        assert response.status == 400
        assert ask(predictor, golden).body == before
    assert kept


def test_threads_do_not_share_what_they_parse(predictor: Predictor) -> None:
    rng = np.random.default_rng(11)
    batches = [rng.normal(size=(4, 1, 28, 28)).astype(np.float32) for _ in range(4)]
    wrong: list[object] = []

    def client(batch: NDArray[np.float32]) -> None:
        body, expected = as_json({"data": batch.tolist()}), {"digits": labels_of(batch)}
        wrong.extend(answer for _ in range(50) if (answer := json.loads(ask(predictor, body).body)) != expected)

    threads = [threading.Thread(target=client, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What takes too long


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    directory = tmp_path_factory.mktemp("slow")
    serving_models.write_slow_model(directory)
    return Predictor.load(directory)


def test_an_inference_is_ended_at_its_deadline_and_the_next_one_is_answered(
    slow: Predictor, inputs: NDArray[np.float32]
) -> None:
    before, started = slow.run(inputs), time.monotonic()
    for seconds in (0.2, 0.05, 0.0):
        with pytest.raises(errors.DeadlineExceeded):
            slow.run(serving_models.SLOW, seconds=seconds)
        np.testing.assert_array_equal(slow.run(inputs), before)
    assert time.monotonic() - started < 60  # ended, and not only found to be late


def test_a_deadline_ends_no_inference_but_its_own(slow: Predictor, inputs: NDArray[np.float32]) -> None:
    expected = slow.run(inputs)
    late: list[float] = []

    def wait_in_vain(seconds: float) -> None:
        with pytest.raises(errors.DeadlineExceeded):
            slow.run(serving_models.SLOW, seconds=seconds)
        late.append(seconds)

    threads = [threading.Thread(target=wait_in_vain, args=(seconds,)) for seconds in (1.0, 0.1, 0.5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        np.testing.assert_array_equal(slow.run(inputs), expected)
    assert sorted(late) == [0.1, 0.5, 1.0]


def test_a_slow_request_is_504(slow: Predictor, inputs: NDArray[np.float32]) -> None:
    request = Request(as_json({"data": serving_models.SLOW.tolist()}), JSON, None, "request-1")
    response = respond(slow, request, limits=Limits(seconds=0.3))
    assert (response.status, code(response)) == (504, "DEADLINE_EXCEEDED")
    assert ask(slow, as_json({"data": inputs.tolist()})).status == 200


def test_a_request_whose_time_is_over_is_504_and_not_even_read(predictor: Predictor) -> None:
    arrived = time.monotonic() - DEADLINE_SECONDS
    response = respond(predictor, Request(b"no JSON", JSON, None, "request-1", arrived))
    assert (response.status, code(response)) == (504, "DEADLINE_EXCEEDED")
    assert f"within {DEADLINE_SECONDS:g} seconds" in json.loads(response.body)["error"]["message"]


def test_another_failure_of_onnx_runtime_is_not_taken_for_a_late_answer(slow: Predictor) -> None:
    with pytest.raises(InvalidArgument):
        slow.run(np.zeros((1, 2), np.float32))


def test_a_model_whose_golden_inference_does_not_end_is_not_served(tmp_path: Path) -> None:
    class Hasty(Predictor):
        def run(self, inputs: NDArray[np.float32], *, seconds: float = 0.1) -> NDArray[np.float32]:
            return super().run(inputs, seconds=seconds)

    description = serving_models.write_slow_model(tmp_path)
    endless = Golden(serving_models.SLOW, serving_models.log_probabilities(serving_models.SLOW))
    signature = description.signature._replace(golden=endless)
    (tmp_path / "model.json").write_bytes(model_json_bytes(description._replace(signature=signature)))
    with pytest.raises(errors.ModelInvalid, match="the golden inference failed: the inference was ended after"):
        Hasty.load(tmp_path)


# What goes wrong on our side


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError(), SystemExit(3), ZeroDivisionError("secret /opt/path")]
)
def test_anything_unexpected_is_a_500_envelope_without_details(
    tmp_path: Path, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Predictor):
        def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
            if len(inputs) == 1:  # so that the golden inference passes
                raise error
            return super().run(inputs, seconds=seconds)

    serving_models.write_model(tmp_path)
    broken = Broken.load(tmp_path)
    response = ask(broken, as_json({"data": [image()]}))
    assert (response.status, code(response)) == (500, "INTERNAL")
    assert b"secret" not in response.body
    assert b"Traceback" not in response.body
    assert "request-1" in caplog.text
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize("first", [0, 1, 2])
def test_numbers_that_the_model_has_no_finite_answer_to_are_400_and_name_the_instance(
    predictor: Predictor, inputs: NDArray[np.float32], first: int
) -> None:
    batch = inputs.copy()
    batch[first:] = 3e38
    response = ask(predictor, as_npy(batch), NPY)
    assert (response.status, code(response)) == (400, "OUTPUT_NOT_FINITE")
    assert f"instance {first + 1} of 3" in json.loads(response.body)["error"]["message"]
    assert ask(predictor, as_npy(inputs), NPY).status == 200


def test_without_a_model_every_request_is_503(inputs: NDArray[Any]) -> None:
    response = ask(None, as_json({"data": inputs.tolist()}))
    assert (response.status, code(response)) == (503, "NOT_READY")
    assert (health(None, "request-1").status, code(health(None, "request-1"))) == (503, "NOT_READY")


def test_health_tells_the_release(predictor: Predictor) -> None:
    response = health(predictor, "request-1")
    assert response.status == 200
    document = json.loads(response.body)
    assert document["release_id"] == predictor.release_id
    assert document["onnx_sha256"].startswith(predictor.release_id.removeprefix("mnist-"))


def test_an_overloaded_door_says_when_to_come_back() -> None:
    response = error_response(errors.Overloaded("busy"), "request-1")
    assert (response.status, code(response), response.headers["retry-after"]) == (503, "OVERLOADED", "1")


def test_every_error_of_the_caller_has_a_status_of_its_own_class() -> None:
    def leaves(kind: type[BaseException]) -> list[type[BaseException]]:
        below = kind.__subclasses__()
        return [leaf for inner in below for leaf in leaves(inner)] or [kind]

    for kind in leaves(errors.RequestError):
        statuses = [STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS]
        assert statuses, kind
        assert 400 <= statuses[0] < 500


# model.json


def test_model_json_survives_reading_and_writing_byte_for_byte(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path)
    raw = (tmp_path / "model.json").read_bytes()
    assert model_json_bytes(parse_model_json(raw)) == raw
    assert raw.endswith(b"}\n")


def set_at(document: Any, path: str, value: Any) -> bytes:
    *parents, last = path.split("/")
    node = document
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return as_json(document)


BAD_FIELDS: list[tuple[str, Any]] = [
    ("schema_version", 2),
    ("schema_version", True),
    ("schema_version", ...),
    ("extra", 1),
    ("model", "MNIST"),
    ("model", ...),
    ("signature/input/shape", [1, 1, 28, 28]),
    ("signature/input/shape", [None]),
    ("signature/input/shape", []),
    ("signature/input/shape/1", 0),
    ("signature/input/dtype", "float64"),
    ("signature/input/name", ""),
    ("signature/output/activation", "softmax"),
    ("signature/output/shape", [None, 2, 5]),
    ("signature/preprocessing/scale", 0),
    ("signature/preprocessing/scale", True),
    ("signature/preprocessing/mean", []),
    ("signature/preprocessing/std", [0.0]),
    ("signature/labels", list(range(9))),
    ("signature/labels", [0] * 10),
    ("signature/labels", [0.5, *range(1, 10)]),
    ("signature/labels", [2**63, *range(1, 10)]),
    ("signature/labels", ["\ud800", *"123456789"]),
    ("signature/response_key", "error"),
    ("signature/response_key", "Digits"),
    ("signature/golden/inputs/data", "AAAA"),
    ("signature/golden/inputs/data", "!"),
    ("signature/golden/inputs/shape", [4, 1, 28, 27]),
    ("signature/golden/outputs/shape", [3, 10]),
    ("signature/golden/outputs/dtype", "float64"),
    ("onnx/sha256", "A" * 64),
    ("onnx/size", 0),
    ("onnx/opset", "18"),
    ("metrics/accuracy", "high"),
    ("metrics/accuracy", 10**400),
    ("source_revision", json.loads("[" * 500 + "]" * 500)),
    ("training/ended_at", "yesterday"),
    ("training/dataset", None),
    ("framework_versions/numpy", 2),
    ("source_revision", ""),
]


@pytest.mark.parametrize(("path", "value"), BAD_FIELDS, ids=[f"{path}={value}"[:60] for path, value in BAD_FIELDS])
def test_a_field_that_model_json_may_not_have_is_named_by_its_pointer(tmp_path: Path, path: str, value: Any) -> None:
    serving_models.write_model(tmp_path)
    raw = set_at(json.loads((tmp_path / "model.json").read_bytes()), path, value)
    with pytest.raises(errors.ModelInvalid) as caught:
        parse_model_json(raw)
    assert f"/{'/'.join(path.split('/')[:2])}" in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"model": NaN}',
        b'{"model": 1e400}',
        b'{"a": 1, "a": 2}',
        b"{" + b",".join(b'"%d": 1' % key for key in [*range(200_000), 199_999]) + b"}",  # in seconds, not in minutes
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_strict_json_is_no_model_json(raw: bytes) -> None:
    with pytest.raises(errors.ModelInvalid):
        parse_model_json(raw)


# Loading


def rewrite(directory: Path, **changes: Any) -> None:
    """Change the description in a model directory."""
    path = directory / "model.json"
    path.write_bytes(model_json_bytes(parse_model_json(path.read_bytes())._replace(**changes)))


def replace_model(directory: Path, model: bytes) -> None:
    """Put another ONNX file in place, with a model.json that vouches for its bytes."""
    (directory / "model.onnx").write_bytes(model)
    described = parse_model_json((directory / "model.json").read_bytes()).onnx
    rewrite(directory, onnx=described._replace(sha256=hashlib.sha256(model).hexdigest(), size=len(model)))


def test_a_model_is_loaded_under_its_pins(tmp_path: Path) -> None:
    description = serving_models.write_model(tmp_path)
    digest = hashlib.sha256((tmp_path / "model.json").read_bytes()).hexdigest()
    release_id = f"mnist-{description.onnx.sha256[:12]}"
    predictor = Predictor.load(tmp_path, release_id=release_id, model_json_sha256=digest)
    assert predictor.release_id == release_id


@pytest.mark.parametrize(
    "pins", [{"release_id": "mnist-000000000000"}, {"release_id": ""}, {"model_json_sha256": "0" * 64}]
)
def test_a_model_that_is_not_the_pinned_one_is_refused(tmp_path: Path, pins: dict[str, Any]) -> None:
    serving_models.write_model(tmp_path)
    with pytest.raises(errors.DigestMismatch, match="expected"):
        Predictor.load(tmp_path, **pins)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1] + b"\0", lambda raw: raw + b"\0", lambda raw: raw[:100], lambda raw: b""]
)
def test_an_onnx_file_with_other_bytes_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    serving_models.write_model(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(errors.DigestMismatch):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    serving_models.write_model(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(errors.ModelInvalid, match=name):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("model", [b"junk", serving_models.onnx_bytes()[:1000]])
def test_what_onnx_runtime_cannot_read_is_refused(tmp_path: Path, model: bytes) -> None:
    serving_models.write_model(tmp_path)
    replace_model(tmp_path, model)
    with pytest.raises(errors.ModelInvalid, match="ONNX Runtime"):
        Predictor.load(tmp_path)


def test_a_model_with_another_signature_is_refused(tmp_path: Path) -> None:
    description = serving_models.write_model(tmp_path)
    renamed = serving_models.INPUT._replace(name="pixels")
    rewrite(tmp_path, signature=description.signature._replace(input=renamed))
    with pytest.raises(errors.ModelInvalid, match="pixels"):
        Predictor.load(tmp_path)


def test_a_model_that_answers_the_golden_inputs_differently_is_refused(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path, seed=0)
    replace_model(tmp_path, serving_models.onnx_bytes(seed=5))
    with pytest.raises(errors.ModelInvalid, match="golden"):
        Predictor.load(tmp_path)


def test_a_golden_probability_that_is_off_by_more_than_the_tolerance_is_refused(tmp_path: Path) -> None:
    description = serving_models.write_model(tmp_path)
    golden = description.signature.golden
    for shift, refused in ((1e-6, False), (1e-3, True)):
        outputs = np.log(np.exp(golden.outputs) + np.float32(shift))
        moved = description.signature._replace(golden=Golden(golden.inputs, outputs))
        rewrite(tmp_path, signature=moved)
        if refused:
            with pytest.raises(errors.ModelInvalid, match="off by"):
                Predictor.load(tmp_path)
        else:
            Predictor.load(tmp_path)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_golden_probabilities_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """exp() of the outputs of a model that calls its logits log-probabilities: infinity on both sides, and no difference."""
    description = serving_models.write_model(tmp_path)
    golden = description.signature.golden
    model = onnx.load_from_string(serving_models.onnx_bytes())
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1000)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("Identity", ["logits"], [serving_models.OUTPUT.name]))
    replace_model(tmp_path, model.SerializeToString())
    matrix, bias = (values * 1000 for values in serving_models.weights(0))
    outputs = (golden.inputs.reshape(len(golden.inputs), -1) @ matrix + bias).astype(np.float32)
    rewrite(tmp_path, signature=description.signature._replace(golden=Golden(golden.inputs, outputs)))
    with pytest.raises(errors.ModelInvalid, match="off by nan"):
        Predictor.load(tmp_path)


def test_a_model_with_infinite_weights_is_refused(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path)
    model = onnx.load_from_string(serving_models.onnx_bytes())
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(list(tensor.dims), np.inf, np.float32), tensor.name))
    replace_model(tmp_path, model.SerializeToString())
    with pytest.raises(errors.ModelInvalid, match="golden"):
        Predictor.load(tmp_path)


def test_weights_outside_the_hashed_file_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving_models.write_model(tmp_path)
    model = onnx.load_from_string(serving_models.onnx_bytes())
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    replace_model(tmp_path, (tmp_path / "split.onnx").read_bytes())
    # ONNX Runtime looks beside the file or, for a model from memory, in the working directory.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ModelInvalid, match="ONNX Runtime"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("activation", contract.ACTIVATIONS)
def test_probabilities_follow_the_activation_of_the_signature(
    predictor: Predictor, activation: str, inputs: NDArray[Any]
) -> None:
    expected = np.exp(serving_models.log_probabilities(inputs))
    outputs = {"log_softmax": np.log(expected), "logits": np.log(expected) + 700, "probabilities": expected}[activation]
    signature = predictor.description.signature._replace(activation=activation)
    no_session: Any = None
    other = Predictor(no_session, predictor.description._replace(signature=signature))
    np.testing.assert_allclose(other.probabilities(outputs), expected, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_logits_as_far_apart_as_float32_allows_are_a_certainty(predictor: Predictor) -> None:
    signature = predictor.description.signature._replace(activation="logits")
    no_session: Any = None
    other = Predictor(no_session, predictor.description._replace(signature=signature))
    assert other.probabilities(np.array([[3e38, -3e38]], np.float32)).tolist() == [[1.0, 0.0]]


def test_normalise_works_by_channel() -> None:
    raw = np.stack([np.full((2, 2), 255), np.full((2, 2), 51)])[None]
    result = normalise(raw, contract.Preprocessing(scale=1 / 255, mean=(0.5, 0.2), std=(0.5, 1.0)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, :, 0, 0], [1.0, 0.0], atol=1e-6)
    assert math.isclose(float(result.sum()), 4.0, abs_tol=1e-5)


def test_onnx_runtime_tells_nobody_what_it_runs(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    home = tmp_path / "home"
    home.mkdir()
    script = "import pathlib, sys; from model_code.inference.predictor import Predictor; Predictor.load(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    subprocess.run(command, env={"HOME": str(home), "PYTHONPATH": str(ROOT)}, cwd=home, check=True)
    assert [path for path in home.rglob("*") if path.name != "__pycache__"] == []

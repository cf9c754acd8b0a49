"""The same requests through both doors, each a real process: the SageMaker container and the Azure Function."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.settings import ROOT
from model_code.inference.contract import MAX_BODY_BYTES, MAX_INSTANCES
from tests import serving_models
from tests.serving_processes import Reply, Server, build_package, container, functions_host

JSON, NPY, CSV, LINES = "application/json", "application/x-npy", "text/csv", "application/jsonlines"
PNG, JPEG = "image/png", "image/jpeg"
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
RAW = np.random.default_rng(1).integers(0, 256, size=(3, 28, 28)).astype(np.uint8)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    base, package = tmp_path_factory.mktemp("ml"), build_package(tmp_path_factory.mktemp("package"))
    serving_models.write_model(base / "model")
    serving_models.write_model(package / "release")
    with container(base) as sagemaker, functions_host(package) as azure:
        yield sagemaker, azure


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def as_npy(array: Any, /) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def as_image(kind: str, pixels: Any = RAW[0]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def as_lines(key: str, instances: Any) -> bytes:
    return b"".join(as_json({key: instance}) + b"\n" for instance in instances.tolist())


def with_pixel(text: str) -> bytes:
    return as_json({"data": [[[[1.5] * 28] * 28]]}).replace(b"1.5]]]]}", text.encode() + b"]]]]}")


GOOD: dict[str, tuple[bytes, dict[str, str]]] = {
    "data": (as_json({"data": IMAGES.tolist()}), {"Content-Type": JSON}),
    "probabilities": (as_json({"data": IMAGES.tolist(), "probabilities": True}), {"Content-Type": JSON}),
    "images": (as_json({"images": RAW.tolist()}), {"Content-Type": f"{JSON}; charset=utf-8"}),
    "npy-floats": (as_npy(IMAGES), {"Content-Type": NPY}),
    "npy-raw": (as_npy(RAW), {"Content-Type": NPY}),
    "npy-fortran": (as_npy(np.asfortranarray(IMAGES)), {"Content-Type": NPY}),
    "npy-answer": (as_npy(IMAGES), {"Content-Type": NPY, "Accept": NPY}),
    "png": (as_image("PNG"), {"Content-Type": PNG}),
    "png-answer": (as_image("PNG"), {"Content-Type": PNG, "Accept": NPY}),
    "jpeg": (as_image("JPEG"), {"Content-Type": JPEG}),
    "jpeg-colour": (as_image("JPEG", np.stack([*RAW], axis=2)), {"Content-Type": JPEG}),
    "lines": (as_lines("data", IMAGES), {"Content-Type": LINES, "Accept": LINES}),
    "lines-raw": (as_lines("images", RAW), {"Content-Type": LINES}),
    "accept-anything": (as_json({"data": IMAGES.tolist()}), {"Content-Type": JSON, "Accept": "text/html, */*;q=0.1"}),
    "no-content-type": (as_json({"data": IMAGES.tolist()}), {}),
    "body-of-the-limit": (as_json({"data": IMAGES.tolist()}).ljust(MAX_BODY_BYTES), {"Content-Type": JSON}),
    "largest-batch": (as_npy(np.zeros((MAX_INSTANCES, 28, 28), np.uint8)), {"Content-Type": NPY}),
}

BAD: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
    "empty": (400, "EMPTY_BODY", b"", {"Content-Type": JSON}),
    "not-json": (400, "BAD_JSON", b"digits", {"Content-Type": JSON}),
    "trailing-bytes": (400, "BAD_JSON", as_json({"data": IMAGES.tolist()}) + b" x", {"Content-Type": JSON}),
    "invalid-utf-8": (400, "BAD_JSON", b'{"data": "\xff"}', {"Content-Type": JSON}),
    "byte-order-mark": (400, "BAD_JSON", b"\xef\xbb\xbf{}", {"Content-Type": JSON}),
    "utf-16": (400, "BAD_JSON", '{"data": []}'.encode("utf-16"), {"Content-Type": JSON}),
    "too-deep": (400, "BAD_JSON", b"[" * 100_000, {"Content-Type": JSON}),
    "nan": (400, "NOT_FINITE", with_pixel("NaN"), {"Content-Type": JSON}),
    "1e400": (400, "NOT_FINITE", with_pixel("1e400"), {"Content-Type": JSON}),
    "npy-infinity": (400, "NOT_FINITE", as_npy(np.full_like(IMAGES, -np.inf)), {"Content-Type": NPY}),
    "duplicate-key": (400, "DUPLICATE_KEY", b'{"data": [], "data": []}', {"Content-Type": JSON}),
    "unknown-key": (400, "BAD_FIELD", b'{"instances": []}', {"Content-Type": JSON}),
    "ragged": (400, "BAD_SHAPE", as_json({"data": [[[[1] * 28] * 26 + [[1] * 27, [1] * 29]]]}), {"Content-Type": JSON}),
    "text-as-pixel": (400, "BAD_DTYPE", with_pixel('"1"'), {"Content-Type": JSON}),
    "1e39": (400, "OUT_OF_RANGE", with_pixel("1e39"), {"Content-Type": JSON}),
    "raw-256": (400, "OUT_OF_RANGE", as_json({"images": [[[256] * 28] * 28]}), {"Content-Type": JSON}),
    "no-instances": (400, "EMPTY_BATCH", b'{"data": []}', {"Content-Type": JSON}),
    "pickle": (400, "BAD_NPY", b"\x80\x04N.", {"Content-Type": NPY}),
    "object-array": (400, "BAD_DTYPE", as_npy(np.array([{}], dtype=object)), {"Content-Type": NPY}),
    "png-cut-off": (400, "BAD_IMAGE", as_image("PNG")[:-1], {"Content-Type": PNG}),
    "jpeg-cut-off": (400, "BAD_IMAGE", as_image("JPEG")[:-1], {"Content-Type": JPEG}),
    "png-as-jpeg": (400, "BAD_IMAGE", as_image("PNG"), {"Content-Type": JPEG}),
    "png-and-more": (400, "BAD_IMAGE", as_image("PNG") + b"PK", {"Content-Type": PNG}),
    "png-of-another-size": (400, "BAD_SHAPE", as_image("PNG", RAW[0][:27]), {"Content-Type": PNG}),
    "png-enormous": (413, "IMAGE_TOO_LARGE", as_image("PNG", np.zeros((5000, 5000), np.uint8)), {"Content-Type": PNG}),
    "gif": (415, "UNSUPPORTED_MEDIA_TYPE", as_image("GIF"), {"Content-Type": "image/gif"}),
    "bad-line": (400, "BAD_SHAPE", as_lines("images", RAW) + b'{"images": [1]}', {"Content-Type": LINES}),
    "xml": (415, "UNSUPPORTED_MEDIA_TYPE", b"<a/>", {"Content-Type": "text/xml"}),
    "npy-pickle": (415, "UNSUPPORTED_MEDIA_TYPE", b"\x80\x04N.", {"Content-Type": "application/x-npy-pickle"}),
    "utf-7": (415, "UNSUPPORTED_MEDIA_TYPE", b"{}", {"Content-Type": f"{JSON}; charset=utf-7"}),
    "csv-for-images": (415, "UNSUPPORTED_MEDIA_TYPE", b"1,2,3,4\n", {"Content-Type": CSV}),
    "accept-xml": (406, "NOT_ACCEPTABLE", as_json({"data": IMAGES.tolist()}), {"Accept": "text/xml"}),
    "accept-nothing": (406, "NOT_ACCEPTABLE", as_json({"data": IMAGES.tolist()}), {"Accept": f"{JSON};q=0"}),
    "over-the-limit": (413, "BODY_TOO_LARGE", b"{}".ljust(MAX_BODY_BYTES + 1), {"Content-Type": JSON}),
    "too-many": (
        413,
        "TOO_MANY_INSTANCES",
        as_npy(np.zeros((MAX_INSTANCES + 1, 28, 28), np.uint8)),
        {"Content-Type": NPY},
    ),
}

ROWS = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
TABLE = "".join(",".join(map(str, row)) + "\n" for row in ROWS).encode()

GOOD_TABLES: dict[str, tuple[bytes, dict[str, str]]] = {
    "csv": (TABLE, {"Content-Type": CSV}),
    "csv-crlf": (TABLE.replace(b"\n", b"\r\n"), {"Content-Type": "text/csv; charset=utf-8"}),
    "csv-answer": (TABLE, {"Content-Type": CSV, "Accept": CSV}),
    "json": (as_json({"data": ROWS.tolist(), "probabilities": True}), {"Content-Type": JSON}),
    "npy": (as_npy(ROWS), {"Content-Type": NPY}),
    "lines": (as_lines("data", ROWS), {"Content-Type": LINES, "Accept": LINES}),
    "npy-answer": (TABLE, {"Content-Type": CSV, "Accept": NPY}),
    "largest-batch": (b"1,2,3,4\n" * MAX_INSTANCES, {"Content-Type": CSV}),
}

BAD_TABLES: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
    "empty": (400, "EMPTY_BODY", b"", {"Content-Type": CSV}),
    "header": (400, "BAD_CSV", b"a,b,c,d\n" + TABLE, {"Content-Type": CSV}),
    "no-utf-8": (400, "BAD_CSV", b"\xff,2,3,4\n", {"Content-Type": CSV}),
    "nan": (400, "NOT_FINITE", b"nan,2,3,4\n", {"Content-Type": CSV}),
    "1e39": (400, "OUT_OF_RANGE", b"1e39,2,3,4\n", {"Content-Type": CSV}),
    "value-less": (400, "BAD_SHAPE", TABLE + b"1,2,3\n", {"Content-Type": CSV}),
    "images": (400, "BAD_FIELD", b'{"images": [[1, 2, 3, 4]]}', {"Content-Type": JSON}),
    "png": (415, "UNSUPPORTED_MEDIA_TYPE", as_image("PNG"), {"Content-Type": PNG}),
    "too-many": (413, "TOO_MANY_INSTANCES", b"1,2,3,4\n" * (MAX_INSTANCES + 1), {"Content-Type": CSV}),
    "utf-16": (415, "UNSUPPORTED_MEDIA_TYPE", TABLE, {"Content-Type": "text/csv; charset=utf-16"}),
}


@pytest.fixture(scope="module")
def table_doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    base, package = tmp_path_factory.mktemp("ml"), build_package(tmp_path_factory.mktemp("package"))
    serving_models.write_table_model(base / "model")
    serving_models.write_table_model(package / "release")
    with container(base) as sagemaker, functions_host(package) as azure:
        yield sagemaker, azure


def ask_both(doors: tuple[Server, Server], body: bytes, headers: dict[str, str]) -> tuple[Reply, Reply]:
    sagemaker, azure = doors
    return sagemaker.ask("POST", "/invocations", body, headers), azure.ask("POST", "/api/classify", body, headers)


@pytest.mark.parametrize(("body", "headers"), GOOD.values(), ids=GOOD.keys())
def test_a_good_request_gets_the_same_bytes_from_both_doors(
    doors: tuple[Server, Server], body: bytes, headers: dict[str, str]
) -> None:
    expect_the_same_bytes(doors, body, headers)


@pytest.mark.parametrize(("body", "headers"), GOOD_TABLES.values(), ids=GOOD_TABLES.keys())
def test_a_good_table_gets_the_same_bytes_from_both_doors(
    table_doors: tuple[Server, Server], body: bytes, headers: dict[str, str]
) -> None:
    expect_the_same_bytes(table_doors, body, headers)


def expect_the_same_bytes(doors: tuple[Server, Server], body: bytes, headers: dict[str, str]) -> None:
    sagemaker, azure = ask_both(doors, body, headers)
    assert (sagemaker.status, azure.status) == (200, 200)
    assert sagemaker.body == azure.body
    for name in ("content-type", "x-release-id"):
        assert sagemaker.headers[name] == azure.headers[name]


@pytest.mark.parametrize(("status", "code", "body", "headers"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_the_same_refusal_from_both_doors(
    doors: tuple[Server, Server], status: int, code: str, body: bytes, headers: dict[str, str]
) -> None:
    expect_the_same_refusal(doors, status, code, body, headers)


@pytest.mark.parametrize(("status", "code", "body", "headers"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_bad_table_gets_the_same_refusal_from_both_doors(
    table_doors: tuple[Server, Server], status: int, code: str, body: bytes, headers: dict[str, str]
) -> None:
    expect_the_same_refusal(table_doors, status, code, body, headers)


def expect_the_same_refusal(
    doors: tuple[Server, Server], status: int, code: str, body: bytes, headers: dict[str, str]
) -> None:
    replies = ask_both(doors, body, headers)
    assert [reply.status for reply in replies] == [status, status]
    errors = [json.loads(reply.body)["error"] for reply in replies]
    request_ids = {error.pop("request_id") for error in errors}
    assert len(request_ids) == 2
    assert errors[0] == errors[1]
    assert errors[0]["code"] == code


def test_a_slow_inference_gets_504_from_both_doors_and_holds_up_nothing_else(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seconds = 2
    source = (ROOT / "function_app" / "function_app.py").read_text()
    package = build_package(
        tmp_path_factory.mktemp("package"),
        source.replace("import Request, Response\n", "import Limits, Request, Response\n").replace(
            "respond(_predictor, request)", f"respond(_predictor, request, limits=Limits(seconds={seconds}))"
        ),
    )
    serving_models.write_slow_model(tmp_path / "model")
    serving_models.write_slow_model(package / "release")
    good, headers = GOOD["probabilities"]
    with (
        container(tmp_path, FERRY_DEADLINE_SECONDS=str(seconds)) as sagemaker,
        functions_host(package) as azure,
        ThreadPoolExecutor() as pool,
    ):
        doors = (sagemaker, azure)
        before = ask_both(doors, good, headers)
        slow = pool.submit(sagemaker.ask, "POST", "/invocations", as_npy(serving_models.SLOW), {"Content-Type": NPY})
        slow_too = pool.submit(azure.ask, "POST", "/api/classify", as_npy(serving_models.SLOW), {"Content-Type": NPY})
        probes = []
        while not (slow.done() and slow_too.done()):
            probes += [sagemaker.ask("GET", "/ping").status, azure.ask("GET", "/api/health").status]
        after = ask_both(doors, good, headers)
    for reply in (slow.result(), slow_too.result()):
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    assert set(probes) == {200}
    assert {reply.status for reply in before + after} == {200}
    assert len({reply.body for reply in before + after}) == 1


def test_both_doors_tell_the_same_release(doors: tuple[Server, Server]) -> None:
    sagemaker, azure = doors
    health = azure.ask("GET", "/api/health")
    assert sagemaker.ask("GET", "/ping").headers["x-release-id"] == health.headers["x-release-id"]
    assert json.loads(health.body)["release_id"] == health.headers["x-release-id"]

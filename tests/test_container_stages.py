"""Several containers of one endpoint: two called directly on ports of their own, and two in series."""

import hashlib
import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from PIL import Image

from model_code import environment
from model_code.inference.contract import MAX_STAGE_BYTES
from tests import serving_models
from tests.serving_processes import SERVE, Reply, Server, container, container_variables, free_port

JSON, NPY, CSV, LINES = "application/json", "application/x-npy", "text/csv", "application/jsonlines"
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
RAW = np.random.default_rng(1).integers(0, 256, size=(3, 28, 28)).astype(np.uint8)
ROWS = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)


@dataclass(frozen=True)
class Pipeline:
    """A container with the preprocessing, one with the model behind it, and one that does both."""

    preprocess: Server
    model: Server
    single: Server

    def ask(self, body: bytes, headers: dict[str, str]) -> Reply:
        """SageMaker posts what the first container answers to the second one, with its content type."""
        first = self.preprocess.ask("POST", "/invocations", body, headers)
        if first.status != 200:
            return first
        accept = {name: value for name, value in headers.items() if name == "Accept"}
        return self.model.ask(
            "POST", "/invocations", first.body, {"Content-Type": first.headers["content-type"], **accept}
        )


def pins(model: Path) -> dict[str, str]:
    raw = (model / "model.json").read_bytes()
    onnx = json.loads(raw)["onnx"]["sha256"]
    name = json.loads(raw)["model"]
    return {
        environment.RELEASE_ID: f"{name}-{onnx[:12]}",
        environment.MODEL_JSON_SHA256: hashlib.sha256(raw).hexdigest(),
    }


def pipeline(folder: Path, stack: ExitStack, write: object) -> Pipeline:
    servers = []
    for name in ("preprocess", "model", "single"):
        assert callable(write)
        write(folder / name / "model")
        stage = {environment.STAGE: "preprocess"} if name == "preprocess" else {}
        variables = {**pins(folder / name / "model"), **stage}
        servers.append(stack.enter_context(container(folder / name, **variables)))
    return Pipeline(*servers)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with ExitStack() as stack:
        yield pipeline(tmp_path_factory.mktemp("images"), stack, serving_models.write_model)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with ExitStack() as stack:
        yield pipeline(tmp_path_factory.mktemp("tables"), stack, serving_models.write_table_model)


def as_npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def as_image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RAW[0]).save(stream, kind)
    return stream.getvalue()


IMAGE_REQUESTS: dict[str, tuple[bytes, dict[str, str]]] = {
    "data": (json.dumps({"data": IMAGES.tolist()}).encode(), {"Content-Type": JSON}),
    "probabilities": (json.dumps({"data": IMAGES.tolist(), "probabilities": True}).encode(), {"Content-Type": JSON}),
    "raw": (json.dumps({"images": RAW.tolist()}).encode(), {}),
    "raw-probabilities": (json.dumps({"images": RAW.tolist(), "probabilities": True}).encode(), {}),
    "npy": (as_npy(IMAGES), {"Content-Type": NPY}),
    "npy-answer": (as_npy(IMAGES.astype(np.float64)), {"Content-Type": NPY, "Accept": NPY}),
    "npy-raw": (as_npy(RAW), {"Content-Type": NPY, "Accept": JSON}),
    "png": (as_image("PNG"), {"Content-Type": "image/png"}),
    "jpeg": (as_image("JPEG"), {"Content-Type": "image/jpeg"}),
    "lines": (
        b"".join(json.dumps({"images": image.tolist()}).encode() + b"\n" for image in RAW),
        {"Content-Type": LINES, "Accept": LINES},
    ),
}
TABLE_REQUESTS: dict[str, tuple[bytes, dict[str, str]]] = {
    "csv": ("".join(",".join(map(str, row)) + "\n" for row in ROWS).encode(), {"Content-Type": CSV}),
    "csv-answer": (
        "".join(",".join(map(str, row)) + "\n" for row in ROWS).encode(),
        {"Content-Type": CSV, "Accept": CSV},
    ),
    "json": (json.dumps({"data": ROWS.tolist(), "probabilities": True}).encode(), {"Content-Type": JSON}),
}


@pytest.mark.parametrize(("body", "headers"), IMAGE_REQUESTS.values(), ids=IMAGE_REQUESTS.keys())
def test_two_in_series_answer_an_image_bit_for_bit_like_one(
    images: Pipeline, body: bytes, headers: dict[str, str]
) -> None:
    expect_the_same(images, body, headers)


@pytest.mark.parametrize(("body", "headers"), TABLE_REQUESTS.values(), ids=TABLE_REQUESTS.keys())
def test_two_in_series_answer_a_table_bit_for_bit_like_one(
    tables: Pipeline, body: bytes, headers: dict[str, str]
) -> None:
    expect_the_same(tables, body, headers)


def expect_the_same(containers: Pipeline, body: bytes, headers: dict[str, str]) -> None:
    expected = containers.single.ask("POST", "/invocations", body, headers)
    found = containers.ask(body, headers)
    assert (expected.status, found.status) == (200, 200)
    assert found.body == expected.body
    for name in ("content-type", "x-release-id"):
        assert found.headers[name] == expected.headers[name]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"", {}, (400, "EMPTY_BODY")),
        (b"{", {}, (400, "BAD_JSON")),
        (b'{"data": [[1]]}', {}, (400, "BAD_SHAPE")),
        (b"<a/>", {"Content-Type": "text/xml"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        (json.dumps({"data": IMAGES.tolist()}).encode(), {"Accept": "text/xml"}, (406, "NOT_ACCEPTABLE")),
    ],
)
def test_two_in_series_refuse_what_one_refuses(
    images: Pipeline, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    for reply in (images.single.ask("POST", "/invocations", body, headers), images.ask(body, headers)):
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == expected


def test_a_batch_that_sagemaker_would_not_hand_on_is_413_by_the_first_container(images: Pipeline) -> None:
    raw = as_npy(np.full((1000, 28, 28), 77, np.uint8))
    assert images.preprocess.ask("POST", "/invocations", raw, {"Content-Type": NPY}).status == 200  # 3.1 MB go on
    body = json.dumps({"images": np.full((1000, 28, 28), 77).tolist(), "probabilities": True}).encode()
    reply = images.preprocess.ask("POST", "/invocations", body, {"Content-Type": JSON})
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "BODY_TOO_LARGE")
    assert f"at most {MAX_STAGE_BYTES} go from one container of a pipeline to the next" in reply.body.decode()
    assert images.preprocess.ask("GET", "/ping").status == 200


def test_the_preprocessing_is_healthy_tells_its_release_and_loads_no_model_file(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    (tmp_path / "model" / "model.onnx").unlink()
    with container(tmp_path, **pins(tmp_path / "model"), FERRY_STAGE="preprocess") as server:
        ping = server.ask("GET", "/ping")
        assert (ping.status, ping.body) == (200, b"")
        assert ping.headers["x-release-id"] == pins(tmp_path / "model")[environment.RELEASE_ID]
        assert server.ask("POST", "/invocations", IMAGE_REQUESTS["data"][0]).status == 200


def run(base: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = container_variables(base, free_port(), **variables)
    return subprocess.run([SERVE], env=environ, cwd=base, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("pin", [environment.RELEASE_ID, environment.MODEL_JSON_SHA256])
def test_the_preprocessing_of_another_release_is_not_served(tmp_path: Path, pin: str) -> None:
    serving_models.write_model(tmp_path / "model")
    ended = run(tmp_path, FERRY_STAGE="preprocess", **{pin: "mnist-000000000000"})
    assert ended.returncode == 1
    assert "expected: mnist-000000000000" in ended.stderr


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({environment.STAGE: "decode"}, environment.STAGE),
        ({environment.STAGE: ""}, environment.STAGE),
        ({environment.STAGE: "Preprocess"}, environment.STAGE),
        ({environment.MULTI_MODEL: "yes"}, environment.MULTI_MODEL),
        ({environment.MULTI_MODEL: "true", environment.STAGE: "preprocess"}, environment.STAGE),
        ({environment.MULTI_MODEL: "true", environment.RELEASE_ID: "x"}, environment.RELEASE_ID),
        ({environment.MULTI_MODEL: "true", environment.MODEL_JSON_SHA256: "x"}, environment.MODEL_JSON_SHA256),
        ({environment.MULTI_MODEL: "true", environment.MODEL_MEMORY: "lots"}, environment.MODEL_MEMORY),
        ({environment.DEADLINE: "3601"}, environment.DEADLINE),
        ({environment.BATCH: "1"}, environment.BATCH),
        ({environment.BATCH: "true", environment.MAX_PAYLOAD: "101"}, environment.MAX_PAYLOAD),
    ],
)
def test_h39_a_setting_that_cannot_be_ends_the_process_with_2_its_name_and_what_is_allowed(
    tmp_path: Path, variables: dict[str, str], name: str
) -> None:
    serving_models.write_model(tmp_path / "model")
    ended = run(tmp_path, **variables)
    assert ended.returncode == 2
    message = json.loads(ended.stderr.splitlines()[-1])["message"]
    assert message.startswith(f"{name}: found ")
    assert "allowed: " in message or "Take" in message


def test_h39_two_containers_side_by_side_answer_for_their_own_models_on_their_own_ports(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "digits" / "model", seed=1)
    serving_models.write_table_model(tmp_path / "table" / "model")
    with (
        container(tmp_path / "digits", **pins(tmp_path / "digits" / "model"), FERRY_WORKERS="2") as digits,
        container(
            tmp_path / "table", **pins(tmp_path / "table" / "model"), SAGEMAKER_SAFE_PORT_RANGE="20000-29999"
        ) as table,
    ):
        labels = serving_models.log_probabilities(IMAGES, seed=1).argmax(axis=1).tolist()
        assert json.loads(digits.ask("POST", "/invocations", IMAGE_REQUESTS["data"][0]).body) == {"digits": labels}
        assert table.ask("POST", "/invocations", *TABLE_REQUESTS["csv"]).status == 200
        assert table.ask("POST", "/invocations", IMAGE_REQUESTS["data"][0]).status == 400
        for server in (digits, table):
            parent = psutil.Process(server.process.pid)
            family = [parent, *parent.children(recursive=True)]
            ports = {link.laddr.port for one in family for link in one.net_connections() if link.status == "LISTEN"}
            assert ports == {server.port}

"""The serving half of the SageMaker container: the real `serve` process, and its server in this process where time must be short."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_code import environment
from model_code.container.readiness import Readiness
from model_code.container.server import Application
from model_code.container.worker import MAX_PENDING
from model_code.inference.contract import DEADLINE_SECONDS, MAX_BODY_BYTES, Limits, model_json_bytes
from model_code.inference.errors import ModelInvalid
from model_code.inference.predictor import Predictor
from tests import serving_models
from tests.exchanges import call
from tests.serving_processes import (
    LOOPBACK,
    SERVE,
    Server,
    accepts,
    container,
    container_variables,
    free_port,
    read_all,
    wait_until,
)

JSON = {"content-type": "application/json"}
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
BODY = json.dumps({"data": IMAGES.tolist()}).encode()
ANSWER = {"digits": serving_models.log_probabilities(IMAGES).argmax(axis=1).tolist()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("ml")
    serving_models.write_model(base / "model")
    with container(base) as running:
        yield running
        assert running.ask("GET", "/ping").status == 200  # whatever the tests sent, it still serves


def code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def head(reply: bytes) -> bytes:
    return reply.partition(b"\r\n\r\n")[0].lower()


def post(*headers: bytes) -> bytes:
    return b"\r\n".join(
        [b"POST /invocations HTTP/1.1", b"Host: test", b"Content-Type: application/json", *headers, b"\r\n"]
    )


# The process: requests


def test_ping_is_200_and_empty_and_tells_the_release(server: Server) -> None:
    reply = server.ask("GET", "/ping")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["x-release-id"].startswith("mnist-")


def test_invocations_answers_and_hands_the_release_id_through_sagemaker(server: Server) -> None:
    reply = server.ask("POST", "/invocations", BODY, JSON)
    assert (reply.status, json.loads(reply.body)) == (200, ANSWER)
    release_id = reply.headers["x-release-id"]
    assert reply.headers["x-amzn-sagemaker-custom-attributes"] == release_id


def test_headers_that_sagemaker_may_add_are_ignored(server: Server) -> None:
    added = {"X-Amzn-SageMaker-Target-Variant": "blue", "X-Amzn-SageMaker-Unheard-Of": "1"}
    assert server.ask("POST", "/invocations", BODY, JSON | added).status == 200


def test_a_sane_inference_id_is_the_request_id(server: Server) -> None:
    reply = server.ask("POST", "/invocations", b"{", JSON | {"X-Amzn-SageMaker-Inference-Id": "order-66"})
    assert json.loads(reply.body)["error"]["request_id"] == "order-66"


@pytest.mark.parametrize("given", ["", "two words", "x" * 65, "caf\xe9"])
def test_an_inference_id_that_is_none_is_replaced(server: Server, given: str) -> None:
    reply = server.ask("POST", "/invocations", b"{", JSON | {"X-Amzn-SageMaker-Inference-Id": given})
    request_id = json.loads(reply.body)["error"]["request_id"]
    assert len(request_id) == 32
    assert request_id != given


@pytest.mark.parametrize(
    "path",
    ["/", "/invocations/../ping", "/%2e%2e/ping", "//ping", "/ping/", "/ping%00", "/models", "/models/x/invoke"],
)
def test_h27_any_other_path_is_404(server: Server, path: str) -> None:
    reply = server.ask("GET", path)
    assert (reply.status, code(reply.body)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [(method, "/invocations", "POST") for method in ("GET", "PUT", "DELETE", "TRACE", "PATCH", "OPTIONS")]
    + [(method, path, "GET") for method in ("POST", "PUT") for path in ("/ping", "/execution-parameters")],
)
def test_another_method_is_405_and_says_which_one_is_allowed(
    server: Server, method: str, path: str, allow: str
) -> None:
    reply = server.ask(method, path)
    assert (reply.status, code(reply.body), reply.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", allow)


def test_a_chunked_body_without_a_length_is_answered(server: Server) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:1000], BODY[1000:])) + b"0\r\n\r\n"
    reply = server.tell(post(b"Transfer-Encoding: chunked", b"Connection: close") + chunks)
    assert head(reply).startswith(b"http/1.1 200")
    assert json.dumps(ANSWER).encode() in reply


def test_a_body_of_exactly_the_limit_is_answered(server: Server) -> None:
    assert server.ask("POST", "/invocations", BODY.ljust(MAX_BODY_BYTES), JSON).status == 200


def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(post(b"Content-Length: %d" % (MAX_BODY_BYTES + 1)))
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, code(response.read()), response.headers["connection"]) == (
            413,
            "BODY_TOO_LARGE",
            "close",
        )


def test_a_client_that_sends_too_much_without_asking_reads_the_refusal(server: Server) -> None:
    reply = server.ask("POST", "/invocations", bytes(MAX_BODY_BYTES + 1), JSON)
    assert (reply.status, code(reply.body)) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    "rest",
    [post(b"Content-Length: 50") + b"{", post(b"Transfer-Encoding: chunked") + b"5\r\n{"],
    ids=["length", "chunks"],
)
def test_h16_a_body_that_ends_early_is_400(server: Server, rest: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(rest)
        connection.shutdown(socket.SHUT_WR)
        reply = read_all(connection)
    assert head(reply).startswith(b"http/1.1 400")
    assert b"BAD_LENGTH" in reply


def test_the_log_is_one_json_object_a_line_without_bodies(server: Server) -> None:
    server.ask("POST", "/invocations", b'{"data": "a-secret-in-the-body"}', JSON)
    lines = server.log.read_text().splitlines()
    assert lines
    assert all({"time", "level", "message", "process"} <= json.loads(line).keys() for line in lines)
    assert "a-secret-in-the-body" not in server.log.read_text()


# The process: its life


def test_h37_sigterm_answers_what_is_in_flight_refuses_what_is_new_and_exits_0(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    request = post(b"Content-Length: %d" % len(BODY), b"Expect: 100-continue")
    with container(tmp_path, FERRY_WORKERS="2") as server:
        in_flight = [server.connect() for _ in range(20)]
        for connection in in_flight:
            connection.sendall(request)
            assert connection.recv(100).startswith(b"HTTP/1.1 100")  # a worker has it and waits for the body
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(server.port))
        for connection in in_flight:
            connection.sendall(BODY)
        for connection in in_flight:
            with connection:
                assert json.dumps(ANSWER).encode() in read_all(connection)
        assert server.process.wait(30) == 0


def test_h37_sigterm_while_workers_start_ends_all_of_them_at_once(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    with container(tmp_path, FERRY_WORKERS="8") as server:  # the first of them answers
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0


def run(base: Path, port: int | str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`serve` where it is expected to end by itself."""
    environ = container_variables(base, port, **variables)
    return subprocess.run([SERVE], env=environ, cwd=base, capture_output=True, text=True, timeout=60, check=False)


def give_other_weights(model: Path) -> None:
    """Those of another seed: digests and signature are right, only the golden outputs are not what they answer."""
    raw = serving_models.onnx_bytes(seed=1)
    (model / "model.onnx").write_bytes(raw)
    (model / "model.json").write_bytes(model_json_bytes(serving_models.describe(raw, seed=0)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (give_other_weights, "golden"),
        (lambda model: (model / "model.onnx").write_bytes(b"junk"), "DIGEST_MISMATCH"),
        (lambda model: (model / "model.json").write_bytes(b"{}"), "MODEL_INVALID"),
        (lambda model: (model / "model.json").unlink(), "cannot be read"),
    ],
    ids=["golden", "onnx", "json", "missing"],
)
def test_h38_a_model_that_cannot_be_served_ends_the_process_with_1_and_the_reason(
    tmp_path: Path, damage: Any, reason: str
) -> None:
    serving_models.write_model(tmp_path / "model")
    damage(tmp_path / "model")
    ended = run(tmp_path, free_port())
    assert ended.returncode == 1
    assert reason in json.loads(ended.stderr.splitlines()[-1])["message"]


@pytest.mark.parametrize("pin", [environment.RELEASE_ID, environment.MODEL_JSON_SHA256])
def test_another_release_than_the_pinned_one_is_not_served(tmp_path: Path, pin: str) -> None:
    serving_models.write_model(tmp_path / "model")
    ended = run(tmp_path, free_port(), **{pin: "mnist-000000000000"})
    assert ended.returncode == 1
    assert "expected: mnist-000000000000" in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (environment.BIND_TO_PORT, "abc"),
        (environment.BIND_TO_PORT, "70000"),
        (environment.BIND_TO_PORT, "0"),
        (environment.BIND_TO_PORT, ""),
        (environment.BIND_ADDRESS, "here"),
        (environment.WORKERS, "none"),
        (environment.WORKERS, "0"),
    ],
)
def test_h39_a_setting_that_is_none_ends_the_process_with_2_and_its_name(tmp_path: Path, name: str, value: str) -> None:
    ended = run(tmp_path, free_port(), **{name: value})
    assert ended.returncode == 2
    assert name in ended.stderr


def test_h39_a_port_that_is_taken_ends_the_process_with_2_and_its_name(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0), reuse_port=True) as taken:
        ended = run(tmp_path, taken.getsockname()[1])
    assert ended.returncode == 2
    assert environment.BIND_TO_PORT in ended.stderr


# The application: what would take the process too long


def test_h38_before_a_model_is_loaded_ping_and_invocations_are_503(tmp_path: Path) -> None:
    app = Application(lambda: Predictor.load(tmp_path))
    for method, path in (("GET", "/ping"), ("POST", "/invocations")):
        status, _, body = asyncio.run(call(app, method, path, BODY))
        assert (status, code(body)) == (503, "NOT_READY")


def test_h38_a_worker_whose_model_cannot_be_loaded_says_so_and_stays_503() -> None:
    def load() -> Predictor:
        raise ModelInvalid("changed since")

    app = Application(load)
    with pytest.raises(ModelInvalid, match="changed since"):
        asyncio.run(app.open())
    assert asyncio.run(call(app, "GET", "/ping"))[0] == 503


def test_h38_everything_is_503_as_long_as_another_worker_loads_its_model(tmp_path: Path) -> None:
    def statuses() -> set[int]:
        asked = [(app, *what) for app in (one, other) for what in (("GET", "/ping"), ("POST", "/invocations", BODY))]
        return {asyncio.run(call(*each))[0] for each in asked}

    serving_models.write_model(tmp_path)
    one, other = (Application(lambda: Predictor.load(tmp_path), readiness=mine) for mine in Readiness.of(2))
    asyncio.run(one.open())
    assert statuses() == {503}
    asyncio.run(other.open())
    assert statuses() == {200}


def test_h16_a_body_that_does_not_arrive_in_time_is_408_and_ends_the_connection(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path)

    async def scenario() -> tuple[int, dict[str, str], bytes]:
        app = Application(lambda: Predictor.load(tmp_path), read_seconds=0.05)
        await app.open()
        slow = await call(app, "POST", "/invocations", BODY[:100], stall=True)
        assert (await call(app, "POST", "/invocations", BODY))[0] == 200
        return slow

    status, headers, body = asyncio.run(scenario())
    assert (status, code(body), headers["connection"]) == (408, "READ_TIMEOUT", "close")


def test_h32_past_the_queue_a_request_is_503_while_ping_and_what_waits_are_answered(tmp_path: Path) -> None:
    gate, entered = threading.Event(), threading.Event()

    class Gated(Predictor):
        def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
            if len(inputs) == len(IMAGES):  # not the golden inference
                entered.set()
                gate.wait()
            return super().run(inputs, seconds=seconds)

    serving_models.write_model(tmp_path)

    async def scenario() -> None:
        app = Application(lambda: Gated.load(tmp_path))
        await app.open()
        waiting = [asyncio.create_task(call(app, "POST", "/invocations", BODY)) for _ in range(MAX_PENDING)]
        await asyncio.to_thread(entered.wait)
        refused = await call(app, "POST", "/invocations", BODY)
        ping = await call(app, "GET", "/ping")
        gate.set()
        answers = await asyncio.gather(*waiting)
        assert (refused[0], code(refused[2]), refused[1]["retry-after"]) == (503, "OVERLOADED", "1")
        assert ping[0] == 200
        assert [answer[0] for answer in answers] == [200] * MAX_PENDING

    asyncio.run(scenario())


def test_h32_time_in_the_queue_counts_and_nothing_is_200_after_the_deadline(tmp_path: Path) -> None:
    gate, entered = threading.Event(), threading.Event()
    batches: list[int] = []
    limit = 0.2

    class Gated(Predictor):
        def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
            batches.append(len(inputs))
            if len(batches) == 2:  # the first one is the golden inference
                entered.set()
                gate.wait()
            return super().run(inputs)

    serving_models.write_model(tmp_path)

    async def scenario() -> None:
        app = Application(lambda: Gated.load(tmp_path), limits=Limits(seconds=limit))
        await app.open()
        late = [asyncio.create_task(call(app, "POST", "/invocations", BODY)) for _ in range(3)]
        await asyncio.to_thread(entered.wait)
        await asyncio.sleep(2 * limit)  # all three have arrived: their deadlines pass
        ping = await call(app, "GET", "/ping")
        gate.set()
        answers = await asyncio.gather(*late)
        good = await call(app, "POST", "/invocations", json.dumps({"data": IMAGES[:1].tolist()}).encode())
        assert [(status, code(body)) for status, _, body in answers] == [(504, "DEADLINE_EXCEEDED")] * 3
        assert (ping[0], good[0]) == (200, 200)
        assert batches == [4, 2, 1]  # golden, the one that was too slow, the good one: who waited too long was not run

    asyncio.run(scenario())

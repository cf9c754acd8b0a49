"""The container in a batch transform: what it says it can take, bodies of many records, and time for them."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_code import environment
from model_code.container import memory
from model_code.container.server import Application
from model_code.container.settings import ServeSettings
from model_code.inference.contract import DEADLINE_SECONDS, MAX_BODY_BYTES, MAX_INSTANCES, Limits
from model_code.inference.predictor import Predictor
from tests import serving_models
from tests.exchanges import call
from tests.serving_processes import Server, container

CSV, LINES = {"Content-Type": "text/csv"}, {"Content-Type": "application/jsonlines"}
ROWS = np.random.default_rng(2).normal(size=(20_000, 4)).astype(np.float32)
RECORDS = "".join(",".join(map(str, row)) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("ml")
    serving_models.write_table_model(base / "model")
    variables = {environment.BATCH: "true", environment.MAX_PAYLOAD: "8", environment.WORKERS: "2"}
    with container(base, **variables) as running:
        yield running
        assert running.ask("GET", "/ping").status == 200


def labels(rows: np.ndarray) -> list[str]:  # type: ignore[type-arg]
    return [serving_models.TABLE_LABELS[index] for index in serving_models.table_probabilities(rows).argmax(axis=1)]


def test_execution_parameters_are_what_the_container_can_take(server: Server) -> None:
    reply = server.ask("GET", "/execution-parameters")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert json.loads(reply.body) == {
        "MaxConcurrentTransforms": 2,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 8,
    }


@pytest.mark.parametrize(("payload", "expected"), [("6", (16, 6)), ("30", (3, 30)), ("100", (1, 100)), ("0", (1, 100))])
def test_h41_execution_parameters_keep_sagemakers_rule_however_many_workers_there_are(
    tmp_path: Path, payload: str, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.BATCH, "true")
    monkeypatch.setenv(environment.MAX_PAYLOAD, payload)
    limits = ServeSettings.from_environment().limits
    serving_models.write_model(tmp_path)
    app = Application(lambda: Predictor.load(tmp_path), workers=24, limits=limits)
    asyncio.run(app.open())
    document = json.loads(asyncio.run(call(app, "GET", "/execution-parameters"))[2])
    assert (document["MaxConcurrentTransforms"], document["MaxPayloadInMB"]) == expected
    assert document["MaxConcurrentTransforms"] * document["MaxPayloadInMB"] <= 100


def test_a_request_holds_as_many_records_as_fit(server: Server) -> None:
    reply = server.ask("POST", "/invocations", RECORDS, CSV | {"Accept": "application/jsonlines"})
    assert reply.status == 200
    assert [json.loads(line)["names"] for line in reply.body.splitlines()] == labels(ROWS)


def test_h40_records_of_json_lines_are_joined_by_their_order(server: Server) -> None:
    lines = b"".join(json.dumps({"data": row.tolist()}).encode() + b"\n" for row in ROWS[:3000])
    reply = server.ask("POST", "/invocations", lines, LINES | {"Accept": "application/jsonlines"})
    assert [json.loads(line) for line in reply.body.splitlines()] == [{"names": name} for name in labels(ROWS[:3000])]


def test_h40_one_bad_record_is_400_with_its_line(server: Server) -> None:
    # Not a placeholder in its place: none could be told from a label.
    good = RECORDS[:2000].rpartition(b"\n")[0]
    reply = server.ask("POST", "/invocations", good + b"\n1,x,3,4\n", CSV)
    assert reply.status == 400
    assert f"csv: line {good.count(10) + 2}" in reply.body.decode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE"])
def test_h41_execution_parameters_by_another_method_are_405(server: Server, method: str) -> None:
    reply = server.ask(method, "/execution-parameters")
    assert (reply.status, reply.headers["allow"]) == (405, "GET")


def test_the_limit_of_a_body_is_the_jobs(server: Server) -> None:
    size = 8 * 2**20
    assert server.ask("POST", "/invocations", b"[" * size).status == 400
    assert server.ask("POST", "/invocations", b"[" * (size + 1)).status == 413


def test_a_body_without_a_length_comes_in_chunks(server: Server) -> None:
    parts = [RECORDS[:100_000], RECORDS[100_000:]]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nConnection: close\r\n"
    reply = server.tell(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert reply.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Limits()),
        ({environment.DEADLINE: "900"}, Limits(seconds=900)),
        # Outside a batch transform nobody may raise the limit of a body.
        ({environment.MAX_PAYLOAD: "100"}, Limits()),
        ({environment.BATCH: "false", environment.MAX_PAYLOAD: "100"}, Limits()),
        ({environment.BATCH: "true"}, Limits(MAX_BODY_BYTES, MAX_BODY_BYTES, 3600)),
        ({environment.BATCH: "true", environment.MAX_PAYLOAD: "2"}, Limits(2 * 2**20, 2 * 2**20, 3600)),
        ({environment.BATCH: "true", environment.MAX_PAYLOAD: "0"}, Limits(100 * 2**20, 100 * 2**20, 3600)),
        ({environment.BATCH: "true", environment.DEADLINE: "600"}, Limits(MAX_BODY_BYTES, MAX_BODY_BYTES, 600)),
    ],
)
def test_limits_are_those_of_the_contract_but_in_a_batch_transform(
    variables: dict[str, str], expected: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ServeSettings.from_environment().limits == expected
    assert (Limits().seconds, Limits().instances) == (DEADLINE_SECONDS, MAX_INSTANCES)


def test_models_get_what_the_setting_says_or_four_fifths_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    default = ServeSettings.from_environment().model_bytes
    assert 0.79 < default / memory.container_bytes() <= 0.8
    monkeypatch.setenv(environment.MODEL_MEMORY, "512")
    assert ServeSettings.from_environment().model_bytes == 512 * 2**20

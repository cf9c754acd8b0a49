"""Requests that wait are answered with one inference, and nobody can tell: not from an answer, and not from a neighbour's fault."""

import asyncio
import json
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from infra.settings_hosting import HostingSettings
from model_code import environment
from model_code.container.inferences import Inferences
from model_code.container.server import Application
from model_code.inference.contract import DEADLINE_SECONDS, Limits, Request, Response
from model_code.inference.errors import DeadlineExceeded
from model_code.inference.predictor import Predictor
from model_code.inference.respond import respond, respond_together
from tests import serving_models
from tests.exchanges import call, connect, few, read_answer

TOGETHER = 16
IMAGES = np.random.default_rng(5).normal(size=(40, 1, 28, 28)).astype(np.float32)


class Counting(Predictor):
    """Notes how many instances each inference got, and waits in the first one that is no golden inference."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
        self.batches.append(len(inputs))
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        self.gate.wait()
        return super().run(inputs, seconds=seconds)


class LookingAround(Predictor):
    """An instance's output depends on how many others there are, by less than the golden inference allows."""

    def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
        return super().run(inputs, seconds=seconds) - np.float32(1e-6) * (len(inputs) > 1)


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    serving_models.write_model(tmp_path)
    predictor = Counting.load(tmp_path)
    assert isinstance(predictor, Counting)
    predictor.batches.clear()
    return predictor


def body(images: NDArray[np.float32], *, probabilities: bool = True) -> bytes:
    return json.dumps({"data": images.tolist(), "probabilities": probabilities}).encode()


def request(content: bytes, content_type: str = "application/json", accept: str | None = None) -> Request:
    return Request(content, content_type, accept, "id")


def test_each_request_gets_the_answer_that_it_gets_alone(counting: Counting) -> None:
    assert counting.joins(TOGETHER)
    requests = [
        request(body(IMAGES[:1])),
        request(body(IMAGES[1:4], probabilities=False), accept="application/x-npy"),
        request(b"{"),
        request(body(IMAGES[4:5], probabilities=False)),
        request(body(IMAGES[5:6]), content_type="text/plain"),
        request(json.dumps({"images": [[[255] * 28] * 28]}).encode()),
        request(body(IMAGES[6:36])),
        request(body(IMAGES[36:37], probabilities=False), accept="text/csv"),
        request(b""),
    ]
    together = respond_together(counting, requests, instances=TOGETHER)
    assert together == [respond(counting, one) for one in requests]
    assert [answer.status for answer in together] == [200, 200, 400, 200, 415, 200, 200, 200, 400]


def test_an_inference_takes_neighbours_up_to_the_limit_and_a_larger_request_alone(counting: Counting) -> None:
    sizes = [1, 3, 12, 1, 20, 16, 2]
    respond_together(counting, [request(body(IMAGES[:size])) for size in sizes], instances=TOGETHER)
    assert counting.batches == [16, 1, 20, 16, 2]


def test_what_no_output_exists_for_costs_no_neighbour_its_answer(counting: Counting) -> None:
    overflowing = request(body(np.full((1, 1, 28, 28), 3e38, np.float32)))
    good = request(body(IMAGES[:1]))
    first, bad, last = respond_together(counting, [good, overflowing, good], instances=TOGETHER)
    assert (first.status, last.status) == (200, 200)
    assert bad == respond(counting, overflowing)
    assert bad.status != 200


def test_a_request_whose_time_is_over_is_504_and_its_neighbours_are_answered(counting: Counting) -> None:
    late = Request(body(IMAGES[:1]), "application/json", None, "late", arrived=-1e9)
    good = request(body(IMAGES[:1]))
    answers = respond_together(counting, [late, good], instances=TOGETHER, limits=Limits(seconds=5))
    assert [answer.status for answer in answers] == [504, 200]


def test_a_model_whose_answers_depend_on_their_neighbours_is_asked_one_by_one(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path)
    assert not LookingAround.load(tmp_path).joins(TOGETHER)


def test_golden_inputs_that_are_all_alike_prove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving_models.write_model(tmp_path)
    predictor = Predictor.load(tmp_path)
    signature = predictor.description.signature
    golden = signature.golden._replace(inputs=signature.golden.inputs[[0, 0, 0, 0]])
    predictor.description = predictor.description._replace(signature=signature._replace(golden=golden))
    assert not predictor.joins(TOGETHER)


def test_the_worker_answers_what_waits_with_one_inference(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path)
    loaded: list[Counting] = []

    def load() -> Predictor:
        predictor = Counting.load(tmp_path)
        assert isinstance(predictor, Counting)
        loaded.append(predictor)
        return predictor

    async def scenario() -> list[tuple[int, dict[str, str], bytes]]:
        app = Application(load, dynamic_batch=TOGETHER)
        await app.open()
        (predictor,) = loaded
        predictor.batches.clear()
        predictor.entered.clear()
        predictor.gate.clear()
        first = asyncio.create_task(call(app, "POST", "/invocations", body(IMAGES[:1])))
        await asyncio.to_thread(predictor.entered.wait)
        others = [asyncio.create_task(call(app, "POST", "/invocations", body(IMAGES[n : n + 1]))) for n in range(1, 6)]
        while app.pending < 6:
            await asyncio.sleep(0.01)
        predictor.gate.set()
        answers = await asyncio.gather(first, *others)
        assert predictor.batches == [1, 5]
        return answers

    answers = asyncio.run(scenario())
    alone = Predictor.load(tmp_path)
    for number, (status, _, answer) in enumerate(answers):
        assert status == 200
        assert answer == respond(alone, request(body(IMAGES[number : number + 1]))).body


def test_the_event_loop_answers_what_has_arrived_together_with_one_inference(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path)
    loaded: list[Counting] = []

    def load() -> Predictor:
        predictor = Counting.load(tmp_path, timed=True)
        assert isinstance(predictor, Counting)
        loaded.append(predictor)
        return predictor

    async def scenario() -> list[bytes]:
        app = Application(load, dynamic_batch=TOGETHER)
        await app.open()
        (predictor,) = loaded
        clients = [await connect(app, few(1)) for _ in range(5)]
        predictor.batches.clear()
        for number, (_, writer) in enumerate(clients):
            content = body(IMAGES[number : number + 1])
            writer.write(b"POST /invocations HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        answers = [(await read_answer(reader))[2] for reader, _ in clients]
        assert predictor.batches == [5]
        assert not predictor.threads & {"inference-0"}
        return answers

    alone = Predictor.load(tmp_path)
    for number, answer in enumerate(asyncio.run(scenario())):
        assert answer == respond(alone, request(body(IMAGES[number : number + 1]))).body


def test_a_slow_model_is_not_tried(tmp_path: Path) -> None:
    class Slow(Predictor):
        def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
            runs.append(len(inputs))
            threading.Event().wait(0.05)
            return super().run(inputs, seconds=seconds)

    runs: list[int] = []
    serving_models.write_model(tmp_path)
    predictor = Slow.load(tmp_path)
    runs.clear()
    assert not predictor.joins(TOGETHER)
    assert set(runs) == {1}


def test_an_inference_that_is_ended_leaves_its_requests_to_be_asked_alone(tmp_path: Path) -> None:
    class Ended(Predictor):
        def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
            if len(inputs) == 2:
                raise DeadlineExceeded("ended")
            return super().run(inputs, seconds=seconds)

    serving_models.write_model(tmp_path)
    predictor = Ended.load(tmp_path)
    good = request(body(IMAGES[:1]))
    assert respond_together(predictor, [good, good], instances=TOGETHER) == [respond(predictor, good)] * 2


def test_the_settings_allow_what_the_container_takes_and_no_more() -> None:
    assert HostingSettings(dynamic_batch=environment.MAX_DYNAMIC_BATCH)
    with pytest.raises(ValidationError, match="dynamic_batch"):
        HostingSettings(dynamic_batch=environment.MAX_DYNAMIC_BATCH + 1)


def test_whoever_has_an_answer_may_unload_the_model_nothing_refers_to_it_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Model:
        def __call__(self, requests: Sequence[Request]) -> list[Response]:
            return [Response(200, one.body, {}) for one in requests]

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        deliver, goes_on = loop.call_soon_threadsafe, threading.Event()

        def deliver_and_stay(*arguments: Any) -> None:
            """The thread that infers is still in here when the answer has arrived."""
            deliver(*arguments)
            goes_on.wait()

        monkeypatch.setattr(loop, "call_soon_threadsafe", deliver_and_stay)
        inferences, model = Inferences(1, 1), Model()
        watched = weakref.ref(model)
        await inferences.infer(model, request(b"asked"))
        del model
        assert watched() is None
        goes_on.set()

    asyncio.run(scenario())

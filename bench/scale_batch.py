"""Images a second over the number of images in one request: in one process on one thread, and over HTTP on two cores.

A batch that the core refuses is asked nowhere; the report says what the core said.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench.cells import summarise_cell
from bench.core import Labels, Way, as_json, as_npy, check, golden_pixels, take_turn, with_four_decimals
from bench.load import Load
from bench.payloads import Payload
from bench.scale_setup import CORES, SIZES, Setup
from bench.servers import ours, running
from model_code.inference.codecs import JSON, NPY
from model_code.inference.contract import Request, Response, Signature
from model_code.inference.predictor import Predictor
from model_code.inference.preprocess import normalise
from model_code.inference.respond import respond

LIMIT = "session_run"
# From this many images a cell over HTTP is a long one: few of them are answered in a short one.
MANY = 256

_HTTP_TYPES = {"json_data": JSON, "npy": NPY}

Cell = tuple[str, int]


def measure(setup: Setup) -> dict[str, Any]:
    """Way -> images in a request -> numbers, or why there are none; ways over HTTP begin with "http_"."""
    ways, refused = find_ways(setup.predictor, setup.session, SIZES)
    check(ways)
    report: dict[str, Any] = defaultdict(dict)
    for (name, count), seconds in _take_turns(setup, ways).items():
        report[name][str(count)] = {"images_per_second": count / statistics.median(seconds)}
    for (name, count), loads in _ask_over_http(setup, refused).items():
        report[f"http_{name}"][str(count)] = summarise_cell(loads, count)
    for (name, count), why in refused.items():
        report[name][str(count)] = {"skipped": why}
        if name in _HTTP_TYPES and count in setup.plan.http_sizes:
            report[f"http_{name}"][str(count)] = {"skipped": why}
    return dict(report)


def find_ways(
    predictor: Predictor, session: ort.InferenceSession, sizes: Sequence[int]
) -> tuple[list[Way], dict[Cell, str]]:
    """What is timed in one process, and what the core refuses, with its own words."""
    ways: list[Way] = []
    refused: dict[Cell, str] = {}
    signature = predictor.description.signature
    for count in sizes:
        pixels = golden_pixels(signature, count)
        digits = normalise(pixels, signature.preprocessing)
        run = partial(session.run, [signature.output.name], {signature.input.name: digits})
        expected = [signature.labels[index] for index in run()[0].argmax(axis=1)]
        ways.append(Way(LIMIT, count, run, partial(_labels, signature), expected))
        bodies = {
            "json_data": (as_json("data", with_four_decimals(digits)), JSON),
            "json_images": (as_json("images", pixels), JSON),
            "npy": (as_npy(digits), NPY),
        }
        for name, (body, content_type) in bodies.items():
            answer = partial(_answer, predictor, body, content_type)
            response = answer()
            if response.status == 200:
                ways.append(Way(name, count, answer, partial(_answered, signature), expected))
            else:
                refused[name, count] = str(json.loads(response.body)["error"]["message"])
    return ways, refused


def _answer(predictor: Predictor, body: bytes, content_type: str) -> Response:
    # The deadline of a request counts from when it is made.
    return respond(predictor, Request(body, content_type, None, "bench"))


def _answered(signature: Signature, response: Response) -> Labels:
    labels: Labels = json.loads(response.body)[signature.response_key]
    return labels


def _labels(signature: Signature, outputs: list[NDArray[np.float32]]) -> Labels:
    return [signature.labels[index] for index in outputs[0].argmax(axis=1)]


def _take_turns(setup: Setup, ways: list[Way]) -> dict[Cell, list[float]]:
    """The median seconds of each round."""
    rounds: dict[Cell, list[float]] = defaultdict(list)
    for number in range(1, setup.plan.core_rounds + 1):
        for way in ways:
            rounds[way.name, way.count].append(statistics.median(take_turn(way.answer)))
        setup.say(f"batch sizes, one process: round {number} of {setup.plan.core_rounds}")
    return rounds


def _ask_over_http(setup: Setup, refused: dict[Cell, str]) -> dict[Cell, list[Load]]:
    plan, cores = setup.plan, setup.cores[:CORES]
    payloads: dict[Cell, Payload] = {
        (name, count): setup.payload(f"{name}_{count}", count, content_type)
        for count in plan.http_sizes
        for name, content_type in _HTTP_TYPES.items()
        if (name, count) not in refused
    }
    rounds: dict[Cell, list[Load]] = defaultdict(list)
    first = payloads["json_data", 1]
    for number in range(1, plan.rounds + 1):
        server = ours("scale-batch", "modelferry", setup.release, setup.folder, len(cores))
        with running(server, first, cores) as one:
            setup.load(one.url, first, 2 * len(cores), plan.warm_up, cores)
            for (name, count), payload in payloads.items() if number % 2 else reversed(payloads.items()):
                payload.check(one.url)
                seconds = plan.long_cell if count >= MANY else plan.cell
                rounds[name, count].append(setup.load(one.url, payload, 2 * len(cores), seconds, cores))
        setup.say(f"batch sizes over HTTP, {2 * len(cores)} connections: round {number} of {plan.rounds}")
    return rounds

"""Times the serving core in one process, on one thread and without HTTP: what it adds to ONNX Runtime, what it saves.

    python -m bench.core [--quick] [RELEASE_DIR]     the folder holds release.json and model.tar.gz

The limit is a bare `session.run` of the same images. The published handler is the Azure Function that the multi-cloud example
on the AWS blog shows, in our words: it makes an ONNX Runtime session for every request. As published it takes ONNX Runtime's
default threads; it is timed with one thread too, so that the price of the session can be told from that of the threads.

Digits are the release's own golden images, whose background repeats; noise is random numbers. Both have four decimals in JSON,
enough to tell 256 levels of grey apart; "all digits" is what `tolist()` writes, up to seventeen of them. All ways take turns, in
another order each round, as each finds in the caches what the one before has left. A ratio is the median of the ratios in each
round: a machine that changes its speed changes both sides of it.
"""

import io
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench.goals import goal_lines
from bench.parts import arguments, write_part
from ferry.archive import ArchiveError, read_archive
from infra.release import ReleaseError, read_release
from model_code.inference.codecs import JSON, NPY
from model_code.inference.contract import Request, Signature
from model_code.inference.errors import ModelInvalid
from model_code.inference.predictor import Predictor
from model_code.inference.preprocess import normalise
from model_code.inference.respond import respond

COUNTS = (1, 16, 256)
# Of more images than this only what the report needs is timed: they take long.
FEW = 16
ROUNDS = 80
QUICK_ROUNDS = 8
TURN_SECONDS = 0.025

LIMIT = "session.run"
OURS = "ours, JSON data"
OURS_NPY = "ours, npy float32"
PUBLISHED = "published, JSON data"

Labels = list[int | str]


@dataclass(frozen=True)
class Way:
    """One way to the labels of `count` images."""

    name: str
    count: int
    answer: Callable[[], Any]
    read_labels: Callable[[Any], Labels]
    expected: Labels


@dataclass(frozen=True)
class Timing:
    """Seconds of all calls, and the median of each round."""

    seconds: list[float]
    rounds: list[float]

    def ratio(self, other: "Timing") -> float:
        """How many times as long as the other it takes."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True))


Timings = dict[tuple[str, int], Timing]


def unpack(release_dir: Path, folder: Path) -> Predictor:
    """Load the release under its own pins, from files written to `folder`."""
    release = read_release(release_dir / "release.json")
    archive = release_dir / "model.tar.gz"
    for name, content in read_archive(archive.read_bytes(), str(archive), exact=True).items():
        (folder / name).write_bytes(content)
    return Predictor.load(folder, release_id=release.release_id, model_json_sha256=release.model_json.sha256)


def find_ways(predictor: Predictor, model: Path, count: int) -> Iterator[Way]:
    signature = predictor.description.signature
    pixels = golden_pixels(signature, count)
    exact = normalise(pixels, signature.preprocessing)
    digits = with_four_decimals(exact)
    noise = np.random.default_rng(1).uniform(-0.4242, 2.8215, digits.shape).round(4)

    session = ort.InferenceSession(model, one_thread(), providers=["CPUExecutionProvider"])
    input_name, output_names = signature.input.name, [signature.output.name]

    def labels(outputs: NDArray[np.float32]) -> Labels:
        return [signature.labels[index] for index in outputs.argmax(axis=1)]

    def run(inputs: NDArray[np.float32]) -> Any:
        return session.run(output_names, {input_name: inputs})[0]

    expected = {"digits": labels(run(digits.astype(np.float32))), "noise": labels(run(noise.astype(np.float32)))}
    data = {"digits": as_json("data", digits), "noise": as_json("data", noise)}
    expected["all digits"], data["all digits"] = labels(run(exact)), as_json("data", exact)

    def ours(name: str, images: str, body: bytes, content_type: str) -> Way:
        return Way(
            f"{name}, {images}",
            count,
            lambda: respond(predictor, Request(body, content_type, None, "bench")).body,
            lambda answer: json.loads(answer)[signature.response_key],
            expected[images],
        )

    def published(name: str, images: str, options: ort.SessionOptions) -> Way:
        return Way(
            f"{name}, {images}",
            count,
            lambda: published_handler(model, options, signature, data[images]),
            lambda answer: json.loads(answer)[signature.response_key],
            expected[images],
        )

    yield Way(LIMIT, count, lambda: run(exact), labels, expected["all digits"])
    yield ours(OURS, "digits", data["digits"], JSON)
    yield ours(OURS, "all digits", data["all digits"], JSON)
    yield ours(OURS_NPY, "all digits", as_npy(exact), NPY)
    if count > FEW:
        return
    yield ours(OURS, "noise", data["noise"], JSON)
    yield ours("ours, JSON images", "digits", as_json("images", pixels), JSON)
    yield ours("ours, npy uint8", "digits", as_npy(pixels), NPY)
    yield published(PUBLISHED, "digits", ort.SessionOptions())
    yield published(PUBLISHED, "noise", ort.SessionOptions())
    yield published("published, one thread", "digits", one_thread())


def published_handler(model: Path, options: ort.SessionOptions, signature: Signature, body: bytes) -> str:
    inputs = np.array(json.loads(body)["data"], dtype=np.float32)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return json.dumps({signature.response_key: [signature.labels[index] for index in np.argmax(outputs, axis=1)]})


def one_thread() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def golden_pixels(signature: Signature, count: int) -> NDArray[np.uint8]:
    """The images behind the golden inputs, uint8 (count, channels, rows, columns), repeated as often as needed."""
    golden, preprocessing = signature.golden.inputs, signature.preprocessing
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (preprocessing.mean, preprocessing.std))
    pixels = ((golden * std + mean) / preprocessing.scale).round().clip(0, 255).astype(np.uint8)
    return np.resize(pixels, (count, *pixels.shape[1:]))


def with_four_decimals(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """As float64: what is rounded as float32 gets all its digits back when it is written."""
    return values.astype(np.float64).round(4)


def as_json(key: str, values: NDArray[Any]) -> bytes:
    return json.dumps({key: values.tolist()}).encode()


def as_npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def check(ways: list[Way]) -> None:
    """Raises SystemExit unless every way gives the labels that ONNX Runtime gives for the same images."""
    for way in ways:
        answer = way.answer()
        try:
            labels = way.read_labels(answer)
        except LookupError:
            raise SystemExit(f"{way.name}, {way.count}: no labels in {answer!r}") from None
        if labels != way.expected:
            raise SystemExit(f"{way.name}, {way.count}: {labels}; {LIMIT} says {way.expected}")


def measure(ways: list[Way], rounds: int) -> Timings:
    timings: Timings = defaultdict(lambda: Timing([], []))
    order = Random(1)
    started = time.perf_counter()
    for number in range(1, rounds + 1):
        for way in sorted(order.sample(ways, len(ways)), key=lambda way: way.count):
            seconds = take_turn(way.answer)
            timings[way.name, way.count].seconds.extend(seconds)
            timings[way.name, way.count].rounds.append(statistics.median(seconds))
        if number % (rounds // 8) == 0:
            print(f"{number} of {rounds} rounds, {time.perf_counter() - started:.0f} s", flush=True)
    return timings


def take_turn(answer: Callable[[], Any]) -> list[float]:
    """Seconds of each call in one turn; the first call brings code and weights back into the caches and is not counted."""
    answer()
    seconds: list[float] = []
    end = time.perf_counter() + TURN_SECONDS
    while not seconds or time.perf_counter() < end:
        started = time.perf_counter()
        answer()
        seconds.append(time.perf_counter() - started)
    return seconds


def summarise(timings: Timings) -> dict[str, Any]:
    """The core's share of the report: ratios, and medians in µs."""
    digits, npy, published = f"{OURS}, digits", f"{OURS_NPY}, all digits", f"{PUBLISHED}, digits"
    over_raw: dict[str, float] = {}
    for count in COUNTS:
        limit = timings[LIMIT, count]
        over_raw[f"json_{count}"] = timings[digits, count].ratio(limit)
        over_raw[f"json_all_digits_{count}"] = timings[f"{OURS}, all digits", count].ratio(limit)
        over_raw[f"npy_{count}"] = timings[npy, count].ratio(limit)
    few = [count for count in COUNTS if count <= FEW]
    return {
        "handler": {
            "published_over_ours": {
                f"batch_{count}": timings[published, count].ratio(timings[digits, count]) for count in few
            }
        },
        "core_over_raw": over_raw,
        "core_microseconds": {
            f"{name}, {count}": statistics.median(timing.seconds) * 1e6 for (name, count), timing in timings.items()
        },
    }


def table(ways: list[Way], timings: Timings) -> Iterator[str]:
    for count in COUNTS:
        yield f"\n{f'{count} image' + 's' * (count > 1):<32}{'median':>11}{'best':>11}{'× limit':>10}"
        for way in ways:
            if way.count == count:
                timing, limit = timings[way.name, count], timings[LIMIT, count]
                median, best = statistics.median(timing.seconds) * 1e6, min(timing.seconds) * 1e6
                yield f"{way.name:<32}{median:8.0f} µs{best:8.0f} µs{timing.ratio(limit):10.3f}"


def main() -> None:
    given = arguments("bench.core", __doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            predictor = unpack(given.release_dir, Path(folder))
        except (ReleaseError, ArchiveError, ModelInvalid, OSError) as error:
            raise SystemExit(str(error)) from error
        ways = [way for count in COUNTS for way in find_ways(predictor, Path(folder) / "model.onnx", count)]
        check(ways)
        print(f"{predictor.release_id}: all ways agree; onnxruntime {ort.__version__}", flush=True)
        timings = measure(ways, QUICK_ROUNDS if given.quick else ROUNDS)
        check(ways)
    measured = summarise(timings)
    write_part("core", measured, quick=given.quick)
    for line in (*table(ways, timings), "", *goal_lines(measured)):
        print(line)
    print(f"\nload of this machine when it ended: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

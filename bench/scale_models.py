"""Models in one multi-model container: memory, the time to load one, and requests that go round over all of them."""

import json
import statistics
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.cells import summarise_cell
from bench.load import Load
from bench.payloads import ANSWER_SECONDS
from bench.scale_setup import CORES, Setup
from bench.servers import Ping, many_models, running
from model_code import environment
from model_code.inference.codecs import JSON

CONNECTIONS = 8
# Of the memory that is free when it begins.
MEMORY_SHARE = 0.25

_FILES = (environment.SIGNATURE_FILE, environment.MODEL_FILE)


class Full(Exception):
    """The container has no room for another model; the message is its own."""


@dataclass
class Step:
    """Of every round, with so many models loaded: bytes of the container, seconds of each load since the step before."""

    bytes: list[int] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)


def measure(setup: Setup) -> dict[str, Any]:
    """`models`: number of models -> numbers; `models_end`: why there are no more; `mebibytes_per_model`: what each adds."""
    steps: dict[int, Step] = {}
    budget = int(psutil.virtual_memory().available * MEMORY_SHARE)
    ends = []
    for number in range(1, setup.plan.rounds + 1):
        ends.append(_fill(setup, steps, budget))
        largest = max(steps)
        rate, mebibytes = steps[largest].loads[-1].requests_per_second, steps[largest].bytes[-1] / 2**20
        setup.say(
            f"models: round {number} of {setup.plan.rounds}: {largest} take {mebibytes:.0f} MiB, {rate:.0f} requests/s"
        )
    return summarise(steps, ends[-1])


def summarise(steps: dict[int, Step], end: str) -> dict[str, Any]:
    models = {
        str(count): {
            **summarise_cell(step.loads, images=1),
            "mebibytes": statistics.median(step.bytes) / 2**20,
            "load_milliseconds": statistics.median(step.load_seconds) * 1000,
        }
        for count, step in steps.items()
    }
    fewest, most = min(steps), max(steps)
    added = (
        (models[str(most)]["mebibytes"] - models[str(fewest)]["mebibytes"]) / (most - fewest) if most > fewest else None
    )
    return {"models": models, "models_end": end, "mebibytes_per_model": added}


def _fill(setup: Setup, steps: dict[int, Step], budget: int) -> str:
    """One container, with 1, 2, 4 … models until there is no room for as many again; returns why it ended."""
    cores = setup.cores[:CORES]
    payload = setup.payload("json_1", 1, JSON)
    with running(many_models("scale-models", setup.folder, len(cores)), Ping(), cores) as container:
        urls: list[str] = []
        count = 1
        while count <= setup.plan.most_models:
            if urls and count * container.memory() / len(urls) > budget:
                return f"{count} models could take more than a quarter of the free memory, {budget / 2**20:.0f} MiB"
            step = Step()
            try:
                while len(urls) < count:
                    started = time.perf_counter()
                    urls.append(load_model(setup.folder, container.url, f"model-{len(urls) + 1}"))
                    step.load_seconds.append(time.perf_counter() - started)
            except Full as error:
                return f"{count} models: {error}"
            for url in urls:
                payload.check(url)
            paths = [url.removeprefix(container.url) for url in urls]
            step.loads.append(setup.load(urls[0], payload, CONNECTIONS, setup.plan.cell, cores, paths))
            step.bytes.append(container.memory())
            kept = steps.setdefault(count, Step())
            kept.bytes += step.bytes
            kept.load_seconds += step.load_seconds
            kept.loads += step.loads
            count *= 2
    return f"{setup.plan.most_models} models are the most that are tried"


def load_model(folder: Path, url: str, name: str) -> str:
    """Load the model below `folder`, an /opt/ml, under a name of its own, as SageMaker does; returns where it answers.

    Its files are links to one copy on disk: in memory every model has its own. Raises Full where the container has no room.
    """
    directory = folder / "models" / name / "model"
    directory.mkdir(parents=True, exist_ok=True)
    for file in _FILES:
        if not (directory / file).exists():
            (directory / file).hardlink_to(folder / "model" / file)
    order = json.dumps({"model_name": name, "url": str(directory)}).encode()
    request = urllib.request.Request(f"{url}/models", order, {"content-type": JSON})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return f"{url}/models/{name}/invoke"
    except urllib.error.HTTPError as error:
        if error.code != 507:
            raise
        raise Full(json.loads(error.read())["error"]["message"]) from error

"""Images a second over cores, and one multi-model process against two.

Everything is pinned to its cores. The load generator has the cores that are left; with none left it shares all, which takes
something from the last step, and from that step only.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench import raw
from bench.cells import summarise_cell
from bench.core import as_npy, golden_pixels
from bench.load import Load
from bench.payloads import Payload
from bench.scale_models import load_model
from bench.scale_setup import CORES, Setup
from bench.servers import Ping, Running, many_models, ours, running, tree
from model_code.inference.codecs import JSON, NPY
from model_code.inference.preprocess import normalise

LIMIT, CONTAINER, MULTI_MODEL = "session_run", "container", "multi_model"
PAYLOADS = {"json_1": (1, JSON), "binary_16": (16, NPY)}
# Few of them would not reach all processes: the system deals them out without looking.
CONNECTIONS_A_CORE = 8

Cell = tuple[int, str, str]


@dataclass(frozen=True)
class Shape:
    """How a server was running: its processes, and MiB of all together (PSS) after its load."""

    processes: int
    mebibytes: float


def core_counts(available: int) -> list[int]:
    """Powers of two."""
    return [2**power for power in range(available.bit_length())]


def measure(setup: Setup) -> dict[str, Any]:
    """Cores -> way -> payload -> numbers."""
    payloads = {name: setup.payload(name, *what) for name, what in PAYLOADS.items()}
    counts = core_counts(len(setup.cores))
    rates: dict[Cell, list[float]] = defaultdict(list)
    loads: dict[Cell, list[Load]] = defaultdict(list)
    shapes: dict[tuple[int, str], Shape] = {}
    for number in range(1, setup.plan.rounds + 1):
        for count in counts if number % 2 else reversed(counts):
            cores = setup.cores[:count]
            for name, rate in _raw(setup, cores):
                rates[count, LIMIT, name].append(rate)
            found, shapes[count, CONTAINER] = _container(setup, payloads, cores)
            for name, load in found.items():
                loads[count, CONTAINER, name].append(load)
            one, shapes[count, MULTI_MODEL] = _multi_model(setup, payloads["json_1"], [cores])
            loads[count, MULTI_MODEL, "json_1"].append(one)
            pair = f"{found['json_1'].requests_per_second:.0f}, multi-model {one.requests_per_second:.0f} requests/s"
            setup.say(f"cores: round {number} of {setup.plan.rounds}, {count}: container {pair}")
    report: dict[str, Any] = {}
    for (count, way, name), measured in loads.items():
        cell = summarise_cell(measured, PAYLOADS[name][0])
        report.setdefault(str(count), {}).setdefault(way, {})[name] = cell
        rates[count, way, name] = [load.requests_per_second for load in measured]
    for (count, way, name), series in rates.items():
        cell = report.setdefault(str(count), {}).setdefault(way, {}).setdefault(name, {})
        cell.setdefault("images_per_second", statistics.median(series))
        pairs = zip(series, rates[counts[0], way, name], strict=True)
        cell["over_one_core"] = statistics.median(mine / first for mine, first in pairs)
    for (count, way), shape in shapes.items():
        report[str(count)][way].update(processes=shape.processes, mebibytes=shape.mebibytes)
    for count in counts:
        shared = len(setup.cores) == count
        report[str(count)]["load_generator"] = "on the same cores" if shared else "on the other cores"
    return report


def measure_processes(setup: Setup) -> dict[str, Any]:
    """One multi-model process with a thread for each of two cores, against two processes of one thread on a core each."""
    payload = setup.payload("json_1", *PAYLOADS["json_1"])
    cores = setup.cores[:CORES]
    ways: dict[str, Sequence[Sequence[int]]] = {"one": [cores], "two": [[core] for core in (cores[0], cores[-1])]}
    loads: dict[str, list[Load]] = defaultdict(list)
    shapes: dict[str, Shape] = {}
    for number in range(1, setup.plan.rounds + 1):
        for name in ways if number % 2 else reversed(ways):
            load, shapes[name] = _multi_model(setup, payload, ways[name])
            loads[name].append(load)
        rates = ", ".join(f"{name}: {loads[name][-1].requests_per_second:.0f} requests/s" for name in ways)
        setup.say(f"multi-model processes: round {number} of {setup.plan.rounds}: {rates}")
    return {
        name: {**summarise_cell(measured, payload.images), "mebibytes": shapes[name].mebibytes}
        for name, measured in loads.items()
    }


def _raw(setup: Setup, cores: Sequence[int]) -> list[tuple[str, float]]:
    rates = []
    for name, (images, _) in PAYLOADS.items():
        body = setup.folder / f"raw_{images}.npy"
        body.write_bytes(as_npy(normalise(golden_pixels(setup.signature, images), setup.signature.preprocessing)))
        rate = raw.images_per_second(setup.model, body, setup.plan.raw, cores)
        rates.append((name, rate))
    return rates


def _container(setup: Setup, payloads: dict[str, Payload], cores: Sequence[int]) -> tuple[dict[str, Load], Shape]:
    """The process of an endpoint with one model, told to use so many cores."""
    server = ours(f"scale-{len(cores)}", "modelferry", setup.release, setup.folder, len(cores))
    connections = CONNECTIONS_A_CORE * len(cores)
    with running(server, payloads["json_1"], cores) as one:
        setup.load(one.url, payloads["json_1"], connections, setup.plan.warm_up, cores)
        loads = {}
        for name, payload in payloads.items():
            payload.check(one.url)
            loads[name] = setup.load(one.url, payload, connections, setup.plan.long_cell, cores)
        return loads, _shape([one])


def _multi_model(setup: Setup, payload: Payload, groups: Sequence[Sequence[int]]) -> tuple[Load, Shape]:
    """One multi-model process for each group of cores, with a thread for each core; all are asked at once."""
    with ExitStack() as stack:
        every = []
        for number, cores in enumerate(groups):
            server = many_models(f"scale-multi-{number}", setup.folder, len(cores))
            every.append(stack.enter_context(running(server, Ping(), cores)))
        urls = [load_model(setup.folder, one.url, "model") for one in every]
        for url in urls:
            payload.check(url)
        taken = [core for cores in groups for core in cores]
        connections = CONNECTIONS_A_CORE * len(set(taken)) // len(groups)

        def ask(url: str, seconds: float) -> Load:
            return setup.load(url, payload, connections, seconds, taken)

        with ThreadPoolExecutor(len(urls)) as pool:
            list(pool.map(ask, urls, [setup.plan.warm_up] * len(urls)))
            loads = list(pool.map(ask, urls, [setup.plan.long_cell] * len(urls)))
        return together(loads), _shape(every)


def together(loads: Sequence[Load]) -> Load:
    """Servers that were asked at the same time: their requests add up, and the slowest latency counts."""
    return Load(
        sum(load.requests_per_second for load in loads),
        max(load.p50_ms for load in loads),
        max(load.p99_ms for load in loads),
        sum(load.errors for load in loads),
    )


def _shape(every: Sequence[Running]) -> Shape:
    processes = sum(len(tree(one.leader, one.mark)) for one in every)
    return Shape(processes, sum(one.memory() for one in every) / 2**20)

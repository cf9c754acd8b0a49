"""The arithmetic of the HTTP measurement: cells, rounds, medians, and ratios of what was measured in the same round.

A cell is one server, one payload, one number of connections; it holds one Load a round. A server that lacks a cell lacks it
in the report too, and no ratio is made up for it.
"""

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.load import Load

OURS = "ours"
ALONE = "ours-one-by-one"
INT8 = "ours-int8"
CONSTANT = "constant"
CONNECTIONS = (1, 8, 32)

Key = tuple[str, str, int]


@dataclass
class Cells:
    """All rounds of all cells, the raw limit of each round, and how the servers started and weighed.

    `images` is how many images a payload holds; `raw` is images a second of session.run with as many images a run.
    """

    images: Mapping[str, int]
    loads: dict[Key, list[Load]] = field(default_factory=dict)
    raw: dict[int, list[float]] = field(default_factory=dict)
    start_seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, list[int]] = field(default_factory=dict)

    def drop(self, server: str) -> None:
        """Forget a server that failed in one of the rounds."""
        self.loads = {key: loads for key, loads in self.loads.items() if key[0] != server}
        self.start_seconds.pop(server, None)
        self.peak_bytes.pop(server, None)

    def rate(self, key: Key) -> float:
        """Median requests a second."""
        return statistics.median(load.requests_per_second for load in self.loads[key])

    def best(self, payload: str, connections: int, servers: Collection[str]) -> str | None:
        """Which of these servers has the highest median of this cell; None where none has it."""
        keys = [(name, payload, connections) for name in servers if (name, payload, connections) in self.loads]
        return max(keys, key=self.rate)[0] if keys else None

    def best_over_all(self, servers: Collection[str]) -> str | None:
        """Which of these servers answers the most requests a second: the largest geometric mean of its medians over the cells
        that all of them have, so that no cell counts for more because its requests are small. None without such cells."""
        names = sorted({key[0] for key in self.loads if key[0] in servers})
        cells = {key[1:] for key in self.loads}
        shared = [cell for cell in cells if all((name, *cell) in self.loads for name in names)]
        if not names or not shared:
            return None
        return max(names, key=lambda name: statistics.geometric_mean(self.rate((name, *cell)) for cell in shared))

    def ratio(self, mine: Key, theirs: Key) -> float:
        """Median of the ratios in each round."""
        pairs = zip(self.loads[mine], self.loads[theirs], strict=True)
        return statistics.median(ours.requests_per_second / other.requests_per_second for ours, other in pairs)

    def p99_ratio(self, mine: Key, theirs: Key) -> float:
        """The same of the latencies that 99 of 100 answers keep."""
        pairs = zip(self.loads[mine], self.loads[theirs], strict=True)
        return statistics.median(ours.p99_ms / other.p99_ms for ours, other in pairs)


def summarise_cell(loads: Sequence[Load], images: int) -> dict[str, Any]:
    """All rounds of one cell, whose requests hold so many images: medians, and every error."""
    rate = statistics.median(load.requests_per_second for load in loads)
    return {
        "requests_per_second": rate,
        "images_per_second": rate * images,
        "p50_ms": statistics.median(load.p50_ms for load in loads),
        "p99_ms": statistics.median(load.p99_ms for load in loads),
        "errors": sum(load.errors for load in loads),
        "rounds": [load.requests_per_second for load in loads],
    }


def summarise(cells: Cells, peers: Collection[str]) -> dict[str, Any]:
    """What the report says below `http`; `peers` are the servers that ours is compared with."""
    report: dict[str, Any] = {}
    for (server, payload, connections), loads in cells.loads.items():
        cell = summarise_cell(loads, cells.images[payload])
        report.setdefault(server, {}).setdefault(payload, {})[f"c{connections}"] = cell
    for server in report:
        report[server]["start_seconds"] = statistics.median(cells.start_seconds[server])
        report[server]["peak_mebibytes"] = max(cells.peak_bytes[server]) / 2**20
    report["raw"] = {f"images_per_second_batch_{count}": statistics.median(rates) for count, rates in cells.raw.items()}
    if any(key[0] == OURS for key in cells.loads):
        report.update(_compare(cells, peers))
    return report


def _compare(cells: Cells, peers: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Ours against the best peer of each cell, the raw limit, and itself."""
    ratios: dict[str, dict[str, float]] = {}
    best: dict[str, dict[str, str]] = {}
    p99: dict[str, dict[str, float]] = {}
    quickest: dict[str, dict[str, str]] = {}
    for server, payload, connections in cells.loads:
        peer = cells.best(payload, connections, peers) if server == OURS else None
        if peer is None:
            continue
        mine, place = (OURS, payload, connections), f"c{connections}"
        ratios.setdefault(payload, {})[place] = cells.ratio(mine, (peer, payload, connections))
        best.setdefault(payload, {})[place] = peer
        others = {key[0]: cells.p99_ratio(mine, key) for key in cells.loads if key[0] in peers and key[1:] == mine[1:]}
        quick = max(others, key=others.__getitem__)
        p99.setdefault(payload, {})[place] = others[quick]
        quickest.setdefault(payload, {})[place] = quick
    yield "ratio_to_best_peer", ratios
    yield "best_peer", best
    yield "p99_over_quickest_peer", p99
    yield "quickest_peer", quickest
    yield "images_per_second_over_raw", dict(_over_raw(cells))
    steady = {}
    for payload in ("json_16", "binary_16"):
        loads = cells.loads.get((OURS, payload, 32))
        if loads:
            steady[payload] = {"c32": statistics.median(load.p99_ms / load.p50_ms for load in loads)}
    yield "p99_over_p50", steady
    if p99:
        yield "worst_p99_over_any_peer", max(ratio for cell in p99.values() for ratio in cell.values())
    busiest = cells.best_over_all(peers)
    if busiest is not None:
        yield "best_peer_over_all", busiest
        yield "memory_over_best_peer", max(cells.peak_bytes[OURS]) / max(cells.peak_bytes[busiest])
    if "fastapi" in cells.start_seconds:
        pairs = zip(cells.start_seconds[OURS], cells.start_seconds["fastapi"], strict=True)
        yield "start_over_fastapi", statistics.median(ours / theirs for ours, theirs in pairs)
    int8 = [
        cells.ratio((INT8, *key[1:]), key) for key in cells.loads if key[0] == OURS and (INT8, *key[1:]) in cells.loads
    ]
    if int8:
        yield "int8_over_fp32", min(int8)


def _over_raw(cells: Cells) -> Iterator[tuple[str, float]]:
    """Images a second over the raw limit of the same round with as many images a run, at the connections that suit it best."""
    for payload, count in cells.images.items():
        shares = []
        for (server, name, _), loads in cells.loads.items():
            if server == OURS and name == payload:
                pairs = zip(loads, cells.raw[count], strict=True)
                shares.append(statistics.median(load.requests_per_second * count / raw for load, raw in pairs))
        if shares:
            yield payload, max(shares)

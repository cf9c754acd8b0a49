"""The arithmetic of the HTTP measurement: cells, turns, medians, and ratios of what was measured in turns.

A cell is one server, one payload, one number of connections; it holds one Load a turn. Ours runs beside every other server and
takes turns of a second or so with it: a machine that changes its speed changes both. A server that lacks a cell lacks it in the
report too, and no ratio is made up for it.
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
    """All turns of all cells, and how the servers started and weighed.

    `images` is how many images a payload holds. `beside` has the key of a server and what ours did in turns with it; what ours
    did beside any of them is in `loads` too. `raw` is images a second of session.run with as many images a run, and `over_raw`
    the share of it that ours reached in turns with it. `steady` is ours alone, for longer than a turn, with the most
    connections, by payload.
    """

    images: Mapping[str, int]
    loads: dict[Key, list[Load]] = field(default_factory=dict)
    beside: dict[Key, list[Load]] = field(default_factory=dict)
    raw: dict[int, list[float]] = field(default_factory=dict)
    over_raw: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    steady: dict[str, list[Load]] = field(default_factory=dict)
    start_seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, list[int]] = field(default_factory=dict)

    def add(self, key: Key, theirs: Load, mine: Load) -> None:
        """One turn of a server, and ours right before or after it."""
        self.loads.setdefault(key, []).append(theirs)
        self.beside.setdefault(key, []).append(mine)
        self.loads.setdefault((OURS, *key[1:]), []).append(mine)

    def drop(self, server: str) -> None:
        """Forget a server that failed in one of the rounds."""
        for table in (self.loads, self.beside):
            for key in [key for key in table if key[0] == server]:
                del table[key]
        self.start_seconds.pop(server, None)
        self.peak_bytes.pop(server, None)

    def best(self, payload: str, connections: int, servers: Collection[str]) -> str | None:
        """Which of these servers is nearest to ours in this cell, or farthest before it; None where none has it."""
        keys = [(name, payload, connections) for name in servers if (name, payload, connections) in self.beside]
        return min(keys, key=self.ratio)[0] if keys else None

    def best_over_all(self, servers: Collection[str]) -> str | None:
        """Which of these servers answers the most requests a second: ours has the smallest geometric mean of its ratios to it,
        over the cells that all of them have. None without such cells."""
        names = sorted({key[0] for key in self.beside if key[0] in servers})
        shared = [cell for cell in self.cells() if all((name, *cell) in self.beside for name in names)]
        if not names or not shared:
            return None
        return min(names, key=lambda name: statistics.geometric_mean(self.ratio((name, *cell)) for cell in shared))

    def cells(self) -> list[tuple[str, int]]:
        """Payload and connections of all that ours was measured in."""
        return [key[1:] for key in self.loads if key[0] == OURS]

    def ratio(self, key: Key) -> float:
        """Requests a second of ours over those of the server with this key: the median over their turns."""
        pairs = zip(self.beside[key], self.loads[key], strict=True)
        return statistics.median(mine.requests_per_second / theirs.requests_per_second for mine, theirs in pairs)

    def p99_ratio(self, key: Key) -> float:
        """The same of the latencies that 99 of 100 answers keep."""
        pairs = zip(self.beside[key], self.loads[key], strict=True)
        return statistics.median(mine.p99_ms / theirs.p99_ms for mine, theirs in pairs)


def summarise_cell(loads: Sequence[Load], images: int) -> dict[str, Any]:
    """All turns of one cell, whose requests hold so many images: medians, and every error."""
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
    for payload, connections in cells.cells():
        peer, place = cells.best(payload, connections, peers), f"c{connections}"
        if peer is None:
            continue
        ratios.setdefault(payload, {})[place] = cells.ratio((peer, payload, connections))
        best.setdefault(payload, {})[place] = peer
        others = {
            key[0]: cells.p99_ratio(key)
            for key in cells.beside
            if key[0] in peers and key[1:] == (payload, connections)
        }
        quick = max(others, key=others.__getitem__)
        p99.setdefault(payload, {})[place] = others[quick]
        quickest.setdefault(payload, {})[place] = quick
    yield "ratio_to_best_peer", ratios
    yield "best_peer", best
    yield "p99_over_quickest_peer", p99
    yield "quickest_peer", quickest
    yield "images_per_second_over_raw", dict(_over_raw(cells))
    yield (
        "p99_over_p50",
        {
            payload: {f"c{max(CONNECTIONS)}": statistics.median(load.p99_ms / load.p50_ms for load in loads)}
            for payload, loads in cells.steady.items()
        },
    )
    if p99:
        yield "worst_p99_over_any_peer", max(ratio for cell in p99.values() for ratio in cell.values())
    busiest = cells.best_over_all(peers)
    if busiest is not None:
        yield "best_peer_over_all", busiest
        yield "memory_over_best_peer", max(cells.peak_bytes[OURS]) / max(cells.peak_bytes[busiest])
    if "fastapi" in cells.start_seconds:
        pairs = zip(cells.start_seconds[OURS], cells.start_seconds["fastapi"], strict=True)
        yield "start_over_fastapi", statistics.median(ours / theirs for ours, theirs in pairs)
    int8: dict[str, dict[str, float]] = {}
    for payload, connections in cells.cells():
        if (INT8, payload, connections) in cells.beside:
            int8.setdefault(payload, {})[f"c{connections}"] = 1 / cells.ratio((INT8, payload, connections))
    if int8:
        yield "int8_over_fp32", statistics.geometric_mean(ratio for cell in int8.values() for ratio in cell.values())
        yield "int8_over_fp32_by_cell", int8


def _over_raw(cells: Cells) -> Iterator[tuple[str, float]]:
    """Images a second over the raw limit with as many images a run, at the connections that suit it best."""
    for payload in cells.images:
        shares = [statistics.median(shares) for (name, _), shares in cells.over_raw.items() if name == payload]
        if shares:
            yield payload, max(shares)

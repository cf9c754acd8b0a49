"""Measures the container's server beside other servers of the same ONNX file, over HTTP on loopback.

    python -m bench.serving [--quick] [--peers NAMES] [--int8 RELEASE_DIR] [RELEASE_DIR]

Each peer runs in an environment of its own below build/bench, with the settings in its peer.toml; whatever cannot be built or
started is listed as missing, with the reason. All take the same requests on the same cores. In every round each server is
started, asked once for every payload and compared with ONNX Runtime's labels, warmed up, and measured in every cell; the next
round goes through the servers in the other direction.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import constant, interruption, raw
from bench.cells import ALONE, CONNECTIONS, CONSTANT, INT8, OURS, Cells, summarise
from bench.core import as_npy, golden_pixels, unpack
from bench.environments import Missing, Peer, find_peers
from bench.goals import goal_lines
from bench.load import Generator, find_generator
from bench.parts import arguments, write_part
from bench.payloads import Payload, WrongAnswer, make_payloads
from bench.servers import Server, constant_server, ours, peer_server, running
from ferry.archive import ArchiveError
from infra.release import ReleaseError, read_release
from model_code import environment
from model_code.inference.codecs import NPY
from model_code.inference.contract import Signature
from model_code.inference.errors import ModelInvalid
from model_code.inference.preprocess import normalise

CORES = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rounds, and the seconds of one cell, of warming up one payload, and of the raw limit."""

    rounds: int
    cell: float
    warm_up: float
    raw: float


FULL = Plan(rounds=3, cell=4, warm_up=2, raw=4)
QUICK = Plan(rounds=1, cell=1, warm_up=1, raw=1)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A server and the payloads that it takes, each with the answer that is right for it."""

    server: Server
    payloads: list[Payload]


class Measurement:
    """One run over all candidates; `missing` is filled with those that fail on the way, and why."""

    def __init__(self, plan: Plan, generator: Generator, cores: Sequence[int], cells: Cells) -> None:
        self._plan = plan
        self._generator = generator
        self._cores = cores
        self._cells = cells
        self._started = time.monotonic()
        self.missing: dict[str, str] = {}

    def run(self, candidates: Sequence[Candidate], model: Path, bodies: dict[int, Path]) -> None:
        """Every round of every cell. Raises WrongAnswer where it is ours that fails."""
        for number in range(1, self._plan.rounds + 1):
            for count, body in bodies.items():
                rate = raw.images_per_second(model, body, self._plan.raw, self._cores)
                self._cells.raw.setdefault(count, []).append(rate)
                self._say(number, "session.run", f"{rate:.0f} images/s with {count} a run")
            for candidate in candidates if number % 2 else reversed(candidates):
                if candidate.server.name not in self.missing:
                    self._visit(number, candidate)

    def _visit(self, number: int, candidate: Candidate) -> None:
        name = candidate.server.name
        try:
            self._measure(number, candidate)
        except WrongAnswer as error:
            if name in (OURS, ALONE, INT8):
                raise
            self.missing[name] = str(error)
            self._cells.drop(name)
            self._say(number, candidate.server.title, f"missing: {error}")

    def _measure(self, number: int, candidate: Candidate) -> None:
        name = candidate.server.name
        with running(candidate.server, candidate.payloads[0], self._cores) as server:
            for payload in candidate.payloads:
                payload.check(server.url)
            for payload in candidate.payloads:
                self._generator.run(server.url, payload, max(CONNECTIONS), self._plan.warm_up)
                rates = []
                for connections in CONNECTIONS:
                    load = self._generator.run(server.url, payload, connections, self._plan.cell)
                    if load.requests_per_second == 0:
                        raise WrongAnswer(f"{payload.name}: no answer in {self._plan.cell:g} s, {load.errors} errors")
                    self._cells.loads.setdefault((name, payload.name, connections), []).append(load)
                    rates.append(f"{load.requests_per_second:.0f}")
                    server.weigh()
                self._say(number, candidate.server.title, f"{payload.name}: {', '.join(rates)} requests/s")
        self._cells.start_seconds.setdefault(name, []).append(server.start_seconds)
        self._cells.peak_bytes.setdefault(name, []).append(server.peak_bytes)

    def _say(self, number: int, title: str, what: str) -> None:
        seconds = time.monotonic() - self._started
        print(f"{seconds:5.0f} s  round {number} of {self._plan.rounds}  {title:<28}{what}", flush=True)


def find_candidates(
    given: argparse.Namespace, folder: Path, signature: Signature, peers: list[Peer], missing: dict[str, str]
) -> Iterator[Candidate]:
    """Ours first, then the peers that can be built, then the limit; those that cannot go to `missing`."""
    model = folder / "model" / "model.onnx"
    payloads = list(make_payloads(signature, model, folder))
    release = read_release(given.release_dir / "release.json")
    yield Candidate(ours(OURS, "modelferry", release, folder, CORES), payloads)
    off = {environment.DYNAMIC_BATCH: "1"}
    yield Candidate(ours(ALONE, "modelferry, no dynamic batch", release, folder, CORES, off), payloads)
    if given.int8:
        other = folder / "int8"
        (other / "model").mkdir(parents=True)
        unpack(given.int8, other / "model")
        own = list(make_payloads(signature, other / "model" / "model.onnx", other))
        yield Candidate(ours(INT8, "modelferry, int8", read_release(given.int8 / "release.json"), other, CORES), own)
    for peer in peers:
        try:
            server = peer_server(peer, model, CORES)
        except Missing as error:
            missing[peer.name] = str(error)
            print(f"{peer.title}: missing: {error}", flush=True)
            continue
        yield Candidate(server, [payload for payload in payloads if server.binary or payload.content_type != NPY])
    answered = [dataclasses.replace(payload, expected=constant.ANSWER) for payload in payloads]
    yield Candidate(constant_server(CONSTANT, CORES), answered)


def raw_bodies(signature: Signature, folder: Path) -> Iterator[tuple[int, Path]]:
    for count in (1, 16):
        body = folder / f"raw_{count}.npy"
        body.write_bytes(as_npy(normalise(golden_pixels(signature, count), signature.preprocessing)))
        yield count, body


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report's share of HTTP. Raises WrongAnswer where ours gives one, and what unpack raises."""
    (folder / "model").mkdir()
    signature = unpack(given.release_dir, folder / "model").description.signature
    # The servers have the first cores; the load generator has the others, where there are any.
    available = sorted(os.sched_getaffinity(0))
    cores = available[:CORES]
    generator = find_generator(available[CORES:] or cores)
    peers = [peer for peer in find_peers() if given.peers is None or peer.name in given.peers]
    missing: dict[str, str] = {}
    candidates = list(find_candidates(given, folder, signature, peers, missing))
    cells = Cells({payload.name: payload.images for payload in candidates[0].payloads})
    plan = QUICK if given.quick else FULL
    print(f"{len(candidates)} servers on cores {cores}, {generator.version}, {plan}", flush=True)
    measurement = Measurement(plan, generator, cores, cells)
    measurement.run(candidates, folder / "model" / "model.onnx", dict(raw_bodies(signature, folder)))
    return {
        "http": summarise(cells, {peer.name for peer in peers}),
        "servers": {candidate.server.name: candidate.server.title for candidate in candidates},
        "settings": {peer.name: {"settings": peer.settings, "source": peer.source} for peer in peers},
        "missing": {**missing, **measurement.missing},
        "method": {"load_generator": generator.version, "server_cores": cores, **dataclasses.asdict(plan)},
        "versions": {peer.name: peer.pins() for peer in peers},
    }


def peer_names(text: str) -> list[str]:
    """Names with blanks or commas between them. Raises ArgumentTypeError for one that is no folder of bench/peers."""
    known = [peer.name for peer in find_peers()]
    names = text.replace(",", " ").split()
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"found {name!r}; allowed: {', '.join(known)}")
    return names


def main() -> None:
    parser = arguments("bench.serving", __doc__ or "")
    parser.add_argument("--peers", type=peer_names, metavar="NAMES", help='only these: "fastapi flask"')
    parser.add_argument(
        "--int8", type=Path, metavar="RELEASE_DIR", help="a quantised release, measured beside the first"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-bench-") as folder:
        try:
            measured = measure(given, Path(folder))
        except (ReleaseError, ArchiveError, ModelInvalid, WrongAnswer, OSError) as error:
            raise SystemExit(str(error)) from error
    write_part("serving", measured, quick=given.quick)
    for line in ("", *goal_lines(measured)):
        print(line)
    print(f"\nload of this machine when it ended: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    interruption.raise_once()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(interruption.EXIT_CODE)

"""Measures the container's server beside other servers of the same ONNX file, over HTTP on loopback.

    python -m bench.serving [--quick] [--peers NAMES] [--int8 RELEASE_DIR] [RELEASE_DIR]

Each peer runs in an environment of its own below build/bench, with the settings in its peer.toml; whatever cannot be built or
started is listed as missing, with the reason. All take the same requests on the same cores. In every round each server is
started, asked once for every payload and compared with ONNX Runtime's labels, warmed up and weighed. Then ours is started beside
it, and both answer each cell in turns, while the other one waits; so do ours and the raw limit. The next round goes through the
servers in the other direction.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench import constant, interruption, raw
from bench.cells import ALONE, CONNECTIONS, CONSTANT, INT8, OURS, Cells, summarise
from bench.core import as_npy, golden_pixels, unpack
from bench.environments import Missing, Peer, find_peers
from bench.goals import goal_lines
from bench.load import Generator, Load, find_generator
from bench.parts import arguments, write_part
from bench.payloads import Payload, WrongAnswer, make_payloads
from bench.servers import Running, Server, constant_server, ours, peer_server, running
from ferry.archive import ArchiveError
from infra.release import ReleaseError, read_release
from model_code import environment
from model_code.inference.codecs import NPY
from model_code.inference.contract import Signature
from model_code.inference.errors import ModelInvalid
from model_code.inference.preprocess import normalise

CORES = 2

A = TypeVar("A")
B = TypeVar("B")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rounds; turns of each server in a cell, and loads that are to show how steady ours is, in each of them; and seconds: of a
    turn, of the pause before it, of warming up one payload, and of one of those loads.

    A load ends with requests on their way. In the pause the servers answer those, though nobody reads it.
    """

    rounds: int
    turns: int
    steadies: int
    turn: float
    pause: float
    warm_up: float
    steady: float


FULL = Plan(rounds=2, turns=3, steadies=3, turn=1, pause=0.15, warm_up=1, steady=6)
QUICK = Plan(rounds=1, turns=1, steadies=1, turn=1, pause=0.15, warm_up=1, steady=3)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A server and the payloads that it takes, each with the answer that is right for it."""

    server: Server
    payloads: list[Payload]


class OursFailed(Exception):
    """Our own server gave no answer, or a wrong one: there is nothing to compare."""


class Measurement:
    """One run over all candidates, of which the first is ours; `missing` is filled with those that fail, and why."""

    def __init__(self, plan: Plan, generator: Generator, cores: Sequence[int], cells: Cells) -> None:
        self._plan = plan
        self._generator = generator
        self._cores = cores
        self._cells = cells
        self._started = time.monotonic()
        self.missing: dict[str, str] = {}

    def run(self, candidates: Sequence[Candidate], model: Path, bodies: Mapping[int, Path]) -> None:
        """Every round of every cell. Raises OursFailed."""
        mine, *others = candidates
        for number in range(1, self._plan.rounds + 1):
            with self._serving(mine) as server:
                self._keep(server, mine)
                self._stay_steady(number, server, mine)
                self._reach_for_limit(number, server, mine, model, bodies)
            for candidate in others if number % 2 else reversed(others):
                if candidate.server.name not in self.missing:
                    self._visit(number, candidate, mine)

    @contextmanager
    def _serving(self, candidate: Candidate) -> Iterator[Running]:
        """The server, once it has given every right answer and is warm. Raises WrongAnswer, and OursFailed."""
        with ExitStack() as stack:
            try:
                server = stack.enter_context(running(candidate.server, candidate.payloads[0], self._cores))
                for payload in candidate.payloads:
                    payload.check(server.url)
                for payload in candidate.payloads:
                    self._generator.run(server.url, payload, max(CONNECTIONS), self._plan.warm_up)
                    server.weigh()
            except WrongAnswer as error:
                raise _failed(candidate, str(error)) from error
            yield server

    def _keep(self, server: Running, candidate: Candidate) -> None:
        name = candidate.server.name
        self._cells.start_seconds.setdefault(name, []).append(server.start_seconds)
        self._cells.peak_bytes.setdefault(name, []).append(server.peak_bytes)

    def _stay_steady(self, number: int, server: Running, mine: Candidate) -> None:
        for payload in mine.payloads:
            loads = [
                self._load(mine, server, payload, max(CONNECTIONS), self._plan.steady)
                for _ in range(self._plan.steadies)
            ]
            self._cells.steady.setdefault(payload.name, []).extend(loads)
            said = ", ".join(f"{load.p50_ms:.1f} and {load.p99_ms:.1f}" for load in loads)
            self._say(number, "modelferry", f"{payload.name}: p50 and p99 {said} ms")

    def _reach_for_limit(
        self, number: int, server: Running, mine: Candidate, model: Path, bodies: Mapping[int, Path]
    ) -> None:
        for payload in mine.payloads:
            rates = []
            for connections in CONNECTIONS:
                for turn in range(self._plan.turns):
                    limit, load = _in_turn(
                        turn,
                        partial(raw.images_per_second, model, bodies[payload.images], self._plan.turn, self._cores),
                        partial(self._load, mine, server, payload, connections, self._plan.turn),
                    )
                    share = load.requests_per_second * payload.images / limit
                    self._cells.loads.setdefault((OURS, payload.name, connections), []).append(load)
                    self._cells.raw.setdefault(payload.images, []).append(limit)
                    self._cells.over_raw.setdefault((payload.name, connections), []).append(share)
                rates.append(f"{limit:.0f}")
            self._say(number, "session.run", f"{payload.name}: {', '.join(rates)} images/s")

    def _visit(self, number: int, candidate: Candidate, mine: Candidate) -> None:
        name = candidate.server.name
        try:
            with self._serving(candidate) as theirs:
                self._keep(theirs, candidate)
                with self._serving(mine) as server:
                    for payload in candidate.payloads:
                        self._take_turns(number, candidate, theirs, mine, server, payload)
        except WrongAnswer as error:
            self.missing[name] = str(error)
            self._cells.drop(name)
            self._say(number, candidate.server.title, f"missing: {error}")

    def _take_turns(
        self, number: int, candidate: Candidate, theirs: Running, mine: Candidate, server: Running, payload: Payload
    ) -> None:
        same = next(own for own in mine.payloads if own.name == payload.name)
        rates = []
        for connections in CONNECTIONS:
            for turn in range(self._plan.turns):
                load, own = _in_turn(
                    turn,
                    partial(self._load, candidate, theirs, payload, connections, self._plan.turn),
                    partial(self._load, mine, server, same, connections, self._plan.turn),
                )
                self._cells.add((candidate.server.name, payload.name, connections), load, own)
            rates.append(f"{load.requests_per_second:.0f} ({own.requests_per_second:.0f})")
        self._say(number, candidate.server.title, f"{payload.name}: {', '.join(rates)} requests/s (ours)")

    def _load(self, candidate: Candidate, server: Running, payload: Payload, connections: int, seconds: float) -> Load:
        """After a pause. Raises WrongAnswer, and OursFailed, where nothing is answered."""
        time.sleep(self._plan.pause)
        load = self._generator.run(server.url, payload, connections, seconds)
        if load.requests_per_second == 0:
            raise _failed(candidate, f"{payload.name}: no answer in {seconds:g} s, {load.errors} errors")
        return load

    def _say(self, number: int, title: str, what: str) -> None:
        seconds = time.monotonic() - self._started
        print(f"{seconds:5.0f} s  round {number} of {self._plan.rounds}  {title:<29}{what}", flush=True)


def _in_turn(turn: int, one: Callable[[], A], other: Callable[[], B]) -> tuple[A, B]:
    """What both give; who comes first in one turn comes last in the next."""
    if turn % 2:
        last = other()
        return one(), last
    return one(), other()


def _failed(candidate: Candidate, reason: str) -> Exception:
    return OursFailed(reason) if candidate.server.name in (OURS, ALONE, INT8) else WrongAnswer(reason)


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
    """The report's share of HTTP. Raises OursFailed, and what unpack raises."""
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
        except (ReleaseError, ArchiveError, ModelInvalid, OursFailed, OSError) as error:
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

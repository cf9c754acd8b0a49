"""What a soak found, against what is promised: build/soak/report.json and report.md, printed too."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.parts import machine
from bench.soak_client import Tally
from infra.settings import ROOT

BUILD = ROOT / "build" / "soak"
MOST_DRIFT = 0.05
# What a process of 80 MiB may move by in a minute without that it grows: arenas of malloc that fill up.
LITTLE_BYTES = 8 * 2**20
PING_SECONDS = 2.0
# A connection that was lost longer than this after the kill was not the killed worker's.
LOST_SECONDS = 5.0
# Sockets of our own that the server has not noticed to be closed yet.
FEW_DESCRIPTORS = 4


@dataclass(frozen=True)
class Sample:
    """One process at one time (time.monotonic()): bytes and open descriptors."""

    pid: int
    at: float
    rss: int
    pss: int
    descriptors: int


@dataclass
class Part:
    """One door: what was asked of it and what came of it. `capacity` and `rate` are requests a second."""

    title: str
    capacity: float
    rate: float
    descriptors_at_start: int
    descriptors_at_end: int = 0
    tally: Tally = field(default_factory=Tally)
    samples: Sequence[Sample] = ()
    warm_up: float = 0
    changed: Sequence[str] = ()
    killed_at: float | None = None
    recovered: bool = False

    def drifts(self) -> dict[int, tuple[float, float]]:
        """Of each process that lived to the end, and long enough: RSS when it had warmed up and at the end, medians in bytes."""
        found = {}
        last = max((sample.at for sample in self.samples), default=0.0)
        for pid, samples in _by_pid(self.samples).items():
            warm = [sample.rss for sample in samples if sample.at - samples[0].at >= 2 * self.warm_up]
            few = len(warm) // 4
            if few >= 2 and last - samples[-1].at < self.warm_up:
                found[pid] = (statistics.median(warm[:few]), statistics.median(warm[-few:]))
        return found

    def lost_for_no_reason(self) -> int:
        kill = self.killed_at
        return sum(kill is None or not kill <= at <= kill + LOST_SECONDS for at in self.tally.lost)

    def broken_promises(self) -> Iterator[str]:
        yield from self.tally.unexpected
        if lost := self.lost_for_no_reason():
            yield f"{lost} connections were lost that no killed worker had"
        if self.killed_at is not None and not self.recovered:
            yield "no worker took the killed one's place"
        for pid, (start, end) in self.drifts().items():
            if end - start > max(start * MOST_DRIFT, LITTLE_BYTES):
                yield f"process {pid} grew from {_mebibytes(start)} to {_mebibytes(end)} MiB"
        if self.descriptors_at_end > self.descriptors_at_start + FEW_DESCRIPTORS:
            yield f"{self.descriptors_at_end} descriptors are open, {self.descriptors_at_start} were"
        if self.changed:
            yield f"other answers than at the start: {', '.join(self.changed)}"
        if not self.tally.pings:
            yield "not one ping was answered"
        elif max(self.tally.pings) > PING_SECONDS:
            yield f"a ping took {max(self.tally.pings):.1f} s"

    def document(self) -> dict[str, Any]:
        minutes = []
        for minute, seconds in sorted(self.tally.latencies.items()):
            p50, p99 = percentiles(seconds)
            minutes.append({"answers": len(seconds), "p50_ms": round(p50 * 1000, 2), "p99_ms": round(p99 * 1000, 2)})
            minutes[-1]["minute"] = minute + 1
        memory = [
            {
                "pid": pid,
                "rss_start": round(start),
                "rss_end": round(end),
                "drift_percent": round(100 * (end / start - 1), 2),
            }
            for pid, (start, end) in self.drifts().items()
        ]
        last = [samples[-1] for samples in _by_pid(self.samples).values()]
        return {
            "door": self.title,
            "capacity_per_second": round(self.capacity, 1),
            "rate_per_second": round(self.rate, 1),
            "answers": dict(self.tally.answers.most_common()),
            "broken_http": dict(self.tally.broken.most_common()),
            "connections_lost": len(self.tally.lost),
            "worker_killed": self.killed_at is not None,
            "minutes": minutes,
            "memory": memory,
            "pss_last": sum(sample.pss for sample in last),
            "descriptors": {"start": self.descriptors_at_start, "end": self.descriptors_at_end},
            "golden_equal": not self.changed,
            "slowest_ping_ms": round(max(self.tally.pings, default=0) * 1000, 1),
            "broken_promises": list(self.broken_promises()),
        }


def _by_pid(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    found = defaultdict(list)
    for sample in samples:
        found[sample.pid].append(sample)
    return dict(found)


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The median, and what 99 of 100 stay below."""
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def progress(part: Part, samples: Sequence[Sample]) -> str:
    """One line about a part that is under way."""
    newest = {sample.pid: sample for sample in samples[-8:]}
    tally = part.tally
    return (
        f"{tally.answers.total():,} answers, {len(tally.unexpected)} unexpected, {len(tally.lost)} connections lost, "
        f"{_mebibytes(sum(s.rss for s in newest.values()))} MiB in {len(newest)} processes, "
        f"slowest ping {max(tally.pings, default=0) * 1000:.0f} ms"
    )


def write(parts: Sequence[Part]) -> int:
    """Write and print the report; returns the exit code."""
    documents = [part.document() for part in parts]
    held = not any(document["broken_promises"] for document in documents)
    report = {"held": held, "parts": documents, "machine": machine()}
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    text = "\n".join(line for document in documents for line in markdown(document))
    (BUILD / "report.md").write_text(f"# Soak\n{text}\n")
    print(text)
    print(f"\nevery promise held: {'yes' if held else 'no'}; {BUILD / 'report.json'}")
    return 0 if held else 1


def markdown(document: dict[str, Any]) -> Iterator[str]:
    """One door's part of the report."""
    yield f"\n## {document['door']}\n"
    yield f"{document['rate_per_second']:.0f} requests a second, of {document['capacity_per_second']:.0f} that it can take here.\n"
    yield "| what | found |"
    yield "|---|---|"
    for name, count in document["answers"].items():
        yield f"| answers {name} | {count:,} |"
    broken = ", ".join(f"{name}: {count}" for name, count in document["broken_http"].items())
    yield f"| abuse, and what was said to it | {broken} |"
    yield f"| connections lost | {document['connections_lost']}{' to the killed worker' * document['worker_killed']} |"
    for minute in document["minutes"]:
        yield f"| minute {minute['minute']}, p50 / p99 | {minute['p50_ms']:.1f} / {minute['p99_ms']:.1f} ms |"
    for one in document["memory"]:
        start, end = _mebibytes(one["rss_start"]), _mebibytes(one["rss_end"])
        yield f"| RSS of process {one['pid']}, warm and at the end | {start} / {end} MiB, {one['drift_percent']:+.1f} % |"
    yield f"| descriptors at the start and at the end | {document['descriptors']['start']} / {document['descriptors']['end']} |"
    yield f"| slowest ping | {document['slowest_ping_ms']:.0f} ms |"
    yield f"| golden answers bit for bit as at the start | {'yes' if document['golden_equal'] else 'no'} |"
    for promise in document["broken_promises"]:
        yield f"| **broken** | {promise} |"


def _mebibytes(size: float) -> int:
    return round(size / 2**20)

"""The numbers to reach: a dotted path in the report, at most or at least so much."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """`relation` is ≤ or ≥."""

    relation: str
    limit: float

    def met(self, value: float) -> bool:
        return value <= self.limit if self.relation == "≤" else value >= self.limit

    def verdict(self, value: float) -> str:
        return f"{self.relation} {self.limit:g} {'met' if self.met(value) else 'MISSED'}"


def _at_most(limit: float) -> Goal:
    return Goal("≤", limit)


def _at_least(limit: float) -> Goal:
    return Goal("≥", limit)


GOALS = {
    "handler.published_over_ours.batch_1": _at_least(20),
    "core_over_raw.json_1": _at_most(1.25),
    "core_over_raw.json_16": _at_most(1.08),
    "core_over_raw.json_256": _at_most(1.08),
    "core_over_raw.npy_16": _at_most(1.05),
    "core_over_raw.npy_256": _at_most(1.05),
    "http.ratio_to_best_peer.json_1.c1": _at_least(1.25),
    "http.ratio_to_best_peer.json_1.c8": _at_least(1.6),
    "http.ratio_to_best_peer.json_1.c32": _at_least(1.6),
    "http.ratio_to_best_peer.json_16.c1": _at_least(1.25),
    "http.ratio_to_best_peer.json_16.c8": _at_least(1.6),
    "http.ratio_to_best_peer.json_16.c32": _at_least(1.6),
    "http.ratio_to_best_peer.binary_16.c1": _at_least(1.0),
    "http.ratio_to_best_peer.binary_16.c8": _at_least(1.0),
    "http.ratio_to_best_peer.binary_16.c32": _at_least(1.0),
    "http.images_per_second_over_raw.json_1": _at_least(0.6),
    "http.images_per_second_over_raw.json_16": _at_least(0.85),
    "http.p99_over_p50.json_16.c32": _at_most(1.35),
    "http.p99_over_p50.binary_16.c32": _at_most(1.35),
    "http.worst_p99_over_any_peer": _at_most(1.0),
    "http.memory_over_best_peer": _at_most(0.6),
    "http.start_over_fastapi": _at_most(0.6),
    "http.int8_over_fp32": _at_least(1.7),
    "function_cold_start.ours_over_published": _at_most(0.5),
    "function_cold_start.ours_over_published_with_bytecode": _at_most(0.9),
    "package.mebibytes": _at_most(45),
    "training.ours_over_example_time": _at_most(0.6),
    "training.accuracy": _at_least(0.9845),
    "training.loss": _at_most(0.0465),
    "training.accuracy_within_example_time": _at_least(0.99),
    "synth.ours_over_minimal": _at_most(2.0),
}


def look_up(report: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path; None where it is missing."""
    found: Any = report
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def judge(report: Mapping[str, Any]) -> Iterator[tuple[str, float | None, str]]:
    """Every goal's path, the measured value, and the verdict: `missing` where nothing was measured."""
    for path, goal in GOALS.items():
        value = look_up(report, path)
        yield path, value, "missing" if value is None else goal.verdict(value)


def goal_lines(measured: Mapping[str, Any]) -> Iterator[str]:
    """One line for each goal that this part of the report has a number for."""
    for path, value, verdict in judge(measured):
        if value is not None:
            yield f"{path:<58}{value:10.3f}   {verdict}"

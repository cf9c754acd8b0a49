"""The soak's judgement: each promise, broken on purpose, is named and makes the exit code 1. What it asks is asked in earnest in
test_faults_server.py."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bench import soak_report
from bench.soak_client import Tally
from bench.soak_report import Part, Sample, percentiles
from bench.soak_requests import broken_http, make_requests
from tests import serving_models

MEBIBYTE = 2**20


def tally(**changes: Any) -> Tally:
    found = Tally(pings=[0.01, 0.02], **changes)
    found.answers["200"] = 3
    found.latencies[0].extend([0.001, 0.002, 0.003])
    return found


def samples(*sizes: int) -> list[Sample]:
    """One process, looked at every second from the start of its warm-up of two seconds on."""
    return [Sample(7, float(second), size * MEBIBYTE, size * MEBIBYTE, 20) for second, size in enumerate(sizes)]


GOOD = Part(
    "a door",
    100,
    80,
    descriptors_at_start=20,
    descriptors_at_end=20,
    tally=tally(),
    samples=samples(60, 70, 80, 85, *[90] * 16),
    warm_up=2,
    killed_at=10.0,
    recovered=True,
)


@pytest.mark.parametrize(
    "fine",
    [
        GOOD,
        replace(GOOD, tally=tally(lost=[10.0, 12.0])),  # the killed worker's
        replace(GOOD, samples=samples(*[60] * 4, *[90] * 8, *[97] * 8)),  # little, though more than 5 %
        replace(GOOD, samples=[]),
    ],
)
def test_h48_a_soak_whose_promises_held_says_so(fine: Part) -> None:
    assert list(fine.broken_promises()) == []


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (replace(GOOD, tally=tally(unexpected=["PNG: 500 b''"])), "PNG: 500"),
        (replace(GOOD, tally=tally(lost=[2.0])), "1 connections were lost that no killed worker had"),
        (replace(GOOD, tally=tally(lost=[10.0]), killed_at=None), "1 connections were lost"),
        (replace(GOOD, recovered=False), "no worker took the killed one's place"),
        (replace(GOOD, samples=samples(*[90] * 12, *[100] * 8)), "process 7 grew from 90 to 100 MiB"),
        (replace(GOOD, descriptors_at_end=40), "40 descriptors are open, 20 were"),
        (replace(GOOD, changed=["PNG"]), "other answers than at the start: PNG"),
        (replace(GOOD, tally=replace(tally(), pings=[0.1, 2.5])), "a ping took 2.5 s"),
        (replace(GOOD, tally=replace(tally(), pings=[])), "not one ping was answered"),
    ],
)
def test_h48_a_soak_whose_promise_broke_names_it_and_ends_with_1(
    broken: Part, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak_report, "BUILD", tmp_path)
    assert soak_report.write([GOOD, broken]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["held"]
    assert [named in promise for promise in report["parts"][1]["broken_promises"]] == [True]
    for text in (capsys.readouterr().out, (tmp_path / "report.md").read_text()):
        assert "| **broken** | " in text
        assert named in text


def test_percentiles_of_few_answers_are_among_them() -> None:
    assert percentiles([0.3]) == (0.3, 0.3)
    assert percentiles([number / 100 for number in range(100)]) == (0.495, 0.99)


def test_the_same_seed_gives_the_same_requests_and_the_same_abuse() -> None:
    signature = serving_models.describe(serving_models.onnx_bytes()).signature
    first, second = make_requests(signature, 5), make_requests(signature, 5)
    assert [first.pick() for _ in range(300)] == [second.pick() for _ in range(300)]
    one, two = Random(5), Random(5)
    assert [broken_http(one, "/x") for _ in range(300)] == [broken_http(two, "/x") for _ in range(300)]

"""Sends the release's golden inputs to both doors and compares the answers with what the training framework gave."""

from dataclasses import dataclass

import numpy as np

from ferry.doors import Door, request_body
from infra.release import Release
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor


@dataclass(frozen=True)
class DoorReport:
    """What one door answered; `problems` is empty when the door serves the declared release."""

    door: str
    url: str
    release_id: str | None
    max_abs_diff: float
    seconds: float
    problems: tuple[str, ...]


def verify(door: Door, release: Release, predictor: Predictor) -> DoorReport:
    """Compare labels, probabilities (within 1e-5) and release id with the golden values of the loaded release.

    Raises FerryError where the door does not answer.
    """
    signature = predictor.description.signature
    expected = predictor.probabilities(signature.golden.outputs)
    answer = door.classify(request_body(signature.golden.inputs))
    difference = float(np.abs(answer.probabilities - expected).max())
    problems = []
    labels = [signature.labels[index] for index in expected.argmax(axis=1)]
    if answer.labels != labels:
        problems.append(f"labels {answer.labels}, expected {labels}")
    if not difference <= PROBABILITY_TOLERANCE:
        problems.append(f"probabilities differ by {difference:.1e}, at most {PROBABILITY_TOLERANCE:.0e} allowed")
    if answer.release_id != release.release_id:
        problems.append(f"serves release {answer.release_id}, declared is {release.release_id}")
    return DoorReport(door.name, door.url, answer.release_id, difference, answer.seconds, tuple(problems))

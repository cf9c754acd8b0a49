"""Sends the release's golden inputs to both doors and compares the answers with what the training framework gave."""

from dataclasses import dataclass

import numpy as np

from ferry.doors import Door, request_body
from ferry.errors import FerryError
from infra.release import Release
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor


@dataclass(frozen=True)
class DoorReport:
    """What one door answered; `problems` is empty when the door serves the declared release."""

    door: str
    url: str
    release_id: str | None
    max_abs_diff: float | None
    seconds: float
    problems: tuple[str, ...]


def verify(door: Door, release: Release, predictor: Predictor) -> DoorReport:
    """Compare labels, probabilities (within 1e-5) and release id with the golden values of the loaded release.

    A door that does not answer, or not as this model does, is a problem in its report, so that the other is still asked.
    """
    signature = predictor.description.signature
    expected = predictor.probabilities(signature.golden.outputs)
    try:
        answer = door.classify(request_body(signature.golden.inputs))
    except FerryError as error:
        return DoorReport(door.name, door.url, None, None, 0.0, (str(error),))
    problems = []
    if answer.release_id != release.release_id:
        problems.append(f"serves release {answer.release_id}, declared is {release.release_id}")
    labels = [signature.labels[index] for index in expected.argmax(axis=1)]
    if answer.labels != labels:
        problems.append(f"labels {answer.labels}, expected {labels}")
    difference = None
    if answer.probabilities.shape != expected.shape:
        problems.append(f"probabilities of shape {answer.probabilities.shape}, expected {expected.shape}")
    else:
        difference = float(np.abs(answer.probabilities - expected).max())
        if not difference <= PROBABILITY_TOLERANCE:
            problems.append(f"probabilities differ by {difference:.1e}, at most {PROBABILITY_TOLERANCE:.0e} allowed")
    return DoorReport(door.name, door.url, answer.release_id, difference, answer.seconds, tuple(problems))

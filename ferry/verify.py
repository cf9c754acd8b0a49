"""Sends the release's golden inputs to the doors and compares the answers with the golden ones of its training job."""

import time
from dataclasses import dataclass

import numpy as np

from ferry.console import Report
from ferry.doors import Door, HttpDoor, NotServing, request_body
from ferry.errors import FerryError
from infra.release import Release
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor

WAIT_SECONDS = 300
_PAUSE_SECONDS = (0.2, 5.0)  # between two looks at a door: at first, and at most
_LINE_SECONDS = 30  # a line of progress at least this often, also when nothing changes


@dataclass(frozen=True)
class DoorReport:
    """What one door answered; `problems` is empty when the door serves the declared release."""

    door: str
    url: str
    release_id: str | None
    max_abs_diff: float | None
    seconds: float
    problems: tuple[str, ...]


def verify(
    door: Door, release: Release, predictor: Predictor, *, wait: float = 0, report: Report = lambda line: None
) -> DoorReport:
    """Compare labels, probabilities (within 1e-5) and release id with the golden values of the loaded release.

    A door with a health check of its own gets `wait` seconds to report the release before it is asked. A door that does
    not answer, or not as this model does, is a problem in its report, so that the other is still asked.
    """
    signature = predictor.description.signature
    expected = predictor.probabilities(signature.golden.outputs)
    try:
        if wait and isinstance(door, HttpDoor):
            wait_for_release(door, release.release_id, wait, report)
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


def wait_for_release(door: HttpDoor, release_id: str, seconds: float, report: Report) -> None:
    """Return when `door` reports `release_id`. Raises FerryError at once where it is closed to us, else after `seconds`."""
    started = time.monotonic()
    said, said_at, pause = "", started, _PAUSE_SECONDS[0]
    while (reason := _why_not(door, release_id)) is not None:
        now = time.monotonic()
        if now - started + pause > seconds:
            raise FerryError(
                f"{reason}; waited {seconds:g} s for release {release_id}. `ferry package` and `cdktf deploy` bring package "
                "and declared release together; the app's log says why a model is not loaded"
            )
        if reason != said or now - said_at >= _LINE_SECONDS:
            report(f"waiting   {reason} ({now - started:.0f} of {seconds:g} s)")
            said, said_at = reason, now
        time.sleep(pause)
        pause = min(pause * 1.5, _PAUSE_SECONDS[1])


def _why_not(door: HttpDoor, release_id: str) -> str | None:
    try:
        served = door.release()
    except NotServing as error:
        return str(error)
    return None if served == release_id else f"{door.name} at {door.health}: serves release {served}"

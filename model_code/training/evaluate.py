"""How good raw outputs are, in numpy alone: the training job and the evaluation of a model artifact count alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Mean negative log-likelihood (nats) and the share of right labels, 0 to 1."""

    loss: float
    accuracy: float


def score(outputs: NDArray[np.float32], labels: NDArray[np.int64], activation: str) -> Scores:
    """Judge raw outputs (n, classes) by labels (n,), each the index of a class; `activation` as in model.json."""
    right = np.take_along_axis(_log_probabilities(outputs, activation), labels[:, np.newaxis], axis=1)
    # Rounding can take it a hair below zero, and the metric definitions read no minus sign. What is no number stays none:
    # max(0.0, nan) would be a perfect 0.0.
    mean = -float(right.mean())
    loss = 0.0 if mean <= 0 else mean
    return Scores(loss, accuracy=float((outputs.argmax(axis=1) == labels).mean()))


def _log_probabilities(outputs: NDArray[np.float32], activation: str) -> NDArray[np.float64]:
    values = outputs.astype(np.float64)
    match activation:
        case "log_softmax":
            return values
        case "logits":
            values -= values.max(axis=1, keepdims=True)
            return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))
        case _:
            return np.asarray(np.log(values.clip(min=np.finfo(np.float32).tiny)))

"""How good a model is, counted alike by the training job and by the pipeline's evaluation."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from model_code.training.evaluate import score

LOGITS = np.random.default_rng(4).normal(scale=3, size=(50, 6)).astype(np.float32)
LABELS = np.random.default_rng(5).integers(0, 6, 50)


def activated(activation: str) -> np.ndarray:
    tensor = torch.from_numpy(LOGITS)
    kinds = {"logits": tensor, "log_softmax": tensor.log_softmax(1), "probabilities": tensor.softmax(1)}
    return kinds[activation].numpy()


@pytest.mark.parametrize("activation", ["logits", "log_softmax", "probabilities"])
def test_every_activation_scores_as_torch_does(activation: str) -> None:
    scores = score(activated(activation), LABELS, activation)
    assert scores.loss == pytest.approx(
        functional.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(LABELS)).item(), rel=1e-5
    )
    assert scores.accuracy == (LOGITS.argmax(axis=1) == LABELS).mean()


def test_a_probability_of_zero_for_the_right_label_is_a_large_finite_loss() -> None:
    scores = score(np.array([[1, 0]], np.float32), np.array([1]), "probabilities")
    assert 80 < scores.loss < 100
    assert scores.accuracy == 0


@pytest.mark.parametrize(("output", "activation"), [(0.0, "log_softmax"), (1.0000001, "probabilities")])
def test_a_perfect_loss_has_no_minus_sign(output: float, activation: str) -> None:
    scores = score(np.array([[output, -100.0]], np.float32), np.array([0]), activation)
    assert f"{scores.loss:.4f}" == "0.0000"

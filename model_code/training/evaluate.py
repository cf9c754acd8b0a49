"""What a trained network says, and how good that is. Always in float32, without dropout, whatever it was trained in."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_BATCH = 1000


@dataclass(frozen=True)
class Scores:
    """Mean negative log-likelihood (nats) and the share of right labels, 0 to 1."""

    loss: float
    accuracy: float


def raw_outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (n, classes) for inputs (n, ...), in batches; the module is left in the mode in which it was found."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.cat([module(batch) for batch in torch.split(inputs, _BATCH)])
    finally:
        module.train(was_training)


def score(outputs: Tensor, labels: Tensor, activation: str) -> Scores:
    """Judge raw outputs (n, classes) by labels (n,), each the index of a class; `activation` as in model.json."""
    if activation == "logits":
        outputs = functional.log_softmax(outputs, dim=1)
    elif activation == "probabilities":
        outputs = outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    return Scores(
        loss=functional.nll_loss(outputs.double(), labels).item(),
        accuracy=(outputs.argmax(dim=1) == labels).double().mean().item(),
    )

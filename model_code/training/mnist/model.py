"""The network of PyTorch's own MNIST example: two convolutions, two fully connected layers, 1,199,882 parameters."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.training.distributed import DrawsPerExample


class Network(nn.Module):
    """Log-probabilities (n, 10) for normalised images (n, 1, 28, 28).

    `dropout` is the probability in front of the last layer, and half of it that behind the pooling; the example has 0.5.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3)
        self.dropout1 = ByteDropout(dropout / 2)
        self.dropout2 = ByteDropout(dropout)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.conv1(images))  # (n, 32, 26, 26)
        # The example pools after the ReLU. Both orders give the same numbers, and this one has a quarter of them to rectify.
        hidden = functional.relu(functional.max_pool2d(self.conv2(hidden), 2))  # (n, 64, 12, 12)
        hidden = self.dropout1(torch.flatten(hidden, 1))  # (n, 9216)
        hidden = self.dropout2(functional.relu(self.fc1(hidden)))  # (n, 128)
        return functional.log_softmax(self.fc2(hidden), dim=1)


class ByteDropout(DrawsPerExample):
    """nn.Dropout for a probability that is a multiple of 1/256, with one random byte for each value.

    On a CPU nn.Dropout draws one Bernoulli number at a time, which is a sixth of this network's training step; here eight
    values share one 64-bit draw.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.dropped = round(256 * probability)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        each = values.shape[1:].numel()
        total, first = (self.share.total, self.share.first) if self.share else (len(values), 0)
        words = torch.empty(-(-total * each // 8), dtype=torch.int64, device=values.device).random_(-(2**63), None)
        drawn = words.view(torch.uint8)[first * each : (first + len(values)) * each]
        kept = drawn.view(values.shape) >= self.dropped
        return values * kept.to(values.dtype).mul_(256 / (256 - self.dropped))

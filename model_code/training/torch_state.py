"""Everything that a training changes: what a checkpoint holds."""

import math
from typing import Any

import torch
from torch import Tensor, nn

# Of the steps, the first, in which the learning rate goes up. With torch's 0.3 short trainings score lower.
_RISE = 0.15


class TrainingState:
    """Network, optimizer and learning rate, random numbers, and how far they are.

    `epoch` counts from 1; `step` of its `steps` are done, and `loss_sum` is the sum of the losses of their examples. The best
    of the epochs is kept for an early stop: `best_loss` on the testing channel, the weights that gave it, and how many
    epochs there were since.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, steps: int, seed: int
    ) -> None:
        """`network` and `optimizer` as they are before the first of `epochs` × `steps` steps."""
        self.network = network
        self.optimizer = optimizer
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, optimizer.defaults["lr"], total_steps=epochs * steps, pct_start=_RISE
        )
        self.shuffle = torch.Generator().manual_seed(seed)
        self.steps = steps
        self.epoch, self.step, self.loss_sum = 1, 0, 0.0
        self.best_loss, self.epochs_since = math.inf, 0
        self.best_network: dict[str, Tensor] | None = None
        self._epoch_start = self.shuffle.get_state()
        self._on_gpu = next(network.parameters()).is_cuda

    @property
    def total_steps(self) -> int:
        """Steps since the beginning of the training."""
        return (self.epoch - 1) * self.steps + self.step

    def order(self, examples: int) -> Tensor:
        """The order of this epoch's examples (examples,); in an epoch that has begun already, the one that it began with."""
        now = self.shuffle.get_state()
        if self.step == 0:
            self._epoch_start = now
        self.shuffle.set_state(self._epoch_start)
        order = torch.randperm(examples, generator=self.shuffle)
        if self.step > 0:
            self.shuffle.set_state(now)
        return order

    def end_epoch(self) -> None:
        """To the beginning of the next one."""
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0

    def judge(self, test_loss: float) -> None:
        """Remember the weights where they are the best so far."""
        if test_loss < self.best_loss:
            self.best_loss, self.epochs_since = test_loss, 0
            self.best_network = {name: value.clone() for name, value in self.network.state_dict().items()}
        else:
            self.epochs_since += 1

    def is_finite(self) -> bool:
        """Whether every weight is a number: a loss that still is one can have gradients that are none."""
        values = (value for value in self.network.state_dict().values() if value.is_floating_point())
        return all(bool(torch.isfinite(value).all()) for value in values)

    def pack(self) -> dict[str, Any]:
        """Tensors and plain values; they change with the next step."""
        return {
            "position": [self.epoch, self.step, self.loss_sum],
            "best": [self.best_loss, self.epochs_since, self.best_network],
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "shuffle": [self._epoch_start, self.shuffle.get_state()],
            "random": [torch.get_rng_state(), torch.cuda.get_rng_state() if self._on_gpu else None],
        }

    def unpack(self, packed: dict[str, Any]) -> None:
        """Be as it was when `pack` made this."""
        self.epoch, self.step, self.loss_sum = packed["position"]
        self.best_loss, self.epochs_since, self.best_network = packed["best"]
        self.network.load_state_dict(packed["network"])
        self.optimizer.load_state_dict(packed["optimizer"])
        self.schedule.load_state_dict(packed["schedule"])
        self._epoch_start, now = packed["shuffle"]
        self.shuffle.set_state(now)
        on_cpu, on_gpu = packed["random"]
        torch.set_rng_state(on_cpu)
        if self._on_gpu and on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)

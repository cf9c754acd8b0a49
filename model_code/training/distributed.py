"""The processes that train one model together, as the loop sees them: torch.distributed, with gloo on CPUs and nccl on GPUs.

All of them hold the same network and draw the same random numbers; each computes the gradients of its share of every batch,
and the sum of all is what a single process would have computed, up to rounding. A lone process pays nothing for this. What a layer keeps without
gradients, such as the running mean of a batch norm, is not shared: the first process's goes into the model.
"""

import datetime
import functools
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from model_code import environment
from model_code.training.errors import BadConfiguration, BadData, PeerLost
from model_code.training.launcher import World

# Others wait this long for a slow reader of the data, and for the test that the first process does alone.
_TIMEOUT = datetime.timedelta(minutes=15)
_MOST_ON_CPUS = 256

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The examples `first` to `first + count` of a batch of `total`: what one process computes. `count` may be 0."""

    total: int
    first: int
    count: int


class DrawsPerExample(nn.Module):
    """A layer that draws random numbers for each example of a batch.

    Where the loop set `share`, such a layer draws for the whole batch and uses what belongs to its share: then all processes
    draw alike, and one process or several compute the same. (nn.Dropout does not: with it they agree on average only.)
    """

    share: Share | None = None


class ProcessGroup:
    """All processes of the job, this one being number `rank` of `size`. Its methods are called by all of them in the same order.

    Raises PeerLost where another one has ended.
    """

    def __init__(self, device: torch.device) -> None:
        world = World.from_environment() or World(rank=0, size=1, local_rank=0)
        self.rank, self.size = world.rank, world.size
        self._device = device
        if self.size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            self._together(functools.partial(dist.init_process_group, backend, timeout=_TIMEOUT))

    def leave(self) -> None:
        """After the last common step. A process that fails does not come here: the others see its end instead."""
        if self.size > 1:
            dist.destroy_process_group()

    def share(self, total: int) -> Share:
        """This process's part of a batch; the parts differ by one example at most."""
        first, end = total * self.rank // self.size, total * (self.rank + 1) // self.size
        return Share(total, first, end - first)

    def reduce(self, network: nn.Module, loss: Tensor, stop: threading.Event) -> tuple[float, bool]:
        """Sum gradients and losses of all shares; returns the loss of the batch, and whether any process is to stop."""
        if self.size == 1:
            return loss.item(), stop.is_set()
        parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
        gradients = [parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None]
        signals = torch.tensor([loss.item(), float(stop.is_set())], device=self._device)
        flat = torch.cat([*gradients, signals])
        self._together(lambda: dist.all_reduce(flat))
        *sums, total = torch.split(flat, [*(parameter.numel() for parameter in parameters), len(signals)])
        for parameter, gradient in zip(parameters, sums, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient.view(parameter.shape))
        value, stopped = total.tolist()
        return value, stopped > 0

    def same_start(self, network: nn.Module) -> None:
        """Give all the first one's weights: another processor may have drawn them with other roundings."""
        if self.size > 1:
            for tensor in network.state_dict().values():
                self._together(functools.partial(dist.broadcast, tensor, src=0))

    def check_same(self, fingerprint: str) -> None:
        """Raises BadData where this process trains on something else than the first one does."""
        if self.from_first(fingerprint.encode() if self.rank == 0 else None) != fingerprint.encode():
            raise BadData(
                f"process {self.rank} of {self.size} reads other data than the first one, or has other hyperparameters or code",
                "Every host needs the whole channel: S3DataDistributionType FullyReplicated.",
            )

    def from_first(self, content: bytes | None) -> bytes | None:
        """What the first process gives; the argument of the others does not count."""
        if self.size == 1:
            return content
        length = torch.tensor([-1 if content is None else len(content)], device=self._device)
        self._together(lambda: dist.broadcast(length, src=0))
        if length.item() < 0:
            return None
        buffer = torch.empty(int(length.item()), dtype=torch.uint8)
        if self.rank == 0 and content:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        buffer = buffer.to(self._device)
        self._together(lambda: dist.broadcast(buffer, src=0))
        return buffer.cpu().numpy().tobytes()

    def _together(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except RuntimeError as error:
            raise PeerLost(
                f"PEER_LOST process {self.rank} of {self.size}: {error}",
                "Another process of the job ended or cannot be reached: its own log has the cause.",
            ) from error


def processes_per_host() -> int:
    """One for each GPU, or one on CPUs, which shares its work between the cores; FERRY_PROCESSES_PER_HOST says otherwise.

    Raises BadConfiguration.
    """
    gpus = torch.cuda.device_count()
    text, most = os.environ.get(environment.PROCESSES_PER_HOST) or str(gpus or 1), gpus or _MOST_ON_CPUS
    if not re.fullmatch("[0-9]{1,3}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise BadConfiguration(
            f"{environment.PROCESSES_PER_HOST}: found {text[:40]!r}; allowed: a whole number from 1 to {most}",
            f"Change {environment.PROCESSES_PER_HOST} in the job's environment, or leave it out.",
        )
    return int(text)

"""The training loop of every PyTorch model: one process or several, interrupted or not, the same model comes out.

The whole dataset is a tensor in memory, an epoch is a permutation of its indices, and the learning rate makes one cycle over
the whole job, so that one epoch is already a finished training.
"""

import ctypes
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.environment import METRICS_LINE
from model_code.training.checkpoint import Checkpoints, fingerprint, unpack
from model_code.training.distributed import DrawsPerExample, ProcessGroup
from model_code.training.errors import Diverged, Stopped
from model_code.training.evaluate import score
from model_code.training.examples import Examples
from model_code.training.hyperparameters import number
from model_code.training.job import Job
from model_code.training.launcher import World
from model_code.training.log import report
from model_code.training.torch_export import raw_outputs
from model_code.training.torch_state import TrainingState

LOSSES = {"log_softmax": functional.nll_loss, "logits": functional.cross_entropy}
_REPORTS_AN_EPOCH = 10
_REPORT_SECONDS = 1.0  # short epochs speak through their metrics line alone
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_CHECKPOINT_SHARE = 0.01  # of the time that short epochs may give to their checkpoints


@dataclass(frozen=True)
class LoopHyperparameters:
    """Of every training job with this loop; a model adds its own to them.

    `batch_size` is that of one step, whatever the number of processes that share it. `early_stop_patience` epochs in a row
    without a smaller loss on the testing channel end the job, and the weights of the best epoch are the model; 0 trains to
    the end and takes the last weights. The cycle of the learning rate is laid out for all `epochs`: an early stop comes
    before its slow end, so it saves time where a job goes wrong, and does not replace a number of epochs that fits.
    """

    epochs: int = number(1, minimum=1, maximum=1000)
    batch_size: int = number(64, minimum=1, maximum=65536)
    lr: float = number(2e-3, minimum=1e-6, maximum=1.0)  # at the top of the cycle
    weight_decay: float = number(0.01, minimum=0.0, maximum=1.0)
    seed: int = number(1, minimum=0, maximum=2**32 - 1)
    early_stop_patience: int = number(0, minimum=0, maximum=1000)
    checkpoint_steps: int = number(500, minimum=1, maximum=10**9)


@dataclass(frozen=True)
class Device:
    """Where training happens, whether the arithmetic of the forward pass is bfloat16, and who else trains."""

    device: torch.device
    bfloat16: bool
    group: ProcessGroup


@dataclass(frozen=True)
class Recipe:
    """What is a model's own.

    `network` gives (n, classes) for inputs (n, ...) and means them as `activation` says, a key of LOSSES. `augment` gets the
    inputs of a step and a generator. Several processes call it with different inputs and the same generator, so what it
    draws may not depend on the number of inputs.

    A module that `frozen` names stays as it is in the last steps, this share of them (0 to 1), and its gradients are not
    computed. What lies near the inputs settles first.
    """

    network: Callable[[], nn.Module]
    activation: str
    augment: Callable[[Tensor, torch.Generator], Tensor]
    frozen: Mapping[str, float] = field(default_factory=dict)


def fit(
    recipe: Recipe, settings: LoopHyperparameters, training: Examples, testing: Examples, where: Device, job: Job
) -> nn.Module:
    """Train and return the network. The same settings, data and machine give the same weights.

    After each epoch the testing channel is judged and reported. Raises Diverged, Stopped after SIGTERM, when a checkpoint has
    been written, and the errors of checkpoints and of other processes.
    """
    loop = _Loop(recipe, settings, training, testing, where, job)
    loop.go_on()
    return loop.run()


def choose_device() -> Device:
    """CUDA where there is one. On a CPU bfloat16 only with instructions for it: emulated, it takes five times as long.

    Joins the other processes of the job, so it comes before the data are read: then a process that cannot read them does
    not leave the others waiting.
    """
    if torch.cuda.is_available():
        world = World.from_environment()
        device = torch.device("cuda", world.local_rank if world else 0)
        torch.cuda.set_device(device)
        report(f"training on {torch.cuda.get_device_name(device)} in float32: CUDA is available")
        return Device(device, bfloat16=False, group=ProcessGroup(device))
    capabilities = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    precision = f"bfloat16: the CPU has {found[0]}" if found else "float32: the CPU has neither AMX nor AVX512-BF16"
    _keep_freed_memory()
    report(f"training on the CPU, {torch.get_num_threads()} threads: no CUDA device; {precision}")
    device = torch.device("cpu")
    return Device(device, bfloat16=bool(found), group=ProcessGroup(device))


def _keep_freed_memory() -> None:
    """Lets glibc use the large tensors of one step again for the next one.

    By default it gives such memory back at once, and the system clears each page anew: a tenth of the digit network's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class _Loop:
    """Moves a TrainingState to its end."""

    def __init__(
        self,
        recipe: Recipe,
        settings: LoopHyperparameters,
        training: Examples,
        testing: Examples,
        where: Device,
        job: Job,
    ) -> None:
        self._recipe, self._settings, self._where, self._job = recipe, settings, where, job
        self._group = where.group
        self._state = self._first_state(len(training.labels))
        self._checkpoints = self._open_checkpoints(training, testing)
        self._resumable = self._group.from_first(b"" if self._checkpoints else None) is not None
        self._drawing = [layer for layer in self._state.network.modules() if isinstance(layer, DrawsPerExample)]
        self._inputs = torch.from_numpy(training.inputs).to(where.device)
        self._labels = torch.from_numpy(training.labels).to(where.device)
        self._testing = testing
        self._saved_at, self._save_seconds = 0.0, 0.0
        steps = settings.epochs * self._state.steps
        self._freeze_at = {name: round((1 - share) * steps) for name, share in recipe.frozen.items()}

    def go_on(self) -> None:
        """From the newest checkpoint of this very training, where there is one."""
        content = self._group.from_first(self._checkpoints.newest() if self._checkpoints else None)
        if content is not None:
            self._state.unpack(unpack(content))

    def run(self) -> nn.Module:
        state, patience = self._state, self._settings.early_stop_patience
        while state.epoch <= self._settings.epochs and not (patience and state.epochs_since >= patience):
            self._train_epoch()
            test_loss = self._end_epoch()
            if patience:
                state.judge(test_loss)
            state.end_epoch()
            self._save_if_cheap()
        if state.best_network is not None:
            state.network.load_state_dict(state.best_network)
        if self._group.rank == 0 and state.epoch <= self._settings.epochs:
            report(f"early stop: {patience} epochs in a row were not better than a test loss of {state.best_loss:.4f}")
        self._group.leave()
        return state.network

    def _first_state(self, examples: int) -> TrainingState:
        settings = self._settings
        torch.manual_seed(settings.seed)
        # Channels last, a third faster on a CPU; with one input channel the images are already in that order.
        network = self._recipe.network().to(self._where.device).train()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self._group.same_start(network)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        steps = math.ceil(examples / settings.batch_size)
        return TrainingState(network, optimizer, settings.epochs, steps, settings.seed)

    def _open_checkpoints(self, training: Examples, testing: Examples) -> Checkpoints | None:
        """Those of this training, for the first process."""
        identity = fingerprint(
            dataclasses.asdict(self._settings),
            self._state.network,
            (training.inputs, training.labels, testing.inputs, testing.labels),
        )
        self._group.check_same(identity)
        return Checkpoints.open(self._job.paths.checkpoints, identity) if self._group.rank == 0 else None

    def _train_epoch(self) -> None:
        state, started, reported = self._state, time.perf_counter(), 0.0
        batches = torch.split(state.order(len(self._labels)), self._settings.batch_size)
        for index in batches[state.step :]:
            self._freeze()
            value, stop = self._step(index)
            state.step += 1
            state.loss_sum += value * len(index)
            if stop:
                self._stop()
            if state.total_steps % self._settings.checkpoint_steps == 0 and state.step < state.steps:
                self._save()
            seconds = time.perf_counter() - started
            if state.step % math.ceil(state.steps / _REPORTS_AN_EPOCH) == 0 and seconds - reported >= _REPORT_SECONDS:
                reported = seconds
                self._report(f"{self._position()}  loss {value:.4f}  {seconds:.1f} s")

    def _freeze(self) -> None:
        for name, step in self._freeze_at.items():
            if self._state.total_steps >= step:
                self._state.network.get_submodule(name).requires_grad_(False)

    def _step(self, index: Tensor) -> tuple[float, bool]:
        """Train on the examples of `index` (b,); returns their mean loss, and whether a process got SIGTERM."""
        state, share = self._state, self._group.share(len(index))
        mine = index[share.first : share.first + share.count]
        for layer in self._drawing:
            layer.share = share
        batch = self._recipe.augment(self._inputs[mine], state.shuffle)
        with torch.autocast(self._where.device.type, torch.bfloat16, enabled=self._where.bfloat16):
            outputs = state.network(batch)  # (share, classes)
        loss_of = LOSSES[self._recipe.activation]
        loss = loss_of(outputs.float(), self._labels[mine], reduction="sum") / share.total
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value, stop = self._group.reduce(state.network, loss, self._job.stop)
        if not math.isfinite(value):
            raise self._diverged(state.step + 1, f"the loss is {value}")
        state.optimizer.step()
        state.schedule.step()
        return value, stop

    def _end_epoch(self) -> float:
        """Judge the network by the testing channel, in the first process; returns the loss, to all of them the same."""
        content = None
        if self._group.rank == 0:
            inputs = torch.from_numpy(self._testing.inputs).to(self._where.device)
            outputs = raw_outputs(self._state.network, inputs).cpu().numpy()
            scores = score(outputs, self._testing.labels, self._recipe.activation)
            train_loss = self._state.loss_sum / len(self._labels)
            self._report(
                METRICS_LINE.format(
                    epoch=self._state.epoch,
                    train_loss=train_loss,
                    test_loss=scores.loss,
                    test_accuracy=scores.accuracy,
                )
            )
            content = scores.loss.hex().encode()
        content = self._group.from_first(content)
        assert content is not None  # the first process gave it
        loss = float.fromhex(content.decode())
        if not math.isfinite(loss):
            raise self._diverged(self._state.step, f"the loss on the testing channel is {loss}")
        return loss

    def _diverged(self, step: int, what: str) -> Diverged:
        """Checkpoints that were written before are good, and stay."""
        return Diverged(
            f"DIVERGED at epoch {self._state.epoch}, step {step} of {self._state.steps}: {what}",
            f"Lower lr, now {self._settings.lr:g}, or look for odd values in the training channel.",
        )

    def _stop(self) -> NoReturn:
        """SageMaker kills the job 120 seconds after its SIGTERM. The others wait for the first one's checkpoint."""
        self._save()
        self._group.from_first(b"")
        where = f"STOPPED by SIGTERM at {self._position()}; no model was written"
        if not self._resumable:
            raise Stopped(where, "The checkpoint folder cannot be written, so the next job starts anew.")
        raise Stopped(
            f"{where}, but a checkpoint was",
            "StopTrainingJob, a spot interruption or the longest run time. It can be resumed: a job with the same checkpoint "
            "folder, data, hyperparameters and code goes on from there.",
        )

    def _save(self) -> None:
        """Never what has diverged: the checkpoint before it would be deleted in the end. Raises Diverged."""
        started = time.perf_counter()
        if not self._state.is_finite():
            raise self._diverged(self._state.step, "weights are no finite numbers any more")
        if self._checkpoints:
            self._checkpoints.save(self._state.total_steps, self._state.pack())
        self._saved_at = time.perf_counter()
        self._save_seconds = self._saved_at - started

    def _save_if_cheap(self) -> None:
        """At the end of an epoch, unless epochs are so short that checkpoints would slow the job down."""
        if self._save_seconds <= _CHECKPOINT_SHARE * (time.perf_counter() - self._saved_at):
            self._save()

    def _position(self) -> str:
        state = self._state
        return f"epoch {state.epoch}/{self._settings.epochs}, step {state.step}/{state.steps}"

    def _report(self, line: str) -> None:
        if self._group.rank == 0:
            report(line)

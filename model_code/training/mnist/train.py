"""Trains the digit network: `python -m model_code.training.mnist.train`, or as `sagemaker_program` of AWS's toolkit.

The whole dataset is a tensor in memory, an epoch is a permutation of its indices, and the learning rate makes one cycle over
the whole job, so that one epoch is already a finished training.
"""

import dataclasses
import math
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.environment import METRICS_LINE
from model_code.training.errors import Diverged
from model_code.training.evaluate import raw_outputs, score
from model_code.training.export import TrainedModel
from model_code.training.hyperparameters import number, parse_hyperparameters, refused
from model_code.training.job import Job, report, run
from model_code.training.mnist.data import LABELS, PREPROCESSING, Digits, read_digits
from model_code.training.mnist.model import Network

_ACTIVATION = "log_softmax"
_REPORTS_AN_EPOCH = 10
_REPORT_SECONDS = 1.0  # short epochs speak through their metrics line alone


@dataclass(frozen=True)
class Hyperparameters:
    """Of the training job. Batches of 64 suit 60,000 images in one epoch as well as 1,500 images in twenty."""

    epochs: int = number(1, minimum=1, maximum=1000)
    batch_size: int = number(64, minimum=1, maximum=65536)
    lr: float = number(2e-3, minimum=1e-6, maximum=1.0)  # at the top of the cycle
    weight_decay: float = number(0.01, minimum=0.0, maximum=1.0)
    shift: int = number(1, minimum=0, maximum=4)  # pixels that a batch may be moved by
    seed: int = number(1, minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class Device:
    """Where training happens, and whether the arithmetic of the forward pass is bfloat16."""

    device: torch.device
    bfloat16: bool


def main() -> int:
    return run("mnist", train)


def train(job: Job) -> TrainedModel:
    """Train on channel `training`, report on channel `testing` after each epoch. Raises TrainingError."""
    settings = parse_hyperparameters(Hyperparameters, job.hyperparameters)
    training = read_digits(job.channel("training"), "training")
    testing = read_digits(job.channel("testing"), "testing")
    if settings.batch_size > len(training.labels):
        raise refused("batch_size", settings.batch_size, f"1 to {len(training.labels)}, the images to train on")
    network = fit(settings, training, testing, choose_device(), job)
    return TrainedModel(
        module=network,
        activation=_ACTIVATION,
        preprocessing=PREPROCESSING,
        labels=LABELS,
        response_key="digits",
        hyperparameters=dataclasses.asdict(settings),
        test_inputs=testing.images,
        test_labels=testing.labels,
    )


def fit(settings: Hyperparameters, training: Digits, testing: Digits, where: Device, job: Job) -> nn.Module:
    """The loop. The same settings, data and machine give the same weights."""
    torch.manual_seed(settings.seed)
    shuffle = torch.Generator().manual_seed(settings.seed)
    # Channels last, a third faster on a CPU; with one input channel the images are already in that order.
    network: nn.Module = Network().to(where.device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    images, labels = training.images.to(where.device), training.labels.to(where.device)
    steps = math.ceil(len(labels) / settings.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.epochs * steps)
    for epoch in range(1, settings.epochs + 1):
        started, reported, total = time.perf_counter(), 0.0, 0.0
        order = torch.randperm(len(labels), generator=shuffle)
        for step, index in enumerate(torch.split(order, settings.batch_size), start=1):
            job.raise_if_stopped(f"at epoch {epoch}, step {step} of {steps}")
            offset = torch.randint(-settings.shift, settings.shift + 1, (2,), generator=shuffle).tolist()
            batch = torch.roll(images[index], offset, dims=(2, 3))  # (b, 1, 28, 28)
            with torch.autocast(where.device.type, torch.bfloat16, enabled=where.bfloat16):
                outputs = network(batch)  # (b, 10)
            loss = functional.nll_loss(outputs.float(), labels[index])
            value = loss.item()
            if not math.isfinite(value):
                raise Diverged(
                    f"DIVERGED at epoch {epoch}, step {step} of {steps}: the loss is {value}",
                    f"Lower lr, now {settings.lr:g}, or look for odd values in the training channel.",
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += value * len(index)
            seconds = time.perf_counter() - started
            if step % math.ceil(steps / _REPORTS_AN_EPOCH) == 0 and seconds - reported >= _REPORT_SECONDS:
                reported = seconds
                report(f"epoch {epoch}/{settings.epochs}  step {step}/{steps}  loss {value:.4f}  {seconds:.1f} s")
        _report_metrics(epoch, total / len(labels), network, testing, where.device)
    return network


def choose_device() -> Device:
    """CUDA where there is one. On a CPU bfloat16 only with instructions for it: emulated, it takes five times as long."""
    if torch.cuda.is_available():
        report(f"training on {torch.cuda.get_device_name()} in float32: CUDA is available")
        return Device(torch.device("cuda"), bfloat16=False)
    capabilities = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    precision = f"bfloat16: the CPU has {found[0]}" if found else "float32: the CPU has neither AMX nor AVX512-BF16"
    report(f"training on the CPU, {torch.get_num_threads()} threads: no CUDA device; {precision}")
    return Device(torch.device("cpu"), bfloat16=bool(found))


def _report_metrics(epoch: int, train_loss: float, network: nn.Module, testing: Digits, device: torch.device) -> None:
    outputs: Tensor = raw_outputs(network, testing.images.to(device)).cpu()
    scores = score(outputs, testing.labels, _ACTIVATION)
    report(
        METRICS_LINE.format(epoch=epoch, train_loss=train_loss, test_loss=scores.loss, test_accuracy=scores.accuracy)
    )


if __name__ == "__main__":
    sys.exit(main())

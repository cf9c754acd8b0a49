"""Trains the digit network: `python -m model_code.training.mnist.train`, or as `sagemaker_program` of AWS's toolkit."""

import dataclasses
import sys
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from model_code.training import torch_loop
from model_code.training.distributed import processes_per_host
from model_code.training.examples import Examples
from model_code.training.hyperparameters import number, parse_hyperparameters, refused
from model_code.training.job import Job, run
from model_code.training.mnist.data import LABELS, PREPROCESSING, RESPONSE_KEY, read_channel
from model_code.training.mnist.model import Network
from model_code.training.torch_export import torch_model
from model_code.training.torch_loop import Device, LoopHyperparameters, Recipe, choose_device
from model_code.training.trained import TrainedModel

_ACTIVATION = "log_softmax"


@dataclass(frozen=True)
class Hyperparameters(LoopHyperparameters):
    """Of the training job. Batches of 64 suit 60,000 images in one epoch as well as 1,500 images in twenty.

    `dropout` is half the published example's: in one or two epochs nothing is learnt by heart. In the last steps, this share
    of them, conv2 rests; conv1, whose 320 numbers settle first, rests three times as long.
    """

    shift: int = number(1, minimum=0, maximum=4)  # pixels that a batch may be moved by
    dropout: float = number(0.25, minimum=0.0, maximum=0.9)
    frozen_share: float = number(0.28, minimum=0.0, maximum=0.33)


def main() -> int:
    return run("mnist", train, processes_per_host)


def train(job: Job) -> TrainedModel:
    """Train on channel `training`, report on channel `testing` after each epoch. Raises TrainingError."""
    settings = parse_hyperparameters(Hyperparameters, job.hyperparameters)
    where = choose_device()
    training = read_channel(job.channel("training"), "training")
    testing = read_channel(job.channel("testing"), "testing")
    if settings.batch_size > len(training.labels):
        raise refused("batch_size", settings.batch_size, f"1 to {len(training.labels)}, the images to train on")
    network = fit(settings, training, testing, where, job)
    return torch_model(
        network,
        activation=_ACTIVATION,
        preprocessing=PREPROCESSING,
        labels=LABELS,
        response_key=RESPONSE_KEY,
        hyperparameters=dataclasses.asdict(settings),
        testing=testing,
        training=training,
    )


def fit(settings: Hyperparameters, training: Examples, testing: Examples, where: Device, job: Job) -> nn.Module:
    """Train the digit network; see torch_loop.fit."""
    shift = partial(_shifted, settings.shift)
    frozen = {"conv1": 3 * settings.frozen_share, "conv2": settings.frozen_share}
    recipe = Recipe(partial(Network, settings.dropout), _ACTIVATION, shift, frozen)
    return torch_loop.fit(recipe, settings, training, testing, where, job)


def _shifted(most: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """All images (b, 1, 28, 28) of a step, moved by the same few pixels."""
    offset = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return torch.roll(images, offset, dims=(2, 3))


if __name__ == "__main__":
    sys.exit(main())

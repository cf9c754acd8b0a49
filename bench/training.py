"""Trains MNIST on this machine with the published example's loop and with ours, and compares.

    python -m bench.training FOLDER     the folder holds the four MNIST files, raw or as .gz

Both start from the same arrays in memory, both run on the CPU, and what is timed is every epoch and its test. The published loop
is that of PyTorch's MNIST example with its default arguments: every image goes through its transforms each time it is used, in
batches of 64 from a DataLoader, Adadelta at 1.0, StepLR at 0.7. Its transforms are written here in plain torch, without the
example's detour over PIL images, which favours it.

The trainings take turns of a second, each in a process that stands still between its turns: a shared machine is a third slower
in some minutes than in others, and one training after the other would measure that.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from bench.goals import goal_lines
from bench.parts import write_part
from model_code.environment import MlPaths
from model_code.inference.preprocess import normalise
from model_code.training.evaluate import Scores, score
from model_code.training.examples import Examples
from model_code.training.idx import read_idx
from model_code.training.job import Job
from model_code.training.mnist.data import PREPROCESSING
from model_code.training.mnist.train import Hyperparameters, fit
from model_code.training.torch_export import raw_outputs
from model_code.training.torch_loop import choose_device

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Judge = Callable[[], Scores]
Loop = Callable[[Arrays, Arrays], Judge]  # trains on the first and tests on the second

TURN_SECONDS = 1.0
TURNS_BETWEEN_LINES = 20


@dataclass(frozen=True)
class Result:
    """Scores on the test images, and the seconds it took: on the clock, and of all cores together."""

    name: str
    scores: Scores
    seconds: float
    cpu_seconds: float

    def line(self, reference: "Result") -> str:
        return (
            f"{self.name:<24}{self.seconds:8.1f} s{self.cpu_seconds:10.1f} s{self.seconds / reference.seconds:10.2f} ×"
            f"{self.scores.accuracy:12.2%}{self.scores.loss:10.4f}"
        )


class PublishedNetwork(nn.Module):
    """The network as the example writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.conv2(functional.relu(self.conv1(images))))
        hidden = torch.flatten(self.dropout1(functional.max_pool2d(hidden, 2)), 1)
        return functional.log_softmax(self.fc2(self.dropout2(functional.relu(self.fc1(hidden)))), dim=1)


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Turns one image after the other into a normalised tensor, whenever it is asked for."""

    def __init__(self, arrays: Arrays) -> None:
        self.images, self.labels = arrays

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[index]).unsqueeze(0).to(torch.float32).div(255)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
        return image.sub_(mean).div_(std), int(self.labels[index])


def published(training: Arrays, testing: Arrays) -> Judge:
    """One epoch of the example's loop, then its test."""
    torch.manual_seed(1)
    network = PublishedNetwork().train()
    optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for images, labels in DataLoader(TransformedImages(training), batch_size=64, shuffle=True):
        optimizer.zero_grad()
        loss = functional.nll_loss(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    schedule.step()
    batches = list(DataLoader(TransformedImages(testing), batch_size=1000))
    outputs = torch.cat([raw_outputs(network, images) for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    return lambda: score(outputs.numpy(), labels.numpy(), "log_softmax")


def ours(training: Arrays, testing: Arrays, epochs: int) -> Judge:
    """`epochs` epochs of our loop, each with its test. The loop keeps no scores, so they are measured once more, untimed."""
    digits = [
        Examples(normalise(images[:, np.newaxis], PREPROCESSING), labels.astype(np.int64))
        for images, labels in (training, testing)
    ]
    with tempfile.TemporaryDirectory() as folder:  # for the checkpoints, whose time counts
        job = Job({}, MlPaths(Path(folder)), threading.Event())
        network = fit(Hyperparameters(epochs=epochs), digits[0], digits[1], choose_device(), job)
    inputs = torch.from_numpy(digits[1].inputs).to(next(network.parameters()).device)
    return lambda: score(raw_outputs(network, inputs).cpu().numpy(), digits[1].labels, "log_softmax")


class Training:
    """A loop in a process of its own, which stands still while it is not its turn."""

    def __init__(self, name: str, folder: Path, loop: Loop) -> None:
        self.name, self.seconds = name, 0.0
        start = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, which do not survive it
        self._answers, theirs = start.Pipe()
        self._process = start.Process(target=_train, args=(folder, loop, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()  # the data are read
        self._signal(signal.SIGSTOP)
        self._answers.send("begin")

    def take_turn(self) -> bool:
        """Go on for at most TURN_SECONDS; whether the training has come to its end. Raises SystemExit where it failed."""
        started = time.perf_counter()
        self._signal(signal.SIGCONT)
        ended = self._answers.poll(TURN_SECONDS)
        self.seconds += time.perf_counter() - started
        if not ended:
            self._signal(signal.SIGSTOP)
        return ended

    def result(self) -> Result:
        """After its last turn. The scoring is not timed."""
        cpu_seconds = self._receive()
        return Result(self.name, self._receive(), self.seconds, cpu_seconds)

    def end(self) -> None:
        self._process.kill()  # SIGTERM would wait for a process that stands still
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._answers.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(
                f"bench.training: {self.name} ended with {self._process.exitcode}; its error stands above"
            ) from None

    def _signal(self, number: int) -> None:
        pid = self._process.pid
        assert pid is not None  # it was started
        os.kill(pid, number)


def _train(folder: Path, loop: Loop, answers: Connection) -> None:
    """The process of a Training. What the loop prints counts seconds in which it stood still, so nobody sees it."""
    arrays = [read(folder, prefix) for prefix in ("train", "t10k")]
    answers.send("ready")
    answers.recv()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        cpu = time.process_time()
        judge = loop(arrays[0], arrays[1])
        answers.send(time.process_time() - cpu)
        answers.send(judge())


def in_turns(folder: Path, loops: Mapping[str, Loop]) -> list[Result]:
    """The results of `loops`, by name, in their order. Raises SystemExit where a file is missing or a loop fails."""
    with contextlib.ExitStack() as stack:
        trainings = []
        for name, loop in loops.items():
            trainings.append(Training(name, folder, loop))
            stack.callback(trainings[-1].end)
        results: dict[str, Result] = {}
        turns = 0
        while len(results) < len(trainings):
            for training in trainings:
                if training.name not in results and training.take_turn():
                    results[training.name] = training.result()
                    print(f"{training.name}: done after {training.seconds:.1f} s of its own", flush=True)
            turns += 1
            if turns % TURNS_BETWEEN_LINES == 0 and len(results) < len(trainings):
                print(f"{turns * TURN_SECONDS:.0f} s each", flush=True)
        return [results[name] for name in loops]


def read(folder: Path, prefix: str) -> Arrays:
    """Images and labels of one of the two sets. Raises SystemExit where a file is missing."""
    arrays = []
    for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        paths = sorted(folder.glob(f"{prefix}-{kind}*"))
        if len(paths) != 1:
            raise SystemExit(
                f"{folder}: one file named {prefix}-{kind}-ubyte, raw or .gz, is wanted; found {len(paths)}"
            )
        arrays.append(read_idx(paths[0], dimensions))
    return arrays[0], arrays[1]


def summarise(reference: Result, results: list[Result]) -> dict[str, Any]:
    """The training's share of the report; `results` are ours after one epoch and more.

    The accuracy within the example's time is that of the longest of our trainings that took no longer than its one epoch.
    """
    first = results[0]
    within = [result.scores.accuracy for result in results if result.seconds <= reference.seconds]
    return {
        "training": {
            "ours_over_example_time": first.seconds / reference.seconds,
            "accuracy": first.scores.accuracy,
            "loss": first.scores.loss,
            "accuracy_within_example_time": within[-1] if within else None,
            "seconds": {result.name: result.seconds for result in (reference, *results)},
            "accuracies": {result.name: result.scores.accuracy for result in (reference, *results)},
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
    }


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit(
            "usage: python -m bench.training FOLDER    (a folder with the four MNIST files, raw or as .gz)"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # both loops on the CPU; bench.gpu has a GPU's numbers
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, in turns of {TURN_SECONDS:g} s", flush=True)
    loops: dict[str, Loop] = {
        "published, 1 epoch": published,
        "ours, 1 epoch": functools.partial(ours, epochs=1),
        "ours, 2 epochs": functools.partial(ours, epochs=2),
    }
    reference, *results = in_turns(Path(sys.argv[1]), loops)
    measured = summarise(reference, results)
    write_part("training", measured, quick=False)
    print(f"{'loop':<24}{'clock':>10}{'cores':>12}{'time':>12}{'accuracy':>12}{'loss':>10}")
    for result in (reference, *results):
        print(result.line(reference))
    for line in ("", *goal_lines(measured)):
        print(line)


if __name__ == "__main__":
    main()

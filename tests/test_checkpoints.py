"""What a stopped or killed training leaves, and that the next one ends as if nothing had happened."""

import dataclasses
import hashlib
import itertools
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infra.settings import ROOT
from model_code import environment
from model_code.environment import MlPaths
from model_code.training.checkpoint import KEPT, MAGIC, unpack
from model_code.training.errors import CheckpointFailed, Stopped
from model_code.training.examples import Examples
from model_code.training.job import Job
from model_code.training.mnist.model import ByteDropout
from model_code.training.torch_loop import LoopHyperparameters, Recipe, choose_device, fit
from tests.idx_files import write_job
from tests.test_model_training import toolkit_job
from tests.training_processes import checkpoints, finish_job, start_job

SETTINGS = LoopHyperparameters(epochs=3, batch_size=8, lr=0.01, checkpoint_steps=2)  # 3 × 6 steps
Act = Callable[[Job, int], object]


class Classifier(nn.Module):
    """Small, and with random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), ByteDropout(0.25), nn.Linear(64, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


def examples(count: int, seed: int) -> Examples:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    inputs = generator.standard_normal((count, 20), np.float32)
    inputs[np.arange(count), labels] += 2
    return Examples(inputs, labels)


def train(
    base: Path,
    act: Act = lambda job, step: None,
    *,
    settings: LoopHyperparameters = SETTINGS,
    data: int = 1,
    frozen_share: float = 0.5,
) -> dict[str, bytes]:
    """The weights after a training on 45 examples below `base`; `act` gets the job and the number of each step of this process."""
    job = Job({}, MlPaths(base), threading.Event())
    steps = itertools.count(1)

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        act(job, next(steps))
        return inputs + torch.randn(20, generator=generator)

    recipe = Recipe(Classifier, "logits", augment, {"layers.0": frozen_share})
    network = fit(recipe, settings, examples(45, data), examples(20, 2), choose_device(), job)
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def stop_at(step: int) -> Act:
    """As SIGTERM does it."""
    return lambda job, now: job.stop.set() if now == step else None


def kill_at(step: int) -> Act:
    return lambda job, now: os.kill(os.getpid(), signal.SIGKILL) if now == step else None


def names(base: Path) -> list[str]:
    return checkpoints(MlPaths(base))


def newest(base: Path) -> Path:
    return MlPaths(base).checkpoints / names(base)[-1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return train(tmp_path_factory.mktemp("uninterrupted"))


# Stopped and killed.


@pytest.mark.parametrize("step", [1, 6, 7, 18])  # the first, an epoch's last, the next epoch's first, the last
def test_t14_a_stopped_training_goes_on_to_the_same_weights(
    tmp_path: Path, uninterrupted: dict[str, bytes], step: int
) -> None:
    with pytest.raises(
        Stopped, match=f"^STOPPED by SIGTERM at epoch {1 + (step - 1) // 6}/3, step {(step - 1) % 6 + 1}/6"
    ):
        train(tmp_path, stop_at(step))
    assert names(tmp_path)[-1].endswith(f"-{step:010}.checkpoint")
    assert train(tmp_path) == uninterrupted


@pytest.mark.slow
def test_t15_a_training_killed_again_and_again_goes_on_to_the_same_weights(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    chance = random.Random(4)
    for _ in range(3):
        step = chance.randint(3, 6)
        script = f"from tests.test_checkpoints import *; train(Path({str(tmp_path)!r}), kill_at({step}))"
        killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert names(tmp_path)
    assert train(tmp_path) == uninterrupted


def test_a_finished_training_is_not_done_again(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    steps: list[int] = []
    with pytest.raises(Stopped):
        train(tmp_path, stop_at(18))
    assert train(tmp_path, lambda job, now: steps.append(now)) == uninterrupted
    assert steps == []


# Files.


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_at(11))
    assert [name[-13:] for name in names(tmp_path)] == ["10.checkpoint", "11.checkpoint"]
    assert len(names(tmp_path)) == KEPT
    assert sorted(path.name for path in MlPaths(tmp_path).checkpoints.iterdir()) == names(tmp_path)


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (77,)  # what an unpickler would do


def with_code(raw: bytes) -> bytes:
    content = pickle.dumps(RunsCode(), protocol=2)
    return MAGIC + hashlib.sha256(content).digest() + content


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[:-1],
    "one bit": lambda raw: raw[:3000] + bytes([raw[3000] ^ 1]) + raw[3001:],
    "another format": lambda raw: raw[len(MAGIC) :],
    "a pickle that runs code": with_code,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_t15_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: dict[str, bytes], name: str
) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_at(9))
    damaged, before = newest(tmp_path), names(tmp_path)[-2]
    damaged.write_bytes(DAMAGES[name](damaged.read_bytes()))
    assert train(tmp_path) == uninterrupted
    log = capsys.readouterr().out
    assert f"warning: checkpoint {damaged.name} cannot be used, the one before is tried: " in log
    assert f"going on from checkpoint {before}\n" in log


@pytest.mark.parametrize(
    ("settings", "data"),
    [(dataclasses.replace(SETTINGS, lr=0.02), 1), (SETTINGS, 3)],
    ids=["hyperparameters", "data"],
)
def test_checkpoints_of_another_training_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: LoopHyperparameters, data: int
) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_at(9))
    others = names(tmp_path)
    anew = train(tmp_path, settings=settings, data=data)
    log = capsys.readouterr().out
    assert "checkpoints: 2 checkpoints are of other data, hyperparameters or code; they are left alone" in log
    assert "going on" not in log
    assert set(others) < set(names(tmp_path))
    assert anew == train(tmp_path / "elsewhere", settings=settings, data=data)


def test_t18_a_checkpoint_that_finds_no_room_fails_the_job_and_leaves_the_one_before(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    """A limit on the size of files answers as a full disk does: write() fails after the first bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(job: Job, now: int) -> None:
        if now == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    try:
        with pytest.raises(CheckpointFailed, match=r"^CHECKPOINT [0-9a-f]{12}-0{9}4\.checkpoint cannot be written: "):
            train(tmp_path, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name[-13:] for path in MlPaths(tmp_path).checkpoints.iterdir()] == ["02.checkpoint"]
    assert train(tmp_path) == uninterrupted


def test_a_folder_that_takes_no_checkpoints_is_said_and_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: dict[str, bytes]
) -> None:
    MlPaths(tmp_path).checkpoints.write_text("a file, where a folder is wanted")
    assert train(tmp_path) == uninterrupted
    assert "checkpoints: no checkpoints will be written (File exists)" in capsys.readouterr().out


# Early stop.


def test_an_early_stop_keeps_the_weights_of_the_best_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overtrained = dataclasses.replace(SETTINGS, epochs=40, lr=0.3, early_stop_patience=3, checkpoint_steps=1)
    best = train(tmp_path, settings=overtrained)
    log = capsys.readouterr().out
    losses = [float(text) for text in re.findall(r"test_loss=([0-9.]+)", log)]
    assert len(losses) < 40
    assert min(losses) == losses[-4]
    assert f"early stop: 3 epochs in a row were not better than a test loss of {losses[-4]:.4f}" in log
    assert best == train(tmp_path, settings=overtrained)  # from the checkpoint that it left
    packed = unpack(MlPaths(tmp_path).checkpoints.joinpath(names(tmp_path)[-1]).read_bytes()[len(MAGIC) + 32 :])
    assert {name: value.numpy().tobytes() for name, value in packed["best"][2].items()} == best


def test_frozen_layers_stay_as_they_were_and_the_others_learn(tmp_path: Path) -> None:
    torch.manual_seed(SETTINGS.seed)
    start = {name: value.numpy().tobytes() for name, value in Classifier().state_dict().items()}
    for share, changed in ((1.0, {"layers.3.weight", "layers.3.bias"}), (0.5, set(start))):
        weights = train(tmp_path / str(share), frozen_share=share)
        assert {name for name, value in weights.items() if value != start[name]} == changed


# The whole job.


@pytest.mark.slow
def test_t14_t15_a_job_that_was_killed_and_stopped_leaves_the_same_file(tmp_path: Path) -> None:
    hyperparameters = {"epochs": "2", "batch_size": "16", "checkpoint_steps": "2"}
    whole = write_job(tmp_path / "whole", hyperparameters)
    finish_job(whole)
    paths = write_job(tmp_path / "interrupted", hyperparameters)
    job = start_job(paths)
    job.wait_until(lambda: checkpoints(paths))
    job.kill()
    job = start_job(paths)
    job.wait_until(lambda: "going on from checkpoint" in job.log)
    job.process.terminate()
    assert job.end() == 143, job.log
    cause, hint, *_ = paths.failure.read_text().splitlines()
    assert cause.startswith("STOPPED by SIGTERM at epoch ")
    assert cause.endswith("; no model was written, but a checkpoint was")
    assert "It can be resumed" in hint
    assert not any(paths.model.iterdir())
    finish_job(paths)
    assert not paths.failure.exists()
    first, second = ((each.model / environment.MODEL_FILE).read_bytes() for each in (whole, paths))
    assert first == second


@pytest.mark.slow
def test_a_killed_job_of_awss_toolkit_goes_on(tmp_path: Path) -> None:
    paths = toolkit_job(tmp_path, {"epochs": 2, "batch_size": 16, "checkpoint_steps": 2})
    toolkit = [sys.executable, "-m", "sagemaker_training.cli.train"]
    variables = {"PIP_NO_INDEX": "1", "PYTHONPATH": ""}  # the uploaded archive runs, not this checkout
    job = start_job(paths, toolkit, **variables)
    job.wait_until(lambda: checkpoints(paths))
    job.kill()
    job = finish_job(paths, toolkit, **variables)
    assert "going on from checkpoint" in job.log
    assert (paths.model / environment.MODEL_FILE).exists()

"""Training jobs as processes of their own, for tests that stop, kill and resume them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from numpy.typing import NDArray

from infra.settings import ROOT
from model_code import environment
from model_code.environment import MlPaths

TRAIN = [sys.executable, str(ROOT / "model_code" / "container" / "train")]
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    *("-m", "model_code.training.mnist.train"),
]
SECONDS = 180


@dataclass(frozen=True)
class RunningJob:
    """A started job, whose log grows in a file."""

    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def end(self) -> int:
        """Its exit code; a failing assertion shows the log."""
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        """As the end of a machine does it: everything at once."""
        for process in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
            process.kill()
        self.end()

    def wait_until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)


def start_job(paths: MlPaths, command: Sequence[str] = TRAIN, **variables: str) -> RunningJob:
    """One thread a process, so that the tests of two processes and of one use the machine alike."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ours: dict[str, str] = {
        environment.BASE_DIR: str(paths.base),
        environment.MODEL_NAME: "mnist",
        environment.THREADS: "1",
        "PYTHONPATH": str(ROOT),
    }
    log_file = paths.base / "job.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, env=inherited | ours | variables, cwd=paths.base, stdout=log, stderr=subprocess.STDOUT
        )
    return RunningJob(process, log_file)


def finish_job(paths: MlPaths, command: Sequence[str] = TRAIN, **variables: str) -> RunningJob:
    job = start_job(paths, command, **variables)
    assert job.end() == 0, job.log
    return job


def checkpoints(paths: MlPaths) -> list[str]:
    return sorted(path.name for path in paths.checkpoints.glob("*.checkpoint"))


def weights(paths: MlPaths) -> dict[str, NDArray[np.float32]]:
    model = onnx.load(paths.model / environment.MODEL_FILE)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}

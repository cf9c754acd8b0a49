"""What every kind of pipeline step is given when it runs on this machine, and how it runs an executable of an image."""

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferry import aws, processes
from ferry.console import Report
from ferry.errors import FerryError
from ferry.locking import exclusively
from infra.settings import ROOT, Settings

ML_FOLDER = "/opt/ml"
EXECUTABLES = ROOT / "model_code" / "container"
STOP_SECONDS = 120  # what SageMaker grants between SIGTERM and SIGKILL
_LOOK_SECONDS = 0.1
# A job on SageMaker sees none of these but those that its request and the platform set.
_NOT_INHERITED = ("SM_", "AWS_", "SAGEMAKER_", "FERRY_")


@dataclass(frozen=True)
class StepJob:
    """One run of one step. `name` is the job's name in SageMaker's form; `folder` is its own, and stands for /opt/ml."""

    settings: Settings
    name: str
    folder: Path
    report: Report

    def client(self, service: str) -> Any:
        return aws.client(self.settings, service)

    def arn(self, kind: str) -> str:
        """The ARN that SageMaker would give this job; `kind` is training-job, processing-job, ..."""
        account = self.settings.aws
        return f"arn:aws:sagemaker:{account.region}:{account.account}:{kind}/{self.name}"

    def local_path(self, path: str) -> Path:
        """Where a path below /opt/ml lies on this machine."""
        return self.folder / Path(path).relative_to(ML_FOLDER)

    @property
    def log(self) -> Path:
        return self.folder / "job.log"

    def run(self, command: Sequence[str], variables: Mapping[str, str], folder: Path) -> int:
        """Run a command as the container would, its output in `log` and, line by line, reported; returns the exit code.

        When we are interrupted it gets SIGTERM and SageMaker's time to end.
        """
        process = processes.start(mark(self.settings), command, {**inherited(), **variables}, folder, self.log)
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                ended = False
                while not ended:
                    ended = process.poll() is not None
                    for line in lines:
                        self.report(f"  {line.rstrip()}")
                    if not ended:
                        time.sleep(_LOOK_SECONDS)
        except BaseException:
            processes.stop(mark(self.settings), STOP_SECONDS)
            raise
        return int(process.returncode)


def mark(settings: Settings) -> str:
    """What the processes of a pipeline on this machine are found by, also after the command that started them was killed."""
    return f"{settings.build_path}:{settings.environment}:pipeline"


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Run jobs on this machine as the only command that does; what a killed one left running is ended first.

    All jobs of an environment have one mark, so two commands would end each other's. Raises FerryError where another is at work.
    """
    with exclusively(settings.build_path / "training" / "lock", "ferry train --local or ferry batch"):
        processes.stop(mark(settings), STOP_SECONDS)
        yield


def end_abandoned(settings: Settings) -> None:
    """End the jobs that a killed command left running; those of a command that is at work go on."""
    with suppress(FerryError), alone(settings):
        pass


def inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}


def own_image(settings: Settings, image: str) -> bool:
    """Whether an image is built from this repository, so that its executables are here."""
    repository = re.split(r"[:@]", image.partition("/")[2])[0]
    return repository.startswith(f"{settings.prefix}-")


def python_command(command: Sequence[str]) -> list[str] | None:
    """A container's command as this machine's Python runs it; None where it is neither an executable of our images nor one
    of our modules."""
    match list(command):
        case ["/usr/bin/env", *rest]:  # the entry point of our images
            return python_command(rest)
        case ["python" | "python3", "-m", module, *rest] if module.startswith("model_code."):
            return [sys.executable, "-u", "-m", module, *rest]
        case [name, *rest] if (path := EXECUTABLES / Path(name).name).suffix == "" and path.is_file():
            return [sys.executable, "-u", str(path), *rest]
    return None

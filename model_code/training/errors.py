"""Why a training job fails.

    TrainingError               exit code 1
    ├── BadConfiguration        hyperparameters or the files of the job; exit code 2
    ├── BadData                 a channel, or a file in it, cannot be trained on
    ├── Diverged                the loss is not a finite number any more
    ├── CheckpointFailed        a checkpoint cannot be written
    ├── ArtifactFailed          the model or the test outputs cannot be written
    ├── PeerLost                another process of the job has ended
    ├── ProcessLost             a process of this host was killed
    ├── ExportFailed            the network cannot be written as one ONNX file
    │   └── ParityError         it can, but the file answers differently
    └── Stopped                 SIGTERM; exit code 143

The message is one line that says what was found, where, and what is allowed: it becomes the FailureReason of the job. `hint`
says what to do next.
"""

from typing import ClassVar


class TrainingError(Exception):
    """Base of everything that fails a job on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(cause)
        self.hint = hint


class BadConfiguration(TrainingError):
    """A hyperparameter or a file of the job has a value that is not allowed."""

    exit_code = 2


class BadData(TrainingError):
    """A channel, or a file in it, cannot be trained on."""


class Diverged(TrainingError):
    """The loss is not a finite number any more."""


class CheckpointFailed(TrainingError):
    """A checkpoint cannot be written; the ones before it are still there."""


class ArtifactFailed(TrainingError):
    """The model or the test outputs cannot be written; no part of them is left."""


class PeerLost(TrainingError):
    """Another process that trains the same model has ended: a consequence, whose cause that one tells."""


class ProcessLost(TrainingError):
    """A process of this host was killed and could not tell why."""


class ExportFailed(TrainingError):
    """The network cannot be written as one self-contained ONNX file."""


class ParityError(ExportFailed):
    """The ONNX file does not answer as the trained network does."""


class Stopped(TrainingError):
    """SageMaker stopped the job: StopTrainingJob, or its longest run time."""

    exit_code = 143  # 128 + SIGTERM

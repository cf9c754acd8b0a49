"""The contract of a SageMaker training job, for any model: what comes in, what is left behind, and how a failure is told.

In: hyperparameters, one folder a channel, a SIGTERM when the job is stopped. Out: model.onnx and model.json in the model folder,
both or none; beside the artifact what the model said on the testing channel; or the file `failure`, whose first 1,024
characters become the job's FailureReason (SageMaker Developer Guide, "How Amazon SageMaker processes training output").
"""

import contextlib
import datetime
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from model_code import environment
from model_code.environment import MlPaths
from model_code.inference.contract import unique_keys
from model_code.training.errors import ArtifactFailed, BadConfiguration, ProcessLost, Stopped, TrainingError
from model_code.training.export import Provenance, export_model, operators
from model_code.training.hyperparameters import as_text
from model_code.training.launcher import Hosts, World, run_processes
from model_code.training.log import report
from model_code.training.trained import TrainedModel

_FAILURE_CHARACTERS = 1024
_CAUSE_CHARACTERS = 200
_FRAMES = 3
_STAGING = ".incomplete"
_FORMAT_HINT = "The file below input/config must be as SageMaker writes it: one JSON object."
_ARTIFACT = (environment.MODEL_FILE, environment.SIGNATURE_FILE)


@dataclass(frozen=True)
class Job:
    """What a model's `train` is given."""

    hyperparameters: Mapping[str, str]
    paths: MlPaths
    stop: threading.Event

    def channel(self, name: str) -> Path:
        """The folder of an input channel; it may not exist."""
        given = os.environ.get(f"{environment.SM_CHANNEL_PREFIX}{name.upper()}")
        return Path(given) if given else self.paths.channel(name)

    def raise_if_stopped(self, where: str) -> None:
        """To be called every few seconds: SageMaker kills the job 120 seconds after its SIGTERM. Raises Stopped.

        torch_loop asks `stop` itself, at every step.
        """
        if self.stop.is_set():
            raise Stopped(
                f"STOPPED by SIGTERM {where}; no model was written",
                "StopTrainingJob or the longest run time of the job; start it again, or allow it more time.",
            )


def run(model: str, train: Callable[[Job], TrainedModel], processes: Callable[[], int] | None = None) -> int:
    """Run one training job from its environment; returns the exit code.

    0: model.onnx and model.json are in the model folder. Anything else: the model folder is empty and `failure` says why; 2 for
    hyperparameters or job files, 143 after SIGTERM, 1 for the rest.

    `processes` gives how many processes of a host train together, where `train` can be shared; without it the job has one host
    and one process. Where it makes them several, this starts them, each runs the model's train.py, and the first leaves the artifact.
    """
    paths = MlPaths.from_environment()
    with _sigterm_sets(threading.Event()) as stop:
        world = None
        try:
            world = World.from_environment()
            # What `run_processes` started comes after that: another of them may have left its cause already.
            if world is None or (world.local_rank == 0 and environment.TORCHRUN in os.environ):
                _remove_leftovers(paths)
            job = Job(_hyperparameters(paths), paths, stop)
            quantize = _quantization()
            hosts = Hosts.parse(_read_json(paths.resource_config), paths.resource_config.name)
            count = _processes(processes, hosts)
            if world is None and len(hosts.names) * count > 1:
                return _run_together(model, hosts, count, job)
            trained = train(job)
            job.raise_if_stopped("after the last step")
            if world is None or world.rank == 0:
                _leave_artifact(model, trained, job, quantize)
        except Exception as error:
            if _is_first_here(world):
                with contextlib.suppress(
                    OSError
                ):  # the folder may be what is broken; the first error is the one to tell
                    _remove_artifact(paths)
            return _fail(error, paths, keep=world is not None and world.size > 1)
    return 0


def run_model(name: str) -> int:
    """Run the job of the model in the folder `name` beside this file, through its `train.main()`."""
    known = sorted(path.parent.name for path in Path(__file__).parent.glob("*/train.py"))
    try:
        if name not in known:
            raise BadConfiguration(
                f"{environment.MODEL_NAME} is {name[:60]!r}; allowed: {', '.join(known)}",
                f"Set {environment.MODEL_NAME} in the training job's environment.",
            )
        main: Callable[[], int] = importlib.import_module(f"model_code.training.{name}.train").main
    except Exception as error:
        return _fail(error, MlPaths.from_environment())
    return main()


def _hyperparameters(paths: MlPaths) -> dict[str, str]:
    """From SM_HPS where AWS's toolkit runs us, else from SageMaker's own file.

    The toolkit repeats them as command-line arguments, which are ignored: the same values, with less of their types.
    """
    given = os.environ.get(environment.SM_HPS)
    if given:
        return as_text(_parse_json(given, environment.SM_HPS), environment.SM_HPS)
    document = _read_json(paths.hyperparameters)
    for key, value in document.items():
        if not isinstance(value, str):
            raise BadConfiguration(
                f"{paths.hyperparameters.name}: {key[:60]}: found {value!r:.40}; allowed: text, as SageMaker writes it",
                'Put the value in quotes: "1".',
            )
    return as_text(document, paths.hyperparameters.name)


def _quantization() -> str:
    """Read before the training: a wrong one should not cost a training."""
    found = os.environ.get(environment.QUANTIZE) or "none"
    if found not in environment.QUANTIZATIONS:
        raise BadConfiguration(
            f"{environment.QUANTIZE}: found {found!r:.40}; allowed: {', '.join(environment.QUANTIZATIONS)}",
            f"Set {environment.QUANTIZE} in the training job's environment; here it comes from [model] in the settings.",
        )
    return found


def _processes(processes: Callable[[], int] | None, hosts: Hosts) -> int:
    """How many processes of this host train."""
    if processes is not None:
        return processes()
    if len(hosts.names) > 1:
        raise BadConfiguration(
            f"resourceconfig.json: hosts: found {', '.join(hosts.names):.60}; allowed: one host",
            "Set InstanceCount of the training job to 1: this model is trained by one process.",
        )
    return 1


def _run_together(model: str, hosts: Hosts, count: int, job: Job) -> int:
    code = run_processes(model, hosts, count, job.stop)
    path = _output(job.paths.failure, job.paths)
    if code and not path.exists():
        raise ProcessLost(f"PROCESS_LOST a process of the job ended with exit code {code} and no cause", "See the log.")
    return code


def _is_first_here(world: World | None) -> bool:
    """The processes of a host share its folders, and one of them tidies up."""
    return world is None or world.local_rank == 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(
            f"{path.name}: cannot be read ({getattr(error, 'strerror', None) or error})",
            f"SageMaker writes it below input/config; outside SageMaker set {environment.BASE_DIR} to such a layout.",
        ) from error
    document = _parse_json(text, path.name)
    if not isinstance(document, dict):
        raise BadConfiguration(f"{path.name}: found {type(document).__name__}; allowed: an object", _FORMAT_HINT)
    return document


def _parse_json(text: str, origin: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise BadConfiguration(f"{origin}: not JSON: {error}", _FORMAT_HINT) from error


def _leave_artifact(model: str, trained: TrainedModel, job: Job, quantize: str) -> None:
    """Export into a hidden folder, then rename: a reader of the model folder sees both files or none.

    The hidden folder is inside the model folder, because beside it may be another file system: SageMaker's local mode mounts
    the model folder alone.
    """
    provenance = Provenance(
        model=model,
        dataset=os.environ.get(environment.DATASET) or model,
        ended_at=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        source_revision=os.environ.get(environment.SOURCE_REVISION) or "unknown",
    )
    folder = Path(os.environ.get(environment.SM_MODEL_DIR) or job.paths.model)
    staging = folder / _STAGING
    try:
        staging.mkdir(parents=True)
        description, outputs = export_model(trained, provenance, staging, quantize)
        job.raise_if_stopped("during the export")
        _save_atomically(_output(job.paths.test_outputs, job.paths), outputs)
        for name in _ARTIFACT:
            _sync(staging / name)
        for name in _ARTIFACT:  # model.json last: it is what makes the artifact one
            (staging / name).rename(folder / name)
        _sync(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    used = operators(onnx.load(folder / environment.MODEL_FILE))
    report(
        f"exported {model}-{description.onnx.sha256[:12]}: {description.onnx.size:,} bytes, opset {description.onnx.opset}, "
        f"operators {', '.join(f'{name}×{count}' for name, count in used.items())}; parity with {trained.framework} holds; "
        f"accuracy {description.metrics['accuracy']:.4f}, loss {description.metrics['loss']:.4f}"
    )


def _unwritable(folder: Path | str, error: OSError) -> ArtifactFailed:
    return ArtifactFailed(
        f"ARTIFACT {folder} cannot be written: {error.strerror or error}",
        "Give the job a larger volume, or folders that it may write; no part of the model is left.",
    )


def _output(path: Path, paths: MlPaths) -> Path:
    """A path of the output folder, where AWS's toolkit says that this folder is."""
    return Path(os.environ.get(environment.SM_OUTPUT_DIR) or paths.output) / path.relative_to(paths.output)


def _save_atomically(path: Path, values: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    with unfinished.open("wb") as file:
        np.save(file, values)
    unfinished.rename(path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(paths: MlPaths) -> None:
    """Of an earlier job in the same folders. Raises ArtifactFailed."""
    try:
        _remove_artifact(paths)
        _output(paths.failure, paths).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(os.environ.get(environment.SM_MODEL_DIR) or paths.model, error) from error


def _remove_artifact(paths: MlPaths) -> None:
    """Checkpoints stay: they are what the next job goes on from."""
    folder = Path(os.environ.get(environment.SM_MODEL_DIR) or paths.model)
    outputs = _output(paths.test_outputs, paths)
    for path in (*(folder / name for name in _ARTIFACT), outputs, _unfinished(outputs)):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / _STAGING, ignore_errors=True)


def _fail(error: Exception, paths: MlPaths, *, keep: bool = False) -> int:
    """Tell the failure file and the log; returns the exit code.

    With `keep` a failure file that is there stays: of several processes the first to fail has the cause.
    """
    text = _failure_text(error)
    path = _output(paths.failure, paths)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name of a file can hold what is no text.
        with (
            contextlib.suppress(FileExistsError),
            path.open("x" if keep else "w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(text)
    except OSError as problem:
        text = f"{text}\n{path}: cannot be written ({problem.strerror})"
    with contextlib.suppress(OSError):  # the log may be what is broken
        if not isinstance(error, TrainingError):
            traceback.print_exception(error)
        print(f"training failed: {text}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, TrainingError) else 1


def _failure_text(error: Exception) -> str:
    """The cause in one line, what to do next, then the innermost frames, as far as SageMaker keeps them."""
    if isinstance(error, TrainingError):
        cause, hint = str(error), error.hint
    else:
        cause, hint = (
            f"{type(error).__name__}: {error}",
            "Not a known condition; the job's log holds the whole traceback.",
        )
    cause = " ".join(cause.split())
    if len(cause) > _CAUSE_CHARACTERS:
        cause = f"{cause[: _CAUSE_CHARACTERS - 1]}…"
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)[-_FRAMES:]))
    return f"{cause}\n{hint}\n\n{frames}"[:_FAILURE_CHARACTERS]


@contextlib.contextmanager
def _sigterm_sets(stop: threading.Event) -> Iterator[threading.Event]:
    """A flag and no exception: the two renames of the artifact must not be torn apart."""
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)

"""Judges the artifact of a training job on the testing channel, with the code that serves it: the pipeline's Evaluate step.

In: model.tar.gz, the files of the testing channel, the manifest of the dataset. Out: evaluation.json, which the pipeline's
gate and the model registry read, and the testing channel once more as bodies of requests, for the batch transform. It runs
in the serving image, so it needs ONNX Runtime and numpy, and of a model's training code only its data.py.

Exit codes: 0, and 1 with one line that says why, on stderr and as the job's ExitMessage.
"""

import hashlib
import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_code import environment
from model_code.container.artifact import read_artifact
from model_code.container.release_archive import ArchiveInvalid
from model_code.environment import ProcessingPaths
from model_code.inference.contract import MAX_INSTANCES
from model_code.inference.errors import InferenceError
from model_code.inference.predictor import Predictor
from model_code.training.errors import TrainingError
from model_code.training.evaluate import Scores, score
from model_code.training.examples import Examples

# One body of the batch transform: MaxPayloadInMB is 6 there, and the container takes 6 MiB (inference/contract.py).
MAX_BODY_BYTES = 6_000_000
_NPY_HEADER_BYTES = 128
_BATCH_SECONDS = 600.0
_MESSAGE_BYTES = 1024
_MAX_MANIFEST_BYTES = 64 * 2**20


class EvaluationError(Exception):
    """The artifact cannot be judged; the message says what was found, where, and what is needed."""


def main() -> int:
    """Evaluate what lies in the folders of the processing job; returns the exit code."""
    # The first process of a container ignores the signal unless it says otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    paths = ProcessingPaths.from_environment()
    try:
        evaluate(os.environ.get(environment.MODEL_NAME, ""), paths)
    except (EvaluationError, ArchiveInvalid, InferenceError, TrainingError, OSError) as error:
        return _fail(f"{getattr(error, 'code', type(error).__name__)}: {error}", paths)
    return 0


def evaluate(model: str, paths: ProcessingPaths) -> Scores:
    """Judge the artifact of `model` and leave evaluation.json and the bodies of requests.

    Raises EvaluationError, ArchiveInvalid, InferenceError (the artifact cannot be served) and TrainingError (the channel
    cannot be read).
    """
    read_channel = _reader(model)
    manifest = _manifest_sha256(paths.manifest)
    predictor = _load(paths.model / environment.ARCHIVE_FILE, model)
    testing = read_channel(paths.testing, "testing")
    batches = [predictor.run(batch, seconds=_BATCH_SECONDS) for batch in _batches(testing.inputs)]
    scores = score(np.concatenate(batches), testing.labels, predictor.description.signature.activation)
    _write_requests(paths.requests, testing.inputs)
    _write_atomically(paths.evaluation / environment.EVALUATION_FILE, _report(scores, len(testing.labels), manifest))
    print(
        f"{predictor.release_id}: accuracy {scores.accuracy:.4f}, log loss {scores.loss:.4f} on {len(testing.labels):,} examples",
        flush=True,
    )
    return scores


def _reader(model: str) -> Callable[[Path, str], Examples]:
    """`read_channel` of the model's data.py."""
    training = Path(__file__).parent.parent / "training"
    known = sorted(path.parent.name for path in training.glob("*/data.py"))
    if model not in known:
        raise EvaluationError(f"{environment.MODEL_NAME} is {model[:60]!r}; allowed: {', '.join(known)}")
    read_channel: Callable[[Path, str], Examples] = importlib.import_module(
        f"model_code.training.{model}.data"
    ).read_channel
    return read_channel


def _manifest_sha256(folder: Path) -> str:
    """Of the one file in `folder`: what the registry says about the data of this model."""
    files = [path for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    if len(files) != 1:
        raise EvaluationError(
            f"{folder}: {len(files)} files; needed: one, the manifest that `ferry data upload` writes"
        )
    if files[0].stat().st_size > _MAX_MANIFEST_BYTES:
        raise EvaluationError(f"{files[0]}: more than {_MAX_MANIFEST_BYTES:,} bytes; this is no manifest")
    return hashlib.sha256(files[0].read_bytes()).hexdigest()


def _load(archive: Path, model: str) -> Predictor:
    """The artifact as the container would serve it, with the checks that the container makes."""
    members = read_artifact(archive)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for member, content in members.items():
            (folder / member).write_bytes(content)
        predictor = Predictor.load(folder, threads=os.cpu_count() or 1)
    if predictor.description.model != model:
        raise EvaluationError(f"{archive.name} holds a {predictor.description.model!r} model; expected: {model!r}")
    return predictor


def _batches(inputs: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Pieces that the container would take as one request each."""
    fitting = (MAX_BODY_BYTES - _NPY_HEADER_BYTES) // (inputs[:1].nbytes or 1)
    if not fitting:
        raise EvaluationError(
            f"one example has {inputs[:1].nbytes:,} bytes; a request holds at most {MAX_BODY_BYTES:,}"
        )
    size = min(MAX_INSTANCES, fitting)
    return (inputs[start : start + size] for start in range(0, len(inputs), size))


def _write_requests(folder: Path, inputs: NDArray[np.float32]) -> None:
    """One .npy file for each request, which a batch transform sends as it is: nothing has to be split or parsed."""
    folder.mkdir(parents=True, exist_ok=True)  # it is there in a job: the platform mounts it
    for leftover in folder.iterdir():
        leftover.unlink()
    for number, batch in enumerate(_batches(inputs)):
        np.save(folder / f"part-{number:05}.npy", np.ascontiguousarray(batch))


def _report(scores: Scores, examples: int, manifest_sha256: str) -> bytes:
    """evaluation.json: SageMaker's schema of model quality metrics, and what the numbers were measured on."""
    document: dict[str, Any] = {
        "multiclass_classification_metrics": {
            "accuracy": {"value": scores.accuracy, "standard_deviation": "NaN"},
            "log_loss": {"value": scores.loss, "standard_deviation": "NaN"},
        },
        "dataset": {"examples": examples, "manifest_sha256": manifest_sha256},
    }
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_bytes(content)
    unfinished.rename(path)


def _fail(cause: str, paths: ProcessingPaths) -> int:
    text = f"evaluation failed: {' '.join(cause.split())}"
    print(text, file=sys.stderr, flush=True)
    try:
        paths.message.parent.mkdir(parents=True, exist_ok=True)
        paths.message.write_bytes(text.encode()[:_MESSAGE_BYTES].decode(errors="ignore").encode())
    except OSError as problem:
        print(f"{paths.message}: cannot be written ({problem.strerror})", file=sys.stderr, flush=True)
    return 1

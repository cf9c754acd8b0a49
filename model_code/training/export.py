"""From a trained model to model.onnx and model.json, and the proof that both say the same.

Nothing here knows a model or a framework: a TrainedModel comes in, two files go out.
"""

import collections
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray

from model_code import environment
from model_code.inference.contract import (
    Golden,
    ModelDescription,
    OnnxFile,
    Signature,
    TensorSpec,
    TrainingRecord,
    model_json_bytes,
)
from model_code.inference.errors import InferenceError
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor
from model_code.training.errors import BadConfiguration, ExportFailed, ParityError
from model_code.training.evaluate import score
from model_code.training.log import report
from model_code.training.quantise import Quantised, quantise
from model_code.training.trained import INPUT_NAME, OUTPUT_NAME, TrainedModel

GOLDEN_INPUTS = 4
_RANDOM_BATCHES = (1, 2, 17)
_BATCH = 1000
_HINT = "Nothing was written. See what the model computes, and how its framework's module beside export.py writes it."


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from: its name, its data, the end of its training (UTC) and the revision of the code."""

    model: str
    dataset: str
    ended_at: str
    source_revision: str


def export_model(
    trained: TrainedModel, provenance: Provenance, directory: Path, quantize: str = "none"
) -> tuple[ModelDescription, NDArray[np.float32]]:
    """Write model.onnx and model.json into `directory` and prove that they answer as the framework does.

    `quantize` is one of environment.QUANTIZATIONS; with "int8" the float32 file is proven first and the quantised one takes its
    place. Returns the description and raw outputs on the testing channel, float32 (n, classes): the framework's own, or the
    quantised file's. Raises ExportFailed, ParityError where a label or a probability differs, and BadConfiguration for a model
    that cannot be quantised.
    """
    if quantize != "none" and trained.calibration is None:
        raise BadConfiguration(
            f"{environment.QUANTIZE} is {quantize!r} and the model has no examples to quantise with; allowed: none",
            "Set model.quantize to none: a model of scikit-learn gains nothing by it. torch_model takes them as training=.",
        )
    model = _to_onnx(trained)
    raw = model.SerializeToString(deterministic=True)
    outputs = trained.outputs(trained.testing.inputs)
    _check_finite(outputs)
    description = _describe(trained, provenance, outputs, model, raw)
    _write(raw, description, directory)
    _check_parity(trained, outputs, directory)
    if quantize == "none":
        return description, outputs
    quantised = _quantise(trained, raw, description, outputs)
    _write(quantised.raw, quantised.description, directory)
    _check_same(quantised, trained.testing.inputs, directory)
    report(quantised.report)
    return quantised.description, quantised.outputs


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, by name."""
    return dict(sorted(collections.Counter(node.op_type for node in model.graph.node).items()))


def _to_onnx(trained: TrainedModel) -> onnx.ModelProto:
    try:
        model = trained.to_onnx()
        _strip(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # each exporter has errors of its own
        raise ExportFailed(f"EXPORT_FAILED {type(error).__name__}: {error}", _HINT) from error
    return model


def _quantise(
    trained: TrainedModel, raw: bytes, description: ModelDescription, outputs: NDArray[np.float32]
) -> Quantised:
    assert trained.calibration is not None
    try:
        return quantise(raw, description, trained.calibration, trained.testing, outputs)
    except ExportFailed:
        raise
    except Exception as error:  # the quantiser has no errors of its own
        raise ExportFailed(f"QUANTIZE_FAILED {type(error).__name__}: {error}", _HINT) from error


def _write(raw: bytes, description: ModelDescription, directory: Path) -> None:
    (directory / environment.MODEL_FILE).write_bytes(raw)
    (directory / environment.SIGNATURE_FILE).write_bytes(model_json_bytes(description))


def _strip(message: Message) -> None:
    """Remove what an exporter notes about the machine: paths, stack traces, and names of its internal graph."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _strip(part)


def _check_finite(outputs: NDArray[np.float32]) -> None:
    wrong = int((~np.isfinite(outputs)).any(axis=1).sum())
    if wrong:
        raise ExportFailed(
            f"NOT_FINITE the trained model gives NaN or infinity for {wrong:,} of {len(outputs):,} test inputs",
            "Lower the learning rate, or look for odd values in the training channel.",
        )


def _describe(
    trained: TrainedModel,
    provenance: Provenance,
    outputs: NDArray[np.float32],
    model: onnx.ModelProto,
    raw: bytes,
) -> ModelDescription:
    inputs, labels = trained.testing.inputs, trained.testing.labels
    scores = score(outputs, labels, trained.activation)
    golden = _golden_indices(labels)
    (opset,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return ModelDescription(
        model=provenance.model,
        signature=Signature(
            input=TensorSpec(INPUT_NAME, (None, *inputs.shape[1:]), "float32"),
            output=TensorSpec(OUTPUT_NAME, (None, outputs.shape[1]), "float32"),
            activation=trained.activation,
            preprocessing=trained.preprocessing,
            labels=trained.labels,
            response_key=trained.response_key,
            golden=Golden(inputs[golden], outputs[golden]),
        ),
        onnx=OnnxFile(hashlib.sha256(raw).hexdigest(), len(raw), opset, model.ir_version),
        metrics={"accuracy": scores.accuracy, "loss": scores.loss},
        training=TrainingRecord(provenance.dataset, provenance.ended_at, trained.hyperparameters),
        framework_versions={
            **trained.framework_versions,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        source_revision=provenance.source_revision,
    )


def _golden_indices(labels: NDArray[np.int64]) -> list[int]:
    """The first test input of each of the first labels that occur."""
    _, first = np.unique(labels, return_index=True)
    return sorted(first.tolist())[:GOLDEN_INPUTS]


def _check_parity(trained: TrainedModel, test_outputs: NDArray[np.float32], directory: Path) -> None:
    """Compare through the predictor that serves: seeded random batches of several sizes, then all real test inputs."""
    inputs = trained.testing.inputs
    generator = np.random.default_rng(0)
    batches = [generator.standard_normal((size, *inputs.shape[1:]), np.float32) for size in _RANDOM_BATCHES]
    try:
        predictor = Predictor.load(directory, threads=os.cpu_count() or 1)
        for batch in batches:
            _compare(predictor, trained.framework, predictor.run(batch), trained.outputs(batch))
        for start in range(0, len(inputs), _BATCH):
            part = slice(start, start + _BATCH)
            _compare(predictor, trained.framework, predictor.run(inputs[part]), test_outputs[part])
    except InferenceError as error:
        raise ParityError(f"PARITY_FAILED {error}", _HINT) from error


def _check_same(quantised: Quantised, inputs: NDArray[np.float32], directory: Path) -> None:
    """The predictor that serves gives the file's own answers: other batches and threads make no difference."""
    try:
        predictor = Predictor.load(directory, threads=os.cpu_count() or 1)
        for start in range(0, len(inputs), _BATCH):
            part = slice(start, start + _BATCH)
            _compare(predictor, "the quantised file before", predictor.run(inputs[part]), quantised.outputs[part])
    except InferenceError as error:
        raise ParityError(f"PARITY_FAILED {error}", _HINT) from error


def _compare(predictor: Predictor, other: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    difference = float(np.abs(predictor.probabilities(found) - predictor.probabilities(expected)).max())
    labels = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if labels or not difference <= PROBABILITY_TOLERANCE:
        raise ParityError(
            f"PARITY_FAILED ONNX Runtime and {other} differ on {len(found)} inputs: {labels} labels, "
            f"probabilities by up to {difference:.1e}; allowed: none, {PROBABILITY_TOLERANCE:.0e}",
            _HINT,
        )

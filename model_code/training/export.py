"""From a trained network to model.onnx and model.json, and the proof that both say the same.

Nothing here knows a model: a network, its inputs and the meaning of its outputs come in, two files go out.
"""

import collections
import copy
import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor, nn

from model_code import environment
from model_code.inference.contract import (
    Golden,
    ModelDescription,
    OnnxFile,
    Preprocessing,
    Signature,
    TensorSpec,
    TrainingRecord,
    model_json_bytes,
)
from model_code.inference.errors import InferenceError
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor
from model_code.training.errors import ExportFailed, ParityError
from model_code.training.evaluate import raw_outputs, score

OPSET = 18  # what the exporter writes without a conversion
GOLDEN_INPUTS = 4
_RANDOM_BATCHES = (1, 2, 17)
_BATCH = 1000
_HINT = "Nothing was written. The job's log names the operators; see the network's forward() and export.py."


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and what serving must know about it.

    `module` gives (n, classes) for inputs (n, ...) and means them as `activation` says (model.json: log_softmax, logits or
    probabilities). `test_inputs`, float32 and preprocessed, and `test_labels`, int64 indices of `labels`, are the testing
    channel. `hyperparameters` are the effective ones.
    """

    module: nn.Module
    activation: str
    preprocessing: Preprocessing
    labels: tuple[int | str, ...]
    response_key: str
    hyperparameters: Mapping[str, Any]
    test_inputs: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from: its name, its data, the end of its training (UTC) and the revision of the code."""

    model: str
    dataset: str
    ended_at: str
    source_revision: str


def export_model(trained: TrainedModel, provenance: Provenance, directory: Path) -> tuple[ModelDescription, Tensor]:
    """Write model.onnx and model.json into `directory` and prove that they answer as the network does.

    Returns the description and the network's own raw outputs on the testing channel, float32 (n, classes). Raises
    ExportFailed, and ParityError where a label or a probability differs.
    """
    # What is exported is also what is compared: plain float32 on a CPU, whatever device and layout it was trained in.
    network = copy.deepcopy(trained.module).to("cpu", torch.float32).eval()
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it
    model = _to_onnx(network, tuple(trained.test_inputs.shape[1:]))
    raw = model.SerializeToString(deterministic=True)
    outputs = raw_outputs(network, trained.test_inputs)
    _check_finite(outputs)
    description = _describe(trained, provenance, outputs, model, raw)
    (directory / environment.MODEL_FILE).write_bytes(raw)
    (directory / environment.SIGNATURE_FILE).write_bytes(model_json_bytes(description))
    _check_parity(network, trained.test_inputs, outputs, directory)
    return description, outputs


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, by name."""
    return dict(sorted(collections.Counter(node.op_type for node in model.graph.node).items()))


def _to_onnx(network: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """One self-contained model with a free batch dimension; the same weights give the same bytes."""
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns about torchvision's operators, which nobody asked for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the exporter's use of its own older helpers
            program = torch.onnx.export(
                network,
                (torch.zeros(2, *input_shape),),  # two: torch would take a batch of one for a constant
                input_names=["input_0"],
                output_names=["output_0"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert program is not None  # only without dynamo
        model: onnx.ModelProto = program.model_proto
        _strip(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportFailed(f"EXPORT_FAILED {type(error).__name__}: {error}", _HINT) from error
    return model


def _strip(message: Message) -> None:
    """Remove what the exporter notes about the machine: paths, stack traces, and names of its internal graph."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _strip(part)


def _check_finite(outputs: Tensor) -> None:
    wrong = int((~outputs.isfinite()).any(dim=1).sum())
    if wrong:
        raise ExportFailed(
            f"NOT_FINITE the trained network gives NaN or infinity for {wrong:,} of {len(outputs):,} test inputs",
            "Lower the learning rate, or look for odd values in the training channel.",
        )


def _describe(
    trained: TrainedModel, provenance: Provenance, outputs: Tensor, model: onnx.ModelProto, raw: bytes
) -> ModelDescription:
    scores = score(outputs, trained.test_labels, trained.activation)
    golden = _golden_indices(trained.test_labels)
    return ModelDescription(
        model=provenance.model,
        signature=Signature(
            input=TensorSpec("input_0", (None, *trained.test_inputs.shape[1:]), "float32"),
            output=TensorSpec("output_0", (None, outputs.shape[1]), "float32"),
            activation=trained.activation,
            preprocessing=trained.preprocessing,
            labels=trained.labels,
            response_key=trained.response_key,
            golden=Golden(trained.test_inputs[golden].numpy(), outputs[golden].numpy()),
        ),
        onnx=OnnxFile(hashlib.sha256(raw).hexdigest(), len(raw), model.opset_import[0].version, model.ir_version),
        metrics={"accuracy": scores.accuracy, "loss": scores.loss},
        training=TrainingRecord(provenance.dataset, provenance.ended_at, trained.hyperparameters),
        framework_versions={
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        source_revision=provenance.source_revision,
    )


def _golden_indices(labels: Tensor) -> list[int]:
    """The first test input of each of the first labels that occur."""
    first: dict[int, int] = {}
    for index, label in enumerate(labels.tolist()):
        first.setdefault(label, index)
    return list(first.values())[:GOLDEN_INPUTS]


def _check_parity(network: nn.Module, test_inputs: Tensor, test_outputs: Tensor, directory: Path) -> None:
    """Compare through the predictor that serves: seeded random batches of several sizes, then all real test inputs."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, *test_inputs.shape[1:], generator=generator) for size in _RANDOM_BATCHES]
    expected = [raw_outputs(network, batch) for batch in batches] + list(torch.split(test_outputs, _BATCH))
    try:
        predictor = Predictor.load(directory, threads=torch.get_num_threads())
        for inputs, outputs in zip([*batches, *torch.split(test_inputs, _BATCH)], expected, strict=True):
            _compare(predictor, predictor.run(inputs.numpy()), outputs.numpy())
    except InferenceError as error:
        raise ParityError(f"PARITY_FAILED {error}", _HINT) from error


def _compare(predictor: Predictor, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    difference = float(np.abs(predictor.probabilities(found) - predictor.probabilities(expected)).max())
    labels = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if labels or not difference <= PROBABILITY_TOLERANCE:
        raise ParityError(
            f"PARITY_FAILED ONNX Runtime and torch differ on {len(found)} inputs: {labels} labels, probabilities by up to "
            f"{difference:.1e}; allowed: none, {PROBABILITY_TOLERANCE:.0e}",
            _HINT,
        )

"""From a float32 ONNX model to one that computes in 8-bit integers, and what that may cost.

Static quantisation in ONNX Runtime's QDQ format: weights as int8 for each channel, activations as uint8, whose ranges are seen
on examples of the training channel. One file serves both clouds, so its integers have to be the same on every x86 processor:

- Weights use 7 of their 8 bits. Without VNNI a processor adds two products in 16 bits, which saturate at 8 (ONNX Runtime's
  documentation, "Quantize ONNX models", reduce_range).
- Only layers whose input is the same number everywhere are quantised. A sum of floats, or an exponential, ends differently in
  its last bit, and where that decides a rounding, another integer comes out.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto

from model_code.inference.contract import Golden, ModelDescription, OnnxFile
from model_code.training.errors import ExportFailed
from model_code.training.evaluate import score
from model_code.training.examples import Examples
from model_code.training.integer_layout import lay_out
from model_code.training.trained import INPUT_NAME

# Most examples of the training channel that the ranges are seen on.
CALIBRATION_EXAMPLES = 512
# Share of the test inputs that may be answered right in float32 and no longer in int8, on balance.
MAX_ACCURACY_COST = 0.001
_BATCH = 64
# Quantised where their weights are constants.
_LAYERS = ("Conv", "Gemm", "MatMul")
# Quantised between layers, so that the numbers stay integers.
_BETWEEN = ("Add", "Clip", "Flatten", "MaxPool", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
# Each number is rounded once or not at all: every processor gives the same ones.
_EXACT = frozenset(_BETWEEN) | {
    "Concat",
    "Constant",
    "Div",
    "Gather",
    "Identity",
    "Mul",
    "Neg",
    "Shape",
    "Slice",
    "Sub",
}
_HINT = 'Take quantize = "int8" out of [model] in the settings; docs/bring-your-own-model.md says which networks gain by it.'


@dataclass(frozen=True, eq=False)
class Quantised:
    """An int8 model.onnx, what its model.json says, its own outputs on the testing channel, and its making in words."""

    raw: bytes
    description: ModelDescription
    outputs: NDArray[np.float32]
    report: str


def calibration_sample(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most CALIBRATION_EXAMPLES of the training channel's `inputs` (n, ...), the same ones at every call."""
    count = min(len(inputs), CALIBRATION_EXAMPLES)
    return inputs[np.sort(np.random.default_rng(0).choice(len(inputs), count, replace=False))]


def quantise(
    model: bytes,
    description: ModelDescription,
    calibration: NDArray[np.float32],
    testing: Examples,
    outputs: NDArray[np.float32],
) -> Quantised:
    """Quantise a float32 model.onnx with its description and its outputs (n, classes) on the testing channel.

    The same arguments give the same bytes on the same kind of processor. Raises ExportFailed where no layer can be quantised, and where it costs more than
    MAX_ACCURACY_COST.
    """
    quantised, extent = to_int8(onnx.load_model_from_string(model), calibration)
    raw = quantised.SerializeToString(deterministic=True)
    found = _answers(raw, testing.inputs)
    right, before = (int((each.argmax(axis=1) == testing.labels).sum()) for each in (found, outputs))
    count, wrong = len(testing.labels), int((~np.isfinite(found)).any(axis=1).sum())
    if wrong or before - right > MAX_ACCURACY_COST * count:
        raise ExportFailed(
            f"QUANTIZE_COST int8: {right:,} of {count:,} test inputs right, float32: {before:,}; that is "
            f"{(before - right) / count:.2%} lost, and {wrong:,} NaN or infinity; allowed: {MAX_ACCURACY_COST:.2%}, 0",
            _HINT,
        )
    signature = description.signature
    scores = score(found, testing.labels, signature.activation)
    description = description._replace(
        # What the file itself answers, on this machine: the network's own answers are other ones.
        signature=signature._replace(golden=Golden(signature.golden.inputs, _answers(raw, signature.golden.inputs))),
        onnx=OnnxFile(hashlib.sha256(raw).hexdigest(), len(raw), description.onnx.opset, quantised.ir_version),
        metrics={
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "accuracy_float32": before / count,
            "accuracy_difference": (right - before) / count,
        },
    )
    differ = int((found.argmax(axis=1) != outputs.argmax(axis=1)).sum())
    report = (
        f"int8 in {extent}; accuracy {right / count:.4f}, in float32 {before / count:.4f}; "
        f"{differ:,} of {count:,} labels differ"
    )
    return Quantised(raw, description, found, report)


def to_int8(model: ModelProto, calibration: NDArray[np.float32]) -> tuple[ModelProto, str]:
    """The int8 model, with inputs and outputs as before, and how much of it is int8. Raises ExportFailed where nothing is."""
    # Here: it takes a third of a second, and few jobs need it.
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    versions = {entry.domain: entry.version for entry in model.opset_import}
    with tempfile.TemporaryDirectory(prefix="ferry-quantise-") as folder:
        simple = _simplified(model, Path(folder) / "float32.onnx")
        names, layers, of = _chosen(simple.graph)
        if not layers:
            raise ExportFailed(
                f"QUANTIZE_NOTHING of {of} convolutions and matrix products none comes before the first operator whose last bit "
                "depends on the processor; allowed: one or more",
                _HINT,
            )
        quantize_static(
            simple,
            Path(folder) / "int8.onnx",
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, *_BETWEEN],
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # The answers stay floats, as two classes would often share one of 256 steps. What goes on into another layer is
            # quantised as that one's input.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        quantised = onnx.load(Path(folder) / "int8.onnx")
    lay_out(quantised)
    # ONNX Runtime lists every domain that it knows.
    used = sorted({node.domain for node in quantised.graph.node})
    del quantised.opset_import[:], quantised.metadata_props[:]
    quantised.opset_import.extend(onnx.helper.make_opsetid(name, versions[name]) for name in used)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised, f"{layers} of {of} convolutions and matrix products"


class _Batches:
    """What quantize_static reads; it asks for no base class."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._batches = iter(inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def _answers(model: bytes, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batches = (inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH))
    return np.asarray(np.concatenate([session.run(None, {INPUT_NAME: batch})[0] for batch in batches]), np.float32)


def _simplified(model: ModelProto, path: Path) -> ModelProto:
    """The same function, with batch normalisation inside its convolution and each ReLU right behind its layer."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    simple = onnx.load(path)
    _relu_before_pooling(simple.graph)
    for index, node in enumerate(simple.graph.node):
        node.name = f"{node.op_type}_{index}"
    # Else quantize_static warns that this has not been done.
    simple.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    return simple


def _relu_before_pooling(graph: GraphProto) -> None:
    """Either order gives the same numbers; a layer and the ReLU behind it are one step in integers."""
    for pool, relu in [(node, after) for node in graph.node for after in _only_consumer(graph, node)]:
        if pool.op_type == "MaxPool" and relu.op_type == "Relu" and len(pool.output) == 1:
            first, second = NodeProto(), NodeProto()
            first.CopyFrom(relu)
            second.CopyFrom(pool)
            first.input[:], first.output[:] = pool.input, pool.output
            second.input[:], second.output[:] = pool.output, relu.output
            pool.CopyFrom(first)
            relu.CopyFrom(second)
            del graph.value_info[:]  # what lies between has another shape now


def _only_consumer(graph: GraphProto, node: NodeProto) -> Iterator[NodeProto]:
    consumers = [other for other in graph.node if set(node.output) & set(other.input)]
    if len(consumers) == 1 and not any(output.name in node.output for output in graph.output):
        yield consumers[0]


def _chosen(graph: GraphProto) -> tuple[list[str], int, int]:
    """The nodes to quantise, by name; how many of them are layers; and how many layers there are."""
    constants = {tensor.name for tensor in graph.initializer}
    exact = constants | {tensor.name for tensor in graph.input}
    names, layers, of = [], 0, 0
    for node in graph.node:  # what a node reads was made before it
        if node.op_type in _LAYERS:
            of += 1
            chosen = node.input[0] in exact and constants.issuperset(filter(None, node.input[1:])) and _is_plain(node)
            layers += chosen
        else:
            chosen = node.op_type in _EXACT and exact.issuperset(filter(None, node.input))
        if chosen:
            exact.update(node.output)
            if node.op_type in (*_LAYERS, *_BETWEEN):
                names.append(node.name)
    return names, layers, of


def _is_plain(node: NodeProto) -> bool:
    """A Gemm that does more than multiply and add would be computed in floats all the same."""
    given = {attribute.name: attribute for attribute in node.attribute}
    scaled = any(given[name].f != 1 for name in ("alpha", "beta") if name in given)
    return not scaled and not ("transA" in given and given["transA"].i)

"""What a release refuses about an ONNX model, read from its bytes alone: nothing here runs it.

ONNX is a programming language: 172 bytes allocate 16 GiB, 220 bytes loop for ever, and both pass the official checker. So
everything that an inference model needs is listed, and all else is refused. What the listed operators can still do wrong,
`ferry.model_probe` finds by running the model under limits; it also runs this check there, as parsing takes memory, too.
"""

import reprlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from ferry.errors import FerryError
from model_code.container.release_archive import SIZE_LIMITS
from model_code.environment import MODEL_FILE

# The exporter writes IR version 10 and opset 18. ONNX Runtime 1.31.1, which both clouds run, reads up to IR 13 and opset 26
# (seen by loading each). Opset 13, which came with IR 7, gave Softmax and LogSoftmax the meaning that they still have.
IR_VERSIONS = range(7, 13 + 1)
OPSETS = {"": range(13, 26 + 1), "ai.onnx.ml": range(1, 5 + 1)}

MAX_MODEL_BYTES = SIZE_LIMITS[MODEL_FILE]
# A ResNet-152 has about 500.
MAX_NODES = 2_000

# None of them repeats a part of the graph, and none takes the size of its result from a value: no Loop, If, Scan,
# ConstantOfShape, Range, Expand, Tile, Pad, Resize. The ones of ai.onnx.ml stand with their domain.
OPERATORS = frozenset(
    # dense layers and convolutions
    {"Conv", "Gemm", "MatMul"}
    # pooling
    | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
    # normalisation, and what is nothing at inference
    | {"BatchNormalization", "Dropout", "Identity", "LayerNormalization"}
    # 8-bit integers, as the training job quantises
    | {"DequantizeLinear", "QuantizeLinear"}
    # activations; Erf is a part of Gelu before opset 20
    | {"Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax", "PRelu", "Relu", "Selu"}
    | {"Sigmoid", "Softmax", "Softplus", "Tanh"}
    # element by element
    | {"Add", "Cast", "Div", "Exp", "Log", "Mul", "Neg", "Not", "Pow", "Reciprocal", "Sqrt", "Sub", "Sum"}
    # over an axis
    | {"ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceSum"}
    # another view of the same values
    | {"Concat", "Constant", "Flatten", "Gather", "Reshape", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
    # tables: scaling, linear models, trees and support vectors, as skl2onnx writes them
    | {"ai.onnx.ml.ArrayFeatureExtractor", "ai.onnx.ml.Normalizer", "ai.onnx.ml.Scaler"}
    | {"ai.onnx.ml.LinearClassifier", "ai.onnx.ml.LinearRegressor", "ai.onnx.ml.SVMClassifier"}
    | {"ai.onnx.ml.TreeEnsemble", "ai.onnx.ml.TreeEnsembleClassifier", "ai.onnx.ml.TreeEnsembleRegressor"}
)

# Allowed fields of each message. What is missing: functions, training_info, sparse tensors, subgraphs, references to other
# files, settings of several devices.
_MAX_REASON = 400  # characters
_NOTES = {"doc_string", "metadata_props", "name"}
_MODEL_FIELDS = {"ir_version", "opset_import", "producer_name", "producer_version", "domain", "model_version", "graph"}
_GRAPH_FIELDS = {"node", "initializer", "input", "output", "value_info"}
_NODE_FIELDS = {"input", "output", "op_type", "domain", "attribute"}
_ATTRIBUTE_FIELDS = {"type", "f", "i", "s", "t", "floats", "ints", "strings"}
_TENSOR_FIELDS = {
    *("dims", "data_type", "data_location"),
    *("raw_data", "float_data", "double_data", "int32_data", "int64_data"),
}
_TENSOR_TYPES = {
    *(TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.INT8, TensorProto.UINT8),
}


class ModelError(FerryError):
    """The model cannot be trusted; nothing was published."""


def check_model(raw: bytes, origin: str) -> None:
    """Accept the bytes of a model.onnx, or raise ModelError; `origin` is where they come from.

    Accepted is one self-contained graph with one input and one output, versions within IR_VERSIONS and OPSETS, of at most
    MAX_NODES nodes out of OPERATORS, with finite weights, which the official checker finds well-formed.
    """
    try:
        model = _parse(raw)
        _check_versions(model)
        _check_graph(model.graph)
        _check_fields(model)
        _check_values(model.graph)
        # Last: functions that call each other overflow its stack (GHSA-7w46-vvrh-m8q5), and it looks for other files.
        _check_form(model)
    except _Refusal as refusal:
        raise ModelError(f"MODEL_INVALID {origin}: {MODEL_FILE}: {refusal}") from refusal


class _Refusal(Exception):
    """What is wrong with the model, without where it comes from."""


def _parse(raw: bytes) -> ModelProto:
    if len(raw) > MAX_MODEL_BYTES:
        raise _Refusal(f"{len(raw):,} bytes; at most {MAX_MODEL_BYTES:,}")
    try:
        model: ModelProto = ModelProto.FromString(raw)
    except Exception as error:  # protobuf's own DecodeError, whose package is not a direct dependency
        raise _Refusal(f"no ONNX model, or damaged ({error}); export it again") from error
    if not model.ListFields():
        raise _Refusal("empty; export it again")
    # Appended bytes often parse, as fields of a later version or as a second value of a field.
    model.DiscardUnknownFields()
    if model.ByteSize() != len(raw):
        raise _Refusal(
            f"{len(raw):,} bytes, of which ONNX {onnx.__version__} needs {model.ByteSize():,}: something was appended, or "
            "it holds unknown fields; write it again with onnx.save"
        )
    return model


def _check_versions(model: ModelProto) -> None:
    if model.ir_version not in IR_VERSIONS:
        raise _Refusal(f"IR version {model.ir_version}; allowed: {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
    found = [_domain(entry.domain) for entry in model.opset_import]
    if len(set(found)) != len(found) or "" not in found:
        raise _Refusal(f"operator domains {reprlib.repr(found)}; the standard one is needed, and each only once")
    for domain, entry in zip(found, model.opset_import, strict=True):
        allowed = OPSETS.get(domain)
        if allowed is None:
            raise _Refusal(f"operator domain {reprlib.repr(domain)}; allowed: ai.onnx, ai.onnx.ml")
        if entry.version not in allowed:
            raise _Refusal(
                f"opset {entry.version} of {domain or 'ai.onnx'}; allowed: {allowed[0]} to {allowed[-1]}; "
                "export it with another opset_version"
            )


def _check_graph(graph: GraphProto) -> None:
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise _Refusal(f"{len(graph.input)} inputs and {len(graph.output)} outputs; a release has one of each")
    # ONNX Runtime takes such an input for one with a default value: a request could leave it out.
    if graph.input[0].name in {tensor.name for tensor in graph.initializer}:
        raise _Refusal("its input is an initializer as well; export it without")
    if not 1 <= len(graph.node) <= MAX_NODES:
        raise _Refusal(f"{len(graph.node):,} nodes; allowed: 1 to {MAX_NODES:,}")
    for node in graph.node:
        if _operator(node) not in OPERATORS:
            raise _Refusal(f"{_name(node)} is not allowed; allowed operators: {', '.join(sorted(OPERATORS))}")


def _check_fields(model: ModelProto) -> None:
    _only(model, "the model", _MODEL_FIELDS)
    _only(model.graph, "the graph", _GRAPH_FIELDS)
    for node in model.graph.node:
        _only(node, _name(node), _NODE_FIELDS)
        for attribute in node.attribute:
            _only(attribute, f"{_name(node)}, attribute {reprlib.repr(attribute.name)}", _ATTRIBUTE_FIELDS)
    for place, tensor in _tensors(model.graph):
        _only(tensor, place, _TENSOR_FIELDS)
        if tensor.data_location != TensorProto.DEFAULT:
            raise _Refusal(f"{place} lies in another file; export it with external_data=False")
        if tensor.data_type not in _TENSOR_TYPES:
            raise _Refusal(f"{place} has data type {tensor.data_type}; allowed: {_type_names()}")


def _check_values(graph: GraphProto) -> None:
    for place, tensor in _tensors(graph):
        try:
            finite = bool(np.isfinite(numpy_helper.to_array(tensor)).all())
        except (ValueError, TypeError) as error:
            raise _Refusal(f"{place}: its data do not fill its shape ({error})") from error
        if not finite:
            raise _Refusal(f"{place} holds NaN or infinity; train again with a lower learning rate")
    for node in graph.node:
        for attribute in node.attribute:
            if not np.isfinite([attribute.f, *attribute.floats]).all():
                raise _Refusal(f"{_name(node)}, attribute {reprlib.repr(attribute.name)} holds NaN or infinity")


def _check_form(model: ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its errors have no common base, and shape inference raises others
        reason = " ".join(str(error).split())  # it quotes names of the model, however long
        raise _Refusal(f"the ONNX checker refuses it: {reason[:_MAX_REASON]}") from error


def _tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor with a name for messages. Only complete after `_only` has refused the other places for tensors."""
    for tensor in graph.initializer:
        yield f"initializer {reprlib.repr(tensor.name)}", tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR or attribute.HasField("t"):
                yield f"{_name(node)}, attribute {reprlib.repr(attribute.name)}", attribute.t


def _only(message: Any, place: str, allowed: set[str]) -> None:
    surplus = [field.name for field, _ in message.ListFields() if field.name not in allowed | _NOTES]
    if surplus:
        raise _Refusal(f"{place} holds {', '.join(surplus)}, which no release may hold")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _operator(node: NodeProto) -> str:
    domain = _domain(node.domain)
    return f"{domain}.{node.op_type}" if domain else node.op_type


def _name(node: NodeProto) -> str:
    operator = _operator(node)
    shown = operator if operator.isprintable() and len(operator) <= 60 else reprlib.repr(operator)
    return f"node {reprlib.repr(node.name)} ({shown})"


def _type_names() -> str:
    return ", ".join(sorted(TensorProto.DataType.Name(value) for value in _TENSOR_TYPES))

"""The contract between training, release and serving: model.json, and what a request and an answer are.

model.json describes one ONNX file: its signature, its digest, how it was trained. It is read strictly, because a reader that
guesses would serve a model that nobody described: an unknown, missing or duplicate key is refused, with its JSON pointer.
"""

import base64
import json
import math
import re
import reprlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_code.inference.errors import ModelInvalid

SCHEMA_VERSION = 1
MAX_MODEL_JSON_BYTES = 8 * 1024 * 1024

# SageMaker's InvokeEndpoint takes 6 MiB (botocore's BodyBlob: 6,291,456 bytes); Azure's larger limit is never relied on.
MAX_BODY_BYTES = 6 * 1024 * 1024
MAX_INSTANCES = 1024
# From a request's arrival to its answer. API Gateway gives up after 29 seconds, Azure's load balancer only after 230; a
# container that is told to stop answers what it has accepted and is killed after 25 (container/launch.py).
DEADLINE_SECONDS = 24.0
# What one container of a serial pipeline hands to the next; SageMaker takes 5 MB (Developer Guide, "Troubleshoot Inference
# Pipelines").
MAX_STAGE_BYTES = 5_000_000
RELEASE_ID_HEADER = "x-release-id"

ACTIVATIONS = ("log_softmax", "logits", "probabilities")

T = TypeVar("T")


class Limits(NamedTuple):
    """Of one request: bytes of its body, instances in it, seconds to its answer. Only the container's settings change them."""

    body_bytes: int = MAX_BODY_BYTES
    instances: int = MAX_INSTANCES
    seconds: float = DEADLINE_SECONDS


DEFAULT_LIMITS = Limits()


# No frozen data class: making one of those classes takes half a millisecond of a cold start, and an instance twice as long.
@dataclass(slots=True)
class Request:
    """One HTTP request, as plain bytes; `content_type` and `accept` are the raw header values, None where absent.

    `arrived` is the time.monotonic() from which its deadline counts.
    """

    body: bytes
    content_type: str | None
    accept: str | None
    request_id: str
    arrived: float = field(default_factory=time.monotonic)


class Response(NamedTuple):
    """One HTTP answer; header names are lower-case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class TensorSpec(NamedTuple):
    """Name, shape and dtype of one tensor; the first dimension is the batch and always None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Preprocessing(NamedTuple):
    """From raw values to what the network was trained with: (raw * scale - mean) / std, per channel (axis 1)."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Golden(NamedTuple):
    """A few inputs (n, ...) and the raw outputs (n, classes) for them: the training framework's, or a quantised file's own.

    Arrays have no truth value: descriptions are compared by their bytes.
    """

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]


class Signature(NamedTuple):
    """What goes in, what comes out, and what it means."""

    input: TensorSpec
    output: TensorSpec
    activation: str
    preprocessing: Preprocessing
    labels: tuple[int | str, ...]
    response_key: str
    golden: Golden


class OnnxFile(NamedTuple):
    """Digest, size in bytes, opset and IR version of model.onnx."""

    sha256: str
    size: int
    opset: int
    ir_version: int


class TrainingRecord(NamedTuple):
    """Where the weights come from; `ended_at` is UTC, 2026-01-02T03:04:05Z."""

    dataset: str
    ended_at: str
    hyperparameters: Mapping[str, Any]


class ModelDescription(NamedTuple):
    """What model.json says."""

    model: str
    signature: Signature
    onnx: OnnxFile
    metrics: Mapping[str, float]
    training: TrainingRecord
    framework_versions: Mapping[str, str]
    source_revision: str

    @property
    def release_id(self) -> str:
        """The model's name and the first 12 hex digits of its ONNX file's sha256."""
        return f"{self.model}-{self.onnx.sha256[:12]}"


def model_json_bytes(description: ModelDescription) -> bytes:
    """The file's bytes: sorted keys, so that the same description is the same file."""
    signature = description.signature
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": description.model,
        "signature": {
            "input": _spec_document(signature.input),
            "output": _spec_document(signature.output) | {"activation": signature.activation},
            "preprocessing": {
                "scale": float(signature.preprocessing.scale),
                "mean": [float(value) for value in signature.preprocessing.mean],
                "std": [float(value) for value in signature.preprocessing.std],
            },
            "labels": list(signature.labels),
            "response_key": signature.response_key,
            "golden": {
                "inputs": _tensor_document(signature.golden.inputs),
                "outputs": _tensor_document(signature.golden.outputs),
            },
        },
        "onnx": {
            "sha256": description.onnx.sha256,
            "size": description.onnx.size,
            "opset": description.onnx.opset,
            "ir_version": description.onnx.ir_version,
        },
        "metrics": {name: float(value) for name, value in description.metrics.items()},
        "training": {
            "dataset": description.training.dataset,
            "ended_at": description.training.ended_at,
            "hyperparameters": dict(description.training.hyperparameters),
        },
        "framework_versions": dict(description.framework_versions),
        "source_revision": description.source_revision,
    }
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_model_json(raw: bytes) -> ModelDescription:
    """Check the bytes of a model.json. Raises ModelInvalid with the JSON pointer of the first problem."""
    if len(raw) > MAX_MODEL_JSON_BYTES:
        raise ModelInvalid(f"model.json: {len(raw)} bytes; at most {MAX_MODEL_JSON_BYTES} are read")
    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"model.json: not strict JSON in UTF-8: {error}") from error
    return _Node(document, "").read(_description)


class _Node(NamedTuple):
    """A value of the document and its JSON pointer, so that every complaint says where."""

    value: Any
    pointer: str

    def fail(self, allowed: str) -> ModelInvalid:
        return ModelInvalid(f"model.json: {self.pointer or '/'}: found {reprlib.repr(self.value)}; allowed: {allowed}")

    def read(self, reader: "Callable[[_Node], T]") -> T:
        return reader(self)

    def fields(self, *names: str) -> "dict[str, _Node]":
        """An object with exactly these keys."""
        nodes = self.members()
        for name in sorted(nodes.keys() ^ set(names)):
            problem = "unknown key" if name in nodes else "missing"
            raise ModelInvalid(f"model.json: {self.pointer}/{name}: {problem}; the keys are {', '.join(names)}")
        return nodes

    def members(self) -> "dict[str, _Node]":
        if not isinstance(self.value, dict):
            raise self.fail("an object")
        return {key: _Node(value, f"{self.pointer}/{key}") for key, value in self.value.items()}

    def items(self) -> "list[_Node]":
        if not isinstance(self.value, list):
            raise self.fail("an array")
        return [_Node(value, f"{self.pointer}/{index}") for index, value in enumerate(self.value)]

    def text(self, pattern: str = r".+", allowed: str = "text that is not empty") -> str:
        if not isinstance(self.value, str) or not re.fullmatch(pattern, self.value, re.DOTALL):
            raise self.fail(allowed)
        return self.value

    def integer(self) -> int:
        if type(self.value) is not int or self.value < 1:
            raise self.fail("a whole number above 0")
        return self.value

    def number(self) -> float:
        if type(self.value) not in (int, float) or not abs(self.value) <= sys.float_info.max:
            raise self.fail("a finite number")
        return float(self.value)

    def positive(self) -> float:
        if self.number() <= 0:
            raise self.fail("a number above 0")
        return float(self.value)


def _description(node: _Node) -> ModelDescription:
    # The version comes first: a newer file should be refused for its version and not for a key that it added.
    version = node.members().get("schema_version")
    if version is None or type(version.value) is not int or version.value != SCHEMA_VERSION:
        raise (version or _Node(None, "/schema_version")).fail(str(SCHEMA_VERSION))
    fields = node.fields(
        "schema_version",
        "model",
        "signature",
        "onnx",
        "metrics",
        "training",
        "framework_versions",
        "source_revision",
    )
    return ModelDescription(
        model=fields["model"].text(r"[a-z][a-z0-9-]*", "lower-case letters, digits and hyphens"),
        signature=fields["signature"].read(_signature),
        onnx=fields["onnx"].read(_onnx_file),
        metrics={name: value.number() for name, value in fields["metrics"].members().items()},
        training=fields["training"].read(_training),
        framework_versions={name: value.text() for name, value in fields["framework_versions"].members().items()},
        source_revision=fields["source_revision"].text(),
    )


def _signature(node: _Node) -> Signature:
    fields = node.fields("input", "output", "preprocessing", "labels", "response_key", "golden")
    input_spec = _spec(fields["input"].fields("name", "shape", "dtype"))
    output_fields = fields["output"].fields("name", "shape", "dtype", "activation")
    output_spec = _spec(output_fields)
    if len(output_spec.shape) != 2:
        raise output_fields["shape"].fail("[null, classes]")
    if output_fields["activation"].value not in ACTIVATIONS:
        raise output_fields["activation"].fail(", ".join(ACTIVATIONS))
    return Signature(
        input=input_spec,
        output=output_spec,
        activation=output_fields["activation"].value,
        preprocessing=_preprocessing(fields["preprocessing"], channels=input_spec.shape[1]),
        labels=_labels(fields["labels"], classes=output_spec.shape[1]),
        response_key=_response_key(fields["response_key"]),
        golden=_golden(fields["golden"], input_spec, output_spec),
    )


def _spec(fields: dict[str, _Node]) -> TensorSpec:
    batch, *rest = fields["shape"].items() or [_Node(0, "")]
    if batch.value is not None or not rest:
        raise fields["shape"].fail("null for the batch, then one size or more")
    if fields["dtype"].value != "float32":
        raise fields["dtype"].fail("float32")
    return TensorSpec(fields["name"].text(), (None, *(size.integer() for size in rest)), "float32")


def _preprocessing(node: _Node, channels: int | None) -> Preprocessing:
    fields = node.fields("scale", "mean", "std")
    mean = tuple(value.number() for value in fields["mean"].items())
    std = tuple(value.positive() for value in fields["std"].items())
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise fields[name].fail(f"{channels} numbers, one for each channel of the input")
    return Preprocessing(fields["scale"].positive(), mean, std)


def _labels(node: _Node, classes: int | None) -> tuple[int | str, ...]:
    labels = [item.value for item in node.items()]
    if not all(map(_is_label, labels)) or not len(set(labels)) == len(labels) == classes:
        raise node.fail(f"{classes} different whole numbers of 64 bits or texts, one for each class")
    return tuple(labels)


def _is_label(value: Any) -> bool:
    """Whether every encoder can write it: numpy has no larger whole numbers, and half a surrogate pair is no UTF-8."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is str and not any("\ud800" <= character <= "\udfff" for character in value)


def _response_key(node: _Node) -> str:
    # Both other names have a meaning of their own in an answer.
    if node.text(r"[a-z][a-z0-9_]*", "lower-case letters, digits and _") in ("probabilities", "error"):
        raise node.fail("a name other than probabilities and error")
    return str(node.value)


def _golden(node: _Node, input_spec: TensorSpec, output_spec: TensorSpec) -> Golden:
    fields = node.fields("inputs", "outputs")
    inputs, outputs = _tensor(fields["inputs"], input_spec), _tensor(fields["outputs"], output_spec)
    if len(inputs) != len(outputs):
        raise ModelInvalid(f"model.json: {node.pointer}: {len(inputs)} inputs, but {len(outputs)} outputs")
    return Golden(inputs, outputs)


def _tensor(node: _Node, spec: TensorSpec) -> NDArray[np.float32]:
    fields = node.fields("dtype", "shape", "data")
    if fields["dtype"].value != spec.dtype:
        raise fields["dtype"].fail(spec.dtype)
    shape = tuple(size.integer() for size in fields["shape"].items())
    if len(shape) != len(spec.shape) or shape[1:] != spec.shape[1:]:
        raise fields["shape"].fail(f"[n, {', '.join(map(str, spec.shape[1:]))}] with n above 0")
    expected = 4 * math.prod(shape)
    try:
        raw = base64.b64decode(fields["data"].text(), validate=True)
    except ValueError as error:  # binascii.Error is one, and text that is not ASCII another
        raise fields["data"].fail("base64") from error
    if len(raw) != expected:
        raise fields["data"].fail(f"{expected} bytes in base64, what the shape needs (here {len(raw)})")
    values = np.frombuffer(raw, dtype="<f4").reshape(shape)
    if not np.isfinite(values).all():
        raise fields["data"].fail("finite numbers")
    return values


def _onnx_file(node: _Node) -> OnnxFile:
    fields = node.fields("sha256", "size", "opset", "ir_version")
    return OnnxFile(
        sha256=fields["sha256"].text(r"[0-9a-f]{64}", "64 lower-case hex digits"),
        size=fields["size"].integer(),
        opset=fields["opset"].integer(),
        ir_version=fields["ir_version"].integer(),
    )


def _training(node: _Node) -> TrainingRecord:
    fields = node.fields("dataset", "ended_at", "hyperparameters")
    return TrainingRecord(
        dataset=fields["dataset"].text(r"[a-z0-9][a-z0-9_-]{0,63}", "up to 64 lower-case letters, digits, _ and -"),
        ended_at=fields["ended_at"].text(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "UTC, like 2026-01-02T03:04:05Z"),
        hyperparameters={name: value.value for name, value in fields["hyperparameters"].members().items()},
    )


def _spec_document(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _tensor_document(values: NDArray[np.float32]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
    return {"dtype": "float32", "shape": list(values.shape), "data": data}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook for json: an object whose keys are there once, where json takes the last value without a word. Raises ValueError."""
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"duplicate key {reprlib.repr(twice)}")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large for a number")
    return value

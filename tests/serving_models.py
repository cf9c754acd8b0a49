"""Tiny real releases without torch: flatten, one dense layer, log-softmax, with seeded weights; and one for rows of a table.

The golden outputs are computed with numpy alone, so that they are a second opinion on ONNX Runtime's.
"""

import gzip
import hashlib
import io
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ferry.archive import write_archive
from infra.release import FileDigest, Gate, Release, StoredArchive, release_id
from model_code.environment import ARCHIVE_FILE, MODEL_FILE, RELEASE_FILE, SIGNATURE_FILE
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

CLASSES = 10
OPSET = 18
IR_VERSION = 10
INPUT = TensorSpec("input_0", (None, 1, 28, 28), "float32")
OUTPUT = TensorSpec("output_0", (None, CLASSES), "float32")
SLOW = np.full((1, 1, 28, 28), 5e8, np.float32)  # see write_slow_model
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.1307,), std=(0.3081,))

# Of the model for colours.
COLOUR_WEIGHT = np.random.default_rng(9).normal(size=(3 * 4 * 6, 2)).astype(np.float32)
# Of the model for tables. A label may hold what CSV has to quote.
TABLE_LABELS = ("ash", 'oak, "white"', "żółć")
TABLE_WEIGHT = np.random.default_rng(3).normal(size=(4, len(TABLE_LABELS))).astype(np.float32)


def weights(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrix (784, 10) and bias (10,)."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(scale=0.05, size=(784, CLASSES))
    return matrix.astype(np.float32), rng.normal(size=CLASSES).astype(np.float32)


def log_probabilities(inputs: NDArray[Any], *, seed: int = 0) -> NDArray[np.float32]:
    """What the model of this seed answers for normalised inputs (n, 1, 28, 28), computed in float64 without ONNX."""
    matrix, bias = weights(seed)
    logits = inputs.reshape(len(inputs), -1).astype(np.float64) @ matrix.astype(np.float64) + bias
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float32)


def onnx_bytes(seed: int = 0) -> bytes:
    """The serialized model of this seed."""
    return _serialized([helper.make_node("LogSoftmax", ["logits"], [OUTPUT.name], axis=1)], seed)


def slow_onnx_bytes(seed: int = 0) -> bytes:
    """A model with the same answers, but it takes as many turns in a loop as its largest input says (about 0.5 us each)."""
    go_on = helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    turn = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, ["batch", CLASSES]),
        ],
        [go_on, helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, ["batch", CLASSES])],
    )
    nodes = [
        helper.make_node("ReduceMax", [INPUT.name], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "logits"], ["looped"], body=turn),
        helper.make_node("LogSoftmax", ["looped"], [OUTPUT.name], axis=1),
    ]
    return _serialized(nodes, seed)


def _serialized(nodes: list[onnx.NodeProto], seed: int) -> bytes:
    """The model whose `nodes` make the output of "logits", which is one dense layer of this seed over the input."""
    matrix, bias = weights(seed)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [INPUT.name], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
            *nodes,
        ],
        "tiny",
        [helper.make_tensor_value_info(INPUT.name, TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info(OUTPUT.name, TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(matrix, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def describe(model: bytes, *, seed: int = 0) -> ModelDescription:
    """What model.json says about the bytes of this seed's model."""
    inputs = np.random.default_rng(seed + 1).normal(size=(4, 1, 28, 28)).astype(np.float32)
    return ModelDescription(
        model="mnist",
        signature=Signature(
            input=INPUT,
            output=OUTPUT,
            activation="log_softmax",
            preprocessing=PREPROCESSING,
            labels=tuple(range(CLASSES)),
            response_key="digits",
            golden=Golden(inputs, log_probabilities(inputs, seed=seed)),
        ),
        onnx=OnnxFile(hashlib.sha256(model).hexdigest(), len(model), OPSET, IR_VERSION),
        metrics={"accuracy": 0.99, "loss": 0.04},
        training=TrainingRecord("mnist", "2026-01-02T03:04:05Z", {"epochs": 1, "seed": seed}),
        framework_versions={"numpy": np.__version__, "onnx": onnx.__version__},
        source_revision="unknown",
    )


def write_model(directory: Path, *, seed: int = 0) -> ModelDescription:
    """Write model.onnx and model.json into `directory`, which is made where it is missing."""
    return _write(directory, onnx_bytes(seed), seed)


def table_probabilities(rows: NDArray[Any]) -> NDArray[np.float32]:
    """What the model of `write_table_model` answers for rows (n, 4), computed in float64 without ONNX."""
    logits = rows.astype(np.float64) @ TABLE_WEIGHT.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def write_table_model(directory: Path) -> ModelDescription:
    """A classifier for rows of four numbers whose classes have names; files as `write_model` writes them."""
    nodes = [
        helper.make_node("MatMul", [INPUT.name, "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUT.name], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info(INPUT.name, TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(OUTPUT.name, TensorProto.FLOAT, ["batch", len(TABLE_LABELS)])],
        [numpy_helper.from_array(TABLE_WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    raw = bytes(model.SerializeToString())
    rows = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
    images = describe(raw)
    description = images._replace(
        model="table",
        signature=Signature(
            input=TensorSpec(INPUT.name, (None, 4), "float32"),
            output=TensorSpec(OUTPUT.name, (None, len(TABLE_LABELS)), "float32"),
            activation="probabilities",
            preprocessing=Preprocessing(1.0, (0.0,) * 4, (1.0,) * 4),
            labels=TABLE_LABELS,
            response_key="names",
            golden=Golden(rows, table_probabilities(rows)),
        ),
    )
    return _write_files(directory, raw, description)


def colour_probabilities(inputs: NDArray[Any]) -> NDArray[np.float32]:
    """What the model of `write_colour_model` answers for normalised inputs (n, 3, 4, 6), computed without ONNX."""
    logits = inputs.reshape(len(inputs), -1).astype(np.float64) @ COLOUR_WEIGHT.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def write_colour_model(directory: Path) -> ModelDescription:
    """A classifier for images of three channels, 4 rows and 6 columns; files as `write_model` writes them."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [INPUT.name], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [OUTPUT.name], axis=1),
        ],
        "colour",
        [helper.make_tensor_value_info(INPUT.name, TensorProto.FLOAT, ["batch", 3, 4, 6])],
        [helper.make_tensor_value_info(OUTPUT.name, TensorProto.FLOAT, ["batch", COLOUR_WEIGHT.shape[1]])],
        [numpy_helper.from_array(COLOUR_WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    raw = bytes(model.SerializeToString())
    inputs = np.random.default_rng(7).normal(size=(3, 3, 4, 6)).astype(np.float32)
    description = describe(raw)._replace(
        model="colour",
        signature=Signature(
            input=TensorSpec(INPUT.name, (None, 3, 4, 6), "float32"),
            output=TensorSpec(OUTPUT.name, (None, COLOUR_WEIGHT.shape[1]), "float32"),
            activation="probabilities",
            preprocessing=Preprocessing(1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
            labels=("warm", "cold"),
            response_key="colours",
            golden=Golden(inputs, colour_probabilities(inputs)),
        ),
    )
    return _write_files(directory, raw, description)


def write_heavy_model(directory: Path, *, megabytes: int, seed: int = 0) -> ModelDescription:
    """The model of `write_model` with so many MB of weights in it that its answers do not depend on."""
    matrix, bias = weights(seed)
    side = math.isqrt(megabytes * 2**20 // 4)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [INPUT.name], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
            helper.make_node("ReduceMax", ["flat", "axis"], ["largest"], keepdims=1),
            helper.make_node("MatMul", ["largest", "row"], ["wide"]),
            helper.make_node("MatMul", ["wide", "ballast"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros", "axis"], ["zero"], keepdims=1),
            helper.make_node("Add", ["logits", "zero"], ["sum"]),
            helper.make_node("LogSoftmax", ["sum"], [OUTPUT.name], axis=1),
        ],
        "heavy",
        [helper.make_tensor_value_info(INPUT.name, TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info(OUTPUT.name, TensorProto.FLOAT, ["batch", CLASSES])],
        [
            numpy_helper.from_array(matrix, "weight"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.ones((1, side), np.float32), "row"),
            numpy_helper.from_array(np.zeros((side, side), np.float32), "ballast"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return _write(directory, bytes(model.SerializeToString()), seed)


def write_slow_model(directory: Path, *, seed: int = 0) -> ModelDescription:
    """The same, with the model of `slow_onnx_bytes`: `SLOW` keeps it busy for minutes."""
    return _write(directory, slow_onnx_bytes(seed), seed)


def _write(directory: Path, model: bytes, seed: int) -> ModelDescription:
    return _write_files(directory, model, describe(model, seed=seed))


def _write_files(directory: Path, model: bytes, description: ModelDescription) -> ModelDescription:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL_FILE).write_bytes(model)
    (directory / SIGNATURE_FILE).write_bytes(model_json_bytes(description))
    return description


def write_artifact(path: Path, *, seed: int = 0, extra_members: Mapping[str, bytes] | None = None) -> ModelDescription:
    """Write a model.tar.gz as SageMaker packs it: the members at the archive's root, without a folder."""
    model = onnx_bytes(seed)
    description = describe(model, seed=seed)
    members = {MODEL_FILE: model, SIGNATURE_FILE: model_json_bytes(description), **(extra_members or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return description


def write_release(directory: Path, *, seed: int = 0) -> Release:
    """Write release.json and model.tar.gz, as `ferry release` leaves them, with the model of this seed."""
    model = onnx_bytes(seed)
    description = describe(model, seed=seed)
    signature = model_json_bytes(description)
    archive = write_archive({MODEL_FILE: model, SIGNATURE_FILE: signature})
    identifier = release_id(description.model, description.onnx.sha256)
    release = Release(
        schema_version=2,
        release_id=identifier,
        model=description.model,
        dataset=description.training.dataset,
        archive=StoredArchive(
            uri=f"s3://a-bucket/releases/{identifier}/model.tar.gz", version_id="v1", **_digest(archive)
        ),
        onnx=FileDigest(**_digest(model)),
        model_json=FileDigest(**_digest(signature)),
        metrics=dict(description.metrics),
        gate=Gate(metric="accuracy", threshold=0.9, value=description.metrics["accuracy"]),
        pipeline_execution="local",
        model_package=None,
        dataset_manifest_sha256=None,
        source_revision=description.source_revision,
        training_end_time=description.training.ended_at,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ARCHIVE_FILE).write_bytes(archive)
    (directory / RELEASE_FILE).write_bytes(release.to_bytes())
    return release


def _digest(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

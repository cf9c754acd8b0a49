"""What a release refuses about an ONNX model: by what it says, and, under limits, by what it does."""

import ast
import hashlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ferry import aws
from ferry.archive import write_archive
from ferry.errors import FerryError
from ferry.model_check import MAX_NODES, ModelError, check_model
from ferry.model_probe import Limits, probe_model
from ferry.release import make_release
from infra.settings import ROOT, Settings
from model_code.environment import MODEL_FILE, SIGNATURE_FILE
from model_code.inference.contract import Golden, model_json_bytes
from model_code.inference.errors import ModelInvalid
from model_code.inference.predictor import Predictor
from tests.emulated_training import emulated
from tests.serving_models import CLASSES, INPUT, OUTPUT, describe, onnx_bytes, write_artifact, write_model

GOOD = onnx_bytes()


def graph(nodes: Sequence[NodeProto], **constants: Any) -> onnx.GraphProto:
    """From input_0 (n, 1, 28, 28) to output_0 (n, 10), with the constants as initializers."""
    return helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(INPUT.name, TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info(OUTPUT.name, TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def serialized(
    of: onnx.GraphProto, *, ir: int = 10, functions: Sequence[onnx.FunctionProto] = (), **opsets: int
) -> bytes:
    """A model's bytes; `opsets` are domains, with _ for a dot, beside opset 18 of the standard one."""
    entries = {"": 18} | {domain.replace("_", "."): version for domain, version in opsets.items()}
    imports = [helper.make_opsetid(domain, version) for domain, version in entries.items()]
    return bytes(helper.make_model(of, opset_imports=imports, ir_version=ir, functions=functions).SerializeToString())


def edited(edit: Any) -> bytes:
    """The good model after `edit` has changed it."""
    model = onnx.ModelProto.FromString(GOOD)
    edit(model)
    return bytes(model.SerializeToString())


def dense(*extra: NodeProto, last: str = "logits", **constants: Any) -> bytes:
    """The plain dense model, with `extra` nodes between its logits and the log-softmax that reads `last`."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Flatten", [INPUT.name], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        *extra,
        helper.make_node("LogSoftmax", [last], [OUTPUT.name]),
    ]
    return serialized(graph(nodes, weight=rng.normal(size=(784, CLASSES)).astype(np.float32), **constants))


def convolutional() -> bytes:
    """What the training job exports for images, with fewer channels."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", [INPUT.name, "kernel", "offset"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["d"], allowzero=1),
        helper.make_node("Gemm", ["d", "weight", "bias"], ["e"], transB=1),
        helper.make_node("LogSoftmax", ["e"], [OUTPUT.name], axis=-1),
    ]
    return serialized(
        graph(
            nodes,
            kernel=rng.normal(size=(2, 1, 3, 3)).astype(np.float32),
            offset=rng.normal(size=2).astype(np.float32),
            shape=np.array([-1, 392]),
            weight=rng.normal(scale=0.05, size=(CLASSES, 392)).astype(np.float32),
            bias=rng.normal(size=CLASSES).astype(np.float32),
        )
    )


def trees() -> bytes:
    """One decision on the first pixel, as scikit-learn's trees are written."""
    tree = helper.make_node(
        "TreeEnsembleClassifier",
        ["flat"],
        ["label", OUTPUT.name],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        class_treeids=[0, 0],
        class_nodeids=[1, 2],
        class_ids=[3, 7],
        class_weights=[1.0, 1.0],
        classlabels_int64s=list(range(CLASSES)),
    )
    nodes = [helper.make_node("Flatten", [INPUT.name], ["flat"]), tree]
    return serialized(graph(nodes), ai_onnx_ml=3)


def memory_bomb() -> bytes:
    """16 GiB of zeros from 8 bytes."""
    return serialized(graph([helper.make_node("ConstantOfShape", ["n"], [OUTPUT.name])], n=np.array([2**32])))


def loop() -> bytes:
    """2^62 rounds of nothing."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", ["rounds", "", INPUT.name], [OUTPUT.name], body=body)
    return serialized(graph([node], rounds=np.array(2**62)))


def branch() -> onnx.GraphProto:
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", [INPUT.name], ["z"])], "branch", [], [output])


def branches() -> bytes:
    node = helper.make_node("If", ["yes"], [OUTPUT.name], then_branch=branch(), else_branch=branch())
    return serialized(graph([node], yes=np.array(True)))


def function() -> onnx.FunctionProto:
    """A body of its own for an operator that is allowed."""
    body = [helper.make_node("Exp", ["x"], ["y"])]
    return helper.make_function("", "LogSoftmax", ["x"], ["y"], body, [helper.make_opsetid("", 18)])


def external(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def constant(value: Any) -> NodeProto:
    return helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.asarray(value), "c"))


def external_constant() -> bytes:
    node = constant(np.float32(1))
    external(node.attribute[0].t)
    return dense(node, helper.make_node("Add", ["logits", "c"], ["sum"]), last="sum")


def sparse() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [2**40])


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("input_1", TensorProto.FLOAT, [1]))


def nan_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full(CLASSES, np.nan, np.float32), "bias"))


def relus(count: int) -> bytes:
    nodes = [helper.make_node("Relu", [f"x{n}" if n else "logits"], [f"x{n + 1}"]) for n in range(count)]
    return dense(*nodes, last=f"x{count}")


def attributes(op: str, **values: Any) -> bytes:
    return dense(helper.make_node(op, ["logits"], ["l"], **values), last="l")


def retyped(of: str, kind: onnx.TypeProto) -> bytes:
    """The good model whose input or output is of another kind."""
    return edited(lambda model: getattr(model.graph, of)[0].type.CopyFrom(kind))


def dimensions(*sizes: int) -> bytes:
    """The good model whose weights claim to be that large."""

    def claim(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        del weight.dims[:]
        weight.dims.extend(sizes)

    return edited(claim)


TENSOR = helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 784])
OTHER_KINDS = {
    "sequence": helper.make_sequence_type_proto(TENSOR),
    "map": helper.make_map_type_proto(TensorProto.INT64, TENSOR),
    "optional": helper.make_optional_type_proto(TENSOR),
    "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [None, 784]),
    "nothing": onnx.TypeProto(),
}

REFUSED = [
    pytest.param(b"", "empty", id="M16-empty"),
    pytest.param(b"\x00\xffrandom bytes", "no ONNX model", id="M16-random"),
    pytest.param(GOOD[: len(GOOD) // 2], "no ONNX model", id="M16-half"),
    pytest.param(GOOD[:-1], "no ONNX model", id="M16-one-byte-short"),
    pytest.param(GOOD + b"\0garbage", "no ONNX model", id="M16-tail"),
    pytest.param(GOOD + b"\xfa\x3f\x03abc", "appended", id="M16-tail-that-parses"),
    pytest.param(GOOD + onnx_bytes(seed=1), "appended", id="M16-two-models"),
    pytest.param(edited(lambda m: m.ClearField("graph")), "0 inputs", id="M16-no-graph"),
    pytest.param(edited(lambda m: m.graph.initializer.pop()), "checker refuses", id="M16-missing-weight"),
    pytest.param(edited(lambda m: m.graph.node.pop()), "checker refuses", id="M16-missing-node"),
    pytest.param(edited(lambda m: m.graph.initializer[0].dims.append(9)), "fill its shape", id="M16-short-weight"),
    pytest.param(edited(lambda m: setattr(m, "ir_version", 99)), "IR version 99; allowed: 7 to 13", id="M18-ir-99"),
    pytest.param(edited(lambda m: setattr(m, "ir_version", 3)), "IR version 3", id="M18-ir-3"),
    pytest.param(edited(lambda m: setattr(m.opset_import[0], "version", 999)), "opset 999", id="M18-opset-999"),
    pytest.param(edited(lambda m: setattr(m.opset_import[0], "version", 12)), "opset 12", id="M18-opset-12"),
    pytest.param(edited(lambda m: m.ClearField("opset_import")), "standard one is needed", id="M18-no-opset"),
    pytest.param(edited(lambda m: m.opset_import.add(version=17)), "only once", id="M18-opset-twice"),
    pytest.param(edited(lambda m: m.opset_import.add(domain="evil", version=1)), "domain 'evil'", id="M18-domain"),
    pytest.param(
        edited(lambda m: setattr(m.graph.node[0], "domain", "com.microsoft")), "microsoft.Flat", id="M18-custom"
    ),
    pytest.param(branches(), "If", id="M18-if"),
    pytest.param(attributes("Relu", body=branch()), "holds g", id="M18-subgraph"),
    pytest.param(edited(lambda m: m.functions.append(function())), "holds functions", id="M18-local-function"),
    pytest.param(edited(lambda m: m.training_info.add()), "holds training_info", id="M18-training"),
    pytest.param(relus(MAX_NODES), "2,003 nodes", id="M18-nodes"),
    pytest.param(edited(second_input), "2 inputs and 1 outputs", id="M18-inputs"),
    pytest.param(edited(lambda m: m.graph.output.append(m.graph.output[0])), "2 outputs", id="M18-outputs"),
    *(
        pytest.param(retyped(of, kind), "checker refuses", id=f"M18-{name}-{of}")
        for name, kind in OTHER_KINDS.items()
        for of in ("input", "output")
    ),
    *(
        pytest.param(
            edited(lambda m, op=op: setattr(m.graph.node[1], "op_type", op)),
            "is not allowed",
            id=f"M18-operator-{op!a}",
        )
        for op in ("Loop", "If", "Scan", "SequenceMap", "Optional", "RandomNormal", "StringSplit", "Resize", "Expand")
    ),
    *(
        pytest.param(
            edited(lambda m, op=op: setattr(m.graph.node[1], "op_type", op)), "is not allowed", id=f"M18-like-{op!a}"
        )
        for op in ("gemm", "Gemm ", "G\u0435mm", "Gemm\0", "")
    ),
    pytest.param(edited(lambda m: setattr(m, "ir_version", 2**63 - 1)), "IR version 9", id="M18-ir-largest"),
    pytest.param(edited(lambda m: setattr(m.opset_import[0], "version", -1)), "opset -1", id="M18-opset-negative"),
    pytest.param(edited(lambda m: setattr(m.graph.node[0], "overload", "x")), "holds overload", id="M18-overload"),
    pytest.param(
        edited(lambda m: setattr(m.graph.node[0].attribute[0], "ref_attr_name", "x")),
        "ref_attr_name",
        id="M18-reference",
    ),
    pytest.param(
        edited(lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), INPUT.name))),
        "an initializer as well",
        id="M18-input-with-a-value",
    ),
    *(
        pytest.param(dimensions(*sizes), "fill its shape|checker refuses", id=f"M19-weights-of-{name}")
        for name, sizes in (
            *(("a-tebibyte", (2**40,)), ("exabytes", (2**62, 2**62)), ("nothing-times-exabytes", (0, 2**62))),
            *(("less-than-nothing", (-1, -1)), ("any-size", (-1,)), ("a-hundred-dimensions", (1,) * 100)),
        )
    ),
    pytest.param(memory_bomb(), "ConstantOfShape", id="M19-memory-bomb"),
    pytest.param(loop(), "Loop", id="M19-loop"),
    pytest.param(edited(lambda m: external(m.graph.initializer[0])), "external_data", id="M19-external"),
    pytest.param(external_constant(), "external_data", id="M19-external-in-attribute"),
    pytest.param(edited(lambda m: m.graph.sparse_initializer.append(sparse())), "sparse_initializer", id="M19-sparse"),
    pytest.param(
        dense(helper.make_node("Constant", [], ["c"], sparse_value=sparse())), "sparse", id="M19-sparse-value"
    ),
    pytest.param(edited(nan_weight), "'bias' holds NaN or infinity", id="M20-nan-weight"),
    pytest.param(dense(constant(np.float32(np.inf))), "NaN or infinity", id="M20-infinite-constant"),
    pytest.param(attributes("LeakyRelu", alpha=float("nan")), "'alpha' holds NaN", id="M20-nan-attribute"),
]


@pytest.mark.parametrize(("raw", "reason"), REFUSED)
def test_m16_m18_m19_m20_a_model_that_could_do_harm_is_refused_before_it_runs(raw: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"^MODEL_INVALID s3://b/k: model\.onnx: .*({reason})"):
        check_model(raw, "s3://b/k")


def test_m18_what_is_written_about_a_model_is_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes may hold paths and megabytes; the check and ONNX Runtime open nothing that they name."""
    (tmp_path / "secret").write_bytes(b"secret")
    monkeypatch.chdir(tmp_path)

    def annotate(model: onnx.ModelProto) -> None:
        for key in ("location", "external_data", "ort_config", "secret"):
            model.metadata_props.add(key=key, value=str(tmp_path / "secret"))
        model.doc_string = "x" * 2**20
        model.graph.node[0].name = "a\nb" * 1000

    raw = edited(annotate)
    check_model(raw, "a")
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    check_model(raw, "a")
    Predictor.load(written(tmp_path, raw))
    watching = False
    assert not [path for path in opened if path.endswith("secret")]


@pytest.mark.parametrize(
    "raw",
    [GOOD, convolutional(), trees(), relus(3), edited(lambda m: setattr(m.opset_import[0], "domain", "ai.onnx"))],
    ids=["dense", "convolutional", "trees", "deep", "domain-in-full"],
)
def test_what_classifiers_are_made_of_is_accepted(raw: bytes) -> None:
    check_model(raw, "model.tar.gz")


def written(folder: Path, raw: bytes) -> Path:
    """A folder with the model and a description of it, whose golden outputs are those of the tiny dense model."""
    (folder / MODEL_FILE).write_bytes(raw)
    (folder / SIGNATURE_FILE).write_bytes(model_json_bytes(describe(raw)))
    return folder


def described(folder: Path, raw: bytes) -> Path:
    """The same with golden outputs from the reference implementation of the operators, which is plain Python."""
    description = describe(raw)
    inputs = description.signature.golden.inputs
    answers: Any = ReferenceEvaluator(onnx.ModelProto.FromString(raw)).run(None, {INPUT.name: inputs})
    signature = description.signature._replace(golden=Golden(inputs, answers[0]))
    (folder / MODEL_FILE).write_bytes(raw)
    (folder / SIGNATURE_FILE).write_bytes(model_json_bytes(description._replace(signature=signature)))
    return folder


def product(size: int, rounds: int) -> bytes:
    """A matrix (size, size) out of two vectors, multiplied with itself: small file, large work, only allowed operators."""
    nodes = [
        helper.make_node("MatMul", ["column", "row"], ["p0"]),
        *(helper.make_node("MatMul", [f"p{n}", "p0"], [f"p{n + 1}"]) for n in range(rounds)),
        helper.make_node("ReduceMean", [f"p{rounds}"], ["mean"], keepdims=0),
        helper.make_node("Add", ["logits", "mean"], ["sum"]),
    ]
    vector = np.full(size, size**-0.5, np.float32)
    return dense(*nodes, last="sum", column=vector[:, None], row=vector[None, :])


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="M16-empty"),
        pytest.param(GOOD[: len(GOOD) // 2], id="M16-half"),
        pytest.param(GOOD[:-1], id="M16-one-byte-short"),
        pytest.param(GOOD + b"\0garbage", id="M16-tail"),
        pytest.param(b"\x80\x04cos\nsystem\n.", id="M21-pickle"),
        pytest.param(edited(lambda m: setattr(m, "ir_version", 99)), id="M18-ir-99"),
        pytest.param(edited(lambda m: setattr(m.opset_import[0], "version", 999)), id="M18-opset-999"),
        pytest.param(edited(lambda m: setattr(m.graph.node[0], "domain", "evil")), id="M18-custom"),
        pytest.param(edited(lambda m: external(m.graph.initializer[0])), id="M19-external"),
        pytest.param(edited(nan_weight), id="M20-nan-weight"),
        pytest.param(edited(second_input), id="M18-second-input"),
        pytest.param(retyped("input", OTHER_KINDS["sequence"]), id="M18-sequence"),
        pytest.param(dense(constant(np.float32(1)), last="logits"), id="M20-other-answers"),
    ],
)
def test_m16_m18_m20_what_serves_refuses_such_a_model_even_where_its_digests_are_right(
    tmp_path: Path, raw: bytes
) -> None:
    """The container, the Function and the Evaluate step load with this; a container then ends with 1, a Function answers 503."""
    with pytest.raises(ModelInvalid):
        Predictor.load(written(tmp_path, raw))


def test_m21_nothing_that_serves_can_unpickle() -> None:
    """No module of the serving image and of the Function's package imports pickle's family, and numpy may not use it."""
    sources = [*(ROOT / "model_code" / "inference").glob("*.py"), *(ROOT / "model_code" / "container").glob("*.py")]
    assert len(sources) > 15
    for path in [*sources, ROOT / "function_app" / "function_app.py", ROOT / "model_code" / "environment.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve", "joblib", "dill", "torch"} & {
                name.split(".")[0] for name in names
            }, path
            assert not (
                isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
            ), path


def test_a_good_model_passes_its_trial(tmp_path: Path) -> None:
    write_model(tmp_path)
    probe_model(tmp_path, "a")


@pytest.mark.parametrize("raw", [convolutional(), trees()], ids=["convolutional", "trees"])
def test_a_model_that_answers_as_the_reference_does_passes_its_trial(tmp_path: Path, raw: bytes) -> None:
    probe_model(described(tmp_path, raw), "a")


LIMITED = [
    pytest.param(product(60_000, 0), Limits(), "alloc", id="M19-allocates-14-GiB"),
    pytest.param(product(4096, 500), Limits(cpu_seconds=2), "more than 2 s of CPU time", id="M19-spins"),
    pytest.param(product(4096, 500), Limits(seconds=1), "more than 1 s; nothing", id="M19-takes-for-ever"),
]


@pytest.mark.parametrize(("raw", "limits", "reason"), LIMITED)
def test_m19_what_the_operators_alone_do_not_show_ends_at_a_limit(
    tmp_path: Path, raw: bytes, limits: Limits, reason: str
) -> None:
    check_model(raw, "a")
    with pytest.raises(FerryError, match=rf"^MODEL_INVALID a: .*{reason}") as refused:
        probe_model(written(tmp_path, raw), "a", limits)
    assert "Traceback" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def pairs_of_rows() -> bytes:
    """Compares every instance with every other one: nothing for a few, 3 GB and more for a full request."""
    nodes = [
        helper.make_node("Unsqueeze", ["flat", "one"], ["column"]),
        helper.make_node("Unsqueeze", ["flat", "none"], ["row"]),
        helper.make_node("Sub", ["column", "row"], ["pairs"]),
        helper.make_node("Exp", ["pairs"], ["more"]),
        helper.make_node("ReduceSum", ["more", "none"], ["sum_of_all"], keepdims=0),
        helper.make_node("ReduceSum", ["sum_of_all", "one"], ["of_each"], keepdims=1),
        helper.make_node("Mul", ["of_each", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["sum"]),
    ]
    return dense(*nodes, last="sum", none=np.array([0]), one=np.array([1]), zero=np.float32(0))


def test_m19_a_model_that_takes_all_memory_for_a_full_request_only_is_refused(tmp_path: Path) -> None:
    folder = described(tmp_path, pairs_of_rows())
    Predictor.load(folder)
    with pytest.raises(FerryError, match=r"^MODEL_INVALID a: .* but not the 1,024 that a request may hold: .*alloc"):
        probe_model(folder, "a", Limits(memory=2**31))


@pytest.mark.parametrize("place", ["op_type", "domain", "initializer", "attribute", "output"])
def test_m18_a_name_of_megabytes_does_not_fill_the_message(place: str) -> None:
    def lengthen(model: onnx.ModelProto) -> None:
        node, long = model.graph.node[-1], "n\n" * 2**20
        match place:
            case "op_type":
                node.op_type = long
            case "domain":
                model.opset_import.add(domain=long, version=1)
            case "initializer":
                model.graph.initializer[0].name = long
                external(model.graph.initializer[0])
            case "attribute":
                node.attribute.add(name=long, type=1, f=float("nan"))
            case "output":
                node.output[0] = long

    with pytest.raises(ModelError) as refused:
        check_model(edited(lengthen), "a")
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("empty_nodes", [pytest.param(10_000_000, id="M19-parses-to-a-gigabyte")])
def test_m19_a_file_that_only_grows_while_it_is_parsed_ends_at_a_limit(tmp_path: Path, empty_nodes: int) -> None:
    nodes = b"\x0a\x00" * empty_nodes
    length = bytes((len(nodes) >> shift & 127) | (128 if shift < 28 else 0) for shift in range(0, 35, 7))
    with pytest.raises(FerryError, match=r"^MODEL_INVALID a: .*(alloc failed|needs more than)"):
        probe_model(written(tmp_path, b"\x08\x0a\x3a" + length + nodes), "a", Limits(memory=2**29))


def test_m20_other_answers_than_the_golden_ones_are_refused(tmp_path: Path) -> None:
    constant_output = dense(helper.make_node("Mul", ["logits", "zero"], ["same"]), last="same", zero=np.float32(0))
    with pytest.raises(FerryError, match=r"MODEL_INVALID a: .*golden inputs get other labels"):
        probe_model(written(tmp_path, constant_output), "a")


def test_a_trial_that_fails_by_itself_does_not_blame_the_model(tmp_path: Path) -> None:
    with pytest.raises(FerryError, match=r"^a: .*exit code 1 \(FileNotFoundError") as failed:
        probe_model(tmp_path, "a")
    assert "Traceback" not in str(failed.value)


def test_the_process_that_publishes_never_parses_a_model() -> None:
    script = "import sys, ferry.release; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"onnx", "onnxruntime"} & set(loaded.split())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An emulator with an empty, versioned artifacts bucket."""
    with emulated(tmp_path_factory.mktemp("release")) as settings:
        s3 = aws.client(settings, "s3")
        s3.create_bucket(Bucket=settings.artifact_bucket)
        s3.put_bucket_versioning(Bucket=settings.artifact_bucket, VersioningConfiguration={"Status": "Enabled"})
        yield settings


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(memory_bomb(), id="M19-memory-bomb"),
        pytest.param(edited(nan_weight), id="M20-nan-weight"),
        pytest.param(product(60_000, 0), id="M19-allocates-14-GiB"),
    ],
)
def test_m19_m20_nothing_of_a_refused_model_is_published(settings: Settings, tmp_path: Path, raw: bytes) -> None:
    good = tmp_path / "good.tar.gz"
    write_artifact(good)
    release = make_release(settings, str(good), lambda _: None)
    before = hashlib.sha256(settings.release_path.read_bytes()).digest()

    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(write_archive({MODEL_FILE: raw, SIGNATURE_FILE: model_json_bytes(describe(raw))}))
    with pytest.raises(FerryError, match="MODEL_INVALID"):
        make_release(settings, str(bad), lambda _: None)

    listing = aws.client(settings, "s3").list_object_versions(Bucket=settings.artifact_bucket)
    assert {entry["Key"].split("/")[1] for entry in listing["Versions"]} == {release.release_id}
    assert hashlib.sha256(settings.release_path.read_bytes()).digest() == before

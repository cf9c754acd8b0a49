"""How an int8 model is laid out for ONNX Runtime: other steps, and the same integers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from model_code.training.integer_layout import lay_out
from tests.optimised_models import optimised

RNG = np.random.default_rng(5)
SCALE = np.array(0.03, np.float32)


class Network:
    """A model in QDQ format, written down layer by layer; its input "x" is quantised before its first layer."""

    def __init__(self, *shape: int | str) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.shape = shape
        self.last = self.quantised("x", 100)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def quantised(self, name: str, zero_point: int = 0) -> str:
        given = [
            self.constant(f"{name}_scale", SCALE),
            self.constant(f"{name}_zero", np.array(zero_point, np.uint8)),
        ]
        self.node("QuantizeLinear", [name, *given], f"{name}_integers")
        return self.node("DequantizeLinear", [f"{name}_integers", *given], f"{name}_again")

    def weights(self, name: str, shape: Sequence[int], axis: int = 0, *, bias: bool = True) -> list[str]:
        """With a scale for each channel along the axis; ONNX Runtime wants those of a bias to be theirs by the data's."""
        scales = RNG.uniform(0.001, 0.01, shape[axis]).astype(np.float32)
        made = [self._made_of(name, RNG.integers(-64, 65, shape).astype(np.int8), scales, axis)]
        if bias:
            integers = RNG.integers(-2000, 2001, len(scales)).astype(np.int32)
            made.append(self._made_of(f"{name}_bias", integers, scales * SCALE, 0))
        return made

    def layer(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> None:
        """Its input is what came last, its output is quantised."""
        self.node(kind, [self.last, *inputs], name, **attributes)
        self.last = self.quantised(name)

    def convolution(self, *shape: int, bias: bool = True, **attributes: Any) -> None:
        self.layer("Conv", self.weights("conv_weights", shape, bias=bias), "conv", **attributes)

    def pooling(self) -> None:
        self.layer("MaxPool", [], "pool", kernel_shape=[2, 2], strides=[2, 2])

    def model(self) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        model = shape_inference.infer_shapes(model)  # for the output, whose shape is required
        del model.graph.value_info[:]
        return model

    def _made_of(self, name: str, integers: NDArray[Any], scales: NDArray[np.float32], axis: int) -> str:
        given = [
            self.constant(f"{name}_integers", integers),
            self.constant(f"{name}_scale", scales),
            self.constant(f"{name}_zero", np.zeros(len(scales), integers.dtype)),
        ]
        return self.node("DequantizeLinear", given, name, axis=axis)


def one_convolution(shape: Sequence[int], size: Sequence[int | str] = (28, 28), **attributes: Any) -> Network:
    network = Network(shape[1] * attributes.get("group", 1), *size)
    network.convolution(*shape, **attributes)
    return network


def laid_out(model: ModelProto) -> ModelProto:
    made = ModelProto.FromString(model.SerializeToString())
    lay_out(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def assert_the_same_numbers(made: ModelProto, model: ModelProto, *shape: int) -> None:
    inputs = RNG.uniform(-3, 4, (3, *shape)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        for each in (model, made)
    )
    expected = before.run(None, {"x": inputs})[0]
    assert len(np.unique(expected)) > 15  # else there would be nothing to compare
    assert np.array_equal(after.run(None, {"x": inputs})[0], expected)


def integers_of(model: ModelProto, layer: str) -> tuple[int, ...]:
    """The shape of its weights."""
    makers = {name: node for node in model.graph.node for name in node.output}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return shapes[makers[makers[layer].input[1]].input[0]]


@pytest.mark.parametrize(
    ("shape", "attributes", "made_of"),
    [
        ((32, 1, 3, 3), {}, (2 * 32, 4, 3, 1)),
        ((4, 1, 3, 3), {"pads": [1, 1, 1, 1]}, (2 * 4, 4, 3, 1)),
        ((4, 1, 3, 3), {"pads": [2, 2, 0, 0]}, (2 * 4, 4, 3, 1)),
        ((4, 1, 3, 3), {"pads": [0, 0, 2, 2]}, (2 * 4, 4, 3, 1)),
        ((4, 1, 5, 5), {"pads": [2, 2, 2, 2], "bias": False}, (4 * 4, 8, 5, 1)),
        ((4, 1, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, (2 * 4, 8, 4, 1)),
        ((4, 3, 3, 3), {"strides": [2, 1], "pads": [1, 0, 0, 0]}, (2 * 4, 12, 3, 1)),
        ((4, 2, 1, 4), {"size": (5, 13), "auto_pad": "NOTSET"}, (2 * 4, 12, 1, 1)),
        ((4, 3, 4, 4), {"strides": [4, 4]}, (4, 12, 4, 1)),
        ((4, 6, 5, 5), {"size": (14, 14), "dilations": [1, 1], "group": 1}, (2 * 4, 36, 5, 1)),
        ((4, 1, 3, 3), {"size": ("height", 28)}, (2 * 4, 4, 3, 1)),
    ],
)
def test_columns_become_channels_and_the_numbers_stay(
    shape: tuple[int, ...], attributes: dict[str, Any], made_of: tuple[int, ...]
) -> None:
    network = one_convolution(shape, **attributes)
    network.pooling()
    made = laid_out(network.model())
    assert integers_of(made, "conv") == made_of
    size = [17 if each == "height" else int(each) for each in attributes.get("size", (28, 28))]
    assert_the_same_numbers(made, network.model(), shape[1], *size)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((4, 4, 3, 3), {}),  # these channels come in fours
        ((4, 1, 3, 3), {"size": (28, 25)}),  # 23 outputs at once, or one
        ((4, 1, 3, 3), {"strides": [2, 2]}),  # one at once, and a column that is copied twice
        ((4, 3, 7, 7), {"strides": [2, 2], "pads": [3, 3, 3, 3]}),  # too many zeros
        ((4, 3, 4, 4), {"size": (30, 30), "strides": [4, 4]}),  # two columns that no output looks at
        ((4, 1, 3, 3), {"size": (28, "width")}),
        ((4, 1, 3, 3), {"dilations": [1, 2]}),
        ((4, 1, 3, 3), {"auto_pad": "SAME_UPPER"}),
        ((4, 1, 3, 3), {"group": 2}),
        ((4, 1, 3), {"size": (28,)}),
    ],
)
def test_any_other_convolution_stays_as_it_is(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    model = one_convolution(shape, **attributes).model()
    assert laid_out(model) == model


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_an_activation_may_stand_behind_a_convolution(activation: str) -> None:
    network = one_convolution((4, 1, 3, 3))
    network.nodes, behind = network.nodes[:-2], network.nodes[-2:]
    network.node(activation, ["conv"], "activated")
    behind[0].input[0] = "activated"
    network.nodes += behind
    made = laid_out(network.model())
    assert integers_of(made, "conv") == (2 * 4, 4, 3, 1)
    assert_the_same_numbers(made, network.model(), 1, 28, 28)


def test_several_outputs_that_go_on_as_floats_would_have_to_be_moved() -> None:
    network = one_convolution((4, 1, 3, 3))
    network.nodes, network.tensors, network.last = network.nodes[:-2], network.tensors[:-2], "conv"
    assert laid_out(network.model()) == network.model()


def test_a_bias_of_floats_is_not_repeated() -> None:
    network = one_convolution((4, 1, 3, 3), bias=False)
    floats = network.constant("floats", np.ones(4, np.float32))
    next(node for node in network.nodes if node.name == "conv").input.append(floats)
    assert laid_out(network.model()) == network.model()


def test_a_bias_may_be_left_out_with_an_empty_name() -> None:
    network = one_convolution((4, 1, 3, 3), bias=False)
    next(node for node in network.nodes if node.name == "conv").input.append("")
    made = laid_out(network.model())
    assert integers_of(made, "conv") == (2 * 4, 4, 3, 1)
    assert_the_same_numbers(made, network.model(), 1, 28, 28)


@pytest.mark.parametrize(("dilations", "shape"), [([1, 1], (2 * 4, 4, 3, 1)), ([1, 3], (4, 1, 3, 3))])
def test_what_two_layers_read_stays_for_the_one_that_needs_it(dilations: list[int], shape: tuple[int, ...]) -> None:
    """Both read the same integers and the same weights."""
    network = one_convolution((4, 1, 3, 3))
    network.node("Conv", ["x_again", "conv_weights"], "other", dilations=dilations)
    other = network.quantised("other")
    network.node("Slice", [other, *(network.constant(f"n{n}", np.array([n])) for n in (0, 22, 3))], "less")
    network.node("Slice", [network.last, "n0", "n22", "n3"], "conv_less")
    network.last = network.node("Add", ["conv_less", "less"], "sum")
    made = laid_out(network.model())
    assert integers_of(made, "conv") == (2 * 4, 4, 3, 1)
    assert integers_of(made, "other") == shape
    read = {name for node in made.graph.node for name in node.input}
    assert {tensor.name for tensor in made.graph.initializer} <= read
    assert_the_same_numbers(made, network.model(), 1, 28, 28)


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
@pytest.mark.parametrize("kind", ["Gemm", "MatMul", "transposed"])
def test_what_a_convolution_left_is_flattened_where_it_lies(tmp_path: Path, flatten: str, kind: str) -> None:
    network = one_convolution((8, 4, 3, 3), (10, 12))
    network.pooling()
    given = [network.constant("row", np.array([0, 8 * 4 * 5]))] if flatten == "Reshape" else []
    network.layer(flatten, given, "flat")
    if kind == "transposed":
        weights = network.weights("dense_weights", (6, 160))
        network.last = network.node("Gemm", [network.last, *weights], "dense", transB=1)
    else:
        weights = network.weights("dense_weights", (160, 6), 1, bias=kind == "Gemm")
        network.last = network.node(kind, [network.last, *weights], "dense")
    made = laid_out(network.model())
    assert optimised(network.model(), tmp_path).count("Transpose") == 2
    assert optimised(made, tmp_path).count("Transpose") == 1  # the input's channels
    assert_the_same_numbers(made, network.model(), 4, 10, 12)


def test_an_image_that_is_flattened_is_not_moved_for_a_dense_layer() -> None:
    network = Network(3, 4, 4)
    network.layer("Flatten", [], "flat")
    network.layer("MatMul", network.weights("dense_weights", (48, 6), 1, bias=False), "dense")
    assert laid_out(network.model()) == network.model()


def test_what_another_layer_reads_too_is_flattened_as_before() -> None:
    network = one_convolution((8, 4, 3, 3), (6, 6))
    network.layer("Flatten", [], "flat")
    network.node("MatMul", [network.last, *network.weights("one", (128, 6), 1, bias=False)], "first")
    network.node("MatMul", [network.last, *network.weights("two", (128, 6), 1, bias=False)], "second")
    network.last = network.node("Add", ["first", "second"], "sum")
    assert laid_out(network.model()) == network.model()

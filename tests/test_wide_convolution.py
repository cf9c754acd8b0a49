"""Convolutions of few channels that compute several neighbours at once: the same function, and less to copy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from model_code.training.wide_convolution import widen

RNG = np.random.default_rng(5)


def whole(*shape: int) -> NDArray[np.float32]:
    """Small whole numbers: their products and sums are exact in any order."""
    return RNG.integers(-8, 9, shape).astype(np.float32)


def network(
    weights: NDArray[np.float32],
    size: Sequence[int | str] = (28, 28),
    *,
    bias: bool = True,
    behind: Sequence[str] = ("Relu", "MaxPool"),
    **attributes: Any,
) -> ModelProto:
    """One convolution, and what comes behind it."""
    filters, channels = weights.shape[0], weights.shape[1] * attributes.get("group", 1)
    given = ["x", "weight", "bias"] if bias else ["x", "weight"]
    nodes = [helper.make_node("Conv", given, ["of_conv"], "conv", **attributes)]
    for name in behind:
        more = {"kernel_shape": [2, 2], "strides": [2, 2]} if name == "MaxPool" else {}
        nodes.append(helper.make_node(name, [nodes[-1].output[0]], [f"of_{name}"], name, **more))
    nodes[-1].output[0] = "y"
    tensors = [numpy_helper.from_array(weights, "weight")]
    if bias:
        tensors.append(numpy_helper.from_array(whole(filters), "bias"))
    shape = ["n", channels, *size]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", filters, *[None] * (weights.ndim - 2)])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(model: ModelProto, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": inputs})[0])


def widened(model: ModelProto, *names: str) -> ModelProto:
    made = ModelProto.FromString(model.SerializeToString())
    widen(made, names)
    onnx.checker.check_model(made, full_check=True)
    return made


def kernel(model: ModelProto) -> tuple[int, ...]:
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == conv.input[1])
    return tuple(weights.dims)


@pytest.mark.parametrize(
    ("shape", "attributes", "wide"),
    [
        ((32, 1, 3, 3), {}, (13 * 32, 1, 3, 15)),
        ((4, 1, 3, 3), {"pads": [1, 1, 1, 1]}, (14 * 4, 1, 3, 16)),
        ((4, 1, 5, 5), {"pads": [2, 2, 2, 2], "bias": False}, (7 * 4, 1, 5, 11)),
        ((4, 1, 3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 1]}, (7 * 4, 1, 3, 15)),
        ((4, 1, 3, 3), {"strides": [3, 2], "pads": [1, 2, 0, 0]}, (7 * 4, 1, 3, 15)),
        ((4, 3, 3, 3), {"size": (9, 14), "dilations": [1, 1], "group": 1}, (4 * 4, 3, 3, 6)),
        ((4, 2, 1, 4), {"size": (5, 12), "auto_pad": "NOTSET"}, (9 * 4, 2, 1, 12)),
        ((4, 1, 3, 3), {"behind": ("MaxPool",)}, (13 * 4, 1, 3, 15)),
        ((4, 1, 3, 3), {"behind": ("Clip", "MaxPool")}, (13 * 4, 1, 3, 15)),
    ],
)
def test_the_function_is_the_same(shape: tuple[int, ...], attributes: dict[str, Any], wide: tuple[int, ...]) -> None:
    model = network(whole(*shape), **attributes)
    made = widened(model, "conv")
    assert kernel(made) == wide
    size = attributes.get("size", (28, 28))
    inputs = whole(3, shape[1], *size)
    assert np.array_equal(answers(made, inputs), answers(model, inputs))


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((4, 8, 3, 3), {}),  # its rows are long enough
        ((4, 1, 3, 3), {"size": (28, 25)}),  # 23 neighbours, or none
        ((4, 1, 3, 3), {"size": (28, "width")}),
        ((4, 1, 3, 3), {"size": ("height", 28)}),
        ((4, 1, 3, 3), {"dilations": [1, 2]}),
        ((4, 1, 3, 3), {"auto_pad": "SAME_UPPER"}),
        ((4, 1, 3, 3), {"group": 2}),
        ((4, 1, 3), {"size": (28,), "behind": ("Relu",)}),
    ],
)
def test_any_other_convolution_stays_as_it_is(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    model = network(whole(*shape), **attributes)
    made = widened(model, "conv")
    del model.graph.value_info[:]
    assert made == model


def test_a_convolution_that_is_not_named_stays_as_it_is() -> None:
    model = network(whole(4, 1, 3, 3))
    assert widened(model, "another") == model


def test_a_bias_may_be_left_out_with_an_empty_name() -> None:
    model = network(whole(4, 1, 3, 3), bias=False)
    model.graph.node[0].input.append("")
    inputs = whole(2, 1, 28, 28)
    assert np.array_equal(answers(widened(model, "conv"), inputs), answers(model, inputs))


@pytest.mark.parametrize("names", [["conv"], ["conv", "again"]])
def test_each_of_two_layers_that_read_the_same_weights_gets_what_it_needs(names: list[str]) -> None:
    model = network(whole(4, 1, 3, 3), behind=("Relu",))
    model.graph.node.append(helper.make_node("Conv", ["x", "weight"], ["other"], "again"))
    model.graph.node.append(helper.make_node("Add", ["y", "other"], ["sum"], "total"))
    model.graph.output[0].name = "sum"
    made = widened(model, *names)
    assert ("weight" in {tensor.name for tensor in made.graph.initializer}) == ("again" not in names)
    inputs = whole(2, 1, 28, 28)
    assert np.array_equal(answers(made, inputs), answers(model, inputs))

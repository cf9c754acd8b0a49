"""Lays an int8 model out as ONNX Runtime reads it fastest; all its integers stay the same.

ONNX Runtime's int8 convolutions have the channels last, and read them where they are if they come in fours. Any other number it
first copies, channel by channel, into a row for each output: for a grey image that takes longer than to multiply. Here the columns
that some outputs side by side look at become channels: they are copied once, some at a time, and the weights are zero for those
that an output doesn't look at. And what is flattened for a dense layer stays in the order in which a convolution left it.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from model_code.training.qdq_graph import QdqGraph, Steps

# FilterInputChannelPackCount of MLAS, ONNX Runtime's kernels, in its symmetric convolution.
_PACKED = 4
# Products by zero, at most, for each output: a cycle of AVX2. With 105 the 7 x 7 convolution of a ResNet took 1.2 times as long.
_MOST_ZEROS = 32
# Where a Transpose puts the channels.
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_ACTIVATIONS = ("Clip", "Relu")
# What leaves a convolution's channels where they are.
_BETWEEN = (*_ACTIVATIONS, "Add", "DequantizeLinear", "MaxPool", "QuantizeLinear")


def lay_out(model: ModelProto) -> None:
    """Rewrite a model in QDQ format whose weights are constants with a scale for each output channel.

    What gains nothing by it stays, and so does a convolution that is not a plain two-dimensional one, whose width is only known
    later, or several of whose outputs would have to be put in their places as floats.
    """
    graph = QdqGraph(model)
    for node in graph.nodes("Gemm", "MatMul"):
        _flattened_channels_last(graph, node)
    for node in graph.nodes("Conv"):
        _columns_as_channels(graph, node)
    graph.store()


class _Plan(NamedTuple):
    """Outputs side by side that are computed at once, and how often in a row; columns from their first to the next ones' first,
    which make a piece; and how many pieces they look at.
    """

    outputs: int
    times: int
    step: int
    pieces: int

    @property
    def columns(self) -> int:
        """All that are looked at in a row."""
        return (self.times + self.pieces - 1) * self.step


def _plan(shape: tuple[int, ...], stride: int, width: int) -> _Plan | None:
    """The fewest outputs at once that look at channels in fours and fill the `width` of all; None where no number does."""
    _, channels, rows, columns = shape
    for outputs in (number for number in range(1, width + 1) if width % number == 0):
        step = outputs * stride
        pieces = math.ceil((step - stride + columns) / step)
        zeros = (pieces * step - columns) * rows * channels
        # One output at once gains nothing if its columns have to be copied.
        if pieces * step * channels % _PACKED == 0 and zeros <= _MOST_ZEROS and (outputs > 1 or pieces == 1):
            return _Plan(outputs, width // outputs, step, pieces)
    return None


def _columns_as_channels(graph: QdqGraph, conv: NodeProto) -> None:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
    data, constants = graph.dequantiser(conv.input[0]), graph.weights(conv)
    before, after = graph.sizes(conv.input[0]), graph.sizes(conv.output[0])
    if data is None or not constants or not (before and after and _is_plain(given, constants[0])):
        return
    width, outputs, (weights, *bias) = before[-1], after[-1], constants
    filters, channels, rows, _ = weights.shape
    (down, right), (top, left, bottom, _) = given.get("strides", (1, 1)), given.get("pads", (0, 0, 0, 0))
    plan = _plan(weights.shape, right, outputs) if width and channels % _PACKED else None
    behind = _quantiser(graph, conv.output[0])
    # With fewer columns than there are, the last ones would be such that no output looks at.
    if plan is None or plan.columns < left + width or (plan.outputs > 1 and behind is None):
        return

    steps = Steps(graph, conv.name)
    last = _in_pieces(steps, data, (left, width), plan, channels)
    graph.insert(conv, steps.nodes)
    graph.set_integers(conv, last)
    graph.set_weights(conv, 1, _of_all(weights, right, plan), plan.outputs)
    for each in bias:
        graph.set_weights(conv, 2, np.tile(each, plan.outputs), plan.outputs)
    del conv.attribute[:]
    made = {"kernel_shape": (rows, 1), "pads": (top, 0, bottom, 0), "strides": (down, 1)}
    conv.attribute.extend(helper.make_attribute(name, value) for name, value in made.items())
    if behind is not None and plan.outputs > 1:
        _set_apart(graph, behind, outputs, filters)


def _in_pieces(steps: Steps, data: NodeProto, place: tuple[int, int], plan: _Plan, channels: int) -> str:
    """What the outputs look at, in their groups, its columns as channels; `place`: columns of zeros on the left, and of data."""
    left, width = place
    last = steps.add("Transpose", data.input[0], perm=_LAST)
    if plan.columns > width:
        # Columns of zeros; ONNX's Pad is not among the operators that a release may have.
        zeros = steps.add("Clip", steps.add("Slice", last, [0], [1], [2]), data.input[2], data.input[2])
        last = steps.add("Concat", *[zeros] * left, last, *[zeros] * (plan.columns - left - width), axis=2)
    last = steps.add("Reshape", last, [0, 0, plan.columns // plan.step, plan.step * channels])
    if plan.pieces > 1:
        pieces = [steps.add("Slice", last, [first], [first + plan.times], [2]) for first in range(plan.pieces)]
        last = steps.add("Concat", *pieces, axis=3)
    return steps.add("Transpose", last, perm=_FIRST)


def _of_all(weights: NDArray[Any], stride: int, plan: _Plan) -> NDArray[Any]:
    """From (filters, channels, rows, columns) to (those of the first output, then of the second, columns of channels, rows, 1)."""
    filters, channels, rows, columns = weights.shape
    wide = np.zeros((plan.outputs, filters, plan.pieces * plan.step, channels, rows), weights.dtype)
    for number, each in enumerate(wide):
        each[:, number * stride : number * stride + columns] = weights.transpose(0, 3, 1, 2)
    return wide.reshape(plan.outputs * filters, -1, rows, 1)


def _set_apart(graph: QdqGraph, quantiser: NodeProto, width: int, filters: int) -> None:
    """Outputs that were computed at once go to their places; with the channels last they are there already."""
    name = quantiser.output[0]
    quantiser.output[0] = f"{name}_at_once"
    steps = Steps(graph, name)
    last = steps.add("Transpose", quantiser.output[0], perm=_LAST)
    last = steps.add("Reshape", last, [0, -1, width, filters])
    steps.add("Transpose", last, perm=_FIRST)
    steps.nodes[-1].output[0] = name
    graph.insert(quantiser, steps.nodes, behind=True)


def _is_plain(given: dict[str, Any], weights: NDArray[Any]) -> bool:
    padded = given.get("auto_pad", b"NOTSET") == b"NOTSET"
    return weights.ndim == 4 and padded and given.get("group", 1) == 1 and set(given.get("dilations", (1,))) == {1}


def _quantiser(graph: QdqGraph, name: str) -> NodeProto | None:
    """The QuantizeLinear that alone reads these floats, or reads them behind an activation."""
    readers = graph.readers(name)
    if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS:
        readers = graph.readers(readers[0].output[0])
    return readers[0] if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" else None


def _flattened_channels_last(graph: QdqGraph, dense: NodeProto) -> None:
    constants, flatten = graph.weights(dense), _flatten(graph, dense)
    data = None if flatten is None else graph.dequantiser(flatten.input[0])
    if not constants or flatten is None or data is None or not _of_convolution(graph, data):
        return
    weights = constants[0]
    shape = graph.sizes(flatten.input[0])[1:]
    axis = int(any(attribute.name == "transB" and attribute.i for attribute in dense.attribute))
    if len(shape) != 3 or weights.ndim != 2 or math.prod(shape) != weights.shape[axis]:
        return
    steps = Steps(graph, dense.name)
    last = steps.add("Transpose", data.input[0], perm=_LAST)
    graph.insert(flatten, steps.nodes)
    graph.set_integers(flatten, last)
    order = np.arange(math.prod(shape)).reshape(shape).transpose(1, 2, 0).reshape(-1)
    graph.set_weights(dense, 1, weights.take(order, axis))


def _flatten(graph: QdqGraph, dense: NodeProto) -> NodeProto | None:
    """What makes one row of all numbers that only this layer reads."""
    reader = dense
    for kinds in (("DequantizeLinear",), ("QuantizeLinear",), ("Flatten", "Reshape")):
        node = graph.maker(reader.input[0])
        if node is None or node.op_type not in kinds or len(graph.readers(node.output[0])) > 1:
            return None
        reader = node
    return reader


def _of_convolution(graph: QdqGraph, node: NodeProto | None) -> bool:
    while node is not None and node.op_type in _BETWEEN:
        node = graph.maker(node.input[0])
    return node is not None and node.op_type == "Conv"

"""A convolution of few channels that computes several neighbours at once, to the same integers.

ONNX Runtime's int8 convolution copies what each output looks at into a row of its own, and multiplies the rows by the weights. For
a grey image such a row is a few bytes, and copying takes longer than multiplying. With the weights repeated at each neighbour's
place, and zeros around them, one longer row serves several outputs: more is multiplied, and less is copied.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper, shape_inference

# Numbers in a row, at most. For one to three channels the time was within 10 % of its least anywhere between 45 and 90.
_MAX_ROW = 64
# One step with the layer in front of them.
_ACTIVATIONS = ("Clip", "Relu")


def widen(model: ModelProto, names: Collection[str]) -> None:
    """Rewrite the convolutions of these `names` whose rows are short; the model is the same function as before.

    Their weights and biases are constants. Convolutions that are not plain two-dimensional ones, or whose output has a size that
    is only known later, stay as they are.
    """
    graph = model.graph
    sizes = {value.name: _sizes(value) for value in shape_inference.infer_shapes(model).graph.value_info}
    for node in [node for node in graph.node if node.op_type == "Conv" and node.name in names]:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weights = _constant(graph, node.input[1])
        *_, height, width = (0, 0, *sizes.get(node.output[0], ()))
        if not (_is_plain(given, weights) and height and width):
            continue
        down, right = given.get("strides", (1, 1))
        several = _neighbours(weights.shape, right, width)
        if several > 1:
            wide = _repeated(weights, several, right)
            _rewrite(graph, node, several, wide, given | {"strides": (down, right * several)})
            _set_apart(graph, node, (height, width, len(weights)))
    del graph.value_info[:]  # what lies between has other shapes now


def _sizes(value: Any) -> tuple[int, ...]:
    """0 stands for a size that is not known; there are none where not even their number is."""
    return tuple(size.dim_value for size in value.type.tensor_type.shape.dim)


def _constant(graph: GraphProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))


def _is_plain(given: dict[str, Any], weights: NDArray[Any]) -> bool:
    padded = given.get("auto_pad", b"NOTSET") == b"NOTSET"
    return weights.ndim == 4 and padded and given.get("group", 1) == 1 and set(given.get("dilations", (1,))) == {1}


def _neighbours(shape: Sequence[int], stride: int, width: int) -> int:
    """How many outputs side by side are computed at once; they have to fill the `width` of all outputs."""
    _, channels, rows, columns = shape
    longest = _MAX_ROW // (channels * rows)
    return max((n for n in range(2, width + 1) if width % n == 0 and columns + (n - 1) * stride <= longest), default=1)


def _repeated(weights: NDArray[Any], several: int, stride: int) -> NDArray[Any]:
    """From (filters, channels, rows, columns) to those of all neighbours: the filters of the first, then of the second."""
    filters, channels, rows, columns = weights.shape
    wide = np.zeros((several, filters, channels, rows, columns + (several - 1) * stride), weights.dtype)
    for number, each in enumerate(wide):
        each[..., number * stride : number * stride + columns] = weights
    return wide.reshape(several * filters, channels, rows, -1)


def _rewrite(graph: GraphProto, node: NodeProto, several: int, wide: NDArray[Any], given: dict[str, Any]) -> None:
    old = [name for name in node.input[1:] if name]  # a bias may be missing, or have an empty name
    new = [wide, *(np.tile(_constant(graph, name), several) for name in old[1:])]
    node.input[1:] = [f"{name}_{node.name}" for name in old]  # as wide as no other's
    graph.initializer.extend(map(numpy_helper.from_array, new, node.input[1:]))
    used = {name for other in graph.node for name in other.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in old and tensor.name not in used]:
        graph.initializer.remove(tensor)
    del node.attribute[:]
    given |= {"kernel_shape": wide.shape[2:]}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(given.items()))


def _set_apart(graph: GraphProto, node: NodeProto, shape: tuple[int, int, int]) -> None:
    """Behind it, and behind its activation, the neighbours go to their places: `shape` is height, width, filters.

    With the channels last, as ONNX Runtime's int8 operators have them, nothing has to move for that.
    """
    consumers = [other for other in graph.node if node.output[0] in other.input]
    last = consumers[0] if len(consumers) == 1 and consumers[0].op_type in _ACTIVATIONS else node
    name = last.output[0]
    steps = [f"{name}_{what}" for what in ("neighbours", "channels_last", "apart")]
    last.output[0] = steps[0]
    places = f"{name}_shape"
    graph.initializer.append(numpy_helper.from_array(np.array([0, *shape], np.int64), places))
    behind = [
        helper.make_node("Transpose", [steps[0]], [steps[1]], f"{node.name}_channels_last", perm=(0, 2, 3, 1)),
        helper.make_node("Reshape", [steps[1], places], [steps[2]], f"{node.name}_apart"),
        helper.make_node("Transpose", [steps[2]], [name], f"{node.name}_channels_first", perm=(0, 3, 1, 2)),
    ]
    place = list(graph.node).index(last) + 1
    # In place: a list put anew would leave the caller's nodes outside the graph.
    for offset, step in enumerate(behind):
        graph.node.insert(place + offset, step)

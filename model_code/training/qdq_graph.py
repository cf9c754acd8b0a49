"""The graph of an int8 model in QDQ format, to give single layers other integers to read."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference


class QdqGraph:
    """In it floats stand between a DequantizeLinear and a QuantizeLinear, which ONNX Runtime takes for one step with their layer.

    A change is for one layer, and is named after it: what others read too stays as it is. `store` writes all changes into the
    model.
    """

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._nodes = list(model.graph.node)
        inferred = shape_inference.infer_shapes(model).graph
        self._sizes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for value in inferred.value_info
        }

    def nodes(self, *kinds: str) -> list[NodeProto]:
        return [node for node in self._nodes if node.op_type in kinds]

    def sizes(self, name: str) -> tuple[int, ...]:
        """0 stands for a size that is not known; there are none where not even their number is."""
        return self._sizes.get(name, ())

    def maker(self, name: str) -> NodeProto | None:
        return next((node for node in self._nodes if name in node.output), None)

    def readers(self, name: str) -> list[NodeProto]:
        return [node for node in self._nodes if name in node.input]

    def dequantiser(self, name: str) -> NodeProto | None:
        """The DequantizeLinear that makes these floats, of integers, their scale and their zero point."""
        node = self.maker(name)
        return node if node is not None and node.op_type == "DequantizeLinear" and len(node.input) == 3 else None

    def weights(self, layer: NodeProto) -> list[NDArray[Any]]:
        """The integers of a layer's weights, and of its bias if it has one; none where not all of them are constants."""
        # A bias that is missing may have an empty name.
        makers = [self.dequantiser(name) for name in layer.input[1:] if name]
        integers = [None if node is None else self._constant(node.input[0]) for node in makers]
        known = [value for value in integers if value is not None]
        return known if len(known) == len(integers) else []

    def set_integers(self, layer: NodeProto, name: str) -> None:
        """Let the layer's first input be made of other integers, with the scale and zero point that it has."""
        old = self.dequantiser(layer.input[0])
        assert old is not None
        self._read(layer, 0, old, [name, *old.input[1:]])

    def set_weights(self, layer: NodeProto, position: int, weights: NDArray[Any], times: int = 1) -> None:
        """Let the layer's input at `position` be made of other constants; the scales of its channels come `times` as often."""
        old = self.dequantiser(layer.input[position])
        assert old is not None
        names = [f"{name}_{layer.name}" for name in old.input]
        self.add_constant(names[0], weights)
        for name, value in zip(names[1:], map(self._constant, old.input[1:]), strict=True):
            assert value is not None
            self.add_constant(name, np.tile(value, times) if value.ndim else value)
        self._read(layer, position, old, names)

    def add_constant(self, name: str, value: NDArray[Any]) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))

    def insert(self, neighbour: NodeProto, nodes: Iterable[NodeProto], *, behind: bool = False) -> None:
        """Put nodes right before a neighbour, or behind it."""
        place = next(index for index, node in enumerate(self._nodes) if node is neighbour) + behind
        self._nodes[place:place] = nodes

    def store(self) -> None:
        """Write the nodes into the model, without DequantizeLinear and constants that nothing reads any more, and without what was
        known of the shapes before.
        """
        read = {value.name for value in self._graph.output}
        kept = []
        for node in reversed(self._nodes):  # what a node reads was made before it
            if node.op_type != "DequantizeLinear" or node.output[0] in read:
                kept.append(node)
                read.update(node.input)
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(reversed(kept))
        for tensor in [tensor for tensor in self._graph.initializer if tensor.name not in read]:
            self._graph.initializer.remove(tensor)

    def _constant(self, name: str) -> NDArray[Any] | None:
        return next((numpy_helper.to_array(each) for each in self._graph.initializer if each.name == name), None)

    def _read(self, layer: NodeProto, position: int, old: NodeProto, inputs: Sequence[str]) -> None:
        name = f"{old.output[0]}_{layer.name}"
        new = helper.make_node("DequantizeLinear", inputs, [name], name)
        new.attribute.extend(old.attribute)
        self.insert(layer, [new])
        layer.input[position] = name


class Steps:
    """Nodes that move integers, one after the other, with names that begin with `name`."""

    def __init__(self, graph: QdqGraph, name: str) -> None:
        self.nodes: list[NodeProto] = []
        self._graph = graph
        self._name = name

    def add(self, kind: str, *inputs: str | Sequence[int], **attributes: Any) -> str:
        """One more, whose inputs are names, or whole numbers; returns its output's name."""
        output = f"{self._name}_{len(self.nodes)}_{kind}"
        names = []
        for number, each in enumerate(inputs):
            names.append(each if isinstance(each, str) else f"{output}_{number}")
            if not isinstance(each, str):
                self._graph.add_constant(names[-1], np.array(each, np.int64))
        self.nodes.append(helper.make_node(kind, names, [output], output, **attributes))
        return output

"""A node of an ONNX graph, as its reader sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from normfold.export.fold.net import Dim, Op, Tensor
from normfold.export.graphs.node import NodeView

if TYPE_CHECKING:
    from normfold.export.fold.reading import Reading


class Node(NodeView):
    """One node as its reader sees it: attributes, constants, and the tensors that it reads and gives."""

    def __init__(self, node: ir.Node, reading: Reading) -> None:
        super().__init__(node, reading.constants, reading.opset)
        self.type = node.op_type
        self._reading = reading

    def reader(self, node: ir.Node) -> Node:
        """Return another node of the graph as its reader sees it."""
        return Node(node, self._reading)

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Return the shape of a value of the graph as it is read, None where it is not known."""
        return None if value is None else self._reading.tensor(value).shape

    def integers(self, index: int) -> list[int | None] | None:
        """Return the integers that an input holds, None for each that is computed; None where nothing is known."""
        return self._reading.constants.integers(self.value(index))

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return self.value(index) is not None

    def computed(self) -> list[int]:
        """Return the places of the inputs that are not constant."""
        return [i for i, v in enumerate(self.node.inputs) if v is not None and self._reading.constants.get(v) is None]

    def channels_kept(self) -> bool:
        """Whether the output has as many channels as the input, according to its shape or the convolution behind it."""
        x, y = self.tensor(0), self.tensor_out()
        if x.shape is None or len(x.shape) < 3 or not isinstance(x.shape[1], int):
            return False
        if y.shape is not None and len(y.shape) == len(x.shape) and y.shape[1] == x.shape[1]:
            return True
        for reader, index in self.node.outputs[0].uses():
            weight = reader.inputs[1] if reader.op_type == "Conv" and index == 0 else None
            if weight is not None and weight.shape is not None:
                groups = reader.attributes["group"].as_int() if "group" in reader.attributes else 1
                return bool(weight.shape[1] == x.shape[1] // groups)
        return False

    def axes(self, index: int) -> tuple[int, ...] | None:
        """Return axes given as attribute (older opsets) or as an input; None where they are not given."""
        given = self.attribute("axes")
        if given is None and self.has(index):
            given = self.constant(index)
            if given is None:
                raise NotKnown
        return None if given is None else tuple(int(a) for a in np.atleast_1d(np.asarray(given)))

    def tensor(self, index: int) -> Tensor:
        """Return the tensor of a computed input."""
        value = self.node.inputs[index]
        assert value is not None
        return self._reading.tensor(value)

    def tensor_out(self) -> Tensor:
        """Return the tensor of the first output."""
        return self._reading.tensor(self.node.outputs[0])

    def rank(self, index: int = 0) -> int:
        """Return the rank of a computed input."""
        shape = self.tensor(index).shape
        if shape is None:
            raise NotKnown
        return len(shape)

    def parts(self, data: Sequence[int] = (0,)) -> dict[str, Any]:
        """Return node, name, inputs and outputs of an operator that computes from the given inputs."""
        return {
            "node": self.node,
            "name": self._reading.name(self.node),
            "inputs": [self.tensor(i) for i in data],
            "outputs": [self._reading.tensor(v) for v in self.node.outputs],
        }


class NotKnown(Exception):
    """A reader does not know this form of its node, which is then read as an operator that nothing passes."""


#: A reader returns the operator of a node, or raises NotKnown.
Reader: TypeAlias = Callable[[Node], Op]

"""A node of a graph as rules and readers see it: attributes, inputs, and the constants that inputs hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.graphs.constants import Constants

__all__ = ["NodeView", "normalises_by_batch"]


def normalises_by_batch(node: ir.Node) -> bool:
    """Whether a BatchNormalization is in training mode: by its attribute, or before opset 14 by its further outputs."""
    return bool(node.attributes.get_int("training_mode", 0)) or len(node.outputs) > 1


class NodeView:
    """One node with the questions that are asked of it."""

    def __init__(self, node: ir.Node, constants: Constants, opset: int) -> None:
        self.node, self.opset = node, opset
        self._constants = constants

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, or the default where it is not set."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def value(self, index: int) -> ir.Value | None:
        """Return an input, None where it is not given."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def held(self, value: ir.Value | None) -> NDArray[Any] | None:
        """Return the constant that a value of this graph holds, or None."""
        return self._constants.get(value)

    def constant(self, index: int) -> NDArray[Any] | None:
        """Return the constant that an input holds, or None."""
        return self.held(self.value(index))

    def scalar(self, value: ir.Value | None) -> Any:
        """Return the one number that a constant of one entry holds, or None for any other value."""
        found = self.held(value)
        return found.reshape(()) if found is not None and found.size == 1 else None

    def constant_integers(self, index: int) -> list[int] | None:
        """Return the constant integers that an input holds, or None."""
        found = self.constant(index)
        return None if found is None else [int(v) for v in np.atleast_1d(found)]

    def given_axes(self, index: int) -> list[int] | None:
        """Return axes from the attribute (older opsets) or from an input; None where they are absent or computed."""
        given = self.attribute("axes")
        return [int(a) for a in given] if given is not None else self.constant_integers(index)

    def rank(self, index: int) -> int | None:
        """Return the number of axes of an input, None where it is not known."""
        value = self.value(index)
        return len(value.shape) if value is not None and value.shape is not None else None

    def only_first_read(self) -> bool:
        """Whether nothing reads an output but the first."""
        return not any(v.uses() or v.is_graph_output() for v in self.node.outputs[1:])

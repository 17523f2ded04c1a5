"""A node as the rules of the layout read it, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.cpu_layout.axes import Form
from normfold.export.graphs.constants import Constants

__all__ = ["Moved", "Node"]

Array = NDArray[Any]
Attribute = int | str | Sequence[int] | None


@dataclass(frozen=True)
class Moved:
    """What a node reads and says in the other form."""

    #: The inputs that are read in the other form.
    data: tuple[int, ...] = (0,)
    #: Inputs that take another constant in place of theirs.
    constants: Mapping[int, Array] = field(default_factory=dict)
    #: Attributes that change; None removes one.
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    #: Whether the outputs are in the other form, too; else they are as they were.
    outputs: bool = True


class Node:
    """One node with what a rule asks of it."""

    def __init__(self, node: ir.Node, constants: Constants, form: Form, opset: int) -> None:
        self.node, self.form, self.opset = node, form, opset
        self._constants = constants

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, or the default where it is not set."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def value(self, index: int) -> ir.Value | None:
        """Return an input, None where it is not given."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, index: int) -> Array | None:
        """Return the constant that an input holds, or None."""
        return self._constants.get(self.value(index))

    def of(self, value: ir.Value | None) -> Array | None:
        """Return what a value of this graph holds for a constant, or None."""
        return self._constants.get(value)

    def scalar(self, value: ir.Value | None) -> Any:
        """Return the one number that a value of this graph holds for a constant of one entry, or None."""
        found = self._constants.get(value)
        return found.reshape(()) if found is not None and found.size == 1 else None

    def integers(self, index: int) -> list[int] | None:
        """Return the constant integers that an input holds, or None."""
        found = self.constant(index)
        return None if found is None else [int(v) for v in np.atleast_1d(found)]

    def rank(self, index: int) -> int | None:
        """Return the rank of an input, None where that is not known."""
        value = self.value(index)
        return len(value.shape) if value is not None and value.shape is not None else None

    def takes(self, index: int) -> bool:
        """Whether an input is computed and has the rank that the form turns."""
        return self.constant(index) is None and self.rank(index) == self.form.rank

    def axes(self, index: int) -> list[int] | None:
        """Return axes given as attribute (older opsets) or as an input; None where they are absent or computed."""
        given = self.attribute("axes")
        return [int(a) for a in given] if given is not None else self.integers(index)

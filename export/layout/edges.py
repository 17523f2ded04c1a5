"""Where a region begins and ends: a value changes form by operators that move no numbers where its layout allows.

lifted   x̂ = Unsqueeze(x; 2)                      x = Squeeze(x̂; 2)
turned   x̂ = Transpose(x; 0, 1, 3, 2)             x = Transpose(x̂; 0, 1, 3, 2)
         x̂ = Unsqueeze(Squeeze(x; 3); 2)          where W = 1; back likewise
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.layout.form import LIFTED, Form

__all__ = ["Edges"]

#: An operator, and the axes it takes or the order it gives.
Step = tuple[str, tuple[int, ...]]


class Edges:
    """Writes the changes of form, each once, and the constants of the new nodes into one graph."""

    def __init__(self, graph: ir.Graph, form: Form, opset: int) -> None:
        self.form = form
        self._graph, self._opset = graph, opset
        self._entered: dict[ir.Value, ir.Value] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph.all_nodes() for v in n.outputs)]
        self._taken = {v.name for v in values}

    def enter(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return the value in the other form; ``before`` is the first node that reads it so."""
        if value not in self._entered:
            narrow = value.shape is not None and value.shape[-1] == 1
            steps: list[Step] = [("Transpose", (0, 1, 3, 2))]
            if self.form is LIFTED:
                steps = [("Unsqueeze", (2,))]
            elif narrow:
                steps = [("Squeeze", (3,)), ("Unsqueeze", (2,))]
            nodes = self._written(value, steps)
            self._graph.insert_before(before, nodes)
            entered = nodes[-1].outputs[0]
            entered.name = self._fresh(f"{value.name}_{self.form.name}")
            entered.shape, entered.type = value.shape, value.type
            self.turned(entered)
            self._entered[value] = entered
        return self._entered[value]

    def turned(self, value: ir.Value) -> None:
        """Say that a value is in the other form now."""
        if value.shape is not None:
            value.shape = ir.Shape(self.form.entries(list(value.shape), 1))

    def leave(self, value: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
        """Give the readers outside, and the graph's outputs, a value as it was before its node was turned."""
        steps: list[Step] = [("Transpose", (0, 1, 3, 2))]
        if self.form is LIFTED:
            steps = [("Squeeze", (2,))]
        elif value.shape is not None and value.shape[2] == 1:
            steps = [("Squeeze", (2,)), ("Unsqueeze", (3,))]
        nodes = self._written(value, steps)
        producer = value.producer()
        assert producer is not None
        self._graph.insert_after(producer, nodes)
        left = nodes[-1].outputs[0]
        left.type = value.type
        if value.shape is not None:
            left.shape = ir.Shape([value.shape[place] for place in self.form.places])
        name = value.name
        for node, index in readers:
            node.replace_input_with(index, left)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = left
        value.name = self._fresh(f"{name}_{self.form.name}")
        left.name = name

    def constant(self, array: NDArray[Any], like: ir.Value | None = None) -> ir.Value:
        """Return an initializer that holds ``array``, named after the one whose place it takes; equal ones once."""
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            dtype = like.dtype if like is not None else None
            base = like.name if like is not None and like.is_initializer() else "axes"
            name = self._fresh(f"{base}_{self.form.name}")
            tensor = ir.tensor(array, dtype=dtype, name=name)
            value = ir.Value(
                name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
            )
            self._graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def _written(self, value: ir.Value, steps: Sequence[Step]) -> list[ir.Node]:
        nodes: list[ir.Node] = []
        for operator, axes in steps:
            if operator == "Transpose":
                node = ir.node(operator, [value], {"perm": list(axes)})
            elif self._opset < 13:
                node = ir.node(operator, [value], {"axes": list(axes)})
            else:
                node = ir.node(operator, [value, self.constant(np.array(axes, np.int64))])
            node.name = self._fresh(f"{value.name}_{operator.lower()}")
            value = node.outputs[0]
            value.name = self._fresh(f"{node.name}_0")
            nodes.append(node)
        return nodes

    def _fresh(self, name: str) -> str:
        """The name, or the name with the first number that makes it new."""
        number, fresh = 2, name
        while fresh in self._taken:
            fresh, number = f"{name}_{number}", number + 1
        self._taken.add(fresh)
        return fresh

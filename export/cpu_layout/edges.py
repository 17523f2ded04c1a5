"""The edges of a region: operators that change a value's order of axes, without moving numbers where possible.

lifted   x̂ = Unsqueeze(x; 2)                      x = Squeeze(x̂; 2)
turned   x̂ = Transpose(x; 0, 1, 3, 2)             x = Transpose(x̂; 0, 1, 3, 2)
         x̂ = Unsqueeze(Squeeze(x; 3); 2)          where W = 1; the way back likewise
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from normfold.export.cpu_layout.axes import LIFTED, AxisOrder
from normfold.export.graphs.writing import Writing

__all__ = ["Edges"]

#: An operator with its axes, or with the order of axes that it gives.
Step = tuple[str, tuple[int, ...]]


class Edges:
    """Writes the changes of order into one graph, each change once."""

    def __init__(self, graph: ir.Graph, order: AxisOrder, opset: int) -> None:
        self.order = order
        self.writing = Writing(graph, opset, suffix=order.name)
        self._graph = graph
        self._entered: dict[ir.Value, ir.Value] = {}

    def enter(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return the value in the new order; ``before`` is the first node that reads it."""
        if value not in self._entered:
            narrow = value.shape is not None and value.shape[-1] == 1
            steps: list[Step] = [("Transpose", (0, 1, 3, 2))]
            if self.order is LIFTED:
                steps = [("Unsqueeze", (2,))]
            elif narrow:
                steps = [("Squeeze", (3,)), ("Unsqueeze", (2,))]
            nodes = self._written(value, steps)
            self._graph.insert_before(before, nodes)
            entered = nodes[-1].outputs[0]
            entered.name = self.writing.fresh(f"{value.name}_{self.order.name}")
            entered.shape, entered.type = value.shape, value.type
            self.turned(entered)
            self._entered[value] = entered
        return self._entered[value]

    def turned(self, value: ir.Value) -> None:
        """Set the shape of a value that is in the new order now."""
        if value.shape is not None:
            value.shape = ir.Shape(self.order.entries(list(value.shape), 1))

    def leave(self, value: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
        """Give readers outside the region, and the graph's outputs, the value in its original order."""
        steps: list[Step] = [("Transpose", (0, 1, 3, 2))]
        if self.order is LIFTED:
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
            left.shape = ir.Shape([value.shape[place] for place in self.order.places])
        name = value.name
        for node, index in readers:
            node.replace_input_with(index, left)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = left
        value.name = self.writing.fresh(f"{name}_{self.order.name}")
        left.name = name

    def _written(self, value: ir.Value, steps: Sequence[Step]) -> list[ir.Node]:
        nodes: list[ir.Node] = []
        for operator, axes in steps:
            if operator == "Transpose":
                node = self.writing.node(operator, [value], {"perm": list(axes)})
            else:
                node = self.writing.over_axes(operator, value, axes)
            value = node.outputs[0]
            nodes.append(node)
        return nodes

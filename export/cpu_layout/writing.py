"""New nodes and constants in one graph, under names that are not taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Writing"]


class Writing:
    """Gives nodes, values and constants of one graph their names; ``suffix`` marks those that take another's place."""

    def __init__(self, graph: ir.Graph, opset: int, suffix: str) -> None:
        self.suffix, self.opset = suffix, opset
        self._graph = graph
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        nodes = list(graph.all_nodes())
        values = [*graph.inputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
        # Nodes have names of their own, and onnxruntime takes none twice; that no value is called so costs nothing.
        self._taken = {v.name for v in values} | {n.name for n in nodes}

    def constant(self, array: NDArray[Any], like: ir.Value | None = None) -> ir.Value:
        """Return an initializer that holds ``array``, named after the one whose place it takes; equal ones once."""
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            dtype = like.dtype if like is not None else None
            base = like.name if like is not None and like.is_initializer() else "axes"
            name = self.fresh(f"{base}_{self.suffix}")
            tensor = ir.tensor(array, dtype=dtype, name=name)
            value = ir.Value(
                name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
            )
            self._graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def node(
        self, operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Node:
        """Return a node of one output, named after its first input."""
        node = ir.node(operator, inputs, attributes)
        first = inputs[0]
        assert first is not None
        node.name = self.fresh(f"{first.name}_{operator.lower()}")
        node.outputs[0].name = self.fresh(f"{node.name}_0")
        return node

    def over_axes(self, operator: str, value: ir.Value, axes: Sequence[int]) -> ir.Node:
        """Return a Squeeze or Unsqueeze, its axes where the opset has them."""
        if self.opset < 13:
            return self.node(operator, [value], {"axes": list(axes)})
        return self.node(operator, [value, self.constant(np.array(axes, np.int64))])

    def fresh(self, name: str) -> str:
        """The name, or the name with the first number that makes it new."""
        number, fresh = 2, name
        while fresh in self._taken:
            fresh, number = f"{name}_{number}", number + 1
        self._taken.add(fresh)
        return fresh

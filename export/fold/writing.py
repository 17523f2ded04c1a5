"""New nodes and constants in one ONNX graph, under names that the graph does not use yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Array


class GraphWriter:
    """Adds constants and nodes to a graph, and lets readers of one value read another."""

    def __init__(self, graph: ir.Graph, dtype: np.dtype[Any], opset: int) -> None:
        self.graph = graph
        #: The floating-point type that constants are rounded to.
        self.dtype = dtype
        #: It decides what an operator takes as an attribute and what as an input.
        self.opset = opset
        nodes = list(graph.all_nodes())
        self._names = {v.name for v in graph.initializers.values()} | {v.name for n in nodes for v in n.outputs}
        self._names |= {n.name for n in nodes}

    def constant(self, array: Array, like: str, dtype: np.dtype[Any] | None = None) -> ir.Value:
        """Register an initializer, rounded once to the graph's type, under a name that starts with ``like``."""
        name = self._fresh(like)
        tensor = ir.Tensor(np.asarray(array, dtype or self.dtype, order="C"), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def insert(
        self, op_type: str, inputs: Sequence[ir.Value | None], before: ir.Node | None, like: str, **attributes: Any
    ) -> ir.Value:
        """Insert a node before another, or at the end, and return its output value."""
        node = ir.node(op_type, inputs, attributes=attributes, name=self._fresh(f"{like}_{op_type.lower()}"))
        node.outputs[0].name = self._fresh(like)
        node.outputs[0].dtype = ir.DataType.from_numpy(self.dtype)
        if before is None:
            self.graph.append(node)
        else:
            node.metadata_props.update(before.metadata_props)
            self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of ``old`` read ``new``; an output of the graph keeps its name."""
        if old is new:
            return
        replacement = new
        new.shape = old.shape if new.shape is None else new.shape
        for i, output in enumerate(self.graph.outputs):
            if output is old:
                if new.is_graph_input() or new.is_graph_output():
                    new = self.insert("Identity", [new], None, old.name or "output")
                    new.shape = old.shape
                old.name, new.name = self._fresh(f"{old.name}_unfolded"), old.name
                self.graph.outputs[i] = new
        old.replace_all_uses_with(replacement)

    def add_behind(self, node: ir.Node, bias: ir.Value) -> ir.Value:
        """Add a constant to a node's output by an Add behind it; the sum takes the output's name and readers."""
        product = node.outputs[0]
        uses = list(product.uses())
        add = ir.node("Add", [product, bias], name=f"{node.name}_bias")
        total = add.outputs[0]
        total.name, product.name = product.name, f"{product.name}_product"
        total.type, total.shape = product.type, product.shape
        add.metadata_props.update(node.metadata_props)
        self.graph.insert_after(node, add)
        for reader, index in uses:
            reader.replace_input_with(index, total)
        for i, output in enumerate(self.graph.outputs):
            if output is product:
                self.graph.outputs[i] = total
        return total

    def _fresh(self, like: str) -> str:
        """Return ``like``, followed by the first number that makes it a new name where it is taken."""
        name, count = like, 0
        while name in self._names:
            count += 1
            name = f"{like}_{count}"
        self._names.add(name)
        return name

"""New nodes and constants in one graph, under names that are not in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from normfold.export.graphs.names import Names
from normfold.export.graphs.unrounded import FLOATS, Unrounded, is_unrounded

__all__ = ["Writing"]


class Writing:
    """Makes nodes and constants for one graph.

    suffix ends the names of shared constants; dtype is the type of constants and of inserted nodes where no other is
    given (None: the array's own).
    """

    def __init__(self, graph: ir.Graph, opset: int, *, suffix: str = "", dtype: np.dtype[Any] | None = None) -> None:
        self.graph = graph
        #: Newer opsets take as inputs some values that older ones take as attributes.
        self.opset = opset
        self.dtype = dtype
        self._suffix = suffix
        self._names = Names(graph)
        self._shared: dict[tuple[Any, ...], ir.Value] = {}

    def fresh(self, name: str) -> str:
        """Return ``name``, or ``name`` with the first number that makes it new."""
        return self._names.fresh(name)

    def constant(self, array: NDArray[Any], like: str, dtype: DTypeLike | None = None) -> ir.Value:
        """Return a new initializer that holds ``array``, rounded once to its type, under a name near ``like``."""
        kind = np.dtype(dtype or self.dtype or array.dtype)
        return self._registered(self._tensor(array, ir.DataType.from_numpy(kind), self.fresh(like)))

    def shared(self, array: NDArray[Any], like: ir.Value | None = None) -> ir.Value:
        """Return an initializer that holds ``array``; equal arrays share one. It has name and type of ``like``."""
        dtype = like.dtype if like is not None and like.dtype is not None else ir.DataType.from_numpy(array.dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._shared:
            base = like.name if like is not None and like.is_initializer() else "axes"
            self._shared[key] = self._registered(self._tensor(array, dtype, self.fresh(f"{base}_{self._suffix}")))
        return self._shared[key]

    def _tensor(self, array: NDArray[Any], dtype: ir.DataType, name: str) -> ir.TensorProtocol:
        """Return a tensor of the type; its floats stay in float64 where the graph keeps its weights so."""
        if is_unrounded(self.graph) and dtype in FLOATS:
            return Unrounded(array, dtype, name)
        return ir.Tensor(np.asarray(array, dtype.numpy(), order="C"), name=name)

    def _registered(self, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=tensor.name, const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype))
        self.graph.register_initializer(value)
        return value

    def node(
        self, operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Node:
        """Return a node of one output, named after its first input; it is not in the graph yet."""
        node = ir.node(operator, inputs, attributes)
        first = inputs[0]
        assert first is not None
        node.name = self.fresh(f"{first.name}_{operator.lower()}")
        node.outputs[0].name = self.fresh(f"{node.name}_0")
        return node

    def over_axes(self, operator: str, value: ir.Value, axes: Sequence[int]) -> ir.Node:
        """Return a Squeeze or Unsqueeze, whose axes are an attribute before opset 13 and an input since."""
        if self.opset < 13:
            return self.node(operator, [value], {"axes": list(axes)})
        return self.node(operator, [value, self.shared(np.array(axes, np.int64))])

    def insert(
        self, operator: str, inputs: Sequence[ir.Value | None], before: ir.Node | None, like: str, **attributes: Any
    ) -> ir.Value:
        """Insert a node before another, or at the end, and return its output, whose name is near ``like``."""
        node = ir.node(operator, inputs, attributes=attributes, name=self.fresh(f"{like}_{operator.lower()}"))
        node.outputs[0].name = self.fresh(like)
        if self.dtype is not None:
            node.outputs[0].dtype = ir.DataType.from_numpy(self.dtype)
        if before is None:
            self.graph.append(node)
        else:
            node.metadata_props.update(before.metadata_props)
            self.graph.insert_before(before, node)
        return node.outputs[0]

    def exchange(self, node: ir.Node, nodes: Sequence[ir.Node]) -> None:
        """Put ``nodes`` in the place of ``node``; the last of them gives its value: name, type and shape are kept."""
        old, new = node.outputs[0], nodes[-1].outputs[0]
        self.graph.insert_before(node, nodes)
        new.shape, new.type, new.name, old.name = old.shape, old.type, old.name, self.fresh(f"{old.name}_was")
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def replace(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """Let every reader of ``old`` read ``new``, and return ``new``; outputs of the graph keep their names."""
        if old is new:
            return new
        new.shape = old.shape if new.shape is None else new.shape
        given = new
        for index, output in enumerate(self.graph.outputs):
            if output is old:
                # An input or another output has a name of its own, so a copy of it gets the name of ``old``.
                if given.is_graph_input() or given.is_graph_output():
                    given = self.insert("Identity", [given], None, old.name or "output")
                    given.shape = old.shape
                old.name, given.name = self.fresh(f"{old.name}_unfolded"), old.name
                self.graph.outputs[index] = given
        old.replace_all_uses_with(new)
        return new

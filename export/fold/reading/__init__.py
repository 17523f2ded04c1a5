"""From an ONNX graph to the network that folding works on: one reader for each operator, in one table.

The readers stand in families, one a module; each returns an operator, or raises ``NotKnown``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.export.fold.net import FLOATS, Dim, Net, Op, Tensor
from normfold.export.fold.ops.activations import Shape
from normfold.export.fold.reading import activations, arithmetic, linear, pools
from normfold.export.fold.reading import moving as layout
from normfold.export.fold.reading.inferred import tell_lengths, tell_shape, tell_usual
from normfold.export.fold.reading.linear import bias_of
from normfold.export.fold.reading.names import module_of
from normfold.export.fold.reading.node import Node, NotKnown, Reader
from normfold.export.graphs.constants import Constants

__all__ = ["READERS", "Reading", "module_of"]


def _shape(n: Node) -> Op:
    return Shape(**n.parts())


#: Operator -> its reader. An operator that is not here lets nothing pass.
READERS: dict[str, Reader] = {
    **linear.READERS,
    **arithmetic.READERS,
    **activations.READERS,
    **pools.READERS,
    **layout.READERS,
    "Shape": _shape,
    "Size": _shape,
}


class Reading:
    """The reading of one graph."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self.graph = graph
        self.constants = Constants(graph, opset)
        self.opset = opset
        self._tensors: dict[ir.Value, Tensor] = {}
        self._outer: set[ir.Value] = set()

    def tensor(self, value: ir.Value) -> Tensor:
        """Return the tensor of a value, one for each value."""
        if value not in self._tensors:
            pinned = ""
            if value.is_graph_output():
                pinned = "is an output of the network"
            elif value.producer() is None or value.graph is not self.graph:
                pinned = "is an input of the network"
            self._tensors[value] = Tensor(value, _dims(value), pinned=pinned)
        return self._tensors[value]

    def name(self, node: ir.Node) -> str:
        """Return what a person calls the node: the module's path, else the node's name."""
        return module_of(node) or node.name or (node.outputs[0].name if node.outputs else None) or node.op_type

    def net(self) -> Net:
        """Read every node that computes from the network's input."""
        ops: list[Op] = []
        taken: set[ir.Node] = set()
        for node in self.graph:
            if node in taken or all(self.constants.get(v) is not None for v in node.outputs):
                continue
            op = self._read(Node(node, self))
            tell_lengths(op)
            tell_shape(op)
            ops.append(op)
            add = bias_of(op, self)
            if add is not None:
                taken.add(add)
        for order, op in enumerate(ops):
            op.order = order
            for y in op.outputs:
                y.producer = op
            for x in op.inputs:
                x.readers.append(op)
        for op in ops:
            tell_usual(op)
        self._pin_what_subgraphs_read()
        return Net(ops, self._dtype(ops))

    def _read(self, node: Node) -> Op:
        reader = READERS.get(node.type) if node.node.domain in ("", "ai.onnx") else None
        if reader is not None and (self._in_floats(node.node) or reader is _shape):
            try:
                return reader(node)
            except NotKnown:
                pass
        return Op(**node.parts(node.computed()))

    def _in_floats(self, node: ir.Node) -> bool:
        return all(v.dtype is None or v.dtype in FLOATS for v in node.outputs[:1])

    def _pin_what_subgraphs_read(self) -> None:
        for node in self.graph.all_nodes():
            if node.graph is not self.graph:
                for v in node.inputs:
                    if v in self._tensors:
                        self._tensors[v].pinned = self._tensors[v].pinned or "is read inside an If, Loop or Scan"
        for sub in self.graph.subgraphs():
            for v in sub.outputs:
                if v in self._tensors and sub is not self.graph:
                    self._tensors[v].pinned = self._tensors[v].pinned or "is read inside an If, Loop or Scan"

    @staticmethod
    def _dtype(ops: list[Op]) -> np.dtype[Any]:
        for op in ops:
            for y in op.outputs:
                if y.value.dtype in FLOATS:
                    return y.value.dtype.numpy()
        return np.dtype(np.float32)


def _dims(value: ir.Value) -> tuple[Dim, ...] | None:
    """Return the shape of a value; a length that nothing names gets a name of its own, for it equals no other."""
    if value.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return tuple(f"{value.name}[{i}]" if d is None else d for i, d in enumerate(dims))

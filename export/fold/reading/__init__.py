"""This room reads an ONNX graph into the network that folding works on, with one reader for each operator in one table.

Each returns an operator or raises ``NotKnown``; nothing may come in that changes a graph or chooses what to fold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.export.fold.net import FLOATS, Dim, Net, Op, Tensor
from normfold.export.fold.ops.activations import Shape
from normfold.export.fold.ops.averages import WeightedMean
from normfold.export.fold.ops.scaling import scalings
from normfold.export.fold.ops.tables import Table
from normfold.export.fold.reading import activations, arithmetic, linear, moving, pools
from normfold.export.fold.reading.averages import softmax
from normfold.export.fold.reading.inferred import infer_lengths, infer_shape
from normfold.export.fold.reading.linear import bias_of
from normfold.export.fold.reading.names import module_of
from normfold.export.fold.reading.node import Node, NotKnown, Reader
from normfold.export.graphs.constants import Constants
from normfold.export.graphs.domains import STANDARD

__all__ = ["READERS", "Reading", "module_of"]


def _shape(n: Node) -> Op:
    return Shape(**n.parts())


#: Operator -> its reader. Nothing passes an operator that has none.
READERS: dict[str, Reader] = {
    **linear.READERS,
    **arithmetic.READERS,
    **activations.READERS,
    **pools.READERS,
    **moving.READERS,
    "Softmax": softmax,
    "Shape": _shape,
    "Size": _shape,
}


class Reading:
    """Reads one graph; ``constants`` are those that are known of it."""

    def __init__(self, graph: ir.Graph, opset: int, constants: Constants | None = None) -> None:
        self.graph = graph
        self.constants = constants or Constants(graph, opset)
        self.opset = opset
        self._tensors: dict[ir.Value, Tensor] = {}

    def tensor(self, value: ir.Value) -> Tensor:
        """Return the tensor of a value, always the same one."""
        if value not in self._tensors:
            pinned = ""
            if value.is_graph_output():
                pinned = "is an output of the network"
            elif self.constants.get(value) is not None:
                pass  # a constant takes a gauge as a Table
            elif value.producer() is None or value.graph is not self.graph:
                pinned = "is an input of the network"
            self._tensors[value] = Tensor(value, _dims(value), pinned=pinned)
        return self._tensors[value]

    def name(self, node: ir.Node) -> str:
        """Return the name of a node in reports: the module's path, else the node's name."""
        return module_of(node) or node.name or (node.outputs[0].name if node.outputs else None) or node.op_type

    def net(self) -> Net:
        """Read every node that computes from the network's input."""
        ops: list[Op] = []
        taken: set[ir.Node] = set()
        for node in self.graph:
            if node in taken or all(self.constants.get(v) is not None for v in node.outputs):
                continue
            op = self._read(Node(node, self))
            self._pin_what_else_it_reads(op)
            infer_lengths(op)
            infer_shape(op)
            ops.append(op)
            also_read = op.sum if isinstance(op, WeightedMean) else bias_of(op, self)
            if also_read is not None:
                taken.add(also_read)
        ops = [*self._tables(ops), *ops]
        for order, op in enumerate(ops):
            op.order = order
            for y in op.outputs:
                y.producer = op
            for x in op.inputs:
                x.readers.append(op)
        for scaling in scalings(ops):
            scaling.infer_usual()
        self._pin_what_subgraphs_read()
        return Net(ops, self._dtype(ops))

    def _tables(self, ops: list[Op]) -> list[Op]:
        """Return an operator for each constant that others read as they read what is computed."""
        tables: dict[Tensor, Op] = {}
        for op in ops:
            for x in op.inputs:
                array = self.constants.get(x.value)
                if array is None or x in tables:
                    continue
                x.shape = x.shape or array.shape
                if x.value.dtype in FLOATS or (x.value.dtype is None and array.dtype.kind == "f"):
                    tables[x] = Table(op.node, x.name, [], [x], array.astype(np.float64))
                else:
                    x.pinned = x.pinned or "is a constant that holds no floats"
        return list(tables.values())

    def _read(self, node: Node) -> Op:
        reader = READERS.get(node.type) if node.node.domain in STANDARD else None
        if reader is not None and (self._in_floats(node.node) or reader is _shape):
            try:
                return reader(node)
            except NotKnown:
                pass
        return Op(**node.parts(node.computed()))

    def _pin_what_else_it_reads(self, op: Op) -> None:
        """Pin the computed floats that the operator reads beside those that its rules are about: scales of a Resize."""
        for index, v in enumerate(op.node.inputs):
            if v is None or (v.dtype is not None and v.dtype not in FLOATS) or self.constants.get(v) is not None:
                continue
            reads_type = op.node.op_type == "CastLike" and index == 1
            if not reads_type and self.tensor(v) not in op.inputs:
                self.tensor(v).pinned = self.tensor(v).pinned or f"decides what {op} does"

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
    """Return the shape of a value; a dynamic length without a name gets one of its own, because it equals no other."""
    if value.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return tuple(f"{value.name}[{i}]" if d is None else d for i, d in enumerate(dims))

"""Find the values of an ONNX graph that are constant, and compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.graphs.domains import STANDARD
from normfold.export.graphs.shapes import infer_shapes, measured
from normfold.export.graphs.unrounded import FLOATS, is_float, is_unrounded

#: Operators whose output does not depend on their inputs alone.
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
#: A larger constant is left for the runtime to compute; no network has weights of this size.
_MOST_ENTRIES = 1 << 28


class Constants:
    """The constants of a graph: initializers, Constant nodes, and outputs of operators that read only constants.

    In a graph whose weights are kept in float64 everything is computed in float64, and a Cast to a narrower type
    rounds nothing. With ``computes`` False only initializers are known: for graphs that are read, but never run.
    """

    def __init__(self, graph: ir.Graph, opset: int, *, computes: bool = True) -> None:
        self._opset = opset
        self._computes = computes
        self._exact = is_unrounded(graph)
        self._known: dict[ir.Value, NDArray[Any] | None] = {}

    def get(self, value: ir.Value | None) -> NDArray[Any] | None:
        """Return the array that a value holds, or None where it depends on the network's input."""
        # The initializer of an input is a default that a caller may override.
        if value is None or value.is_graph_input():
            return None
        if value not in self._known:
            # Evaluate producers before consumers, without recursion: a chain may be as long as the graph.
            stack = [value]
            while stack:
                top = stack[-1]
                producer = top.producer()
                waiting = [v for v in _read(producer) if v not in self._known]
                waiting = [v for v in waiting if not v.is_graph_input() and v.const_value is None]
                if waiting and _computable(producer):
                    stack.extend(waiting)
                    continue
                stack.pop()
                if top not in self._known:
                    self._known[top] = self._in_float64(self._evaluate(top))
        return self._known[value]

    def integers(self, value: ir.Value | None) -> list[int | None] | None:
        """Return a vector of integers, None for each computed one; None for the whole where its length is unknown."""
        whole = self.get(value)
        if whole is not None:
            return [int(v) for v in whole.reshape(-1)]
        node = value.producer() if value is not None else None
        if node is None or node.domain not in STANDARD:
            return None
        if node.op_type == "Concat":
            parts = [self.integers(v) for v in node.inputs]
            return None if any(p is None for p in parts) else [v for p in parts if p is not None for v in p]
        assert value is not None
        shape = value.shape
        if shape is not None and len(shape) == 1 and isinstance(shape[0], int):
            return [None] * shape[0]
        if node.op_type in ("Unsqueeze", "Reshape") and shape is None:
            source = node.inputs[0]
            if source is not None and source.shape is not None and len(source.shape) == 0:
                return [None]
        return [None] if shape is not None and len(shape) == 0 else None

    def _sizes(self, node: ir.Node) -> NDArray[Any] | None:
        """Return known sizes that a Gather takes from a Shape; TorchScript computes channel counts in this way."""
        if node.op_type != "Gather" or node.inputs[0] is None:
            return None
        source, picked = node.inputs[0].producer(), self.get(node.inputs[1])
        x = source.inputs[0] if source is not None and source.op_type == "Shape" else None
        if source is None or x is None or x.shape is None or picked is None:
            return None
        lengths = measured(source, x.shape.dims)
        if not np.all((picked >= -len(lengths)) & (picked < len(lengths))):
            return None
        found = [lengths[int(axis)] for axis in picked.reshape(-1)]
        if not all(isinstance(size, int) for size in found):
            return None
        return np.array(found, np.int64).reshape(picked.shape)

    def _in_float64(self, array: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return an array that is a float in float64 where the graph keeps its weights so."""
        return array if array is None or not (self._exact and is_float(array)) else array.astype(np.float64)

    def _evaluate(self, value: ir.Value) -> NDArray[Any] | None:
        if value.const_value is not None and value.producer() is None:
            return value.const_value.numpy()
        node = value.producer()
        if node is None or not self._computes or not _computable(node):
            return None
        if (sizes := self._sizes(node)) is not None:
            return sizes
        if node.op_type == "CastLike":
            like, (source,) = node.inputs[1], _read(node)
            array = self.get(source)
            if array is None or like is None:
                return None
            held = None if like.dtype is not None else self.get(like)
            kind = like.dtype.numpy() if like.dtype is not None else None if held is None else held.dtype
            if kind is None or (self._exact and is_float(array) and is_float(np.empty(0, kind))):
                return None if kind is None else array
            return array.astype(kind)
        arrays: dict[str, NDArray[Any]] = {}
        for i, v in enumerate(node.inputs):
            if v is None:
                continue
            array = (
                v.const_value.numpy()
                if v.const_value is not None and not v.is_graph_input() and v.producer() is None
                else self._known.get(v)
            )
            if array is None:
                return None
            arrays[f"in{i}"] = array
        return _run(node, arrays, self._opset, value.index() or 0, self._exact)


def settled(model: ir.Model) -> dict[str, bool]:
    """Return the side that an If of the main graph takes whatever the inputs are, by the If's first output.

    Lengths that the file states for inner values do not count. A file whose inputs were given free lengths by hand may
    still state those of before.
    """
    if all(node.op_type != "If" for node in model.graph):
        return {}
    model = model.clone()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    infer_shapes(model)
    constants = Constants(model.graph, model.opset_imports.get("", 18))
    sides = {}
    for node in model.graph:
        if node.op_type == "If" and node.domain in STANDARD:
            condition = constants.get(node.inputs[0])
            if condition is not None and condition.size == 1:
                sides[node.outputs[0].name or ""] = bool(condition.item())
    return sides


def _read(node: ir.Node | None) -> list[ir.Value]:
    """Return the inputs whose numbers a node reads; CastLike reads only the type of its second input."""
    if node is None:
        return []
    inputs = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    return [v for v in inputs if v is not None]


def _computable(node: ir.Node | None) -> bool:
    if node is None or node.domain not in STANDARD or node.op_type in _RANDOM:
        return False
    return not any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _run(node: ir.Node, arrays: dict[str, NDArray[Any]], opset: int, output: int, exact: bool) -> NDArray[Any] | None:
    """Return one output of a node whose inputs are all known, or None where the reference cannot run it.

    exact: a Cast to a floating type gives float64.
    """
    proto = ir.to_proto(node)
    for attribute in proto.attribute if exact and node.op_type == "Cast" else ():
        if attribute.name == "to" and attribute.i in FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
    del proto.input[:]
    proto.input.extend(f"in{i}" if v is not None else "" for i, v in enumerate(node.inputs))
    del proto.output[:]
    proto.output.extend(f"out{i}" for i in range(len(node.outputs)))
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [
            onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for k, a in arrays.items()
        ],
        [onnx.ValueInfoProto(name=f"out{output}")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        (result,) = onnx.reference.ReferenceEvaluator(model).run(None, arrays)
    except Exception:  # the reference evaluator lacks an operator or a type: the value counts as not known
        return None
    result = np.asarray(result)
    return result if result.size <= _MOST_ENTRIES else None

"""A network before its weights are rounded: a graph that keeps its types, and its weights in float64 under them.

The fold, and every rewrite after it, works on such a graph: it reads each weight in float64, and sees of which type it
is (float32, float16, bfloat16). Written twice, it gives the two halves of a form: ``model.onnx``, with each number
rounded once to its type, and the same in float64 throughout, which the proof compares to float64's own rounding. There
a Cast from one floating type to another changes nothing: it only rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from normfold.export.graphs.domains import STANDARD
from normfold.export.graphs.serialize import to_bytes
from normfold.export.graphs.unrounded import FLOATS, UNROUNDED, Unrounded, is_unrounded

__all__ = ["Graph", "in_float64", "narrow_types", "unrounded"]

DOUBLE = ir.DataType.DOUBLE


@dataclass(frozen=True)
class Graph:
    """One form of a network as ONNX bytes: the file, and the same before its weights were rounded."""

    content: bytes
    #: In float64; None where the network cannot be written so, and ``content`` alone is there.
    exact: bytes | None = None

    @classmethod
    def of(cls, model: ir.Model) -> Graph:
        """Write ``model``; a graph of :func:`unrounded` gives both halves."""
        return cls(to_bytes(model), to_bytes(in_float64(model)) if is_unrounded(model.graph) else None)

    def model(self) -> ir.Model:
        """Read the graph, with the weights of the exact half."""
        model = ir.from_proto(onnx.load_model_from_string(self.content))
        if self.exact is None:
            return model
        _keep(model)
        exact = ir.from_proto(onnx.load_model_from_string(self.exact))
        for graph, wide in zip(model.graphs(), exact.graphs(), strict=True):
            for name, value in graph.initializers.items():
                held, weights = value.const_value, wide.initializers[name].const_value
                if held is not None and held.dtype in FLOATS and weights is not None:
                    value.const_value = Unrounded(weights.numpy(), held.dtype, name)
        return model


def unrounded(model: ir.Model) -> ir.Model | None:
    """Return a copy of ``model`` whose weights are kept in float64 under their own types.

    None where arithmetic in float64 would be another network: one that quantises, that computes in floating types of 8
    or fewer bits, or that holds functions or operators of other domains than ONNX's own.
    """
    if model.functions or any(node.domain not in STANDARD for node in model.graph.all_nodes()):
        return None
    if any(dtype.is_floating_point() and dtype not in FLOATS for dtype in _dtypes(model)):
        return None
    if any("quantize" in node.op_type.lower() for node in model.graph.all_nodes()):
        return None
    copy = model.clone()
    _keep(copy)
    return copy


def _keep(model: ir.Model) -> None:
    """Keep the weights in float64, in place; scalar attributes (epsilon, alpha) take the float32 that a file holds."""
    for graph in model.graphs():
        graph.meta[UNROUNDED] = True
        for name, value in graph.initializers.items():
            held = value.const_value
            if held is not None and held.dtype in FLOATS:
                value.const_value = Unrounded(held.numpy(), held.dtype, name)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.FLOAT:
                    node.attributes[name] = ir.AttrFloat32(name, float(np.float32(attribute.value)))


def narrow_types(content: bytes) -> tuple[ir.DataType, ...]:
    """Return the types with fewer digits than float32 that a graph computes in, the one with the fewest first."""
    found = set(_dtypes(ir.from_proto(onnx.load_model_from_string(content))))
    return tuple(t for t in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16) if t in found)


def in_float64(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` with float64 in place of every other floating type, and its weights unrounded."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in _values(graph):
            held = value.const_value
            if held is not None and held.dtype in FLOATS:
                value.const_value = _wide(held)
            if value.type is not None and value.dtype in FLOATS:  # a type of its own: the copy shares its types
                value.type = _retyped(value.type)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if (changed := _attribute(node, name, attribute)) is not None:
                    del node.attributes[name]
                    node.attributes[changed.name] = changed
    return copy


def _attribute(node: ir.Node, name: str, attribute: ir.Attr) -> ir.Attr | None:
    """Return the attribute that takes the place of one that holds or names a number type; None where it does neither.

    Scalar attributes are float32 in every ONNX file.
    """
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in FLOATS:
        return ir.AttrTensor(name, _wide(attribute.value))
    if name in ("to", "dtype") and attribute.type == ir.AttributeType.INT and attribute.value in FLOATS:
        return ir.AttrInt64(name, DOUBLE.value)
    if node.op_type == "Constant" and name in ("value_float", "value_floats"):
        return ir.AttrTensor("value", ir.Tensor(np.asarray(attribute.value, np.float32).astype(np.float64)))
    return None


def _retyped(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_retyped(kind.elem_type))
    return ir.TensorType(DOUBLE)


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float64), name=tensor.name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _dtypes(model: ir.Model) -> Iterator[ir.DataType]:
    """Every type of number that the graph names: of values, constants, and what it casts to."""
    for graph in model.graphs():
        for value in _values(graph):
            if value.dtype is not None:
                yield value.dtype
            if value.const_value is not None:
                yield value.const_value.dtype
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.value.dtype
                elif name in ("to", "dtype") and attribute.type == ir.AttributeType.INT:
                    yield ir.DataType(attribute.value)

"""A float32 graph written in float64, and rounded back: a network before its weights are rounded.

The fold, and every rewrite after it, works on the float64 graph. Its weights are then the exact ones, so that the proof
can compare the two graphs to float64's own rounding, and ``model.onnx`` is that graph with each number rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from normfold.export.graphs.serialize import to_bytes

__all__ = ["Graph", "in_float32", "in_float64", "narrow_types"]

FLOAT, DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE


@dataclass(frozen=True)
class Graph:
    """One form of a network as ONNX bytes: the file, and the same before its weights were rounded."""

    content: bytes
    #: In float64; None where the network computes in other types than float32, and ``content`` alone is there.
    exact: bytes | None = None

    @classmethod
    def of(cls, model: ir.Model, exact: bool) -> Graph:
        """Write ``model``, which is in float64 where ``exact``."""
        return cls(to_bytes(in_float32(model)), to_bytes(model)) if exact else cls(to_bytes(model))

    def model(self) -> ir.Model:
        """Read the exact graph, or the file where there is none."""
        return ir.from_proto(onnx.load_model_from_string(self.content if self.exact is None else self.exact))


def in_float64(model: ir.Model) -> ir.Model | None:
    """Return a copy of ``model`` with float64 in place of float32.

    None where that would be another network: one that computes partly in float16, bfloat16 or float64, that quantises,
    or that holds functions or operators of other domains than ONNX's own.
    """
    if model.functions or any(node.domain not in ("", "ai.onnx") for node in model.graph.all_nodes()):
        return None
    if any(dtype.is_floating_point() and dtype != FLOAT for dtype in _dtypes(model)):
        return None
    if any("quantize" in node.op_type.lower() for node in model.graph.all_nodes()):
        return None
    return _converted(model, FLOAT, DOUBLE)


def narrow_types(content: bytes) -> tuple[ir.DataType, ...]:
    """Return the types with fewer digits than float32 that a graph computes in, the one with the fewest first."""
    found = set(_dtypes(ir.from_proto(onnx.load_model_from_string(content))))
    return tuple(t for t in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16) if t in found)


def in_float32(model: ir.Model) -> ir.Model:
    """Return a copy of a graph that :func:`in_float64` made, with every number rounded to float32 once."""
    return _converted(model, DOUBLE, FLOAT)


def _converted(model: ir.Model, old: ir.DataType, new: ir.DataType) -> ir.Model:
    copy = model.clone()
    for graph in copy.graphs():
        for value in _values(graph):
            held = value.const_value
            if held is not None and held.dtype == old:
                value.const_value = _cast(held, new)
            if value.type is not None and value.dtype == old:  # a type of its own: the copy shares its types
                value.type = _retyped(value.type, new)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if (changed := _attribute(node, name, attribute, old, new)) is not None:
                    del node.attributes[name]
                    node.attributes[changed.name] = changed
    return copy


def _attribute(node: ir.Node, name: str, attribute: ir.Attr, old: ir.DataType, new: ir.DataType) -> ir.Attr | None:
    """Return the attribute that takes the place of one that holds or names a number type; None where it does neither.

    Scalar attributes (epsilon, alpha) are float32 in every ONNX file: they take the value that the file will hold.
    """
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == old:
        return ir.AttrTensor(name, _cast(attribute.value, new))
    if name in ("to", "dtype") and attribute.type == ir.AttributeType.INT and attribute.value == old.value:
        return ir.AttrInt64(name, new.value)
    if node.op_type == "Constant" and name in ("value_float", "value_floats") and new == DOUBLE:
        return ir.AttrTensor("value", ir.Tensor(np.asarray(attribute.value, np.float32).astype(np.float64)))
    if attribute.type == ir.AttributeType.FLOAT:
        return ir.AttrFloat32(name, float(np.float32(attribute.value)))
    return None


def _retyped(kind: ir.TypeProtocol, new: ir.DataType) -> ir.TypeProtocol:
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_retyped(kind.elem_type, new))
    return ir.TensorType(new)


def _cast(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.Tensor(np.asarray(tensor.numpy(), dtype.numpy()), name=tensor.name)


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

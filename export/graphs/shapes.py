"""Infer the shapes of a graph's values, and read what a Shape gives."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TypeVar

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.export.graphs.correcting import correct_shapes

__all__ = ["infer_shapes", "measured"]

T = TypeVar("T")

#: Inference gets the numbers of constants up to this size (shapes, axes, scales), and only the shapes of larger ones.
_READ_BYTES = 1000


def infer_shapes(model: ir.Model) -> None:
    """Give shapes to values that have none, in place; where inference fails, the model keeps the shapes that it has.

    Lengths that inference gives wrong become unknown, also those that the file states.
    """
    _infer(model)
    correct_shapes(model)


def _infer(model: ir.Model) -> None:
    values = [v for n in model.graph.all_nodes() for v in n.outputs]
    # Shape inference would mistake the elements of a sequence for tensors.
    sequences = any(n.op_type.startswith(("Sequence", "SplitToSequence")) for n in model.graph.all_nodes())
    if all(v.shape is not None for v in values) or sequences:
        return
    with contextlib.suppress(Exception):
        if model.functions or any(True for _ in model.graph.subgraphs()):
            passes.ShapeInferencePass()(model)
        else:
            _infer_flat(model, values)


def _infer_flat(model: ir.Model, values: list[ir.Value]) -> None:
    """Infer the shapes of a graph without subgraphs and functions, from a copy without its weights.

    The pass of onnx_ir builds a second model from the result, which takes as long as the whole fold.
    """
    light = onnx.GraphProto(name="shapes")
    light.node.extend(ir.serde.serialize_node(node) for node in model.graph)
    light.input.extend(ir.serde.serialize_value(value) for value in model.graph.inputs)
    for name, value in model.graph.initializers.items():
        held = value.const_value
        if held is None or value.is_graph_input():
            continue
        if held.nbytes <= _READ_BYTES:
            small = ir.serde.serialize_tensor(held)
            small.name = name
            light.initializer.append(small)
        else:
            weight = ir.Value(name=name, type=ir.TensorType(held.dtype), shape=ir.Shape(held.shape.numpy()))
            light.input.append(ir.serde.serialize_value(weight))
    # The exporter may have known shapes of inner values that inference cannot find.
    known = (value for value in values if value.shape is not None and not value.is_graph_output())
    light.value_info.extend(ir.serde.serialize_value(value) for value in known)
    light.output.extend(ir.serde.serialize_value(value) for value in model.graph.outputs)
    proto = onnx.ModelProto(ir_version=model.ir_version, graph=light)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items())
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
    found = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    for value in values:
        info = found.get(value.name or "")
        if info is None or not info.type.HasField("tensor_type"):
            continue
        tensor = info.type.tensor_type
        if tensor.HasField("shape"):
            dims = [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
            value.shape = ir.Shape(dims)
        if tensor.elem_type:
            value.dtype = ir.DataType(tensor.elem_type)


def measured(node: ir.Node, lengths: Sequence[T]) -> list[T]:
    """Return the lengths that a Shape gives, of all lengths of its input: those from its start to its end."""
    start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
    return list(lengths)[start:end]

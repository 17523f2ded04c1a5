"""Complete an ONNX file that leaves out what others state: shapes of inputs and outputs, weights written densely.

onnxruntime runs such files, but onnx's checker refuses a graph without shapes, and onnx_ir reads no sparse tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

from normfold.export.errors import SourceError
from normfold.export.graphs.onnx_sizes import MAX_VALUE_ELEMENTS

__all__ = ["Shapes", "complete_shapes", "count_sparse", "densified"]

#: A length or a name for each axis, by the name of the input.
Shapes = Mapping[str, Sequence[int | str]]


def densified(proto: onnx.ModelProto, where: object) -> onnx.ModelProto:
    """Return the model with its sparse weights written densely: a copy, or ``proto`` itself where it has none.

    Raises SourceError where a weight would be too large; ``where`` names the model for the message.
    """
    if not count_sparse(proto):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.initializer.extend(_dense(sparse, where) for sparse in copy.graph.sparse_initializer)
    del copy.graph.sparse_initializer[:]
    for attribute in list(_sparse_constants(copy)):
        attribute.CopyFrom(onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor, where)))
    return copy


def count_sparse(proto: onnx.ModelProto) -> int:
    """Return how many sparse weights there are."""
    return len(proto.graph.sparse_initializer) + sum(1 for _ in _sparse_constants(proto))


def complete_shapes(proto: onnx.ModelProto, shapes: Shapes, path: object) -> None:
    """Give each input and output that has no shape one, in place.

    An input takes it from ``shapes``, an output from shape inference. Raises SourceError where there is none.
    """
    given = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if _has_no_shape(value):
            dims = shapes.get(value.name, given.get(value.name))
            if dims is None:
                raise SourceError(
                    f"'{path}': its input '{value.name}' has no shape; describe it with --input "
                    f"'{value.name}=FP32[N,...]', with a number or a name for each axis"
                )
            _set_shape(value, dims)
    if any(map(_has_no_shape, proto.graph.output)):
        _infer_outputs(proto, path)


def _infer_outputs(proto: onnx.ModelProto, path: object) -> None:
    inferred = {o.name: o for o in onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.output}
    for value in proto.graph.output:
        if _has_no_shape(value):
            found = inferred[value.name].type.tensor_type
            if not found.HasField("shape"):
                raise SourceError(
                    f"'{path}': its output '{value.name}' has no shape, and none follows from the graph; write one "
                    "into the file (onnx.tools.update_model_dims)"
                )
            value.type.tensor_type.shape.CopyFrom(found.shape)
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or found.elem_type


def _has_no_shape(value: onnx.ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") in ("tensor_type", None) and not value.type.tensor_type.HasField("shape")


def _set_shape(value: onnx.ValueInfoProto, dims: Sequence[int | str]) -> None:
    value.type.tensor_type.shape.SetInParent()  # a scalar has a shape without dimensions
    for size in dims:
        value.type.tensor_type.shape.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})


def _sparse_constants(proto: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    """Yield the attribute of every Constant with a sparse value, at any depth."""
    pending = [proto.graph.node, *(f.node for f in proto.functions)]
    while pending:
        for node in pending.pop():
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    yield attribute
                pending += [g.node for g in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))]


def _dense(sparse: onnx.SparseTensorProto, where: object) -> onnx.TensorProto:
    """Return a sparse tensor as a dense one; its indices are flat, or one for each axis."""
    dims, name = list(sparse.dims), sparse.values.name
    if prod(dims) > MAX_VALUE_ELEMENTS:
        raise SourceError(
            f"'{where}': its sparse weight '{name}' has the shape {dims}, which is more than the {MAX_VALUE_ELEMENTS} "
            "elements that are computed here"
        )
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    whole = np.zeros(dims, values.dtype)
    try:
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
        whole.reshape(-1)[flat] = values
    except (IndexError, ValueError):
        raise SourceError(f"'{where}': the indices of its sparse weight '{name}' do not fit its shape {dims}") from None
    return numpy_helper.from_array(whole, name)

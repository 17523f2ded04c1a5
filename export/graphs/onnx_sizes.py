"""Compute how large the tensors of an unknown ONNX graph become on given inputs, before anything runs.

A file of 200 bytes may ask for a constant of 10 GB. Shape inference, which also follows values that shapes are computed
from, finds this without allocating the constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, shape_inference

from normfold.export.errors import ExportError
from normfold.export.graphs.lengths import BROADCASTING, real_lengths

__all__ = ["MAX_VALUE_ELEMENTS", "GraphSizes"]

#: No tensor inside a graph may hold more elements than this (1 GiB of float32, 2 GiB of float64).
MAX_VALUE_ELEMENTS = 1 << 28
#: Of initializers with more elements only the shape is used: no shape is computed from their values.
_VALUES = 1024


class GraphSizes:
    """Checks the sizes of all tensors of one graph."""

    def __init__(self, content: bytes):
        self._proto = onnx.load_model_from_string(content)
        graph = self._proto.graph
        large = [t for t in graph.initializer if prod(t.dims) > _VALUES]
        for tensor in large:
            graph.initializer.remove(tensor)
            if tensor.name not in {i.name for i in graph.input}:
                graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    def check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise ExportError where a value would be larger than MAX_VALUE_ELEMENTS on ``inputs``."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        for value in proto.graph.input:
            if value.name in inputs:
                shape = value.type.tensor_type.shape
                del shape.dim[:]
                for size in inputs[value.name].shape:
                    shape.dim.add(dim_value=size)
        for output in proto.graph.output:
            output.type.tensor_type.ClearField("shape")  # the shapes that the file states are not trusted
        del proto.graph.value_info[:]
        try:
            inferred = shape_inference.infer_shapes(proto, data_prop=True)
        except Exception:  # the graph is wrong for these sizes: running it gives a better message
            return
        for name, dims in _found(inferred):
            if prod(dims) > MAX_VALUE_ELEMENTS:
                raise ExportError(
                    f"the value '{name}' would have the shape {dims}, which is more than the "
                    f"{MAX_VALUE_ELEMENTS} elements that are computed here"
                )


def _found(inferred: onnx.ModelProto) -> Iterator[tuple[str, list[int]]]:
    """Yield the name of each value and the lengths that are known of it."""
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        yield value.name, [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
    # Inference takes the first term's length of 1 where the second is longer.
    if any(node.op_type in BROADCASTING for node in inferred.graph.node):
        for node in ir.from_proto(inferred).graph:
            if node.op_type in BROADCASTING:
                yield node.outputs[0].name or "", [d for d in real_lengths(node) or () if isinstance(d, int)]

"""An ONNX graph computed in float64: the exact answer for a network that exists only as a graph.

onnxruntime has no float64 convolution on the CPU. So the whole graph is cast to float64 and run by ONNX's own reference
evaluator; torch computes the convolutions and pools, which are Python loops in the reference. torch computes Softmax
and LogSoftmax too: the reference applies the rules of opset 13 to every file, and its LogSoftmax is the logarithm of a
Softmax that may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv as _Conv
from onnx.reference.ops.op_conv_transpose import ConvTranspose as _ConvTranspose

from normfold.export.graphs.float64_pools import AveragePool, MaxPool, as_double, explicit_pads, torch_pads
from normfold.export.graphs.quantizing import QUANTIZERS

__all__ = ["Float64Graph"]

Arrays = Mapping[str, NDArray[Any]]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Float64Graph:
    """The graph in ``content`` (ONNX bytes) with every float tensor in float64."""

    def __init__(self, content: bytes):
        model = onnx.load_model_from_string(content)
        _to_double(model.graph)
        self._evaluator = ReferenceEvaluator(model, new_ops=[*_OPERATORS, *QUANTIZERS])
        self._names = [o.name for o in model.graph.output]

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name, floats in float64."""
        cast = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.items()}
        with np.errstate(all="ignore"):
            values = self._evaluator.run(None, cast)
        return dict(zip(self._names, (np.asarray(v) for v in values), strict=True))


class Conv(_Conv):
    op_domain = ""

    def _run(self, X: Any, W: Any, B: Any = None, **given: Any) -> Any:  # type: ignore[override]  # noqa: N803
        pads, rank = explicit_pads(given, X.ndim - 2), X.ndim - 2
        if pads is None or rank not in _CONVOLUTIONS:
            return super()._run(X, W, B, **given)  # type: ignore[no-untyped-call]
        x = F.pad(as_double(X), torch_pads(pads))
        bias = None if B is None else as_double(B)
        y = _CONVOLUTIONS[rank](
            x,
            as_double(W),
            bias,
            stride=tuple(given.get("strides") or [1] * rank),
            dilation=tuple(given.get("dilations") or [1] * rank),
            groups=given.get("group") or 1,
        )
        return (y.numpy(),)


class ConvTranspose(_ConvTranspose):
    op_domain = ""

    def _run(self, X: Any, W: Any, B: Any = None, **given: Any) -> Any:  # type: ignore[override]  # noqa: N803
        rank = X.ndim - 2
        pads = explicit_pads(given, rank)
        if pads is None or given.get("output_shape") or rank not in _TRANSPOSED:
            return super()._run(X, W, B, **given)  # type: ignore[no-untyped-call]
        y = _TRANSPOSED[rank](
            as_double(X),
            as_double(W),
            None if B is None else as_double(B),
            stride=tuple(given.get("strides") or [1] * rank),
            output_padding=0,
            groups=given.get("group") or 1,
            dilation=tuple(given.get("dilations") or [1] * rank),
        )
        extra = given.get("output_padding") or [0] * rank
        if any(extra):  # output positions behind the last product hold the bias alone
            y = F.pad(y, torch_pads([0] * rank + list(extra)))
            if B is not None:
                for axis, size in enumerate(extra):
                    if size:
                        y.narrow(axis + 2, y.shape[axis + 2] - size, size)[:] = as_double(B).reshape(1, -1, *[1] * rank)
        crop = tuple(
            slice(b, y.shape[a + 2] - e) for a, (b, e) in enumerate(zip(pads[:rank], pads[rank:], strict=True))
        )
        return (y[(slice(None), slice(None), *crop)].numpy(),)


class BatchNormalization(OpRun):
    """By its running statistics: before opset 14 the reference takes those of the batch."""

    op_domain = ""

    def _run(self, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, **given: Any) -> Any:
        if given.get("training_mode"):
            raise NotImplementedError("a BatchNormalization in training mode")
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = gamma / np.sqrt(var + given.get("epsilon", 1e-5))
        return ((x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape),)


class Erf(OpRun):
    """The error function in float64: the reference rounds it to float32."""

    op_domain = ""

    def _run(self, x: Any, **_: Any) -> Any:
        return (torch.erf(as_double(x)).numpy(),)


class GatherElements(OpRun):
    """One entry for each index along an axis: the reference takes at most 64 entries."""

    op_domain = ""

    def _run(self, x: Any, indices: Any, axis: int | None = None) -> Any:
        return (np.take_along_axis(x, indices, axis or 0),)


class GlobalMaxPool(OpRun):
    """The maximum over all positions, with every axis: the reference drops the last one."""

    op_domain = ""

    def _run(self, x: Any, **_: Any) -> Any:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Pad(OpRun):
    """Also with negative pads, which cut entries off: the reference calls numpy.pad, which refuses them."""

    op_domain = ""

    def _run(self, x: Any, pads: Any, value: Any = None, axes: Any = None, mode: Any = None) -> Any:
        wide = [(0, 0)] * x.ndim
        for axis, begin, end in zip(
            range(x.ndim) if axes is None else axes, *np.split(np.asarray(pads), 2), strict=True
        ):
            wide[axis] = int(begin), int(end)
        kept = tuple(slice(max(-b, 0), n - max(-e, 0)) for (b, e), n in zip(wide, x.shape, strict=True))
        added = [(max(b, 0), max(e, 0)) for b, e in wide]
        if (mode or "constant") != "constant":
            return (np.pad(x[kept], added, mode=mode),)
        constant = 0 if value is None else np.asarray(value).reshape(())
        return (np.pad(x[kept], added, constant_values=constant).astype(x.dtype),)


class Softmax(OpRun):
    op_domain = ""

    def _run(self, x: Any, **_: Any) -> Any:
        return (_along(self, x, torch.softmax),)


class LogSoftmax(OpRun):
    op_domain = ""

    def _run(self, x: Any, **_: Any) -> Any:
        return (_along(self, x, torch.log_softmax),)


def _along(node: OpRun, x: Any, function: Callable[[torch.Tensor, int], torch.Tensor]) -> Any:
    """Apply ``function`` along the node's ``axis``; before opset 13, along it (default 1) and all axes behind it."""
    axis = next((a.i for a in node.onnx_node.attribute if a.name == "axis"), None)
    if node.run_params["opsets"][""] >= 13:
        return function(as_double(x), -1 if axis is None else axis).numpy()
    first = (1 if axis is None else axis) % max(x.ndim, 1)
    flat = as_double(x).reshape(math.prod(x.shape[:first]), -1)
    return function(flat, 1).reshape(x.shape).numpy()


def _to_double(graph: onnx.GraphProto) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _tensor_to_double(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and node.op_type == "Cast" and attribute.i in _FLOATS:
                attribute.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = np.float64(attribute.f) if attribute.name == "value_float" else np.array(attribute.floats)
                attribute.CopyFrom(
                    onnx.helper.make_attribute("value", numpy_helper.from_array(np.asarray(values, np.float64)))
                )
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _tensor_to_double(attribute.t)
            for inner in _graphs(attribute):
                _to_double(inner)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        yield attribute.g
    yield from attribute.graphs


def _tensor_to_double(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


#: The operators that are computed here in place of the reference.
_OPERATORS: tuple[type[OpRun], ...] = (
    AveragePool,
    BatchNormalization,
    Conv,
    ConvTranspose,
    Erf,
    GatherElements,
    GlobalMaxPool,
    LogSoftmax,
    MaxPool,
    Pad,
    Softmax,
)

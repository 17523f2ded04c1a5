"""Translations to ONNX that torch's exporter (2.13) lacks, or that give other numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_avg_pool2d, aten_avg_pool3d

from normfold.export.capture.float_sizes import FLOAT_SIZES
from normfold.export.errors import CaptureError

__all__ = ["LACKING"]


def _amax(self: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    """The maximum over ``dim``, or over all axes: torch's own translation wants ``dim``."""
    return _extreme("ReduceMax", self, dim, keepdim)


def _amin(self: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    return _extreme("ReduceMin", self, dim, keepdim)


def _extreme(operator: str, x: Any, dim: Sequence[int], keepdim: bool) -> Any:
    op: Any = opset18  # its own annotations do not allow an operator's result as an operand
    axes = [op.Constant(value_ints=list(dim))] if dim else []
    return getattr(op, operator)(x, *axes, keepdims=int(keepdim))


def _rrelu(
    self: Any, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> tuple[Any, Any]:
    """In evaluation the slope of an RReLU is the mean of its bounds."""
    if training:
        raise CaptureError("the network draws the slopes of an RReLU also in evaluation: pass training=self.training")
    op: Any = opset18
    return op.LeakyRelu(self, alpha=(lower + upper) / 2), noise


def _divided(pool: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """An average-pool over ``axes`` axes: as torch translates it, with ``pool``, but also with its divisor_override.

    A sum over the divisor is the mean of the window times its size over the divisor; both count the padding's zeros.
    """

    def translated(
        self: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        if divisor_override is None:
            return pool(self, kernel_size, stride, padding, ceil_mode, count_include_pad)
        if ceil_mode:
            raise CaptureError(
                "an average-pool has divisor_override and ceil_mode=True: its last window may be smaller than the "
                "others, and ONNX has no such pool. Leave one of the two out"
            )
        op: Any = opset18
        size = prod(kernel_size) if len(kernel_size) == axes else kernel_size[0] ** axes
        mean = pool(self, kernel_size, stride, padding, False, True)
        return op.Mul(mean, op.CastLike(op.Constant(value_float=size / divisor_override), mean))

    return translated


#: For ``torch.onnx.export(custom_translation_table=…)``.
LACKING: dict[Callable[..., Any], Callable[..., Any]] = {
    **FLOAT_SIZES,
    torch.ops.aten.amax.default: _amax,
    torch.ops.aten.amin.default: _amin,
    torch.ops.aten.avg_pool2d.default: _divided(aten_avg_pool2d, 2),
    torch.ops.aten.avg_pool3d.default: _divided(aten_avg_pool3d, 3),
    torch.ops.aten.rrelu_with_noise_functional.default: _rrelu,
}

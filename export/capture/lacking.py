"""Translations to ONNX that torch's exporter (2.13) lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

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


#: For ``torch.onnx.export(custom_translation_table=…)``.
LACKING: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.amax.default: _amax,
    torch.ops.aten.amin.default: _amin,
    torch.ops.aten.rrelu_with_noise_functional.default: _rrelu,
}

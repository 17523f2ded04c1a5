"""Adaptive pools with more than one output, as one operator while torch captures a network.

    y[..., i] = mean or maximum of x[..., floor(i·L/k) : ceil((i+1)·L/k)],   i = 0 … k-1

``torch.export`` would fix the length L. The operator's result has the size k whatever L is, so nothing is fixed. Its
translation to ONNX computes the bounds of the k windows from the shape, and cuts them out with Slice: a BatchNorm's
scale and shift pass through all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18
from torch import Tensor

__all__ = ["WINDOW_POOL", "window_pool"]

#: Its types do not fit each other: the result of one operator is refused as the input of the next.
op: Any = opset18


@torch.library.custom_op("normfold::window_pool", mutates_args=())
def window_pool(input: Tensor, count: int, largest: bool) -> Tensor:
    """Return the mean or the maximum of each of ``count`` windows that cover the last axis."""
    size = input.shape[-1]
    windows = [input[..., i * size // count : ((i + 1) * size + count - 1) // count] for i in range(count)]
    return torch.stack([w.amax(-1) if largest else w.mean(-1) for w in windows], -1)


@window_pool.register_fake
def _(input: Tensor, count: int, largest: bool) -> Tensor:
    return input.new_empty((*input.shape[:-1], count))


def _translated(input: Any, count: int, largest: bool) -> Any:
    op: Any = opset18  # its own annotations do not allow an operator's result as an operand
    axis = len(input.shape) - 1
    length, axes = op.Shape(input, start=axis, end=axis + 1), op.Constant(value_ints=[axis])
    pieces = op.Constant(value_ints=[count])
    # all bounds at once: two operators for each window remain, where five more would take most of the time
    starts = op.Div(op.Mul(length, op.Constant(value_ints=list(range(count)))), pieces)
    covered = op.Mul(length, op.Constant(value_ints=list(range(1, count + 1))))
    ends = op.Div(op.Add(covered, op.Constant(value_ints=[count - 1])), pieces)
    windows = []
    for start, end in zip(_each(starts, count), _each(ends, count), strict=True):
        window = op.Slice(input, start, end, axes)
        windows.append(op.ReduceMax(window, axes) if largest else op.ReduceMean(window, axes))
    return op.Concat(*windows, axis=axis)


def _each(values: Any, count: int) -> Any:
    """The ``count`` values of a tensor, each as a tensor of one value."""
    op: Any = opset18
    return op.Split(values, axis=0, num_outputs=count) if count > 1 else [values]


#: For ``torch.onnx.export(custom_translation_table=…)``.
WINDOW_POOL: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.normfold.window_pool.default: _translated}

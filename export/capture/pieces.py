"""Keep a length dynamic that the network pools as a whole, or cuts into a fixed number of pieces.

``torch.export`` (2.13) reads sizes of pools and of pieces as numbers, which fixes the length. Inside
:class:`DynamicPieces` these calls are replaced by equal ones, whose sizes are computed from the length L:

    F.avg_pool1d(x, x.shape[-1])     the mean over the length; a max-pool the maximum; 2-D pools too
    AdaptiveAvgPool1d(k)             one operator, :mod:`normfold.export.capture.window_pool`; max-pools and 2-D too
    x.chunk(k, dim)                  k pieces of ceil(L/k), the last of what is left
    torch.tensor_split(x, k, dim)    k pieces, the first L mod k of them longer by 1

``x.split(100, dim)`` makes ceil(L/100) pieces: :mod:`normfold.export.capture.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from normfold.export.capture.blocks import BlockSplits
from normfold.export.capture.window_pool import window_pool

__all__ = ["DynamicPieces"]


class DynamicPieces(TorchFunctionMode):
    """While active, pools over a whole dynamic length and cuts of it into pieces leave the length dynamic."""

    def __init__(self, splits: BlockSplits) -> None:
        super().__init__()
        self._replaced: dict[Callable[..., Any], Callable[..., Any]] = {
            **_REPLACED,
            **dict.fromkeys((torch.split, Tensor.split), splits.split),
            **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), partial(splits.join, stacked=False)),
            torch.stack: partial(splits.join, stacked=True),
            **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__iadd__), splits.add),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the calls that would fix a length; pass on every other call."""
        replacement = self._replaced.get(func)
        if replacement is not None:
            result = replacement(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _whole_pool(axes: int, largest: bool) -> Callable[..., Tensor | None]:
    """Return the replacement of a pool over the last ``axes`` axes."""

    def pool(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *options: Any,
        dilation: Any = 1,
        return_indices: bool = False,
        divisor_override: int | None = None,
        **others: Any,
    ) -> Tensor | None:
        sizes, kernel = input.shape[-axes:], _each(kernel_size, axes)
        plain = not options and dilation in (1, (1,), (1, 1)) and not return_indices and divisor_override is None
        if not plain or not _is_dynamic(kernel) or any(_each(padding, axes)):
            return None
        steps = kernel if stride is None or stride in ((), []) else _each(stride, axes)
        over = []
        for axis, size, width, step in zip(range(-axes, 0), sizes, kernel, steps, strict=True):
            if _same(size, width):
                over.append(axis)
            elif not (_same(width, 1) and _same(step, 1)):
                return None
        return input.amax(over, keepdim=True) if largest else input.mean(over, keepdim=True)

    return pool


def _adaptive_pool(axes: int, largest: bool) -> Callable[..., Tensor | None]:
    """Return the replacement of an adaptive pool over the last ``axes`` axes."""

    def pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor | None:
        wanted = _each(output_size, axes)
        if return_indices or not _is_dynamic(input.shape[-axes:]) or _is_dynamic(wanted) or wanted == (1,) * axes:
            return None
        if axes == 2 and wanted[0] is not None:
            input = window_pool(input.transpose(-2, -1), wanted[0], largest).transpose(-2, -1)
        return input if wanted[-1] is None else window_pool(input, wanted[-1], largest)

    return pool


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...] | None:
    size = input.shape[dim]
    if not _is_dynamic([size]):
        return None
    each = (size + chunks - 1) // chunks
    last = (chunks - 1) * each
    return (*(_slice(input, dim, i * each, (i + 1) * each) for i in range(chunks - 1)), _slice(input, dim, last, size))


def _tensor_split(
    input: Tensor, indices_or_sections: Any = None, dim: int = 0, *, sections: Any = None, indices: Any = None
) -> tuple[Tensor, ...] | None:
    size, sections = input.shape[dim], indices_or_sections if sections is None else sections
    if not _is_dynamic([size]) or not isinstance(sections, int):
        return None
    pieces, start = [], 0
    for number in range(sections):
        end = start + (size - number + sections - 1) // sections
        pieces.append(_slice(input, dim, start, size if number == sections - 1 else end))
        start = end
    return tuple(pieces)


def _slice(input: Tensor, axis: int, start: Any, end: Any) -> Tensor:
    index: list[Any] = [slice(None)] * input.dim()
    index[axis] = slice(start, end)
    return input[tuple(index)]


def _each(value: Any, axes: int) -> tuple[Any, ...]:
    """Return one value for each axis."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * axes if len(values) == 1 else values


def _is_dynamic(sizes: Sequence[Any]) -> bool:
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for every length; comparing them with == would fix the length."""
    if isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt):
        return bool(a.node.expr == b.node.expr)
    return not isinstance(a, torch.SymInt) and not isinstance(b, torch.SymInt) and bool(a == b)


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.avg_pool1d: _whole_pool(1, largest=False),
    F.avg_pool2d: _whole_pool(2, largest=False),
    F.max_pool1d: _whole_pool(1, largest=True),
    torch.max_pool1d: _whole_pool(1, largest=True),
    F.max_pool2d: _whole_pool(2, largest=True),
    torch.max_pool2d: _whole_pool(2, largest=True),
    F.adaptive_avg_pool1d: _adaptive_pool(1, largest=False),
    F.adaptive_avg_pool2d: _adaptive_pool(2, largest=False),
    F.adaptive_max_pool1d: _adaptive_pool(1, largest=True),
    F.adaptive_max_pool2d: _adaptive_pool(2, largest=True),
    torch.chunk: _chunk,
    Tensor.chunk: _chunk,
    torch.tensor_split: _tensor_split,
    Tensor.tensor_split: _tensor_split,
}

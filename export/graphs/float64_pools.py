"""Pools in float64, computed by torch: in ONNX's reference they are Python loops, and wrong beyond the input's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx.reference.ops.op_average_pool import AveragePool_19 as _AveragePool
from onnx.reference.ops.op_max_pool import MaxPool as _MaxPool

__all__ = ["AveragePool", "MaxPool", "explicit_pads", "torch_pads"]

_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class MaxPool(_MaxPool):
    """The largest of each window; padding is minus infinity."""

    op_domain = ""

    def _run(self, x: Any, **given: Any) -> Any:  # type: ignore[override]
        rank = x.ndim - 2
        pads = explicit_pads(given, rank)
        if pads is None or rank not in _MAX_POOLS or len(self.onnx_node.output) != 1:
            return super()._run(x, **given)  # type: ignore[no-untyped-call]
        if given.get("ceil_mode"):
            dilations = tuple(given.get("dilations") or [1] * rank)
            kernel, strides, padding = _windows(given, pads)
            return (_MAX_POOLS[rank](_tensor(x), kernel, strides, padding, dilations, True).numpy(),)
        y = _MAX_POOLS[rank](
            F.pad(_tensor(x), torch_pads(pads), value=-np.inf),
            tuple(given["kernel_shape"]),
            tuple(given.get("strides") or [1] * rank),
            dilation=tuple(given.get("dilations") or [1] * rank),
        )
        return (y.numpy(),)


class AveragePool(_AveragePool):
    """A mean of positions of the input alone is the mean of the padded input over the mean of padded ones."""

    op_domain = ""

    def _run(self, x: Any, **given: Any) -> Any:  # type: ignore[override]
        rank = x.ndim - 2
        pads = explicit_pads(given, rank)
        plain = all(d == 1 for d in given.get("dilations") or ())
        if pads is None or not plain or rank not in _MEANS:
            return super()._run(x, **given)  # type: ignore[no-untyped-call]
        if given.get("ceil_mode"):
            kernel, strides, padding = _windows(given, pads)
            counted = bool(given.get("count_include_pad"))
            return (_MEANS[rank](_tensor(x), kernel, strides, padding, True, counted).numpy(),)

        def mean(array: Any) -> torch.Tensor:
            padded = F.pad(_tensor(array), torch_pads(pads))
            return _MEANS[rank](padded, tuple(given["kernel_shape"]), tuple(given.get("strides") or [1] * rank))

        y = mean(x)
        return ((y if given.get("count_include_pad") else y / mean(np.ones_like(x[:1, :1]))).numpy(),)


def explicit_pads(given: Mapping[str, Any], rank: int) -> Sequence[int] | None:
    """Return the explicit pads [begins…, ends…]; None where ``auto_pad`` decides."""
    if (given.get("auto_pad") or "NOTSET") not in ("NOTSET", b"NOTSET"):
        return None
    return list(given.get("pads") or [0] * (2 * rank))


def _windows(given: Mapping[str, Any], pads: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return kernel, strides and padding of a pool whose last window may go beyond the input, as torch takes them.

    The reference divides by too much there, or drops a window. Raises NotImplementedError for unequal pads.
    """
    rank = len(pads) // 2
    if list(pads[:rank]) != list(pads[rank:]):
        raise NotImplementedError("a pool with ceil_mode and unequal pads")
    return tuple(given["kernel_shape"]), tuple(given.get("strides") or [1] * rank), tuple(pads[:rank])


def torch_pads(pads: Sequence[int]) -> list[int]:
    """Return ONNX's [begins…, ends…] as torch's pairs, from the last axis to the first."""
    rank = len(pads) // 2
    return [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))

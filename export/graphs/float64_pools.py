"""Pools in float64, computed by torch: in ONNX's reference they are Python loops, and wrong beyond the input's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx.reference.ops.op_average_pool import AveragePool_19 as _AveragePool
from onnx.reference.ops.op_max_pool import MaxPool as _MaxPool

__all__ = ["AveragePool", "MaxPool", "as_double", "explicit_pads", "torch_pads"]

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
        y = _MAX_POOLS[rank](
            F.pad(as_double(x), torch_pads(_to_last_window(given, pads, x.shape[2:])), value=-np.inf),
            tuple(given["kernel_shape"]),
            tuple(given.get("strides") or [1] * rank),
            dilation=tuple(given.get("dilations") or [1] * rank),
        )
        return (y.numpy(),)


class AveragePool(_AveragePool):
    """The mean of the padded input over the mean of ones at the positions that count."""

    op_domain = ""

    def _run(self, x: Any, **given: Any) -> Any:  # type: ignore[override]
        rank = x.ndim - 2
        pads = explicit_pads(given, rank)
        plain = all(d == 1 for d in given.get("dilations") or ())
        if pads is None or not plain or rank not in _MEANS:
            return super()._run(x, **given)  # type: ignore[no-untyped-call]
        padded = _to_last_window(given, pads, x.shape[2:])
        counted = torch.ones((1, 1, *x.shape[2:]), dtype=torch.float64)
        if given.get("count_include_pad"):  # positions of the padding count, those behind it do not
            counted = F.pad(counted, torch_pads(pads), value=1.0)
            behind = torch_pads([0] * rank + [new - old for new, old in zip(padded[rank:], pads[rank:], strict=True)])
        else:
            behind = torch_pads(padded)

        def mean(array: torch.Tensor) -> torch.Tensor:
            return _MEANS[rank](array, tuple(given["kernel_shape"]), tuple(given.get("strides") or [1] * rank))

        return ((mean(F.pad(as_double(x), torch_pads(padded))) / mean(F.pad(counted, behind))).numpy(),)


def explicit_pads(given: Mapping[str, Any], rank: int) -> Sequence[int] | None:
    """Return the explicit pads [begins…, ends…]; None where ``auto_pad`` decides."""
    if (given.get("auto_pad") or "NOTSET") not in ("NOTSET", b"NOTSET"):
        return None
    return list(given.get("pads") or [0] * (2 * rank))


def _to_last_window(given: Mapping[str, Any], pads: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return ``pads`` with ends up to the end of the last window, which ceil_mode lets go beyond the padding.

    A window that begins behind the input is none.
    """
    rank = len(sizes)
    if not given.get("ceil_mode"):
        return list(pads)
    ends = []
    for axis, size in enumerate(sizes):
        stride = (given.get("strides") or [1] * rank)[axis]
        window = (given.get("dilations") or [1] * rank)[axis] * (given["kernel_shape"][axis] - 1) + 1
        begun = size + pads[axis]
        last = -(-(begun + pads[axis + rank] - window) // stride)
        if last * stride >= begun:
            last -= 1
        ends.append(last * stride + window - begun)
    return [*pads[:rank], *ends]


def torch_pads(pads: Sequence[int]) -> list[int]:
    """Return ONNX's [begins…, ends…] as torch's pairs, from the last axis to the first."""
    rank = len(pads) // 2
    return [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]


def as_double(array: Any) -> torch.Tensor:
    """Return a copy of an array as torch's, in float64."""
    return torch.from_numpy(np.array(array, dtype=np.float64))

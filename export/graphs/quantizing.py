"""QuantizeLinear and DequantizeLinear of every opset for the evaluator in float64: the reference has only newer ones.

    DequantizeLinear   y = (q - z) s
    QuantizeLinear     q = clip(round(x / s) + z), halves to even

s and z are single numbers, vectors along ``axis``, or (``block_size``) have one number for each block along it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

__all__ = ["QUANTIZERS"]


class DequantizeLinear(OpRun):
    op_domain = ""

    def _run(self, q: Any, scale: Any, zero: Any = None, **given: Any) -> Any:
        shift = 0.0 if zero is None else _along(zero, q, given)
        return ((np.asarray(q, np.float64) - shift) * _along(scale, q, given),)


class QuantizeLinear(OpRun):
    op_domain = ""

    def _run(self, x: Any, scale: Any, zero: Any = None, **given: Any) -> Any:
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        if kind.kind not in "iu" or given.get("output_dtype"):
            raise NotImplementedError("a QuantizeLinear to another type than that of its zero point")
        shift = 0.0 if zero is None else _along(zero, x, given)
        rounded = np.rint(x / _along(scale, x, given)) + shift
        return (np.clip(rounded, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind),)


def _along(values: Any, data: Any, given: Any) -> Any:
    """Return scales or zero points in float64, in a shape that fits ``data``."""
    found = np.asarray(values, np.float64)
    axis, block = given.get("axis", 1), given.get("block_size") or 0
    if found.size == 1:
        return found.reshape(())
    if block:
        return np.repeat(found, block, axis).take(range(data.shape[axis]), axis)
    shape = [1] * data.ndim
    shape[axis] = -1
    return found.reshape(shape)


#: For ``ReferenceEvaluator(new_ops=…)``.
QUANTIZERS: tuple[type[OpRun], ...] = (DequantizeLinear, QuantizeLinear)

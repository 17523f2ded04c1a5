"""Sizes that a network computes in floats, ``math.floor(0.7 * L)``, as Python computes them: in float64.

torch's exporter (2.13) computes them in float32, and gives another size at some lengths:

    0.7 · 90 = 62.99999999999999 in float64, rounded down 62;  63.0 in float32

Here each operator on such numbers gives float32, which may meet the network's tensors, and beside it the same number in
float64. What is rounded to a size is that. Where nothing is rounded, nothing reads the float64, and it is removed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

from normfold.export.errors import CaptureError

__all__ = ["FLOAT_SIZES"]

_OP: Any = opset18  # its own annotations do not allow an operator's result as an operand
#: The entry of a value's ``meta`` with the same number in float64.
_EXACT = "normfold.float64"


def _of_both(name: str, divides: bool = False) -> Callable[..., Any]:
    """The translation of an operator on two sizes or floats; a quotient of whole numbers is a float."""

    def translated(a: Any, b: Any) -> Any:
        apply = getattr(_OP, name)
        if not divides and not (_is_float(a) or _is_float(b)):
            return apply(a, b)
        single = apply(_single(a), _single(b))
        single.meta[_EXACT] = apply(_double(a), _double(b))
        return single

    return translated


def _as_float(a: Any) -> Any:
    single = _OP.Cast(a, to=ir.DataType.FLOAT)
    single.meta[_EXACT] = _OP.Cast(a, to=ir.DataType.DOUBLE)
    return single


def _rounded(name: str) -> Callable[..., Any]:
    """The translation of a rounding to a whole number."""

    def translated(a: Any) -> Any:
        whole = getattr(_OP, name)(_double(a)) if name else _double(a)
        return _OP.Cast(whole, to=ir.DataType.INT64)

    return translated


def _to_nearest(a: Any, digits: Any = None) -> Any:
    """``round(a)``: half a step to the even number, as ONNX does it."""
    if digits is not None:
        raise CaptureError("the network rounds a size with round(size, digits): leave the digits out")
    return _rounded("Round")(a)


def _is_float(a: Any) -> bool:
    return a.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE) if isinstance(a, ir.Value) else isinstance(a, float)


def _single(a: Any) -> Any:
    if isinstance(a, ir.Value):
        return a if a.dtype == ir.DataType.FLOAT else _OP.Cast(a, to=ir.DataType.FLOAT)
    return _OP.Constant(value=ir.tensor(np.array(a, np.float32)))


def _double(a: Any) -> Any:
    if isinstance(a, ir.Value):
        exact = a.meta.get(_EXACT)
        return _OP.Cast(a, to=ir.DataType.DOUBLE) if exact is None else exact
    return _OP.Constant(value=ir.tensor(np.array(a, np.float64)))


#: Operator -> its translation; they are among those of :mod:`normfold.export.capture.lacking`.
FLOAT_SIZES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.sym_float: _as_float,
    operator.add: _of_both("Add"),
    operator.sub: _of_both("Sub"),
    operator.mul: _of_both("Mul"),
    operator.truediv: _of_both("Div", divides=True),
    operator.pow: _of_both("Pow"),
    math.floor: _rounded("Floor"),
    math.ceil: _rounded("Ceil"),
    math.trunc: _rounded(""),
    round: _to_nearest,
}

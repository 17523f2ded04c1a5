"""F.interpolate, axis by axis, as torch computes it for a float64 network, where ONNX's Resize gives other entries.

onnxruntime computes in float32 where torch reads an entry, and how many there are:

    nearest, L = 28 to 16    entry 4 is x[7], by 4·28/16; float32 gives 4 / (16/28) = 6.9999995, and x[6]
    scale_factor=0.29        L = 100 gives ⌊28.999999999999996⌋ = 28 entries; float32 gives 29.000000, and 29

At most lengths nothing of it shows. So these calls become one operator. Its translation to ONNX computes the places of
the nearest entries in whole numbers, or along several axes as torch rounds them. For a float32 network, torch rounds
the places along one axis, too, and reads a neighbour at a few pairs of lengths, such as 84 to 20. A length from a scale
is computed in float64. What both compute alike at every length stays a Resize, which is faster: a scale such as 2 or
0.5, a length that becomes twice as long.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy
import torch
import torch.nn.functional as F
from onnxscript import opset18
from torch import Tensor
from torch.export import ExportedProgram

from normfold.export.capture.program_nodes import program_nodes

__all__ = ["RESIZING", "as_exact_resizes"]

_MODES: dict[Any, str] = {
    torch.ops.aten.upsample_nearest1d.vec: "nearest",
    torch.ops.aten.upsample_nearest2d.vec: "nearest",
    torch.ops.aten._upsample_nearest_exact1d.vec: "nearest-exact",
    torch.ops.aten.upsample_linear1d.vec: "linear",
    torch.ops.aten.upsample_bilinear2d.vec: "linear",
}
#: A product of a length and a multiple of this has no more digits than float32 holds, for lengths up to a million.
EXACT_SCALES = 1 / 8
#: Lengths at which two sizes are compared.
TRIED = range(1, 257)
#: The largest denominator of a scale as a fraction, 160/147; other scales are off by less than float64 rounds.
MOST = 10**7


def as_exact_resizes(program: ExportedProgram) -> None:
    """Call ``normfold::resize``, in place, where a Resize would give other entries at some length.

    Several axes are resized one after another: the last one by the node itself, the others by nodes before it.
    """
    for node in program_nodes(program):
        mode = _MODES.get(node.target)
        if mode is None:
            continue
        given: Any = node.args
        input, sizes, *others, scales = given
        before, after = input.meta["val"].shape, node.meta["val"].shape
        axes = range(2, len(after))
        sizes, scales = ([None, None, *(of or [None] * len(axes))] for of in (sizes, scales))
        if all(_exact(mode, before[a], after[a], scales[a]) for a in axes):
            continue
        *earlier, last = (a for a in axes if not _stays(before[a], after[a], scales[a]))
        align = bool(others and others[0])
        for a in earlier:
            with node.graph.inserting_before(node):
                input = node.graph.call_function(RESIZE, (input, sizes[a], scales[a], mode, align, a))
        node.target, node.args = RESIZE, (input, sizes[last], scales[last], mode, align, last)


def _stays(before: Any, after: Any, scale: float | None) -> bool:
    """Whether an axis has a fixed length that is not resized."""
    return isinstance(before, int) and isinstance(after, int) and before == after and scale in (None, 1.0)


def _exact(mode: str, before: Any, after: Any, scale: float | None) -> bool:
    """Whether a Resize along one axis gives what torch gives at every length."""
    if scale is None:
        return mode == "linear" or _whole(before, after)
    return (scale / EXACT_SCALES).is_integer()


def _whole(before: Any, after: Any) -> bool:
    """Whether the length before always divides the length after, or leaves a remainder of 1 where it is doubled."""
    sizes = [sympy.sympify(s.node.expr if isinstance(s, torch.SymInt) else s) for s in (before, after)]
    symbols = set().union(*(size.free_symbols for size in sizes))
    if len(symbols) > 1:
        return False
    for length in TRIED:
        old, new = (int(size.xreplace(dict.fromkeys(symbols, sympy.Integer(length)))) for size in sizes)
        if min(old, new) > 0 and new % old and abs(new - 2 * old) != 1:
            return False
    return True


@torch.library.custom_op(
    "normfold::resize",
    mutates_args=(),
    schema="(Tensor input, SymInt? size, float? scale, str mode, bool align, int axis) -> Tensor",
)
def resize(input: Tensor, size: int | None, scale: float | None, mode: str, align: bool, axis: int) -> Tensor:
    """Compute ``F.interpolate`` along one axis, to a size or by a scale."""
    last = input.movedim(axis, -1)
    rows = F.interpolate(last.reshape(1, -1, last.shape[-1]), size, scale, mode, align if mode == "linear" else None)
    return rows.reshape(*last.shape[:-1], rows.shape[-1]).movedim(-1, axis).contiguous()


@resize.register_fake
def _(input: Tensor, size: Any, scale: float | None, mode: str, align: bool, axis: int) -> Tensor:
    after = size if scale is None else torch.sym_int(input.shape[axis] * scale)  # type: ignore[no-untyped-call]
    return input.new_empty((*input.shape[:axis], after, *input.shape[axis + 1 :]))


#: What the calls become.
RESIZE = torch.ops.normfold.resize.default


def _translated(input: Any, size: Any, scale: float | None, mode: str, align: bool, axis: int) -> Any:
    op: Any = opset18  # its own annotations do not allow an operator's result as an operand
    one, before = op.Constant(value_int=1), op.Squeeze(op.Shape(input, start=axis, end=axis + 1))
    step = None if scale is None else Fraction(scale).limit_denominator(MOST)
    if scale is not None:
        size = op.Cast(op.Mul(op.Cast(before, to=ir.DataType.DOUBLE), _double(scale)), to=ir.DataType.INT64)
    elif isinstance(size, int):
        size = op.Constant(value_int=size)
    last, places = op.Sub(before, one), op.Range(op.Constant(value_int=0), size, one)
    if mode == "linear":
        return _weighted(input, axis, _position(places, before, size, scale, align), last)
    if len(input.shape) > 3 and step is None:
        return op.Gather(input, op.Min(_in_float32(places, before, size), last), axis=axis)
    over, under = (before, size) if step is None else map(_whole_number, (step.denominator, step.numerator))
    if mode == "nearest-exact":  # from the middle of each entry
        two = op.Constant(value_int=2)
        places, under = op.Add(op.Mul(places, two), one), op.Mul(under, two)
    read = op.Min(op.Div(op.Mul(places, over), under), last)
    if len(input.shape) > 3 and step is not None:  # of several axes, torch moves nothing along one whose length stays
        read = op.Where(op.Equal(before, size), places, read)
    return op.Gather(input, read, axis=axis)


def _in_float32(places: Any, before: Any, size: Any) -> Any:
    """Which entries are read for a size where torch computes that in float32, also in a network in float64."""
    op: Any = opset18
    places, before, size = (op.Cast(n, to=ir.DataType.DOUBLE) for n in (places, before, size))
    place = _to_24_digits(op.Mul(places, _to_24_digits(op.Div(before, size))))
    return op.Cast(op.Floor(place), to=ir.DataType.INT64)


def _to_24_digits(number: Any) -> Any:
    """Round a float64 to the binary digits of a float32, in float64: other forms of the graph have no float32."""
    op: Any = opset18
    larger = op.Mul(number, _double(2.0**29 + 1))
    return op.Sub(larger, op.Sub(larger, number))


def _position(places: Any, before: Any, size: Any, scale: Any, align: bool) -> Any:
    """Where each entry is read, in float64."""
    op: Any = opset18
    places, one = op.Cast(places, to=ir.DataType.DOUBLE), op.Constant(value_int=1)
    if align:
        steps = op.Max(op.Sub(size, one), one)
        old, new = (op.Cast(n, to=ir.DataType.DOUBLE) for n in (op.Sub(before, one), steps))
        return op.Mul(places, op.Div(old, new))
    half = _double(0.5)
    moved = op.Max(op.Sub(op.Mul(op.Add(places, half), _double(1 / scale)), half), _double(0.0))
    return op.Where(op.Equal(before, size), places, moved)  # torch moves nothing where the length stays


def _weighted(input: Any, axis: int, position: Any, last: Any) -> Any:
    """The mean of the two entries beside each position, weighted by how near they are."""
    op: Any = opset18
    whole = op.Floor(position)
    first = op.Min(op.Cast(whole, to=ir.DataType.INT64), last)
    second = op.Min(op.Add(first, op.Constant(value_int=1)), last)
    behind = [-1, *[1] * (len(input.shape) - 1 - axis)]
    share = op.Reshape(op.Sub(position, whole), op.Constant(value_ints=behind))
    shares = [op.CastLike(s, input) for s in (op.Sub(_double(1.0), share), share)]
    a, b = (op.Mul(op.Gather(input, i, axis=axis), s) for i, s in zip((first, second), shares, strict=True))
    return op.Add(a, b)


def _double(number: float) -> Any:
    op: Any = opset18
    return op.Constant(value=ir.tensor(np.array(number, np.float64)))


def _whole_number(number: int) -> Any:
    op: Any = opset18
    return op.Constant(value_int=number)


#: For ``torch.onnx.export(custom_translation_table=…)``.
RESIZING: dict[Callable[..., Any], Callable[..., Any]] = {RESIZE: _translated}

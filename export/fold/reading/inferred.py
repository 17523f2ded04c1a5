"""What an operator tells of its own output, or of the affine behind it."""

from __future__ import annotations

import numpy as np

from normfold.export.fold.net import Dim, Op
from normfold.export.fold.ops.activations import Activation, Clamp, Same, Scaled, Scaling, Sloped
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.moving import Concat, Pad, Select
from normfold.export.fold.ops.pools import Pooling


def tell_usual(op: Op) -> None:
    """Give an affine behind another the usual size of what that one makes, unless its own statistics say less."""
    before = op.inputs[0].producer if op.inputs else None
    if isinstance(op, Scaling) and isinstance(before, Scaling):
        made = np.abs(before.params.scale) * before.params.usual + np.abs(before.params.shift)
        op.params = Scaled.like(op.params, np.minimum(made, op.params.usual) if op.is_batchnorm else made)


def tell_shape(op: Op) -> None:
    """Give the output the shape that follows from the operator, where shape inference gave up."""
    if len(op.outputs) != 1 or op.outputs[0].shape is not None or not op.inputs:
        return
    (y,), x = op.outputs, op.inputs[0]
    if isinstance(op, Linear) and op.form in ("conv", "transposed"):
        groups, out, _, *taps = op.params.weight.shape
        batch = x.shape[0] if x.shape else f"{y.name}[0]"
        y.shape = (batch, groups * out, *(f"{y.name}[{i + 2}]" for i in range(len(taps))))
    elif isinstance(op, Pooling) and x.shape is not None and not op.drops_axes:
        y.shape = tuple(f"{y.name}[{i}]" if i in op.axes else d for i, d in enumerate(x.shape))
    elif isinstance(op, Sum) and len({z.shape for z in op.inputs}) == 1:
        y.shape = x.shape


def tell_lengths(op: Op) -> None:
    """Give the outputs the inputs' lengths, which inference gave other names, or none behind computed ends."""
    for index, y in enumerate(op.outputs):
        known = _lengths(op, index)
        if known is None:
            continue
        told = y.shape if y.shape is not None and len(y.shape) == len(known) else (None,) * len(known)
        y.shape = tuple(
            known[axis] if known[axis] is not None else f"{y.name}[{axis}]" if size is None else size
            for axis, size in enumerate(told)
        )


def _lengths(op: Op, index: int) -> list[Dim] | None:
    """What follows for one output from the shapes of what is read: a length, or None, for each axis."""
    shapes = [x.shape for x in op.inputs if x.shape is not None]
    if not shapes or len(shapes) < len(op.inputs) or any(len(shape) != len(shapes[0]) for shape in shapes):
        return None
    if isinstance(op, (Scaling, Clamp, Sloped, Same, Activation)):
        return list(shapes[0])
    if isinstance(op, Linear) and op.form not in ("conv", "transposed"):
        return [None if axis == op.axis_out % len(shapes[0]) else size for axis, size in enumerate(shapes[0])]
    if isinstance(op, Concat):
        axis = op.axis % len(shapes[0])
        columns = [[size for size in sizes if isinstance(size, int)] for sizes in zip(*shapes, strict=True)]
        return [
            (sum(sizes) if len(sizes) == len(shapes) else None) if a == axis else sizes[0] if sizes else None
            for a, sizes in enumerate(columns)
        ]
    if isinstance(op, Select):
        pick = op.picks[index]
        cut = set(op.positions) or {op.axis % len(shapes[0])}
        picked = None if pick is None or op.positions else len(pick)
        return [picked if a in cut else size for a, size in enumerate(shapes[0])]
    if isinstance(op, Pad):
        padded = zip(op.before, op.behind, strict=True)
        return [size if lead == tail == 0 else None for size, (lead, tail) in zip(shapes[0], padded, strict=True)]
    return None

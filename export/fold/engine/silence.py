"""Channels that a BatchNorm scales by 0: what was computed for them is not needed, and is not computed any more.

    0·u + t = (t/v)·v      where the operators before are made to emit the constant v in that channel

The weights before become zero and the bias makes v, so the affine has no scale of 0 any more, can be inverted, and the
channel is a constant that can serve as a carrier.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Refused, Tensor
from normfold.export.fold.ops.activations import Activation, Clamp, Same, Scaled, Scaling, Sloped
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear, Weights
from normfold.export.fold.ops.moving import Concat, Select, Transpose
from normfold.export.fold.ops.pools import Pooling

Index = NDArray[np.int64]


def silence_zero_scales(target: Scaling) -> int:
    """Make channels that the target scales by 0 constant before it, where nothing else reads them; return how many."""
    (u,) = target.inputs
    if u.shape is None or len(u.shape) < 2 or not isinstance(u.shape[1], int):
        return 0
    channels = target.params.channels(1, u.shape[1])
    if channels is None:
        return 0
    scale, shift = (np.array(c) for c in channels)
    count = 0
    # A positive shift is made the constant itself, which can serve as a carrier; else the channel holds 0 before it.
    for wanted, index in (
        (1.0, np.flatnonzero((scale == 0) & (shift > 0))),
        (0.0, np.flatnonzero((scale == 0) & (shift <= 0))),
    ):
        if not len(index):
            continue
        edits: dict[Linear, Weights] = {}
        try:
            held = _silenced(u, 1, index, np.full(len(index), wanted), edits)
        except Refused:
            continue
        if wanted and np.all(held > 1e-3):
            scale[index], shift[index] = shift[index] / held, 0.0
        elif not wanted and np.all(held == 0):
            scale[index] = 1.0
        else:
            continue
        for op, weights in edits.items():
            op.params, op.changed = weights, True
        count += len(index)
    if count:
        target.params = Scaled.like(Affine.along(1, len(u.shape), scale, shift), target.params.usual)
        target.changed = True
    return count


def _silenced(tensor: Tensor, axis: int, index: Index, values: Array, edits: dict[Linear, Weights]) -> Array:
    """Return what the given channels hold when the operators before emit ``values`` there; raise Refused if shared."""
    op = tensor.producer
    if op is None or len(tensor.readers) != 1 or tensor.pinned:
        raise Refused(f"'{tensor.name}' is read elsewhere too")
    if isinstance(op, Linear) and op.axis_out % tensor.rank == axis:
        weights = edits.get(op, op.params)
        weight, bias = weights.weight.copy(), weights.bias.copy()
        flat = weight.reshape(-1, *weight.shape[2:])
        flat[index] = 0.0
        bias[index] = values
        edits[op] = replace(weights, weight=weight, bias=bias)
        return values
    if isinstance(op, Transpose):
        return _silenced(op.inputs[0], op.axes[axis], index, values, edits)
    if isinstance(op, Same):
        return _silenced(op.inputs[0], axis, index, values, edits)
    if axis != 1:
        raise Refused(f"nothing can be silenced through {op} on another axis than the channels'")
    if isinstance(op, Concat) and op.axis == 1 and len(set(op.inputs)) == len(op.inputs):
        starts = np.cumsum([0, *(x.size(1) for x in op.inputs)])
        held = np.empty(len(index))
        for k, x in enumerate(op.inputs):
            here = (index >= starts[k]) & (index < starts[k + 1])
            if here.any():
                held[here] = _silenced(x, 1, index[here] - starts[k], values[here], edits)
        return held
    if isinstance(op, Select) and 1 not in op.positions and len(op.inputs) == 1:
        pick = op.picks[op.outputs.index(tensor)]
        if pick is not None and op.axis == 1:
            if len(np.unique(pick)) < len(pick):
                raise Refused(f"{op} picks a channel more than once")
            index = pick[index]
        return _silenced(op.inputs[0], 1, index, values, edits)
    if isinstance(op, Sum) and len(set(op.inputs)) == len(op.inputs):
        total = np.zeros(len(index))
        for k, (sign, x) in enumerate(zip(op.signs, op.inputs, strict=True)):
            if x.rank != tensor.rank or x.size(axis) != tensor.size(axis):
                raise Refused(f"{op} broadcasts one of its branches")
            total += sign * _silenced(x, 1, index, values if k == 0 else np.zeros(len(index)), edits)
        return total
    if isinstance(op, (Clamp, Sloped, Same, Activation, Scaling)) or (
        isinstance(op, Pooling) and 1 not in op.axes and not op.counts_zeros
    ):
        (x,) = op.inputs
        whole = np.full(tensor.size(1), np.nan)
        whole[index] = _silenced(x, 1, index, values, edits)
        if isinstance(op, Sloped):
            held = np.where(whole >= 0, whole, np.nan)
        else:
            found = op.constants({x: whole})[0]
            held = np.full(len(whole), np.nan) if found is None else found
        if np.any(np.isnan(held[index])):
            raise Refused(f"{op} does not keep the channel constant")
        return held[index]
    raise Refused(f"nothing can be silenced through {op}")

"""One channel more in tensors whose channels stay where they are, and in the constants that vary along them."""

from __future__ import annotations

import numpy as np

from normfold.export.fold.affine import Array
from normfold.export.fold.net import Op, Tensor, Widening, Widenings


def same(op: Op, widenings: Widenings) -> dict[Tensor, Widening]:
    """Return the widening of the output or the input that is not known yet: that of the other."""
    x, y = op.inputs[0], op.outputs[0]
    if x in widenings and y not in widenings:
        return {y: widenings[x]}
    return {x: widenings[y]} if y in widenings and x not in widenings else {}


def given(op: Op, widenings: Widenings) -> Widening:
    """Return the widening that the input and the output have in common."""
    return widenings[op.inputs[0]] if op.inputs[0] in widenings else widenings[op.outputs[0]]


def inserted(part: Array, w: Widening, value: float, tensor: Tensor) -> Array:
    """Return a constant with ``value`` on the new channel; as it is where it does not vary and holds that already."""
    if part.shape[w.axis] == 1:
        if np.all(part == value):
            return part
        shape = list(part.shape)
        shape[w.axis] = tensor.size(w.axis)
        part = np.broadcast_to(part, shape)
    return np.insert(part, [w.index] * w.count, value, axis=w.axis)

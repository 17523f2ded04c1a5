"""A channel more in operators that keep channels apart: what passes to the other side, and constants for it."""

from __future__ import annotations

import numpy as np

from normfold.export.fold.affine import Array
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import AddedChannels, Op, Tensor


def passed_on(op: Op, added: AddedChannels) -> dict[Tensor, AddedChannel]:
    """Return the same channel for the first output, or for the first input where only the output has one yet."""
    x, y = op.inputs[0], op.outputs[0]
    return {y: added[x]} if x in added else {x: added[y]}


def channel_of(op: Op, added: AddedChannels) -> AddedChannel:
    """Return the channel that the first input gets, else the one that the first output gets."""
    return added[op.inputs[0]] if op.inputs[0] in added else added[op.outputs[0]]


def with_entry(part: Array, w: AddedChannel, value: float, tensor: Tensor) -> Array:
    """Return constants of a tensor with an entry for its new channel; one constant for all stays where it fits."""
    if part.shape[w.axis] == 1:
        if np.all(part == value):
            return part
        shape = list(part.shape)
        shape[w.axis] = tensor.size(w.axis)
        part = np.broadcast_to(part, shape)
    return np.insert(part, [w.index] * w.count, value, axis=w.axis)

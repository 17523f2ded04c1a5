"""Channels that a BatchNorm scales by 0 become constant before it, because nothing needs what was computed for them.

    0·u + t = (t/v)·v      where the operators before emit the constant v in that channel

The weights of the operators before become zero there and their bias v. So the affine has no scale of 0 any more and can
be inverted, and the constant channel can serve as a carrier.
"""

from __future__ import annotations

import numpy as np

from normfold.export.fold.affine import Affine
from normfold.export.fold.net import Refused, Silencing
from normfold.export.fold.ops.scaling import Scaled, Scaling


def silence_zero_scales(target: Scaling) -> int:
    """Make channels constant that the target scales by 0 and nothing else reads; return the number of them."""
    (u,) = target.inputs
    channels = target.params.channels(1, u.channels) if u.channels is not None else None
    if channels is None:
        return 0
    scale, shift = (np.array(c) for c in channels)
    count = 0
    # A channel with a positive shift holds 1, so that it can serve as a carrier; any other holds 0.
    for wanted, index in (
        (1.0, np.flatnonzero((scale == 0) & (shift > 0))),
        (0.0, np.flatnonzero((scale == 0) & (shift <= 0))),
    ):
        if not len(index):
            continue
        silencing = Silencing()
        try:
            held = silencing.of(u, 1, index, np.full(len(index), wanted))
        except Refused:
            continue
        if wanted and np.all(held > 1e-3):
            scale[index], shift[index] = shift[index] / held, 0.0
        elif not wanted and np.all(held == 0):
            scale[index] = 1.0
        else:
            continue
        for op, weights in silencing.edits.items():
            op.take(weights)
        count += len(index)
    if count:
        target.take(Scaled.like(Affine.along(1, u.rank, scale, shift), target.params.usual))
    return count

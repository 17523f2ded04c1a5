"""Channels that a BatchNorm scales by 0 become constant before it, because nothing needs what was computed for them.

    0·u + t = (t/v)·v  = v + (t - v)      where the operators before emit the constant v in that channel

The weights of the operators before become zero there and their bias v. So the affine has no scale of 0 any more and can
be inverted, and the constant channel can serve as a carrier.

Where a channel is constant before the affine already, because its weights are zero, any scale r does:

    s·u + t = r·u + (s·c + t - r·c)      where u always holds c in that channel
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normfold.export.fold.affine import Affine
from normfold.export.fold.engine.constant_channels import ConstantChannels
from normfold.export.fold.engine.plan import MOST_APART
from normfold.export.fold.net import Refused
from normfold.export.fold.ops.scaling import Scaled, Scaling, cancelling, mean_cancelling
from normfold.export.fold.silencing import Silencing


def settle_constants(target: Scaling) -> None:
    """Give a smaller scale to channels that are constant before a BatchNorm, where scale and shift would cancel.

    Their variance is 0 and their mean is not, so they alone would keep all channels from going into the readers. The
    scale is positive, and not 0: an affine with a scale of 0 cannot be undone in other readers.
    """
    statistics, size = target.params.statistics, target.outputs[0].channels
    if target.cancels <= MOST_APART or statistics is None or size is None:
        return
    held = ConstantChannels().of(target.inputs[0])
    affine, came = target.params.channels(1, size), Affine.of(statistics.variance, statistics.mean).channels(1, size)
    if held is None or affine is None or came is None:
        return
    (scale, shift), (variance, mean) = affine, came
    ratios = cancelling(scale, shift, mean, variance)
    chosen = (scale != 0) & ~np.isnan(held) & (ratios > MOST_APART)
    with np.errstate(over="ignore", invalid="ignore"):
        constant = scale * held + shift
    chosen &= np.isfinite(constant)
    if not chosen.any():
        return
    target.cancels = mean_cancelling(ratios, np.where(chosen, 0.0, scale))
    gamma = np.abs(scale) * np.sqrt(np.maximum(variance, 0.0) + statistics.epsilon)
    with np.errstate(divide="ignore", invalid="ignore"):
        small = np.fmin(1.0, (np.abs(constant) + gamma) / np.abs(held))  # so that the new terms do not cancel either
    scale = np.where(chosen, small, scale)
    shift = np.where(chosen, constant - scale * held, shift)
    target.take(Scaled.like(Affine.along(1, target.params.rank, scale, shift), target.params.usual, statistics))


def silence_zero_scales(target: Scaling) -> int:
    """Make channels constant that the target scales by 0 and nothing else reads; return the number of them."""
    (u,) = target.inputs
    if u.shape is None:
        return 0
    scale, shift = (np.array(part) for part in np.broadcast_arrays(target.params.scale, target.params.shift))
    zero, positive = scale == 0, shift > 0
    count, statistics = 0, target.params.statistics
    # A channel with a positive shift is to hold 1, so that it can serve as a carrier; any other is to hold 0.
    for wanted, chosen in ((1.0, zero & positive), (0.0, zero & ~positive)):
        if not chosen.any():
            continue
        silencing = Silencing()
        try:
            held = silencing.of(u, Affine.of(np.where(chosen, 0.0, 1.0), np.where(chosen, wanted, 0.0)))
        except Refused:
            continue
        if sum(held.varies(axis) or scale.shape[axis] > 1 for axis in range(held.rank)) > 1:
            continue  # the constant differs along another axis than the affine does
        carries = chosen & positive & (held.shift > 1e-3)
        scale = np.where(carries, shift / np.where(carries, held.shift, 1.0), np.where(chosen, 1.0, scale))
        shift = np.where(carries, 0.0, np.where(chosen, shift - held.shift, shift))
        if statistics is not None:
            mean, variance = np.where(chosen, 0.0, statistics.mean), np.where(chosen, 1.0, statistics.variance)
            statistics = replace(statistics, mean=mean, variance=variance)
        for op, weights in silencing.edits.items():
            op.take(weights)
        count += int(np.count_nonzero(chosen))
    if count:
        target.take(Scaled.like(Affine.of(scale, shift), target.params.usual, statistics))
    return count

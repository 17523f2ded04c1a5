"""How large the entries of a network's tensors usually are, and which shifts would cost their last digits.

A shift t that goes into the readers of a tensor is stored in its entries, and taken off again behind the weights:

    W x + b = (W s) x' + (b + W t)      errs by up to eps |W| |t| where it erred by eps |W| |x|, for x = s x' + t

The error does not grow as long as t is about as large as x usually is. It grows where x is small beside t: behind a
clamp that a small γ leaves hardly any range, or in a channel that is always off and that a later operator amplifies.
"""

from __future__ import annotations

import numpy as np

from normfold.export.fold.affine import Array
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import Gauges, Net, Refused, Tensor
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ranges import REACH, Range

#: Largest accepted abs(W)·abs(t) / abs(W)·abs(x): 32 loses log2 32 = 5 bits of the sum.
MOST_LOST = 32.0


class Magnitudes:
    """How large the input of each linear operator usually is, channel by channel, in its present scale."""

    def __init__(self, net: Net) -> None:
        ranges: dict[Tensor, Range] = {}
        self._reads: dict[Linear, Array] = {}
        for op in net.ops:
            known = [r for x in op.inputs if (r := ranges.get(x) or _standard_normal(x)) is not None]
            if isinstance(op, Linear) and known:
                self._reads[op] = np.maximum(*map(np.abs, op.read_channels(*known[0].ends)))
            if known and len(known) == len(op.inputs) and op.outputs and op.outputs[0].shape is not None:
                found = op.range(known)
                if found is not None:
                    ranges[op.outputs[0]] = found

    def check(self, op: Linear, gauges: Gauges) -> None:
        """Raise Refused where an operator would take a shift beside which its input is small."""
        (x,) = op.inputs
        if op in self._reads and x in gauges and gauges[x].shifts:
            _, shift = _read_gauge(op, gauges)
            if np.any(op.weighed(np.abs(shift)) > MOST_LOST * op.weighed(self._reads[op])):
                raise Refused(f"the input of {op} is so small beside the shift that it would lose its last digits")

    def follow(self, op: Linear, gauges: Gauges) -> None:
        """Rescale the input of an operator as the gauges did that were carried out."""
        if op in self._reads and op.inputs[0] in gauges:
            scale, _ = _read_gauge(op, gauges)
            self._reads[op] = self._reads[op] / np.abs(np.where(scale == 0, 1.0, scale))

    def add_channel(self, op: Linear, w: AddedChannel) -> None:
        """Note the size of a channel that the operator's input got."""
        if op in self._reads:
            self._reads[op] = np.insert(self._reads[op], w.index, np.full(w.count, abs(w.value)))


def _read_gauge(op: Linear, gauges: Gauges) -> tuple[Array, Array]:
    """Return scale and shift of the gauge of an operator's input, (in,) each.

    Where they differ along another axis, all channels get the largest.
    """
    gauge = gauges[op.inputs[0]]
    channels = gauge.channels(op.axis_in, op.reads)
    if channels is None:
        return np.full(op.reads, np.abs(gauge.scale).max()), np.full(op.reads, np.abs(gauge.shift).max())
    return channels


def _standard_normal(tensor: Tensor) -> Range | None:
    """Return the range of standard normal entries; None where the tensor's rank is not known."""
    if tensor.shape is None:
        return None
    zero = np.zeros((1,) * len(tensor.shape))
    return Range.around(zero, zero + REACH)

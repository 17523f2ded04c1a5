"""How large the numbers of a network usually are, and which shifts would cost their last digits.

A shift t that goes into the readers of a tensor is stored with its numbers, and taken off again behind the weights:

    W x + b = (W s) x' + (b + W t)      errs by up to eps |W| |t| where it erred by eps |W| |x|, for x = s x' + t

That is nothing as long as t is about as large as x usually is. It is all where x is small beside t: behind a clamp of
which a BatchNorm's γ left a sliver, or in a channel that is always off and that something amplifies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.export.fold.affine import Affine, Array, joined
from normfold.export.fold.net import Gauges, Net, Op, Refused, Tensor, Widening
from normfold.export.fold.ops.activations import Activation, Clamp, Same, Scaling, Sloped
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.moving import Concat, Transpose
from normfold.export.fold.ops.pools import Pooling

#: How many times larger what is added and taken off again may be than what is summed: it costs five bits.
MOST_LOST = 32.0
#: How many deviations from its mean a number usually is at most.
_REACH = 3.0


@dataclass(frozen=True, eq=False)
class Range:
    """Between which numbers the entries of a tensor usually are; both ends of its rank, broadcastable."""

    low: Array
    high: Array

    @classmethod
    def around(cls, center: Array, reach: Array) -> Range:
        """Return the range from ``center - reach`` to ``center + reach``."""
        return cls(center - reach, center + reach)

    @classmethod
    def between(cls, one: Array, other: Array) -> Range:
        """Return the range between two ends of which either may be the larger."""
        return cls(np.minimum(one, other), np.maximum(one, other))

    @property
    def ends(self) -> tuple[Array, Array]:
        """Both ends, the lower first."""
        return self.low, self.high


class Sizes:
    """How large what each linear operator reads usually is, channel for channel, in the scale that it has by now."""

    def __init__(self, net: Net) -> None:
        ranges: dict[Tensor, Range] = {}
        self._reads: dict[Linear, Array] = {}
        for op in net.ops:
            known = [ranges.get(x) or _unknown(x) for x in op.inputs]
            if isinstance(op, Linear) and known[0] is not None:
                self._reads[op] = np.maximum(*map(np.abs, _channels(op, known[0])))
            found = _made(op, known) if op.outputs and None not in known else None
            if found is not None:
                ranges[op.outputs[0]] = found

    def check(self, op: Linear, gauges: Gauges) -> None:
        """Raise Refused where an operator would take a shift beside which what it reads is small."""
        (x,) = op.inputs
        if op in self._reads and x in gauges and gauges[x].shifts:
            _, shift = _given(op, gauges)
            if np.any(op.weighed(np.abs(shift)) > MOST_LOST * op.weighed(self._reads[op])):
                raise Refused(f"what {op} reads is so small beside the shift that it would lose its last digits")

    def follow(self, op: Linear, gauges: Gauges) -> None:
        """Tell what an operator reads in the scale that it has under gauges which were carried out."""
        if op in self._reads and op.inputs[0] in gauges:
            scale, _ = _given(op, gauges)
            self._reads[op] = self._reads[op] / np.abs(np.where(scale == 0, 1.0, scale))

    def widen(self, op: Linear, w: Widening) -> None:
        """Give the channel that an operator reads more its size."""
        if op in self._reads:
            self._reads[op] = np.insert(self._reads[op], w.index, np.full(w.count, abs(w.value)))


def _given(op: Linear, gauges: Gauges) -> tuple[Array, Array]:
    """Scale and shift of what a linear operator reads, (in,) each."""
    channels = gauges[op.inputs[0]].channels(op.axis_in, op.reads)
    assert channels is not None
    return channels


def _channels(op: Linear, x: Range) -> tuple[Array, Array]:
    """Both ends of what a linear operator reads, (in,) each."""
    channels = Affine(x.low, x.high).channels(op.axis_in, op.reads)
    if channels is None:  # they differ along another axis
        return np.full(op.reads, x.low.min()), np.full(op.reads, x.high.max())
    return channels


def _unknown(tensor: Tensor) -> Range | None:
    """A standard normal tensor; None where its rank is not known."""
    if tensor.shape is None:
        return None
    zero = np.zeros((1,) * len(tensor.shape))
    return Range.around(zero, zero + _REACH)


def _made(op: Op, inputs: list[Range | None]) -> Range | None:
    """The range of the first output; None where nothing is known of it."""
    known = [r for r in inputs if r is not None]
    if not known or op.outputs[0].shape is None:
        return None
    x = known[0]
    if isinstance(op, Scaling):
        if op.makes is not None:
            return Range.around(op.makes.shift, _REACH * op.makes.scale)
        return Range.between(*(op.params.scale * end + op.params.shift for end in x.ends))
    if isinstance(op, Clamp):
        return Range(*(np.minimum(np.maximum(end, op.params.lo), op.params.hi) for end in x.ends))
    if isinstance(op, Sloped):
        return Range.between(*(np.where(end < 0, op.params * end, end) for end in x.ends))
    if isinstance(op, Activation):
        ends = [np.array([op.function(v) for v in end.flat]).reshape(end.shape) for end in x.ends]
        return Range.between(*ends) if all(np.isfinite(end).all() for end in ends) else None
    if isinstance(op, Same):
        return x
    if isinstance(op, Pooling) and not op.drops_axes:
        return Range(x.low.min(axis=op.axes, keepdims=True), x.high.max(axis=op.axes, keepdims=True))
    if isinstance(op, Transpose):
        return Range(x.low.transpose(op.axes), x.high.transpose(op.axes))
    if isinstance(op, Linear):
        return _linear(op, x)
    if isinstance(op, Sum) and len({r.low.ndim for r in known}) == 1:
        centers = [sign * (r.low + r.high) / 2 for sign, r in zip(op.signs, known, strict=True)]
        reach = np.sqrt(sum(((r.high - r.low) / 2) ** 2 for r in known))
        return Range.around(sum(centers[1:], centers[0]), reach)
    if isinstance(op, Concat) and all(isinstance(t.shape[op.axis], int) for t in op.inputs if t.shape is not None):
        return _joined(op, known)
    return None


def _linear(op: Linear, x: Range) -> Range:
    """Channels that vary on their own: means add up by the weights, variances by their squares."""
    weight = op.params.weight
    taps = weight.reshape(*weight.shape[:3], -1)
    low, high = (end.reshape(len(weight), 1, -1) for end in _channels(op, x))
    mean = (taps.sum(axis=3) * (high + low) / 2).sum(axis=2).reshape(-1) + op.params.bias
    deviation = np.sqrt(((taps**2).sum(axis=3) * ((high - low) / 2) ** 2).sum(axis=2)).reshape(-1)
    shape = [1] * op.outputs[0].rank
    shape[op.axis_out] = -1
    return Range.around(mean.reshape(shape), deviation.reshape(shape))


def _joined(op: Concat, parts: list[Range]) -> Range:
    sizes = [x.size(op.axis) for x in op.inputs]
    whole = joined([Affine(r.low, r.high) for r in parts], sizes, op.axis)
    return Range(whole.scale, whole.shift)

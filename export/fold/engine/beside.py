"""An affine beside a linear operator that reads the same tensor: it goes into the taps that meet the same position.

    conv(x) + (s x + t) = conv'(x)      W'[c, c, m] = W[c, c, m] + s[c],  b' = b + t

m is the tap that lies on the output's own position. There is one where the convolution has no strides and pads to the
same length. Networks with several branches in training have such sums (RepVGG, Ding et al. 2021, arXiv:2101.03697,
section 3.3). The sum goes, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Net, Op, Tensor
from normfold.export.fold.number_readers import number_readers
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.scaling import Scaling
from normfold.export.fold.ops.weights import Weights

__all__ = ["Beside", "beside", "identity_beside"]


@dataclass(frozen=True)
class Beside:
    """A linear operator that takes an affine of its input, and the sum that adds the two."""

    linear: Linear
    weights: Weights
    sum: Sum
    #: The affine of the tensor that the linear operator reads.
    summand: Tensor

    def carry_out(self, net: Net) -> None:
        """Take the weights, and the sum out of the network; what computes the affine then has no reader."""
        self.linear.take(self.weights)
        self.sum.inputs.remove(self.summand)
        self.summand.readers.remove(self.sum)
        net.remove(self.sum)


def beside(target: Scaling) -> Beside | None:
    """Return how an affine goes into a linear operator beside it, or None."""
    (x,), (y,) = target.inputs, target.outputs
    return _into(x, y, target.params) if len(number_readers(y)) == 1 and not y.pinned else None


def identity_beside(tensor: Tensor) -> Beside | None:
    """Return how a tensor that a sum adds goes into a linear operator that reads it, where the sum gives ``tensor``."""
    total = tensor.producer
    if not isinstance(total, Sum) or len(number_readers(tensor)) != 1:
        return None
    found = (_into(x, x, Affine.identity(x.rank), total) for x in total.inputs)
    return next((one for one in found if one is not None), None)


def _into(x: Tensor, summand: Tensor, affine: Affine, total: Op | None = None) -> Beside | None:
    """Return how ``summand``, the affine of ``x``, goes into a linear operator that its sum adds to it."""
    total = total or number_readers(summand)[0]
    if not isinstance(total, Sum) or len(total.inputs) != 2 or total.outputs[0].pinned or x.shape is None:
        return None
    other = next((t for t in total.inputs if t is not summand), summand)
    signs = dict(zip(total.inputs, total.signs, strict=True))
    if other is summand or signs[other] < 0:
        return None
    for linear, sign in _linears(other, x, 1):
        weights = _with(linear, affine, sign * signs[summand])
        if weights is not None:
            return Beside(linear, weights, total, summand)
    return None


def _linears(tensor: Tensor, x: Tensor, sign: int) -> list[tuple[Linear, int]]:
    """Return the linear operators that read ``x`` and compute a summand of ``tensor`` alone, with its sign."""
    producer = tensor.producer
    if len(number_readers(tensor)) != 1 or tensor.pinned or tensor.shape is None or tensor.rank != x.rank:
        return []
    if isinstance(producer, Sum):
        parts = zip(producer.inputs, producer.signs, strict=True)
        return [found for part, sigma in parts for found in _linears(part, x, sign * sigma)]
    return [(producer, sign)] if isinstance(producer, Linear) and producer.inputs[0] is x else []


def _with(linear: Linear, affine: Affine, sign: int) -> Weights | None:
    """Return the weights that also compute ``affine`` of the input, times ``sign``; None where they cannot."""
    weights, middle = linear.params, linear.middle
    groups, out, inner = weights.weight.shape[:3]
    channels = affine.channels(linear.axis_in, groups * inner)
    if middle is None or out != inner or channels is None or weights.offset is not None:
        return None
    scale, shift = channels
    weight: Array = weights.weight.copy()
    c = np.arange(groups * out)
    weight[(c // out, c % out, c % out, *middle)] += sign * scale
    return Weights(weight, weights.bias + sign * shift)

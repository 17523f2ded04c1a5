"""Weights of linear operators: the arithmetic that takes an affine into them, and how ONNX holds them.

A weight is held as (groups, out, in, *taps), so that one arithmetic serves convolution, its transpose and Gemm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from normfold.export.fold.affine import Array


class WeightForm(Enum):
    """How ONNX holds the weight of a linear operator."""

    CONV = "out, in, taps"
    TRANSPOSED = "in, out, taps"
    OUT_IN = "out, in"
    IN_OUT = "in, out"

    @property
    def has_taps(self) -> bool:
        """Whether it is the weight of a convolution or a transposed one, not a matrix."""
        return self in (WeightForm.CONV, WeightForm.TRANSPOSED)

    def of(self, weight: Array) -> Array:
        """Return a weight (groups, out, in, *taps) in this form."""
        groups, out, inner, *taps = weight.shape
        if self is WeightForm.CONV:
            return weight.reshape(groups * out, inner, *taps)
        if self is WeightForm.TRANSPOSED:
            return weight.swapaxes(1, 2).reshape(groups * inner, out, *taps)
        matrix: Array = weight[0]
        return matrix if self is WeightForm.OUT_IN else matrix.T


@dataclass(frozen=True, eq=False)
class Weights:
    """weight (groups, out/groups, in/groups, *taps) and bias (out,), float64."""

    weight: Array
    bias: Array
    #: What is added behind a product beside the bias, of the output's rank; None: nothing.
    offset: Array | None = None

    @property
    def groups(self) -> int:
        """The number of groups that the channels are divided into."""
        return int(self.weight.shape[0])

    def after_input(self, scale: Array, shift: Array, carrier: tuple[int, float] | None) -> Weights:
        """Return the weights that read ``x`` where these read ``scale * x + shift``; scale and shift of shape (in,).

        carrier: the index of a channel of x that always holds a constant, and that constant; its taps take the shift
        where the operator pads with zeros. None where nothing is padded: the bias takes the shift.
        """
        groups, _, inner = self.weight.shape[:3]
        taps = (1,) * (self.weight.ndim - 3)
        shifted = (self.weight * shift.reshape(groups, 1, inner, *taps)).sum(axis=2)  # (groups, out, *taps)
        weight = self.weight * scale.reshape(groups, 1, inner, *taps)
        if carrier is None:
            return Weights(weight, self.bias + shifted.reshape(len(self.bias), -1).sum(axis=1))
        index, constant = carrier
        weight[:, :, index] += shifted / constant
        return Weights(weight, self.bias)

    def before_output(self, scale: Array, shift: Array) -> Weights:
        """Return the weights that give ``scale * y + shift`` where these give y; scale and shift of shape (out,)."""
        per_output = scale.reshape(*self.weight.shape[:2], *(1,) * (self.weight.ndim - 2))
        return Weights(self.weight * per_output, self.bias * scale + shift)

    def spread_of(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return mean and reach (out,) of the output, where each input channel is independent within (in,) ends."""
        groups = self.groups
        taps = self.weight.reshape(*self.weight.shape[:3], -1)
        low, high = low.reshape(groups, 1, -1), high.reshape(groups, 1, -1)
        mean = (taps.sum(axis=3) * (high + low) / 2).sum(axis=2).reshape(-1) + self.bias
        reach = np.sqrt(((taps**2).sum(axis=3) * ((high - low) / 2) ** 2).sum(axis=2)).reshape(-1)
        return mean, reach

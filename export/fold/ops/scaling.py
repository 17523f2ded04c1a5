"""Affines by constants: BatchNormalization, and Mul, Add, Sub and Div by a constant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import AddedChannels, Constants, Gauges, Op, RemovedFrom, Tensor
from normfold.export.fold.ops import costs
from normfold.export.fold.ops.entrywise import Entrywise
from normfold.export.fold.ops.linear import inverse
from normfold.export.fold.ops.widening import channel_of, passed_on, with_entry
from normfold.export.fold.ranges import REACH, Range
from normfold.export.graphs.writing import Writing


class AffineForm(Enum):
    """The nodes that an affine is written as; the value is the ONNX operators' names."""

    IDENTITY = "Identity"
    SIGNS = "Mul by signs"
    SCALE = "Mul"
    SHIFT = "Add"
    BATCHNORM = "BatchNormalization"
    SCALE_SHIFT = "Mul, Add"


_COSTS = {
    AffineForm.IDENTITY: 0.0,
    AffineForm.SIGNS: costs.SIGNS_COST,
    AffineForm.SCALE: costs.SCALE_COST,
    AffineForm.SHIFT: costs.SHIFT_COST,
    AffineForm.BATCHNORM: costs.BATCHNORM_COST,
    AffineForm.SCALE_SHIFT: costs.SCALE_SHIFT_COST,
}


@dataclass(frozen=True)
class NormStatistics:
    """Mean and variance of a BatchNormalization, of the rank of its input, and its epsilon."""

    mean: Array
    variance: Array
    epsilon: float


@dataclass(frozen=True, eq=False)
class Scaled(Affine):
    """An affine, and the usual size of the entries that it maps: |mean| + sqrt(var) of a BatchNorm, 1 if unknown."""

    usual: Array
    #: Those of a BatchNormalization while it maps what it came to map; None once it is a part of another affine.
    statistics: NormStatistics | None = None

    @classmethod
    def like(cls, affine: Affine, usual: Array, statistics: NormStatistics | None = None) -> Scaled:
        """Return an affine with the usual size of its entries."""
        return cls(affine.scale, affine.shift, usual, statistics)


@dataclass(eq=False)
class Scaling(Entrywise):
    """BatchNormalization, or Mul/Add/Sub/Div by constants:  y = scale x + shift.  Takes any gauge on either side."""

    takes_affines: ClassVar[bool] = True
    emits_affines: ClassVar[bool] = True

    params: Scaled
    #: Whether the fold is to remove it: a BatchNorm, or a constant that differs from channel to channel.
    target: bool = False
    #: Whether it came as BatchNormalization.
    is_batchnorm: bool = False
    #: How many times larger |scale x| and |shift| usually are than their sum, over the channels. A mean many times its
    #: deviation cancels here; if scale and shift went into the readers apart, it would cancel in the readers' sums.
    cancels: float = 0.0
    #: The mean (shift) and deviation (scale) of what it computes, where its statistics give them.
    makes: Affine | None = None

    @property
    def by_channel(self) -> bool:
        """Whether it differs along exactly one axis."""
        return sum(self.params.varies(axis) for axis in range(self.params.rank)) == 1

    @property
    def _is_one_constant(self) -> bool:
        """Whether it is written with one constant for all channels. A BatchNorm never is, even if all are equal.

        A BatchNorm that changed a carrier, too, would lose it: with scale 1e-6 and shift 0.5 the carrier holds
        0.500001, and what the fold makes of it, (0.500001 - 0.5) / 1e-6, has lost six of its digits.
        """
        return not self.is_batchnorm and self.params.scale.size == self.params.shift.size == 1

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the input, any invertible gauge of the output."""
        if self.outputs[0] in gauges:
            inverse(gauges[self.outputs[0]], self)
        return {}

    def rewritten(self, gauges: Gauges) -> Scaled:
        """Return g_y⁻¹ ∘ A ∘ g_x."""
        (x,), (y,) = self.inputs, self.outputs
        affine: Affine = self.params
        if x in gauges:
            affine = affine.after(gauges[x])
        if y in gauges:
            affine = inverse(gauges[y], self).after(affine)
        return Scaled.like(affine, self.usual_under(x.gauge(gauges)))

    def usual_under(self, gauge: Affine) -> Array:
        """Return the usual size of its input's entries under a gauge of the input."""
        scale = np.abs(np.where(gauge.scale == 0, 1.0, gauge.scale))
        return (self.params.usual + np.abs(gauge.shift)) / scale

    def infer_usual(self) -> None:
        """Take the usual size of what an affine before it computes, unless its own statistics give a smaller one."""
        before = self.inputs[0].producer
        if isinstance(before, Scaling):
            made = np.abs(before.params.scale) * before.params.usual + np.abs(before.params.shift)
            usual = np.minimum(made, self.params.usual) if self.is_batchnorm else made
            self.params = replace(self.params, usual=usual)

    def undoes_shift(self, gauges: Gauges) -> bool:
        """It takes any shift of its input into its own."""
        (x,) = self.inputs
        return x in gauges and gauges[x].shifts

    def form(self, params: Affine) -> AffineForm:
        """Return the fewest nodes that these params can be written as, a BatchNormalization where it takes both parts.

        In the blocked layout of 2-D convolutions a shift alone is a BatchNormalization, too: an Add would leave the
        layout.
        """
        if params.is_identity:
            return AffineForm.IDENTITY
        if not params.shifts:
            return AffineForm.SIGNS if (params.scale == np.sign(params.scale)).all() else AffineForm.SCALE
        fits = self._fits_batchnorm(params)
        if fits and costs.in_blocks(self.outputs[0]):
            return AffineForm.BATCHNORM
        if (params.scale == 1).all():
            return AffineForm.SHIFT
        return AffineForm.BATCHNORM if fits else AffineForm.SCALE_SHIFT

    def cost(self, params: Affine) -> float:
        """Return the cost of the nodes that the params are written as."""
        return _COSTS[self.form(params)]

    def _fits_batchnorm(self, params: Affine) -> bool:
        by_other_axis = any(params.varies(axis) for axis in range(params.rank) if axis != 1)
        return self.outputs[0].channels is not None and not by_other_axis

    def stored(self, params: Scaled) -> Sequence[Array]:
        """Scale and shift."""
        return params.scale, params.shift

    def rows(self, params: Scaled) -> Array:
        """The scale of each channel."""
        return np.abs(params.scale)

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel passes unchanged where each channel has its constant; one constant for all changes it."""
        found = passed_on(self, added)
        y = self.outputs[0]
        if y in found and self._is_one_constant:
            scale, shift = self.params.scale.item(), self.params.shift.item()
            found[y] = replace(found[y], value=float(scale * found[y].value + shift))
        return found

    def with_channel(self, added: AddedChannels) -> Scaled:
        """Return the affine with the identity on the new channel; unchanged where all channels have one constant."""
        w, y = channel_of(self, added), self.outputs[0]
        if self._is_one_constant:
            usual = self.params.usual
            return Scaled.like(self.params, with_entry(usual, w, 1.0, y) if usual.shape[w.axis] > 1 else usual)
        affine = Affine.of(with_entry(self.params.scale, w, 1.0, y), with_entry(self.params.shift, w, 0.0, y))
        return Scaled.like(affine, with_entry(self.params.usual, w, 1.0, y))

    def is_rewritten(self, params: Scaled) -> bool:
        """Whether the node must be written again for params with one more channel.

        One constant for all channels stays as it is written: runtimes know GELU by its pattern.
        """
        return self.is_batchnorm or params.shift is not self.params.shift

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant; a channel with scale 0 becomes constant."""
        size = self.outputs[0].channels
        channels = self.params.channels(1, size) if size is not None else None
        if channels is None:
            return [None]
        scale, shift = channels
        before = known.get(self.inputs[0], np.full(len(scale), np.nan))
        return [np.where(scale == 0, shift, scale * before + shift)]

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> Scaled:
        """Return the affine of the channels that stay."""
        r = removed[self.outputs[0]]
        affine = Affine.of(r.cut(self.params.scale), r.cut(self.params.shift))
        came = self.params.statistics
        cut = came and replace(came, mean=r.cut(came.mean), variance=r.cut(came.variance))
        return Scaled.like(affine, r.cut(self.params.usual), cut)

    def range(self, inputs: Sequence[Range]) -> Range:
        """The range that its statistics give, else the affine of the input's ends."""
        if self.makes is not None:
            return Range.around(self.makes.shift, REACH * self.makes.scale)
        return Range.between(*map(self.at, inputs[0].ends))

    def at(self, entries: Array) -> Array:
        """The affine of the entries."""
        return self.params.scale * entries + self.params.shift

    def write(self, graph: Writing) -> None:
        """Write the affine in its form."""
        node, result = self.node, self.inputs[0].value
        params, y = self.params, self.outputs[0]
        like = y.value.name or "affine"
        form = self.form(params)
        if form is AffineForm.BATCHNORM:
            size = y.size(1)
            channels = params.channels(1, size)
            assert channels is not None
            scale, shift = channels
            mean, variance, epsilon = self._statistics(size)
            inputs = [
                result,
                graph.constant(scale * np.sqrt(variance + epsilon), f"{like}.scale"),
                graph.constant(shift + scale * mean, f"{like}.bias"),
                graph.constant(mean, f"{like}.mean"),
                graph.constant(variance, f"{like}.var"),
            ]
            result = graph.insert("BatchNormalization", inputs, node, like, epsilon=epsilon)
        else:
            if form in (AffineForm.SIGNS, AffineForm.SCALE, AffineForm.SCALE_SHIFT):
                result = graph.insert("Mul", [result, graph.constant(params.scale, f"{like}.scale")], node, like)
            if form in (AffineForm.SHIFT, AffineForm.SCALE_SHIFT):
                result = graph.insert("Add", [result, graph.constant(params.shift, f"{like}.shift")], node, like)
        y.become(result, graph)

    def _statistics(self, size: int) -> tuple[Array, Array, float]:
        """Mean, variance and epsilon to write: those that came, else 0, 1 and 0."""
        if (came := self.params.statistics) is None:
            return np.zeros(size), np.ones(size), 0.0
        channels = Affine.of(came.variance, came.mean).channels(1, size)
        assert channels is not None
        return channels[1], channels[0], came.epsilon


def cancelling(scale: Array, shift: Array, mean: Array, variance: Array) -> Array:
    """Return, for each channel, how many times larger the two terms of a BatchNorm usually are than their sum."""
    deviation = np.sqrt(np.maximum(variance, 0.0))  # rounding may leave a variance of 0 just below it, above -epsilon
    apart = np.abs(scale) * (np.abs(mean) + deviation)
    together = np.maximum(np.abs(scale) * deviation + np.abs(shift + mean * scale), 1e-300)
    ratios: Array = apart / together
    return ratios


def mean_cancelling(ratios: Array, scale: Array) -> float:
    """Return the root mean square of what ``cancelling`` gives, over the channels that are not scaled by 0."""
    live = ratios[scale != 0]
    return float(np.sqrt(np.mean(live**2))) if live.size else 0.0


def scalings(ops: Iterable[Op]) -> list[Scaling]:
    """Return the affines among operators."""
    return [op for op in ops if isinstance(op, Scaling)]


def targets(ops: Iterable[Op]) -> list[Scaling]:
    """Return the affines that the fold is to remove."""
    return [op for op in scalings(ops) if op.target]

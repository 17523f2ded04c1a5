"""Pools, reductions, resizing and repeating along positions: they treat every channel alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Dim, Gauges, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops.entrywise import Passing, lost_by_both
from normfold.export.fold.ranges import Range


@dataclass(eq=False)
class Pooling(Passing):
    """An operator over positions, the same for every channel.

        mean:  any affine passes:                 mean(s x + t) = s mean(x) + t
               (a resize or a repetition is a mean of one or two entries)
        sum:   n entries, n known:                sum(s x + t) = s sum(x) + n t;   the scale alone for any n
        max:   an affine with s >= 0 passes:      max(s x + t) = s max(x) + t;   the same for min
    A mean that counts zero padding is a zero-padded convolution: the scale passes, a shift does not.
    """

    passes_scale: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True

    #: The axes along which it works; a gauge must not differ along them.
    axes: tuple[int, ...] = ()
    #: Whether it keeps the largest or the smallest entries, so that only s >= 0 passes.
    monotone: bool = False
    #: The number of entries that it adds up; 1 for a mean, None for a sum of a dynamic number.
    terms: int | None = 1
    #: Whether it averages zeros from beyond the ends, so that no shift passes.
    counts_zeros: bool = False
    #: The share of its entries that a max-pool keeps; 1 where clamps by channel cannot move behind it.
    kept: float = 1.0
    #: Whether the node is given the number of channels, which must then stay: Expand to a shape, Resize to sizes.
    fixed: bool = False
    #: Whether the output lacks the axes (keepdims = 0).
    drops_axes: bool = False

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Input and output have the same gauge, without the axes that the output lacks."""
        (x,), y = self.inputs, self.outputs[0]
        gauge = gauges[x] if x in gauges else self._with_axes(gauges[y])
        if any(gauge.varies(axis) for axis in self.axes):
            if 1 in self.axes and gauge.varies(1):
                raise Refused(f"{self} mixes channels, and here they have different scales or shifts")
            raise Refused(f"{self} mixes positions, and here the scale differs from position to position")
        if self.monotone and np.any(gauge.scale < 0):
            kept = "smallest" if self.node.op_type == "ReduceMin" else "largest"
            raise Refused(f"{self} keeps the {kept} entry, and {_some(gauge.scale < 0)} scaled by a negative number")
        if self.counts_zeros and gauge.shifts:
            raise Refused(f"{self} averages its zero padding, which does not take the shift")
        if gauge.shifts:
            factor = self._factor if x in gauges else 1 / self._factor
            passed = Affine.of(gauge.scale, factor * gauge.shift)
        else:
            passed = gauge
        return {y: self._without_axes(passed)} if x in gauges else {x: passed}

    @property
    def _factor(self) -> int:
        """The number of times that a shift of the input is in the output; refused where that is dynamic."""
        if self.terms is None:
            raise Refused(
                f"{self} adds up a dynamic number of positions, so its output has no constant shift; "
                "a mean in its place would let the shift pass"
            )
        return self.terms

    def _without_axes(self, gauge: Affine) -> Affine:
        if not self.drops_axes:
            return gauge
        return Affine.of(gauge.scale.squeeze(self.axes), gauge.shift.squeeze(self.axes))

    def _with_axes(self, gauge: Affine) -> Affine:
        if not self.drops_axes:
            return gauge
        return Affine.of(np.expand_dims(gauge.scale, self.axes), np.expand_dims(gauge.shift, self.axes))

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel: its constant passes, unless zeros are averaged in."""
        x, y = self.inputs[0], self.outputs[0]
        if self.fixed:
            raise Refused(f"{self} is given the number of channels")
        w = added[x] if x in added else added[y]
        axes = sorted(self.axes)
        if x in added:
            if w.axis in axes:
                raise Refused(f"{self} works along the channels")
            if self.counts_zeros and w.value != 0:
                raise Refused(f"{self} averages its zero padding, so no channel stays constant through it")
            axis = w.axis - (sum(a < w.axis for a in axes) if self.drops_axes else 0)
            return {y: replace(w, axis=axis, value=w.value * self._factor)}
        axis = w.axis
        if self.drops_axes:
            for a in axes:
                axis += a <= axis
        return {x: replace(w, axis=axis)}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant, unless zeros are averaged in."""
        before = known.get(self.inputs[0])
        if before is None or 1 in self.axes or 0 in self.axes:
            return [None] * len(self.outputs)
        only_zeros = self.counts_zeros or self.terms is None
        after = np.where(before == 0, before, np.nan) if only_zeros else before * self._factor
        return [after, *[None] * (len(self.outputs) - 1)]

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Input and output lose the same channels, where the channels keep their axis."""
        if self.fixed or 1 in self.axes or (self.drops_axes and min(self.axes, default=2) < 2):
            raise Refused(f"{self} needs the channel")
        return lost_by_both(self, removed)

    def range(self, inputs: Sequence[Range]) -> Range | None:
        """The least and the greatest end along its axes."""
        if self.drops_axes or self.terms != 1:
            return None
        x = inputs[0]
        return Range(x.low.min(axis=self.axes, keepdims=True), x.high.max(axis=self.axes, keepdims=True))

    def output_shape(self) -> tuple[Dim, ...] | None:
        """The input's shape with lengths of their own along its axes."""
        x, name = self.inputs[0], self.outputs[0].name
        if x.shape is None or self.drops_axes:
            return None
        return tuple(f"{name}[{i}]" if i in self.axes else d for i, d in enumerate(x.shape))


def _some(mask: NDArray[np.bool_]) -> str:
    count = int(np.count_nonzero(mask))
    return f"{count} of {mask.size} channels {'is' if count == 1 else 'are'}"

"""Padding: entries added before and behind, along positions, channels or the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from normfold.export.fold.affine import Affine, Array, joined
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import AddedChannels, Dim, Gauges, Refused, Tensor
from normfold.export.fold.ops.entrywise import Passing


@dataclass(eq=False)
class Padding(Passing):
    """Pad. Mirrored or repeated edges let any affine pass; zeros let a scale pass; new channels have the identity.

    pad(s x + t) = s pad(x) + t     mode reflect, edge, wrap
    pad(s x)     = s pad(x)         mode constant, value 0
    """

    #: The number of entries added before and behind, for each axis; 0 for an axis that is left alone.
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    zeros: bool = False

    @property
    def ends_in_zeros(self) -> bool:
        """Whether it adds zeros before or behind positions, or rows of zeros to the batch."""
        return self.zeros and any(any(ends[:1] + ends[2:]) for ends in (self.before, self.behind))

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The gauge passes; along a padded axis it must not differ, but for new channels of zeros.

        New channels of zeros take any scale, so where both sides are known, the output's says what the input's is.
        """
        (x,), (y,) = self.inputs, self.outputs
        padded = [a for a in range(len(self.before)) if self.before[a] or self.behind[a]]
        gauge = gauges[x] if x in gauges else gauges[y]
        for a in padded:
            if a == 1 and self.zeros and len(padded) == 1 and x.channels is not None:
                return self._along_channels(gauges, x, y)
            if gauge.varies(a):
                raise Refused(f"{self} pads an axis along which the scale differs")
        if self.zeros and padded and gauge.shifts and (1 in padded or not all(r.reads_past_zeros for r in y.readers)):
            raise Refused(f"{self} pads with zeros, which do not take the shift")
        return {y: gauge} if x in gauges else {x: gauge}

    def _along_channels(self, gauges: Gauges, x: Tensor, y: Tensor) -> dict[Tensor, Affine]:
        size, lead, tail = x.size(1), self.before[1], self.behind[1]
        if y not in gauges:
            one = Affine.identity(x.rank)
            return {y: joined([one, gauges[x], one], [lead, size, tail], 1)}
        gauge = gauges[y]
        new = np.r_[0:lead, lead + size : lead + size + tail]
        if gauge.take(1, new).shifts:
            raise Refused(f"{self} adds channels of zeros, which do not take a shift")
        return {x: gauge.take(1, np.arange(lead, lead + size))}

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel passes; behind zeros it holds its constant within the ends, as a carrier should."""
        (x,), (y,) = self.inputs, self.outputs
        w = added[x] if x in added else added[y]
        padded = [a for a in range(len(self.before)) if self.before[a] or self.behind[a]]
        if w.axis in padded:
            if padded != [w.axis]:
                raise Refused(f"{self} pads channels and positions at once")
            if x in added:
                return {y: replace(w, index=w.index + self.before[w.axis])}
            index = w.index - self.before[w.axis]
            if not 0 <= index <= x.size(w.axis):
                raise Refused(f"{self} adds channels of zeros where the new channel would be")
            return {x: replace(w, index=index)}
        return {y: w} if x in added else {x: w}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant if the edges are mirrored; new channels hold 0."""
        before = known.get(self.inputs[0])
        if before is None or len(self.before) < 2:
            return [None]
        if self.ends_in_zeros:
            before = np.where(before == 0, before, np.nan)
        if (self.before[1] or self.behind[1]) and not self.zeros:
            return [None]
        return [np.concatenate([np.zeros(self.before[1]), before, np.zeros(self.behind[1])])]

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The input's lengths along the axes that are not padded."""
        padded = zip(self.before, self.behind, strict=True)
        return [size if lead == tail == 0 else None for size, (lead, tail) in zip(shapes[0], padded, strict=True)]

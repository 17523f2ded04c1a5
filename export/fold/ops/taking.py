"""Gather by indices of any rank, GatherElements, and the pixel shuffle: any affine passes that the pattern allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, Array, placed
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Dim, Gauges, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops.entrywise import Passing, lost_by_both
from normfold.export.fold.ranges import Range


@dataclass(eq=False)
class Take(Passing):
    """Gather, and GatherND along one axis: y = take(x, indices, axis). Windows of time steps are taken so.

        take(s x + t) = s take(x) + t        where s and t are the same all along the axis, whatever the indices are,
                                             and any s and t where the indices are known: they are taken likewise

    The axes of the indices take the place of the one axis of the input.
    """

    passes_scale: ClassVar[bool] = True

    axis: int = 0
    #: The number of axes of the indices; 0 drops the axis.
    index_rank: int = 1
    #: The indices, none of them negative, where they are constant and the length of the axis is known.
    index: NDArray[np.int64] | None = None

    @property
    def _new_axes(self) -> range:
        return range(self.axis, self.axis + self.index_rank)

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Input and output have the same gauge; one that differs along the axis is taken as the entries are."""
        (x,), (y,) = self.inputs, self.outputs
        gauge = gauges[x] if x in gauges else gauges[y]
        if any(gauge.varies(a) for a in ([self.axis] if x in gauges else self._new_axes)):
            if self.index is not None:
                before = gauge if x in gauges else self._whole(gauge, self.index)
                return {x: before, y: before.taken(self.axis, self.index)}
            raise Refused(f"{self} picks entries of an axis along which the scale or shift differs")
        if x in gauges:
            return {y: Affine.of(self._behind(gauge.scale), self._behind(gauge.shift))}
        return {x: Affine.of(self._before(gauge.scale), self._before(gauge.shift))}

    def _whole(self, gauge: Affine, index: NDArray[np.int64]) -> Affine:
        """Return the gauge of the input under which each entry of the output has its own, where that is possible.

        Where an entry is taken twice under two gauges, the output's does not follow from it.
        """
        x, new = self.inputs[0], slice(self.axis, self.axis + self.index_rank)
        parts = []
        for part in (gauge.scale, gauge.shift):
            shape = [*part.shape[: self.axis], *index.shape, *part.shape[new.stop :]]
            parts.append(np.broadcast_to(part, shape).reshape([*shape[: self.axis], index.size, *shape[new.stop :]]))
        return placed(Affine.identity(x.rank), Affine.of(*parts), index.reshape(-1), x.size(self.axis), self.axis)

    def _behind(self, part: Array) -> Array:
        return part.reshape([*part.shape[: self.axis], *[1] * self.index_rank, *part.shape[self.axis + 1 :]])

    def _before(self, part: Array) -> Array:
        return part.reshape(*part.shape[: self.axis], 1, *part.shape[self.axis + self.index_rank :])

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel passes on every other axis."""
        (x,), (y,) = self.inputs, self.outputs
        w = added[x] if x in added else added[y]
        if w.axis in ([self.axis] if x in added else self._new_axes):
            raise Refused(f"{self} picks channels by number")
        moved = (self.index_rank - 1) * (w.axis > self.axis)
        return {y: replace(w, axis=w.axis + moved)} if x in added else {x: replace(w, axis=w.axis - moved)}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant where a later axis is picked from."""
        return [known.get(self.inputs[0]) if self.axis > 1 else None]

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Input and output lose the same channels, where a later axis is picked from."""
        if self.axis < 2:
            raise Refused(f"{self} needs the channel")
        return lost_by_both(self, removed)

    def range(self, inputs: Sequence[Range]) -> Range:
        """The least and the greatest end along the axis."""
        x = inputs[0]
        low, high = x.low.min(axis=self.axis, keepdims=True), x.high.max(axis=self.axis, keepdims=True)
        return Range(self._behind(low), self._behind(high))

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths of the input on every axis but those of the indices."""
        (shape,) = shapes
        return [*shape[: self.axis], *[None] * self.index_rank, *shape[self.axis + 1 :]]


@dataclass(eq=False)
class TakeEach(Passing):
    """GatherElements: each entry is picked along one axis by an index of its own, as the last step before the padding.

        take(s x + t) = s take(x) + t        where s and t are the same all along the axis

    Along every other axis the output holds the first entries of the input; here, all of them.
    """

    passes_scale: ClassVar[bool] = True

    axis: int = 0

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Input and output have the same gauge, which must not differ along the axis."""
        (x,), (y,) = self.inputs, self.outputs
        gauge = gauges[x] if x in gauges else gauges[y]
        if gauge.varies(self.axis):
            raise Refused(f"{self} picks entries of an axis along which the scale or shift differs")
        if any(gauge.varies(a) and x.size(a) != y.size(a) for a in range(x.rank)):
            raise Refused(f"{self} leaves out entries of an axis along which the scale or shift differs")
        return {y: gauge} if x in gauges else {x: gauge}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant where a later axis is picked from."""
        (x,), (y,) = self.inputs, self.outputs
        return [known.get(x) if self.axis > 1 and x.channels == y.channels else None]


@dataclass(eq=False)
class DepthToSpace(Passing):
    """DepthToSpace (pixel shuffle): ``block²`` channels of the input hold one channel of the output.

    shuffle(s x + t) = s shuffle(x) + t        where the channels that are shuffled into one have one s and one t
    """

    passes_scale: ClassVar[bool] = True

    block: int = 1
    #: Whether the channels that belong together are neighbours (mode CRD), and not C channels apart (mode DCR).
    neighbours: bool = True

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The input's channels have the gauge of the channel that they are shuffled into."""
        (x,), (y,) = self.inputs, self.outputs
        gauge = gauges[x] if x in gauges else gauges[y]
        if any(gauge.varies(a) for a in range(gauge.rank) if a != 1):
            raise Refused(f"{self} mixes positions, and here the scale differs from position to position")
        if not gauge.varies(1):
            return {y: gauge} if x in gauges else {x: gauge}
        share, size = self.block**2, x.size(1)
        # For each channel of the input, the channel of the output.
        into = np.arange(size) // share if self.neighbours else np.arange(size) % (size // share)
        if x not in gauges:
            return {x: gauge.take(1, into)}
        firsts = np.array([int(np.flatnonzero(into == c)[0]) for c in range(size // share)])
        passed = gauge.take(1, firsts)
        if not passed.take(1, into).equals(gauge):
            raise Refused(f"{self} shuffles channels of different scales or shifts into one")
        return {y: passed}

"""Operators that put tensors side by side or take parts of them: concat, split, slice, gather. Any affine passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Affine, Array, joined, placed
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Constants, Dim, Gauges, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops.entrywise import Passing
from normfold.export.fold.ranges import Range
from normfold.export.graphs.writing import Writing


@dataclass(eq=False)
class Concat(Passing):
    """y = concat(x₁, x₂, …) along an axis: the output's affine is the inputs', joined."""

    joins_tensors: ClassVar[bool] = True

    axis: int = 1

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Inputs have the output's slices; the output has the inputs joined, identity where none is known.

        What is the same all along the axis needs no lengths: positions of a dynamic length may be joined.
        """
        (y,) = self.outputs
        common = gauges[y] if y in gauges else self.inputs[0].gauge(gauges)
        if not common.varies(self.axis):
            if y in gauges:
                return dict.fromkeys(self.inputs, common)
            if all(x in gauges and gauges[x].equals(common) for x in self.inputs):
                return {y: common}
            if not all(x.shape is not None and isinstance(x.shape[self.axis], int) for x in self.inputs):
                raise Refused(f"{self} joins tensors of a dynamic length, and not all of them are scaled alike")
        sizes = self._sizes()
        if y in gauges:
            starts = np.cumsum([0, *sizes])
            found: dict[Tensor, Affine] = {}
            for k, x in enumerate(self.inputs):
                part = gauges[y].take(self.axis, np.arange(starts[k], starts[k + 1]))
                if x in found and not found[x].equals(part):
                    raise Refused(f"{self} joins '{x.name}' twice, and the two would need different scales")
                found[x] = part
            return found
        return {y: joined([x.gauge(gauges) for x in self.inputs], sizes, self.axis)}

    def _sizes(self) -> list[int]:
        return [x.size(self.axis) for x in self.inputs]

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel in an input is one more in the output, and the other way round."""
        (y,) = self.outputs
        known = [k for k, x in enumerate(self.inputs) if x in added]
        if len(set(self.inputs)) < len(self.inputs):
            raise Refused(f"{self} joins a tensor with itself")
        w = added[self.inputs[known[0]]] if known else added[y]
        if w.axis != self.axis:
            raise Refused(f"{self} joins along another axis than the channels")
        sizes = self._sizes()
        if known:
            if len(known) > 1:
                raise Refused(f"{self} would grow by more than one channel")
            return {y: replace(w, index=w.index + sum(sizes[: known[0]]))}
        starts = np.cumsum([0, *sizes])
        k = next((k for k in reversed(range(len(sizes))) if starts[k] < w.index <= starts[k + 1]), 0)
        return {self.inputs[k]: replace(w, index=int(w.index - starts[k]))}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """The constant channels of the inputs, joined."""
        if self.axis != 1:
            return [None]
        parts = []
        for x in self.inputs:
            if x.channels is None:
                return [None]
            parts.append(known[x] if x in known else np.full(x.channels, np.nan))
        return [np.concatenate(parts)]

    @property
    def _joins_different_channels(self) -> bool:
        return self.axis == 1 and len(set(self.inputs)) == len(self.inputs)

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Output and one input lose the same channels, numbered from that input's first one."""
        if not self._joins_different_channels:
            raise Refused(f"{self} needs the channel")
        (y,) = self.outputs
        starts = np.cumsum([0, *self._sizes()])
        known = [k for k, x in enumerate(self.inputs) if x in removed]
        if len(known) > 1:
            raise Refused(f"{self} would lose two channels")
        if known:
            r = removed[self.inputs[known[0]]]
            return {y: replace(r, index=int(r.index + starts[known[0]]))}
        k = int(np.searchsorted(starts, removed[y].index, side="right")) - 1
        return {self.inputs[k]: replace(removed[y], index=int(removed[y].index - starts[k]))}

    def range(self, inputs: Sequence[Range]) -> Range | None:
        """The ranges of the inputs, joined."""
        if not all(x.shape is not None and isinstance(x.shape[self.axis], int) for x in self.inputs):
            return None
        whole = joined([Affine(r.low, r.high) for r in inputs], self._sizes(), self.axis)
        return Range(whole.scale, whole.shift)

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The sum of the lengths along its axis; along every other axis the length of any input that is a number."""
        axis = self.axis % len(shapes[0])
        columns = [[size for size in sizes if isinstance(size, int)] for sizes in zip(*shapes, strict=True)]
        return [
            (sum(sizes) if len(sizes) == len(shapes) else None) if a == axis else sizes[0] if sizes else None
            for a, sizes in enumerate(columns)
        ]


@dataclass(eq=False)
class Select(Passing):
    """Split, Slice and Gather by constant indices: output k holds the input's slices ``picks[k]`` along an axis."""

    axis: int = 1
    #: For each output the indices that it holds; None where lengths are dynamic: no affine may differ along the axis.
    picks: tuple[Any, ...] = ()
    #: The axes of a Slice over positions, along which any constant affine passes.
    positions: tuple[int, ...] = ()

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Outputs have the input's slices; the input has each output's gauge where it is read, identity elsewhere."""
        (x,) = self.inputs
        if x in gauges:
            g = gauges[x]
            if any(g.varies(a) for a in self.positions):
                raise Refused(f"{self} cuts positions, and here the scale differs from position to position")
            return {y: g if p is None else g.take(self.axis, p) for y, p in zip(self.outputs, self.picks, strict=True)}
        if any(p is None for p in self.picks):
            (y,) = self.outputs
            if any(gauges[y].varies(a) for a in self.positions):
                raise Refused(f"{self} cuts positions, and here the scale differs from position to position")
            return {x: gauges[y]}
        size = x.size(self.axis)
        whole: Affine | None = None
        for y, pick in zip(self.outputs, self.picks, strict=True):
            if y in gauges:
                here = Affine.identity(x.rank) if whole is None else whole
                whole = placed(here, gauges[y], pick, size, self.axis)
        assert whole is not None
        return {x: whole, **{y: whole.take(self.axis, p) for y, p in zip(self.outputs, self.picks, strict=True)}}

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel goes with the neighbour before it; a Slice over positions lets it pass."""
        (x,) = self.inputs
        if all(p is None for p in self.picks):
            (y,) = self.outputs
            w = added[x] if x in added else added[y]
            if w.axis in self.positions:
                raise Refused(f"{self} cuts the axis of the channels")
            return {y: w} if x in added else {x: w}
        if self.node.op_type != "Split":
            raise Refused(f"{self} picks channels by number")
        sizes = [len(p) for p in self.picks]
        starts = [int(s) for s in np.cumsum([0, *sizes[:-1]])]
        known = [k for k, y in enumerate(self.outputs) if y in added]
        if x in added:
            w = added[x]
            if w.axis != self.axis:
                raise Refused(f"{self} splits another axis than the channels")
            if len(known) > 1:
                raise Refused(f"{self} would grow by more than one channel")
            k = max(k for k in range(len(starts)) if starts[k] < w.index or k == 0)
            return {self.outputs[k]: replace(w, index=w.index - starts[k])}
        if len(known) > 1:
            raise Refused(f"{self} would grow by more than one channel")
        w = added[self.outputs[known[0]]]
        if w.axis != self.axis:
            raise Refused(f"{self} splits another axis than the channels")
        if w.index != sizes[known[0]]:
            raise Refused(f"{self} carries a new channel only at the end of a part")
        return {x: replace(w, index=starts[known[0]] + w.index)}

    def with_channel(self, added: AddedChannels) -> Any:
        """Return the sizes of the parts with the one that grows."""
        if all(p is None for p in self.picks):
            return None
        return [len(p) + (added[y].count if y in added else 0) for y, p in zip(self.outputs, self.picks, strict=True)]

    def write(self, graph: Writing) -> None:
        """Write the sizes of the parts."""
        if self.params is None:
            return
        if graph.opset < 13:
            self.node.attributes["split"] = ir.AttrInt64s("split", list(self.params))
        else:
            sizes = graph.constant(np.array(self.params, np.float64), f"{self.name}.split", np.dtype(np.int64))
            self.node.attributes.pop("num_outputs", None)
            self.node.resize_inputs(2)
            self.node.replace_input_with(1, sizes)

    def take(self, params: Any, changed: bool = True) -> None:
        """Take new sizes of the parts, and pick what they say."""
        super().take(params, changed)
        if params is not None:
            self.picks = tuple(np.arange(a, b) for a, b in pairwise(np.cumsum([0, *params])))

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """All lose the same channels; where a Split parts the channels, its input and the part that holds them."""
        if self.axis != 1 and 1 not in self.positions:
            whole = (*self.inputs, *self.outputs)
            return dict.fromkeys(whole, next(removed[t] for t in whole if t in removed))
        if self.node.op_type != "Split" or self.axis != 1 or any(p is None for p in self.picks):
            raise Refused(f"{self} needs the channel")
        (x,) = self.inputs
        firsts = [int(s) for s in np.cumsum([0, *(len(p) for p in self.picks[:-1])])]
        known = [k for k, y in enumerate(self.outputs) if y in removed]
        if len(known) > 1:
            raise Refused(f"{self} would lose two channels")
        if known:
            r = removed[self.outputs[known[0]]]
            return {x: replace(r, index=r.index + firsts[known[0]])}
        k = max(k for k in range(len(firsts)) if firsts[k] <= removed[x].index)
        return {self.outputs[k]: replace(removed[x], index=removed[x].index - firsts[k])}

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> list[int] | None:
        """Return the sizes of the parts without what they lose; None where it takes parts of another axis."""
        if self.axis != 1:
            return None
        parts = zip(self.outputs, self.picks, strict=True)
        return [len(p) - (removed[y].count if y in removed else 0) for y, p in parts]

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The number of picked indices along its axis, none along cut positions, and the input's lengths elsewhere."""
        pick = self.picks[index]
        cut = set(self.positions) or {self.axis % len(shapes[0])}
        picked = None if pick is None or self.positions else len(pick)
        return [picked if a in cut else size for a, size in enumerate(shapes[0])]

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """The constant channels of the input, sliced."""
        before = known.get(self.inputs[0])
        if before is None:
            return [None] * len(self.outputs)
        if self.axis == 1 and all(p is not None for p in self.picks):
            return [before[p] for p in self.picks]
        return [before if 1 not in self.positions and self.axis != 1 else None for _ in self.outputs]

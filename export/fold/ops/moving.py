"""Operators that move all entries and change none: transpose, reshape, flatten, squeeze. Any affine passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Constants, Dim, Gauges, Op, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops.entrywise import Passing
from normfold.export.fold.ranges import Range
from normfold.export.graphs.writing import Writing


@dataclass(eq=False)
class Transpose(Passing):
    """y = transpose(x, axes): the affine is transposed."""

    passes_scale: ClassVar[bool] = True

    axes: tuple[int, ...] = ()

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The output's gauge is the input's, transposed."""
        (x,), (y,) = self.inputs, self.outputs
        return {y: gauges[x].moved(self.axes)} if x in gauges else {x: gauges[y].moved(np.argsort(self.axes).tolist())}

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """Refuse any: constants are known along axis 1 only."""
        raise Refused(f"{self} moves the channels to another axis, through which no constant is followed")

    def range(self, inputs: Sequence[Range]) -> Range:
        """The input's range, transposed."""
        return Range(*(end.transpose(self.axes) for end in inputs[0].ends))

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths of the input, transposed."""
        return [shapes[0][axis] for axis in self.axes]


@dataclass(eq=False)
class Reshape(Passing):
    """Reshape, Flatten, Squeeze, Unsqueeze: the affine is reshaped, where its axes stay apart from dynamic lengths."""

    passes_scale: ClassVar[bool] = True

    #: The shape that a Reshape is given, which must change where an axis grows or shrinks; None where it is computed.
    target: tuple[int, ...] | None = None

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The output's gauge is the input's, reshaped."""
        (x,), (y,) = self.inputs, self.outputs
        pairs = self._pairs()
        if x in gauges:
            return {y: _reshaped(self, gauges[x], pairs, y.rank, forward=True)}
        return {x: _reshaped(self, gauges[y], pairs, x.rank, forward=False)}

    def _pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        (x,), (y,) = self.inputs, self.outputs
        x.rank, y.rank  # noqa: B018 - refuse unknown ranks
        assert x.shape is not None
        assert y.shape is not None
        return aligned(x.shape, y.shape)

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel is one more entry, or a block of them where channels are flattened with positions."""
        (x,), (y,) = self.inputs, self.outputs
        if x not in added:
            raise Refused(f"{self} carries one more channel only where its input has one")
        w = added[x]
        assert x.shape is not None
        assert y.shape is not None
        for before, after in self._pairs():
            if w.axis in before:
                kept = [a for a in before if x.shape[a] != 1 or a == w.axis]
                if kept and kept[0] == w.axis and len(after) >= 1:
                    wide = [a for a in after if y.shape[a] != 1]
                    block = prod(x.size(a) for a in kept[1:])
                    if len(wide) == 1 and self._can_grow(wide[0]):
                        return {y: replace(w, axis=wide[0], index=w.index * block, count=w.count * block)}
                    if not wide and len(after) == 1 and self._can_grow(after[0]):
                        return {y: replace(w, axis=after[0], index=w.index * block, count=w.count * block)}
        raise Refused(f"{self} cannot carry one more channel")

    def _can_grow(self, axis: int) -> bool:
        return self.node.op_type in ("Flatten", "Squeeze", "Unsqueeze") or (
            self.target is not None and axis < len(self.target)
        )

    def with_channel(self, added: AddedChannels) -> Any:
        """Return the target shape with the axis grown, where it is written out."""
        (y,) = self.outputs
        w = added[y]
        target = self.params if self.params is not None else self.target
        if self.node.op_type != "Reshape" or target is None or target[w.axis] in (-1, 0):
            return self.params
        return (*target[: w.axis], target[w.axis] + w.count, *target[w.axis + 1 :])

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """A channel is one entry of the output's, or a block of them where channels are flattened with positions."""
        (x,), (y,) = self.inputs, self.outputs
        if x not in removed or y.rank < 2 or y.size(1) % x.size(1):
            raise Refused(f"{self} needs the channel")
        block = y.size(1) // x.size(1)
        return {y: RemovedChannels(1, removed[x].index * block, removed[x].count * block)}

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> Any:
        """Return the target shape with fewer channels, where it is written out."""
        target = self.params if self.params is not None else self.target
        if self.node.op_type != "Reshape" or (target is not None and len(target) > 1 and target[1] in (-1, 0)):
            return self.params
        if target is None:
            raise Refused(f"the shape of {self} is computed")
        return (target[0], target[1] - removed[self.outputs[0]].count, *target[2:])

    def write(self, graph: Writing) -> None:
        """Write the new target shape."""
        if self.params is not None:
            shape = graph.constant(np.array(self.params, np.float64), f"{self.name}.shape", np.dtype(np.int64))
            self.node.replace_input_with(1, shape)

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant where its axis is kept, or is flattened with the axes behind it."""
        (x,), (y,) = self.inputs, self.outputs
        before = known.get(x)
        if before is None or x.shape is None or y.shape is None or len(y.shape) < 2 or y.shape[0] != x.shape[0]:
            return [None]
        size = y.shape[1]
        if not isinstance(size, int) or size % len(before):
            return [None]
        behind = [d for d in x.shape[2:] if d != 1]
        if size == len(before) and [d for d in y.shape[2:] if d != 1] == behind:
            return [before]
        if all(isinstance(d, int) for d in behind) and size == len(before) * prod(
            int(d) for d in behind if isinstance(d, int)
        ):
            return [np.repeat(before, size // len(before))]
        return [None]


def aligned(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return which axes of a reshape's input become which of its output, in the finest groups.

    Axes of dynamic length are followed by their names. From where both sides cannot be compared, all axes are one
    group, but for those at the end that are the same: both sides hold as many entries as a whole.
    """
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i, j = 0, 0
    while i < len(before) or j < len(after):
        left, right = [], []
        # One axis of each, then more of the side with fewer entries until both hold the same.
        if i < len(before):
            left.append(i)
            i += 1
        if j < len(after):
            right.append(j)
            j += 1
        while not _same_entries([before[a] for a in left], [after[a] for a in right]):
            a, b = _entries([before[k] for k in left]), _entries([after[k] for k in right])
            if a is None or b is None:
                return [*pairs, *_rest(before, after, left, right)]
            lacks_left = a[0] < b[0] or not set(b[1]) <= set(a[1])
            if lacks_left and i < len(before):
                left.append(i)
                i += 1
            elif j < len(after):
                right.append(j)
                j += 1
            elif i < len(before):
                left.append(i)
                i += 1
            else:
                return [*pairs, *_rest(before, after, left, right)]
        pairs.append((tuple(left), tuple(right)))
    return pairs


def _rest(
    before: Sequence[Dim], after: Sequence[Dim], left: Sequence[int], right: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the axes from the first of ``left`` and ``right`` on as one group, and the same axes at the end alone."""
    i, j = (axes[0] if axes else len(dims) for axes, dims in ((left, before), (right, after)))
    a, b = len(before), len(after)
    ends: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while a - 1 > i and b - 1 > j and before[a - 1] == after[b - 1] and before[a - 1] is not None:
        a, b = a - 1, b - 1
        ends.insert(0, ((a,), (b,)))
    return [(tuple(range(i, a)), tuple(range(j, b))), *ends]


def _entries(dims: Sequence[Dim]) -> tuple[int, tuple[str, ...]] | None:
    """Return how many entries axes of these lengths hold: a number, times lengths by name; exporters write '38*N'."""
    if any(d is None for d in dims):
        return None
    factors = [f for d in dims for f in (str(d).split("*") if _is_product(d) else [d])]
    numbers, names = ([f for f in factors if str(f).isdigit() is held] for held in (True, False))
    return prod(int(str(n)) for n in numbers), tuple(sorted(str(n) for n in names))


def _is_product(dim: Dim) -> bool:
    return isinstance(dim, str) and "*" in dim and all(f.isidentifier() or f.isdigit() for f in dim.split("*"))


def _same_entries(before: Sequence[Dim], after: Sequence[Dim]) -> bool:
    if len(before) == len(after) == 1 and before[0] == after[0]:
        return True
    left, right = _entries(before), _entries(after)
    return left is not None and left == right


def _reshaped(
    op: Op, gauge: Affine, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]], rank: int, forward: bool
) -> Affine:
    """Return the gauge with every axis along which it varies reshaped within its group."""
    (old,), (new,) = op.inputs, op.outputs
    varying = [p for p in pairs if any(gauge.varies(a) for a in (p[0] if forward else p[1]))]
    if not varying:
        return Affine.of(gauge.scale.reshape((1,) * rank), gauge.shift.reshape((1,) * rank))
    source, target = (old, new) if forward else (new, old)
    assert source.shape is not None
    assert target.shape is not None
    dims = [
        t.shape[a] for p in varying for t, axes in zip((old, new), p, strict=True) for a in axes if t.shape is not None
    ]
    if not all(isinstance(d, int) for d in dims):
        raise Refused(f"{op} mixes axes of dynamic length, so no channel can be followed through it")
    # Only the varying groups need lengths; every other axis stays 1.
    full, out = [1] * gauge.rank, [1] * rank
    for left, right in varying:
        here, there = (left, right) if forward else (right, left)
        for a in here:
            full[a] = source.size(a)
        for a in there:
            out[a] = target.size(a)
    scale = np.broadcast_to(gauge.scale, full).reshape(out)
    shift = np.broadcast_to(gauge.shift, full).reshape(out)
    return Affine.of(scale, shift)

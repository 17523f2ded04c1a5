"""Operators that name the same entries by other axes: transpose, reshape, squeeze. Any affine passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Dim, Gauges, Op, Refused, Tensor, Widening, Widenings, Writing


@dataclass(eq=False)
class Transpose(Op):
    """y = transpose(x, axes): the affine is transposed."""

    axes: tuple[int, ...] = ()

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The output's gauge is the input's, transposed."""
        (x,), (y,) = self.inputs, self.outputs
        return {y: gauges[x].moved(self.axes)} if x in gauges else {x: gauges[y].moved(np.argsort(self.axes).tolist())}

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """The new channel goes where its axis goes."""
        (x,), (y,) = self.inputs, self.outputs
        if x in widenings:
            return {} if y in widenings else {y: replace(widenings[x], axis=self.axes.index(widenings[x].axis))}
        return {x: replace(widenings[y], axis=self.axes[widenings[y].axis])}


@dataclass(eq=False)
class Reshape(Op):
    """Reshape, Flatten, Squeeze, Unsqueeze: the affine is reshaped, where its axes stay apart from dynamic lengths."""

    #: The attribute or input that must change when the reshaped axis grows; None where nothing names it.
    target: tuple[int, ...] | None = None

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The output's gauge is the input's, reshaped."""
        (x,), (y,) = self.inputs, self.outputs
        pairs = self._pairs()
        if x in gauges:
            return {y: _reshaped(self, gauges[x], pairs, x.shape or (), y.rank, forward=True)}
        return {x: _reshaped(self, gauges[y], pairs, y.shape or (), x.rank, forward=False)}

    def _pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        (x,), (y,) = self.inputs, self.outputs
        x.rank, y.rank  # noqa: B018 - refuse unknown ranks
        assert x.shape is not None
        assert y.shape is not None
        pairs = aligned(x.shape, y.shape)
        if pairs is None:
            raise Refused(f"{self} mixes axes of dynamic length, so no channel can be followed through it")
        return pairs

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel is one more entry, or a block of them where channels are flattened with positions."""
        (x,), (y,) = self.inputs, self.outputs
        if x not in widenings:
            raise Refused(f"{self} cannot be asked for one more channel from behind")
        if y in widenings:
            return {}
        w = widenings[x]
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

    def widened(self, widenings: Widenings) -> Any:
        """Return the target shape with the axis grown, where it is written out."""
        (y,) = self.outputs
        w = widenings[y]
        target = self.params if self.params is not None else self.target
        if self.node.op_type != "Reshape" or target is None or target[w.axis] in (-1, 0):
            return self.params
        return (*target[: w.axis], target[w.axis] + w.count, *target[w.axis + 1 :])

    def write(self, graph: Writing) -> None:
        """Write the grown target shape."""
        if self.params is not None:
            shape = graph.constant(np.array(self.params, np.float64), f"{self.name}.shape", np.dtype(np.int64))
            self.node.replace_input_with(1, shape)

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays one where the channel axis is kept, or is flattened with what is behind it."""
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


def aligned(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Return which axes of a reshape's input become which of its output, in the finest groups; None where unknown.

    Axes of dynamic length are followed by their names; a group holds one only if both sides hold the same one.
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
                return None
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
                return None
        pairs.append((tuple(left), tuple(right)))
    return pairs


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
    op: Op,
    gauge: Affine,
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]],
    shape: Sequence[Dim],
    rank: int,
    forward: bool,
) -> Affine:
    """Return the gauge with every varying axis carried over its group."""
    Affine.identity(rank)
    (old,), (new,) = op.inputs, op.outputs
    scale, shift = np.ones((1,) * rank), np.zeros((1,) * rank)
    varying = [p for p in pairs if any(gauge.varies(a) for a in (p[0] if forward else p[1]))]
    if not varying:
        return Affine.of(gauge.scale.reshape((1,) * rank), gauge.shift.reshape((1,) * rank))
    source, target = (old, new) if forward else (new, old)
    assert target.shape is not None
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

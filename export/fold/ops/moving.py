"""Operators that only move entries: transpose, reshape, squeeze, concat, split, slice, pad. Any affine passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from normfold.export.fold.affine import Affine, Array, joined
from normfold.export.fold.net import Dim, Gauges, Op, Refused, Tensor, Widening, Widenings
from normfold.export.fold.ops.linear import Linear
from normfold.export.graphs.writing import Writing


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


@dataclass(eq=False)
class Concat(Op):
    """y = concat(x₁, x₂, …) along an axis: the output's affine is the inputs', joined."""

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

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel in an input is one more in the output; asked from behind, the last input brings it."""
        (y,) = self.outputs
        known = [k for k, x in enumerate(self.inputs) if x in widenings]
        if len(set(self.inputs)) < len(self.inputs):
            raise Refused(f"{self} joins a tensor with itself")
        if known and y in widenings:
            if len(known) > 1:
                raise Refused(f"{self} would grow by more than one channel")
            return {}
        w = widenings[self.inputs[known[0]]] if known else widenings[y]
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
            if x.shape is None or not isinstance(x.shape[1], int):
                return [None]
            parts.append(known[x] if x in known else np.full(x.shape[1], np.nan))
        return [np.concatenate(parts)]


@dataclass(eq=False)
class Select(Op):
    """Split, Slice and Gather by constant indices: output k holds the input's slices ``picks[k]`` along an axis."""

    axis: int = 1
    #: For each output the indices it holds; None where the lengths are dynamic and no affine may differ along the axis.
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
                whole = _placed(here, gauges[y], pick, size, self.axis)
        assert whole is not None
        return {x: whole, **{y: whole.take(self.axis, p) for y, p in zip(self.outputs, self.picks, strict=True)}}

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel goes with the neighbour before it; a Slice over positions lets it pass."""
        (x,) = self.inputs
        if all(p is None for p in self.picks):
            (y,) = self.outputs
            w = widenings[x] if x in widenings else widenings[y]
            if w.axis in self.positions:
                raise Refused(f"{self} cuts the axis of the channels")
            return {} if x in widenings and y in widenings else {y: w} if x in widenings else {x: w}
        if self.node.op_type != "Split":
            raise Refused(f"{self} picks channels by number")
        sizes = [len(p) for p in self.picks]
        starts = [int(s) for s in np.cumsum([0, *sizes[:-1]])]
        known = [k for k, y in enumerate(self.outputs) if y in widenings]
        if x in widenings:
            w = widenings[x]
            if w.axis != self.axis:
                raise Refused(f"{self} splits another axis than the channels")
            if len(known) > 1:
                raise Refused(f"{self} would grow by more than one channel")
            k = max(k for k in range(len(starts)) if starts[k] < w.index or k == 0)
            return {self.outputs[k]: replace(w, index=w.index - starts[k])}
        if len(known) > 1:
            raise Refused(f"{self} would grow by more than one channel")
        w = widenings[self.outputs[known[0]]]
        if w.axis != self.axis:
            raise Refused(f"{self} splits another axis than the channels")
        if w.index != sizes[known[0]]:
            raise Refused(f"{self} carries a new channel only at the end of a part")
        return {x: replace(w, index=starts[known[0]] + w.index)}

    def widened(self, widenings: Widenings) -> Any:
        """Return the sizes of the parts with the one that grows."""
        if all(p is None for p in self.picks):
            return None
        return [
            len(p) + (widenings[y].count if y in widenings else 0)
            for y, p in zip(self.outputs, self.picks, strict=True)
        ]

    def write(self, graph: Writing) -> None:
        """Write the sizes of the parts."""
        if self.params is None:
            return
        if graph.opset < 13:
            import onnx_ir as ir

            self.node.attributes["split"] = ir.AttrInt64s("split", list(self.params))
        else:
            sizes = graph.constant(np.array(self.params, np.float64), f"{self.name}.split", np.dtype(np.int64))
            self.node.attributes.pop("num_outputs", None)
            self.node.resize_inputs(2)
            self.node.replace_input_with(1, sizes)

    def follow_sizes(self) -> None:
        """Pick what the sizes of the parts in the params say."""
        if self.params is not None:
            self.picks = tuple(np.arange(a, b) for a, b in pairwise(np.cumsum([0, *self.params])))

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """The constant channels of the input, sliced."""
        before = known.get(self.inputs[0])
        if before is None:
            return [None] * len(self.outputs)
        if self.axis == 1 and all(p is not None for p in self.picks):
            return [before[p] for p in self.picks]
        return [before if 1 not in self.positions and self.axis != 1 else None for _ in self.outputs]


def _placed(whole: Affine, part: Affine, pick: Any, size: int, axis: int) -> Affine:
    def place(into: Array, values: Array) -> Array:
        shape = list(
            np.broadcast_shapes(
                (*into.shape[:axis], 1, *into.shape[axis + 1 :]), (*values.shape[:axis], 1, *values.shape[axis + 1 :])
            )
        )
        shape[axis] = size
        result = np.broadcast_to(into, shape).copy()
        index: list[Any] = [slice(None)] * len(shape)
        index[axis] = pick
        result[tuple(index)] = values
        return result

    return Affine.of(place(whole.scale, part.scale), place(whole.shift, part.shift))


@dataclass(eq=False)
class Pad(Op):
    """Pad. Mirrored or repeated edges let any affine pass; zeros let a scale pass; new channels are the identity's.

    pad(s x + t) = s pad(x) + t     mode reflect, edge, wrap
    pad(s x)     = s pad(x)         mode constant, value 0
    """

    #: Entries added before and behind, an axis each; all zero for axes that are left alone.
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    zeros: bool = False

    @property
    def ends_in_zeros(self) -> bool:
        """Whether it adds zeros before or behind positions."""
        return self.zeros and (any(self.before[2:]) or any(self.behind[2:]))

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The gauge passes; along a padded axis it must not differ, but for new channels of zeros."""
        (x,), (y,) = self.inputs, self.outputs
        padded = [a for a in range(len(self.before)) if self.before[a] or self.behind[a]]
        gauge = gauges[x] if x in gauges else gauges[y]
        for a in padded:
            if a == 1 and self.zeros and len(padded) == 1 and x.shape is not None and isinstance(x.shape[1], int):
                return self._along_channels(gauges, x, y)
            if gauge.varies(a):
                raise Refused(f"{self} pads an axis along which the scale differs")
        if self.zeros and padded and gauge.shifts and not all(isinstance(r, Linear) for r in y.readers):
            raise Refused(f"{self} pads with zeros, which do not take the shift")
        return {y: gauge} if x in gauges else {x: gauge}

    def _along_channels(self, gauges: Gauges, x: Tensor, y: Tensor) -> dict[Tensor, Affine]:
        size, lead, tail = x.size(1), self.before[1], self.behind[1]
        if x in gauges:
            one = Affine.identity(x.rank)
            return {y: joined([one, gauges[x], one], [lead, size, tail], 1)} if not y.shape or y not in gauges else {}
        gauge = gauges[y]
        new = np.r_[0:lead, lead + size : lead + size + tail]
        if gauge.take(1, new).shifts:
            raise Refused(f"{self} adds channels of zeros, which do not take a shift")
        return {x: gauge.take(1, np.arange(lead, lead + size))}

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel passes; behind zeros it holds its constant within the ends, as a carrier should."""
        (x,), (y,) = self.inputs, self.outputs
        w = widenings[x] if x in widenings else widenings[y]
        padded = [a for a in range(len(self.before)) if self.before[a] or self.behind[a]]
        if w.axis in padded:
            if padded != [w.axis]:
                raise Refused(f"{self} pads channels and positions at once")
            if x in widenings:
                return {} if y in widenings else {y: replace(w, index=w.index + self.before[w.axis])}
            index = w.index - self.before[w.axis]
            if not 0 <= index <= x.size(w.axis):
                raise Refused(f"{self} adds channels of zeros where the new channel would be")
            return {x: replace(w, index=index)}
        return {} if x in widenings and y in widenings else {y: w} if x in widenings else {x: w}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays one if the edges are mirrored; new channels hold 0."""
        before = known.get(self.inputs[0])
        if before is None or len(self.before) < 2:
            return [None]
        if any(self.before[2:]) or any(self.behind[2:]):
            before = np.where(before == 0, before, np.nan) if self.zeros else before
        if (self.before[1] or self.behind[1]) and not self.zeros:
            return [None]
        return [np.concatenate([np.zeros(self.before[1]), before, np.zeros(self.behind[1])])]

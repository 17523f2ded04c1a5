"""Sums and products of computed tensors: where branches meet, their gauges must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Dim, Gauges, Op, Refused, RemovedFrom, Tensor
from normfold.export.fold.number_readers import number_readers
from normfold.export.fold.ops.linear import inverse
from normfold.export.fold.ranges import Range
from normfold.export.fold.silencing import Silencing


@dataclass(eq=False)
class Sum(Op):
    """Add, Sub and Sum of computed tensors, y = Σ σᵢ xᵢ.

        Σ σᵢ (s xᵢ + tᵢ) = s Σ σᵢ xᵢ + Σ σᵢ tᵢ

    All branches and the output have one scale; shifts add up, so a shift of the output may go into any one branch.
    """

    passes_scale: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    constant_if_all_are: ClassVar[bool] = True

    signs: tuple[int, ...] = ()

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """One scale for all; the output's shift is the sum of the branches', or one branch takes the difference."""
        (y,) = self.outputs
        known = [x for x in self.inputs if x in gauges]
        scale = (gauges[known[0]] if known else gauges[y]).scale
        self._same_shape(scale)
        zero = total = np.zeros((1,) * y.rank)
        for sign, x in zip(self.signs, self.inputs, strict=True):
            if x in gauges:
                total = total + sign * gauges[x].shift
        found: dict[Tensor, Affine] = {}
        if len(known) < len(self.inputs) and (scale == 0).any():
            raise Refused(f"{self} adds a channel that is scaled by 0 to one that is not")
        for x in self.inputs:
            found[x] = Affine.of(scale, gauges[x].shift if x in gauges else zero)
        if y not in gauges:
            bearer = next((x for x in self._bearers(gauges, total) if takes_shift(x) == 2), None)
            if bearer is not None and np.any(total != 0):
                # The shift ends here: a linear operator that computes one branch, and nothing else, takes it back.
                found[bearer] = Affine.of(scale, -total * self.signs[self.inputs.index(bearer)])
                total = zero
            found[y] = Affine.of(scale, total)
            return found
        found[y] = Affine.of(scale, gauges[y].shift)
        missing = gauges[y].shift - total
        if np.abs(missing).max() > 1e-11 * max(1.0, np.abs(gauges[y].shift).max()):
            free = self._bearers(gauges, missing)
            if not free:
                raise Refused(f"the branches of {self} would need other shifts than they have")
            bearer = max(free, key=takes_shift)
            found[bearer] = Affine.of(scale, missing * self.signs[self.inputs.index(bearer)])
        return found

    def _bearers(self, gauges: Gauges, shift: Array) -> list[Tensor]:
        """Return the inputs that may still take a shift: read once here, and not broadcast where the shift varies."""
        (y,) = self.outputs
        return [
            x
            for x in self.inputs
            if x not in gauges
            and self.inputs.count(x) == 1
            and all(n == 1 or a == b for n, a, b in zip(shift.shape, x.shape or (), y.shape or (), strict=True))
        ]

    def _same_shape(self, scale: Array) -> None:
        (y,) = self.outputs
        for x in self.inputs:
            if x.rank != y.rank or x.shape is None or y.shape is None:
                raise Refused(f"{self} broadcasts one of its branches")
            for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)):
                if a != b and a == 1 and scale.shape[axis] > 1:
                    raise Refused(f"{self} broadcasts one of its branches along the channels")

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """Every branch gets the channel: one its constant, the others 0."""
        (y,) = self.outputs
        known = [x for x in self.inputs if x in added]
        if len(set(self.inputs)) < len(self.inputs):
            raise Refused(f"{self} adds a tensor to itself")
        w = added[known[0]] if known else added[y]
        if any((added[x].axis, added[x].index) != (w.axis, w.index) for x in known):
            raise Refused(f"the branches of {self} would carry the new channel at different places")
        if any(
            x.shape is None or y.shape is None or x.rank != y.rank or x.shape[w.axis] != y.shape[w.axis]
            for x in self.inputs
        ):
            raise Refused(f"{self} broadcasts one of its branches")
        found: dict[Tensor, AddedChannel] = {}
        source = known[0] if known else max(self.inputs, key=takes_shift)
        for x in self.inputs:
            found[x] = replace(w, value=added[x].value if x in added else w.value if x is source else 0.0)
        found[y] = replace(w, value=sum(s * found[x].value for s, x in zip(self.signs, self.inputs, strict=True)))
        return found

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A channel that is constant in every branch is constant in the sum."""
        parts = [known.get(x) for x in self.inputs]
        if any(p is None for p in parts) or len({len(p) for p in parts if p is not None}) > 1 or not _one_rank(self):
            return [None]
        return [np.sum([s * p for s, p in zip(self.signs, parts, strict=True) if p is not None], axis=0)]

    def undoes_shift(self, gauges: Gauges) -> bool:
        """Whether shifts of its branches cancel, in part or all."""
        (y,) = self.outputs
        passed = np.abs(gauges[y].shift) if y in gauges else 0.0
        shifts = [np.abs(gauges[x].shift) for x in self.inputs if x in gauges]
        return bool(np.any(sum(shifts) > passed * (1 + 1e-9)))

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """The first branch holds the values, every other branch 0."""
        if len(set(self.inputs)) < len(self.inputs):
            raise Refused(f"{self} does not keep the channel constant")
        total = np.zeros((1,) * tensor.rank)
        for k, (sign, x) in enumerate(zip(self.signs, self.inputs, strict=True)):
            if x.rank != tensor.rank or any(
                wanted.varies(axis) and x.size(axis) != tensor.size(axis) for axis in range(tensor.rank)
            ):
                raise Refused(f"{self} broadcasts one of its branches")
            held = silencing.of(x, wanted if k == 0 else Affine.of(wanted.scale, 0 * wanted.shift))
            total = total + sign * held.shift
        return Affine.of(wanted.scale, total)

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """All branches and the sum lose the same channels."""
        return _lost_by_all(self, removed)

    def range(self, inputs: Sequence[Range]) -> Range | None:
        """The range of independent branches: their means add up, and their variances."""
        if len({r.low.ndim for r in inputs}) > 1:
            return None
        centers = [sign * (r.low + r.high) / 2 for sign, r in zip(self.signs, inputs, strict=True)]
        reach = np.sqrt(sum(((r.high - r.low) / 2) ** 2 for r in inputs))
        return Range.around(sum(centers[1:], centers[0]), reach)

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths that the branches share, or that one has where the others have 1."""
        return _shared(shapes)


def takes_shift(tensor: Tensor, depth: int = 12) -> int:
    """Return how well the operators before a tensor can take a shift of it.

    2: an operator whose constants take it, and no other operator reads the tensor. 1: the same with other readers, or
    further back, through operators that pass it on. 0: none.
    """
    producer = tensor.producer
    if producer is None or depth == 0:
        return 0
    private = len(number_readers(tensor)) == 1
    if producer.emits_affines:
        return 2 if private else 1
    if isinstance(producer, Sum):
        return max(takes_shift(x, depth - 1) for x in producer.inputs) if private else 0
    if len(producer.inputs) == 1 and private and not producer.is_smooth:
        return min(1, takes_shift(producer.inputs[0], depth - 1))
    return 0


def _shared(shapes: Sequence[tuple[Dim, ...]]) -> list[Dim]:
    """Return for each axis the only length other than 1, 1 where all have 1, None where lengths differ by name."""
    longer = [{size for size in sizes if size != 1} for sizes in zip(*shapes, strict=True)]
    return [1 if not sizes else next(iter(sizes)) if len(sizes) == 1 else None for sizes in longer]


def _one_rank(op: Op) -> bool:
    """Whether no input has fewer axes than the output, so that the axes of all have the same numbers."""
    return all(x.shape is not None and len(x.shape) == op.outputs[0].rank for x in op.inputs)


def _lost_by_all(op: Op, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
    """Return the channels that all inputs and the output lose, given those of one; refused where one is broadcast."""
    tensors = (*op.inputs, *op.outputs)
    r = next(removed[t] for t in tensors if t in removed)
    if not _one_rank(op) or any(t.size(r.axis) != op.outputs[0].size(r.axis) for t in op.inputs):
        raise Refused(f"{op} broadcasts one of its inputs")
    return dict.fromkeys(tensors, r)


@dataclass(eq=False)
class Product(Op):
    """Mul and Div of computed tensors (gates, squeeze-excite): scales multiply, shifts do not pass.

    (s₁ x₁) (s₂ x₂) = s₁ s₂ (x₁ x₂)
    """

    keeps_channels: ClassVar[bool] = True

    divides: bool = False

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The output's scale is the product of the inputs'; or the larger input takes what is missing."""
        a, b = self.inputs
        (y,) = self.outputs
        for t in (a, b, y):
            if t in gauges and gauges[t].shifts:
                raise Refused(f"a shift does not pass through {self}, which multiplies two computed tensors")
        if any(t.rank != y.rank for t in (a, b)):
            raise Refused(f"{self} broadcasts one of its inputs")
        none = np.zeros((1,) * y.rank)
        first, second = a.gauge(gauges).scale, b.gauge(gauges).scale
        with np.errstate(divide="raise"):
            try:
                total = first / second if self.divides else first * second
            except FloatingPointError as error:
                raise Refused(f"a channel is scaled by 0, and {self} divides by it") from error
        if y not in gauges:
            return {y: Affine.of(total, none)}
        wanted = gauges[y].scale
        if np.allclose(wanted, total, rtol=1e-11, atol=0):
            return {}
        inverse(gauges[y], self)
        whole = a if a.shape == y.shape else b
        if whole in gauges or (whole is b and self.divides) or a is b or whole.shape != y.shape:
            raise Refused(f"the inputs of {self} would need other scales than they have")
        other = second if whole is a else first
        return {whole: Affine.of(wanted * other if self.divides else wanted / other, none)}

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths that the inputs share, or that one has where the other has 1."""
        return _shared(shapes)

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel in both inputs, their product in the output."""
        a, b = self.inputs
        (y,) = self.outputs
        if a is b or self.divides or a.shape is None or b.shape is None or y.shape is None:
            raise Refused(f"{self} cannot carry one more channel")
        w = next(added[t] for t in (a, b, y) if t in added)
        if (
            a.rank != y.rank
            or b.rank != y.rank
            or a.shape[w.axis] != y.shape[w.axis]
            or b.shape[w.axis] != y.shape[w.axis]
        ):
            raise Refused(f"{self} broadcasts one of its inputs")
        found = {t: replace(w, value=added[t].value if t in added else 1.0) for t in (a, b)}
        return {**found, y: replace(w, value=found[a].value * found[b].value)}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A channel that is constant in both inputs is constant in the product."""
        a, b = (known.get(x) for x in self.inputs)
        if a is None or b is None or len(a) != len(b) or not _one_rank(self):
            return [None]
        with np.errstate(divide="ignore", invalid="ignore"):
            result = a / b if self.divides else a * b
        return [np.where(np.isfinite(result), result, np.nan)]

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Both inputs and the product lose the same channels."""
        return _lost_by_all(self, removed)

"""Sums and products of computed tensors: where branches meet, their gauges must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Gauges, Op, Refused, Tensor, Widening, Widenings
from normfold.export.fold.ops.activations import Scaling
from normfold.export.fold.ops.linear import Embedding, Linear, inverse


@dataclass(eq=False)
class Sum(Op):
    """Add, Sub and Sum of computed tensors, y = Σ σᵢ xᵢ.

        Σ σᵢ (s xᵢ + tᵢ) = s Σ σᵢ xᵢ + Σ σᵢ tᵢ

    All branches and the output have one scale; shifts add up, so a shift of the output may go into any one branch.
    """

    signs: tuple[int, ...] = ()

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """One scale for all; the output's shift is the branches' sum, or one branch takes what is missing."""
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
                # The shift ends here: a private linear branch takes it back.
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

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """Every branch gets the channel: one its constant, the others 0."""
        (y,) = self.outputs
        known = [x for x in self.inputs if x in widenings]
        if len(set(self.inputs)) < len(self.inputs):
            raise Refused(f"{self} adds a tensor to itself")
        w = widenings[known[0]] if known else widenings[y]
        if any((widenings[x].axis, widenings[x].index) != (w.axis, w.index) for x in known):
            raise Refused(f"the branches of {self} would carry the new channel at different places")
        if any(
            x.shape is None or y.shape is None or x.rank != y.rank or x.shape[w.axis] != y.shape[w.axis]
            for x in self.inputs
        ):
            raise Refused(f"{self} broadcasts one of its branches")
        found: dict[Tensor, Widening] = {}
        source = known[0] if known else max(self.inputs, key=takes_shift)
        for x in self.inputs:
            if x not in widenings:
                found[x] = replace(w, value=w.value if x is source else 0.0)
        if y not in widenings:
            found[y] = replace(
                w,
                value=sum(
                    s * (found[x] if x in found else widenings[x]).value
                    for s, x in zip(self.signs, self.inputs, strict=True)
                ),
            )
        return found

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A channel that is constant in every branch is constant in the sum."""
        parts = [known.get(x) for x in self.inputs]
        if any(p is None for p in parts) or len({len(p) for p in parts if p is not None}) > 1:
            return [None]
        return [np.sum([s * p for s, p in zip(self.signs, parts, strict=True) if p is not None], axis=0)]


def takes_shift(tensor: Tensor, depth: int = 12) -> int:
    """Return how gladly what computes a tensor takes a shift: 2 a private linear operator, 1 through others, 0 not."""
    producer = tensor.producer
    if producer is None or depth == 0:
        return 0
    private = len(tensor.readers) == 1
    if isinstance(producer, (Linear, Scaling, Embedding)):
        return 2 if private else 1
    if isinstance(producer, Sum):
        return max(takes_shift(x, depth - 1) for x in producer.inputs) if private else 0
    if len(producer.inputs) == 1 and private and not hasattr(producer, "function"):
        return min(1, takes_shift(producer.inputs[0], depth - 1))
    return 0


@dataclass(eq=False)
class Product(Op):
    """Mul and Div of computed tensors (gates, squeeze-excite): scales multiply, shifts do not pass.

    (s₁ x₁) (s₂ x₂) = s₁ s₂ (x₁ x₂)
    """

    divides: bool = False

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The output's scale is the product of the inputs'; asked from behind, the larger input takes it."""
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

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel in both inputs, their product in the output."""
        a, b = self.inputs
        (y,) = self.outputs
        if a is b or self.divides or a.shape is None or b.shape is None or y.shape is None:
            raise Refused(f"{self} cannot carry one more channel")
        w = next(widenings[t] for t in (a, b, y) if t in widenings)
        if (
            a.rank != y.rank
            or b.rank != y.rank
            or a.shape[w.axis] != y.shape[w.axis]
            or b.shape[w.axis] != y.shape[w.axis]
        ):
            raise Refused(f"{self} broadcasts one of its inputs")
        found = {t: replace(w, value=1.0) for t in (a, b) if t not in widenings}
        if y not in widenings:
            values = [(found[t] if t in found else widenings[t]).value for t in (a, b)]
            found[y] = replace(w, value=values[0] * values[1])
        return found

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A channel that is constant in both inputs is constant in the product."""
        a, b = (known.get(x) for x in self.inputs)
        if a is None or b is None or len(a) != len(b):
            return [None]
        with np.errstate(divide="ignore", invalid="ignore"):
            result = a / b if self.divides else a * b
        return [np.where(np.isfinite(result), result, np.nan)]

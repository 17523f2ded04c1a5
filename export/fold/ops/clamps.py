"""Clamps: Relu, Clip, and Max or Min with a constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import AddedChannels, Constants, Gauges, Op, RemovedFrom, Tensor
from normfold.export.fold.ops import costs
from normfold.export.fold.ops.entrywise import Entrywise
from normfold.export.fold.ops.scaling import Scaling
from normfold.export.fold.ops.widening import channel_of, with_entry
from normfold.export.fold.ranges import Range
from normfold.export.graphs.writing import Writing


class ClampForm(Enum):
    """The nodes that bounds are written as; the value is the ONNX operators' names."""

    IDENTITY = "Identity"
    RELU = "Relu"
    CLIP = "Clip"
    MAX = "Max"
    MIN = "Min"
    MAX_MIN = "Max, Min"

    @property
    def by_channel(self) -> bool:
        """Whether no convolution before it computes it in its own kernel."""
        return self in (ClampForm.MAX, ClampForm.MIN, ClampForm.MAX_MIN)


@dataclass(frozen=True, eq=False)
class Bounds:
    """lo <= y <= hi; each of the tensor's rank, broadcastable; -inf and inf where there is no bound."""

    lo: Array
    hi: Array

    @cached_property
    def form(self) -> ClampForm:
        """The fewest nodes that they can be written as."""
        no_upper, no_lower = bool((self.hi == np.inf).all()), bool((self.lo == -np.inf).all())
        if no_upper and no_lower:
            return ClampForm.IDENTITY
        if no_upper and not self.lo.any():
            return ClampForm.RELU
        if self.lo.size == self.hi.size == 1:
            return ClampForm.CLIP
        if no_upper:
            return ClampForm.MAX
        return ClampForm.MIN if no_lower else ClampForm.MAX_MIN


@dataclass(eq=False)
class Clamp(Entrywise):
    """Relu, Clip, and Max or Min with a constant:  y = min(max(x, lo), hi).

    s > 0:  clamp(s x + t; lo, hi) = s clamp(x; (lo - t)/s, (hi - t)/s) + t
    s < 0:  the same with the two bounds exchanged
    s = 0:  the constant clamp(t; lo, hi), forward only
    """

    passes_scale: ClassVar[bool] = True

    params: Bounds

    @property
    def fused(self) -> bool:
        """Whether the runtime computes it within the convolution before it, as it does Relu and Clip."""
        producer = self.inputs[0].producer
        return producer is not None and producer.fuses_clamps and len(self.inputs[0].readers) == 1

    @property
    def by_channel_form(self) -> str:
        """Max, Min or both where it is written as these."""
        return self.params.form.value if self.params.form.by_channel else ""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Input and output have the same gauge, but for scale 0."""
        (x,), (y,) = self.inputs, self.outputs
        if x not in gauges:
            return {x: gauges[y]}
        gauge = gauges[x]
        zero = self._zeros(gauge)
        if not zero.any():
            return {y: gauge}
        if gauges.holds_zeros:
            return {y: Affine.of(np.where(zero, 1.0, gauge.scale), np.where(zero, 0.0, gauge.shift))}
        return {y: Affine.of(gauge.scale, np.where(zero, self._constant(gauge), gauge.shift))}

    @staticmethod
    def _zeros(gauge: Affine) -> NDArray[np.bool_]:
        zero: NDArray[np.bool_] = gauge.scale == 0
        if not zero.any():
            return zero
        return np.broadcast_to(zero, np.broadcast_shapes(gauge.scale.shape, gauge.shift.shape))

    def _constant(self, gauge: Affine) -> Array:
        return np.clip(gauge.shift, self.params.lo, self.params.hi)

    def rewritten(self, gauges: Gauges) -> Bounds:
        """Return the bounds under the gauge of the input."""
        gauge = gauges[self.inputs[0]]
        scale = np.where(gauge.scale == 0, 1.0, gauge.scale)
        with np.errstate(over="ignore"):
            low, high = (self.params.lo - gauge.shift) / scale, (self.params.hi - gauge.shift) / scale
        lo, hi = np.where(scale > 0, low, high), np.where(scale > 0, high, low)
        zero = self._zeros(gauge)
        if zero.any():
            # Where the scale of 0 passes on, readers multiply the channel by 0, so any bounds do. Where the clamp holds
            # the channel's constant, readers take it as it is, so both bounds are that constant.
            free_lo, free_hi = (0.0, np.inf) if np.all(lo[~np.broadcast_to(zero, lo.shape)] == 0) else (-np.inf, np.inf)
            constant = self._constant(gauge)
            lo = np.where(zero, constant if gauges.holds_zeros else free_lo, lo)
            hi = np.where(zero, constant if gauges.holds_zeros else free_hi, hi)
        either = Affine.of(lo, hi)  # collapses both to the axes along which they vary
        return Bounds(either.scale + 0.0, either.shift + 0.0)

    def cost(self, params: Bounds) -> float:
        """Return the cost of the form of the bounds, where a convolution computes no part of it.

        Between 2-D convolutions that run in blocks of channels a Max or Min leaves that layout, which BatchNorm and
        Relu do not. Bounds by channel move behind a max-pool that reads them, where there are fewer entries.
        """
        form = params.form
        if form is ClampForm.IDENTITY:
            return 0.0
        if form is ClampForm.RELU:
            return 0.0 if self.fused else costs.RELU_COST
        if form is ClampForm.CLIP:
            return 0.0 if self.fused else costs.CLIP_COST
        one = costs.UNBLOCKED_COST if costs.in_blocks(self.inputs[0]) else costs.BOUND_COST
        return (costs.BOTH_COST if form is ClampForm.MAX_MIN else one) * self._share

    @property
    def _share(self) -> float:
        """The share of its entries that are left where bounds by channel move behind a max-pool that reads it."""
        reader = _only_reader(self)
        if isinstance(reader, Scaling):
            reader = _only_reader(reader)  # the bounds differ by channel only where this affine goes
        if reader is not None and reader.node.op_type == "Unsqueeze":
            reader = _only_reader(reader)
        return reader.kept if reader is not None else 1.0

    def dearer(self, params: Bounds) -> str:
        """Return why these bounds cost more than a BatchNorm and the present bounds, or ""."""
        if self.cost(params) <= costs.BATCHNORM_COST + self.cost(self.params):
            return ""
        if params.form is ClampForm.MAX_MIN:
            one_sided = np.all(self.params.lo == -np.inf) or np.all(self.params.hi == np.inf)
            why = "gamma has both signs" if one_sided else "there are two bounds by channel"
            return (
                f"{why}, so {self} would become a Max and a Min, which take longer than BatchNorm and "
                f"{self.node.op_type} do"
            )
        return (
            f"{self} would become a {params.form.value} by channel, which leaves the blocked layout in which the "
            "runtime is faster"
        )

    def stored(self, params: Bounds) -> Sequence[Array]:
        """The bounds, as far as they must be finite.

        A lower bound may overflow to -inf and an upper one to +inf (they then clamp nothing). Overflow the other way
        would clamp everything.
        """
        return np.maximum(params.lo, 0.0), np.minimum(params.hi, 0.0)

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel, which bounds by channel leave alone and bounds for all channels clamp."""
        (x,), (y,) = self.inputs, self.outputs
        if x not in added:
            return {x: added[y]}
        w = added[x]
        if self._by_channel(w):
            return {y: w}
        lo, hi = (float(bound.reshape(-1)[0]) for bound in (self.params.lo, self.params.hi))
        return {y: replace(w, value=float(np.clip(w.value, lo, hi)))}

    def _by_channel(self, w: AddedChannel) -> bool:
        return bool(max(self.params.lo.shape[w.axis], self.params.hi.shape[w.axis]) > 1)

    def with_channel(self, added: AddedChannels) -> Bounds:
        """Return the bounds with none on the new channel, where they differ by channel."""
        w, y = channel_of(self, added), self.outputs[0]
        if not self._by_channel(w):
            return self.params
        return Bounds(with_entry(self.params.lo, w, -np.inf, y), with_entry(self.params.hi, w, np.inf, y))

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant; a channel whose two bounds are equal becomes constant."""
        (x,) = self.inputs
        size = x.channels
        both = Affine.of(self.params.lo, self.params.hi).channels(1, size) if size is not None else None
        if both is None or size is None:
            return [None]
        before = known.get(x, np.full(size, np.nan))
        return [np.where(both[0] == both[1], both[0], np.clip(before, *both))]

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> Bounds:
        """Return the bounds of the channels that stay."""
        r = removed[self.outputs[0]]
        return Bounds(r.cut(self.params.lo), r.cut(self.params.hi))

    def range(self, inputs: Sequence[Range]) -> Range:
        """The input's ends, clamped."""
        return Range(*map(self.at, inputs[0].ends))

    def at(self, entries: Array) -> Array:
        """The entries, clamped."""
        clamped: Array = np.minimum(np.maximum(entries, self.params.lo), self.params.hi)
        return clamped

    def write(self, graph: Writing) -> None:
        """Write the bounds in their form."""
        node, result, like = self.node, self.inputs[0].value, self.outputs[0].value.name or "clamp"
        lo, hi, form = self.params.lo, self.params.hi, self.params.form
        if form is ClampForm.RELU:
            result = graph.insert("Relu", [result], node, like)
        elif form is ClampForm.CLIP and graph.opset < 11:
            ends = {n: float(b.reshape(())) for b, n in ((lo, "min"), (hi, "max")) if np.isfinite(b)}
            result = graph.insert("Clip", [result], node, like, **ends)
        elif form is ClampForm.CLIP:
            bounds = [
                None if np.all(np.isinf(b)) else graph.constant(b.reshape(()), f"{like}.{n}")
                for b, n in ((lo, "min"), (hi, "max"))
            ]
            result = graph.insert("Clip", [result, *bounds], node, like)
        if form in (ClampForm.MAX, ClampForm.MAX_MIN):
            result = graph.insert("Max", [result, graph.constant(lo, f"{like}.min")], node, like)
        if form in (ClampForm.MIN, ClampForm.MAX_MIN):
            result = graph.insert("Min", [result, graph.constant(hi, f"{like}.max")], node, like)
        self.outputs[0].become(result, graph)


def _only_reader(op: Op) -> Op | None:
    """Return what reads an operator's output, where nothing else does."""
    y = op.outputs[0]
    return y.readers[0] if len(y.readers) == 1 and not y.pinned else None

"""Operators that act on each entry alone: affines themselves, clamps (Relu, Clip, Max, Min) and sloped activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Gauges, Op, Refused, Tensor, Widening, Widenings
from normfold.export.fold.ops.linear import Linear, inverse
from normfold.export.fold.ops.pools import Pooling
from normfold.export.graphs.writing import Writing


@dataclass(frozen=True, eq=False)
class Scaled(Affine):
    """An affine, and the usual size of the entries that it maps: |mean| + sqrt(var) of a BatchNorm, 1 if unknown."""

    usual: Array

    @classmethod
    def like(cls, affine: Affine, usual: Array) -> Scaled:
        """Return an affine with the usual size of its entries."""
        return cls(affine.scale, affine.shift, usual)


def _only_reader(op: Op) -> Op | None:
    """Return what reads an operator's output, where nothing else does."""
    y = op.outputs[0]
    return y.readers[0] if len(y.readers) == 1 and not y.pinned else None


@dataclass(eq=False)
class Scaling(Op):
    """BatchNormalization, or Mul/Add/Sub/Div by constants:  y = scale x + shift.  Takes any gauge on either side."""

    params: Scaled
    #: Whether the fold is to get rid of it: a BatchNorm, or a constant that differs from channel to channel.
    target: bool = False
    #: Whether it came as BatchNormalization.
    is_batchnorm: bool = False
    #: How many times larger |scale x| and |shift| usually are than their sum, over the channels: a mean many times its
    #: deviation cancels here, and would cancel in the readers' sums if scale and shift went there apart.
    cancels: float = 0.0
    #: The mean (shift) and deviation (scale) of what it gives, where its statistics tell them.
    makes: Affine | None = None

    @property
    def by_channel(self) -> bool:
        """Whether it differs along exactly one axis."""
        return sum(self.params.varies(axis) for axis in range(self.params.rank)) == 1

    @property
    def _is_one_constant(self) -> bool:
        return self.params.scale.size == self.params.shift.size == 1

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the input, any invertible gauge of the output."""
        if self.outputs[0] in gauges:
            inverse(gauges[self.outputs[0]], self)
        return {}

    def rewritten(self, gauges: Gauges) -> Scaled:
        """Return g_y⁻¹ ∘ A ∘ g_x."""
        (x,), (y,) = self.inputs, self.outputs
        affine: Affine = self.params
        if x in gauges:
            affine = affine.after(gauges[x])
        if y in gauges:
            affine = inverse(gauges[y], self).after(affine)
        return Scaled.like(affine, self.usual_under(x.gauge(gauges)))

    def usual_under(self, gauge: Affine) -> Array:
        """Return the usual size of its input's entries when they are told with a gauge."""
        scale = np.abs(np.where(gauge.scale == 0, 1.0, gauge.scale))
        return (self.params.usual + np.abs(gauge.shift)) / scale

    def cost(self, params: Affine) -> float:
        """One pass for a scale, a shift, or a BatchNorm on axis 1; two where both need a node.

        An Add would leave the blocked layout of 2-D convolutions, where a BatchNorm does not.
        """
        if params.is_identity:
            return 0.0
        if params.shifts and in_blocks(self.outputs[0]) and self._fits_batchnorm(params):
            return 1.0
        if not params.shifts:
            return 0.8 if (params.scale == np.sign(params.scale)).all() else 0.95
        if (params.scale == 1).all():
            return 0.95
        return 1.0 if self._fits_batchnorm(params) else 1.8

    def _fits_batchnorm(self, params: Affine) -> bool:
        shape = self.outputs[0].shape
        return (
            shape is not None
            and len(shape) >= 2
            and isinstance(shape[1], int)
            and not any(params.varies(axis) for axis in range(params.rank) if axis != 1)
        )

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel passes: unchanged where there is one constant a channel, else through the one for all."""
        found = _same(self, widenings)
        y = self.outputs[0]
        if y in found and self._is_one_constant:
            scale, shift = self.params.scale.item(), self.params.shift.item()
            found[y] = replace(found[y], value=float(scale * found[y].value + shift))
        return found

    def widened(self, widenings: Widenings) -> Scaled:
        """Return the affine with the identity on the new channel; itself where all channels have one constant."""
        w, y = _given(self, widenings), self.outputs[0]
        if self._is_one_constant:
            usual = self.params.usual
            return Scaled.like(self.params, _inserted(usual, w, 1.0, y) if usual.shape[w.axis] > 1 else usual)
        affine = Affine.of(_inserted(self.params.scale, w, 1.0, y), _inserted(self.params.shift, w, 0.0, y))
        return Scaled.like(affine, _inserted(self.params.usual, w, 1.0, y))

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays one; so does any channel with scale 0."""
        size = self.outputs[0].shape[1] if self.outputs[0].shape and self.outputs[0].rank > 1 else None
        channels = self.params.channels(1, size) if isinstance(size, int) else None
        if channels is None:
            return [None]
        scale, shift = channels
        before = known.get(self.inputs[0], np.full(len(scale), np.nan))
        return [np.where(scale == 0, shift, scale * before + shift)]

    def write(self, graph: Writing) -> None:
        """Write the affine as the cheapest nodes that say it: a BatchNormalization, a Mul, an Add, or Mul and Add."""
        node, x = self.node, self.inputs[0].value
        params, y = self.params, self.outputs[0].value
        like = y.name or "affine"
        if self.cost(params) == 1.0:
            assert self.outputs[0].shape is not None
            size = self.outputs[0].shape[1]
            assert isinstance(size, int)
            channels = params.channels(1, size)
            assert channels is not None
            scale, shift = channels
            inputs = [
                x,
                graph.constant(scale, f"{like}.scale"),
                graph.constant(shift, f"{like}.bias"),
                graph.constant(np.zeros(size), f"{like}.mean"),
                graph.constant(np.ones(size), f"{like}.var"),
            ]
            result = graph.insert("BatchNormalization", inputs, node, like, epsilon=0.0)
        else:
            result = x
            if np.any(params.scale != 1):
                result = graph.insert("Mul", [result, graph.constant(params.scale, f"{like}.scale")], node, like)
            if params.shifts:
                result = graph.insert("Add", [result, graph.constant(params.shift, f"{like}.shift")], node, like)
        self.outputs[0].value = graph.replace(self.outputs[0].value, result)


#: What a Max and a Min by channel cost, in passes, and one of them where it leaves a blocked layout: more than a
#: BatchNorm and a Relu, by measurement.
BOTH_COST = 2.2
UNBLOCKED_COST = 1.9


def in_blocks(tensor: Tensor) -> bool:
    """Whether it is a picture that the runtime may hold in blocks of channels, between 2-D convolutions."""
    shape = tensor.shape
    return shape is not None and len(shape) == 4 and isinstance(shape[1], int) and shape[1] % 4 == 0 and shape[1] >= 8


@dataclass(frozen=True, eq=False)
class Bounds:
    """lo <= y <= hi; each of the tensor's rank, broadcastable; -inf and inf where there is no bound."""

    lo: Array
    hi: Array

    @cached_property
    def form(self) -> str:
        """The cheapest ONNX operators that say it."""
        endless, bottomless = bool((self.hi == np.inf).all()), bool((self.lo == -np.inf).all())
        if endless and bottomless:
            return "Identity"
        if endless and not self.lo.any():
            return "Relu"
        if self.lo.size == self.hi.size == 1:
            return "Clip"
        if endless:
            return "Max"
        return "Min" if bottomless else "Max, Min"


@dataclass(eq=False)
class Clamp(Op):
    """Relu, Clip, and Max or Min with a constant:  y = min(max(x, lo), hi).

    s > 0:  clamp(s x + t; lo, hi) = s clamp(x; (lo - t)/s, (hi - t)/s) + t
    s < 0:  the same with the two bounds changed over
    s = 0:  the constant clamp(t; lo, hi), forward only
    """

    params: Bounds

    @property
    def fused(self) -> bool:
        """Whether the runtime computes it within the convolution before it, as it does Relu and Clip."""
        return isinstance(self.inputs[0].producer, Linear) and len(self.inputs[0].readers) == 1

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
            # What the reader takes with a scale of 0 may be anything; what it takes as it is must be the constant.
            free_lo, free_hi = (0.0, np.inf) if np.all(lo[~np.broadcast_to(zero, lo.shape)] == 0) else (-np.inf, np.inf)
            constant = self._constant(gauge)
            lo = np.where(zero, constant if gauges.holds_zeros else free_lo, lo)
            hi = np.where(zero, constant if gauges.holds_zeros else free_hi, hi)
        either = Affine.of(lo, hi)  # collapses both to the axes along which they vary
        return Bounds(either.scale + 0.0, either.shift + 0.0)

    def cost(self, params: Bounds) -> float:
        """A Relu or Clip behind a convolution costs nothing of its own; other forms are a pass, or what they measured.

        A Max by channel is a pass; a Max and a Min take up to a tenth longer than BatchNorm and Relu. Among 2-D
        convolutions that run in blocks of channels BatchNorm and Relu do as well, and a Max must leave that layout:
        that measured a twentieth to a third longer. Either stands behind a max-pool where one reads it.
        """
        form = params.form
        if form in ("Identity", "Relu"):
            return 0.0 if self.fused or form == "Identity" else 0.6
        if form == "Clip":
            return 0.0 if self.fused else 0.7
        cost = BOTH_COST if form == "Max, Min" else UNBLOCKED_COST if in_blocks(self.inputs[0]) else 0.9
        return cost * self._kept

    @property
    def _kept(self) -> float:
        """How many of its entries are left where bounds by channel would stand: behind a max-pool that reads it."""
        reader = _only_reader(self)
        if isinstance(reader, Scaling):
            reader = _only_reader(reader)  # bounds become those by channel where this affine goes
        if reader is not None and reader.node.op_type == "Unsqueeze":
            reader = _only_reader(reader)
        return reader.kept if isinstance(reader, Pooling) else 1.0

    def dearer(self, params: Bounds) -> str:
        """Return why these bounds cost more than a BatchNorm and the bounds that there are, or ""."""
        if self.cost(params) <= 1.0 + self.cost(self.params):
            return ""
        if params.form == "Max, Min":
            one_sided = np.all(self.params.lo == -np.inf) or np.all(self.params.hi == np.inf)
            why = "gamma of both signs" if one_sided else "two bounds by channel"
            return f"{why}: a Max and a Min in place of {self} take longer than BatchNorm and {self.node.op_type}"
        return f"a {params.form} by channel in place of {self} leaves the layout in which the runtime is faster"

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel, clamped like zero would be where bounds differ by channel: not at all."""
        (x,), (y,) = self.inputs, self.outputs
        if x in widenings and y not in widenings:
            w = widenings[x]
            return {
                y: replace(
                    w,
                    value=w.value
                    if self._by_channel(w)
                    else float(np.clip(w.value, self._one(self.params.lo), self._one(self.params.hi))),
                )
            }
        if y in widenings and x not in widenings:
            return {x: widenings[y]}
        return {}

    def _by_channel(self, w: Widening) -> bool:
        return bool(max(self.params.lo.shape[w.axis], self.params.hi.shape[w.axis]) > 1)

    @staticmethod
    def _one(bound: Array) -> float:
        return float(bound.reshape(-1)[0])

    def widened(self, widenings: Widenings) -> Bounds:
        """Return the bounds with none on the new channel, where they differ by channel."""
        w = _given(self, widenings)
        if not self._by_channel(w):
            return self.params
        return Bounds(
            _inserted(self.params.lo, w, -np.inf, self.outputs[0]),
            _inserted(self.params.hi, w, np.inf, self.outputs[0]),
        )

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays one; one whose two bounds are equal becomes one."""
        (x,) = self.inputs
        size = x.shape[1] if x.shape and len(x.shape) > 1 else None
        both = Affine.of(self.params.lo, self.params.hi).channels(1, size) if isinstance(size, int) else None
        if both is None or not isinstance(size, int):
            return [None]
        before = known.get(x, np.full(size, np.nan))
        return [np.where(both[0] == both[1], both[0], np.clip(before, *both))]

    def write(self, graph: Writing) -> None:
        """Write the bounds as the cheapest nodes that say them."""
        node, result, like = self.node, self.inputs[0].value, self.outputs[0].value.name or "clamp"
        lo, hi, form = self.params.lo, self.params.hi, self.params.form
        if form == "Relu":
            result = graph.insert("Relu", [result], node, like)
        elif form == "Clip" and graph.opset < 11:
            ends = {n: float(b.reshape(())) for b, n in ((lo, "min"), (hi, "max")) if np.isfinite(b)}
            result = graph.insert("Clip", [result], node, like, **ends)
        elif form == "Clip":
            bounds = [
                None if np.all(np.isinf(b)) else graph.constant(b.reshape(()), f"{like}.{n}")
                for b, n in ((lo, "min"), (hi, "max"))
            ]
            result = graph.insert("Clip", [result, *bounds], node, like)
        elif form != "Identity":
            if np.any(lo != -np.inf):
                result = graph.insert("Max", [result, graph.constant(lo, f"{like}.min")], node, like)
            if np.any(hi != np.inf):
                result = graph.insert("Min", [result, graph.constant(hi, f"{like}.max")], node, like)
        self.outputs[0].value = graph.replace(self.outputs[0].value, result)


@dataclass(eq=False)
class Sloped(Op):
    """LeakyRelu and PRelu with a constant slope a; positively homogeneous, so a scale passes and a shift does not.

    s > 0:  f(s x; a) = s f(x; a)
    s < 0:  f(s x; a) = (a s) f(x; 1/a)
    """

    params: Array

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The scale passes, changed by the slope where it is negative."""
        (x,), (y,) = self.inputs, self.outputs
        known = gauges[x] if x in gauges else gauges[y]
        if known.shifts:
            raise Refused(f"a shift does not pass through {self}")
        if np.any(known.scale < 0) and np.any(self.params <= 0):
            raise Refused(f"a negative scale passes through {self} only where its slope is positive")
        if x in gauges:
            return {y: Affine.of(np.where(known.scale < 0, known.scale * self.params, known.scale), 0 * known.shift)}
        return {x: Affine.of(np.where(known.scale < 0, known.scale / self.params, known.scale), 0 * known.shift)}

    def rewritten(self, gauges: Gauges) -> Array:
        """Return the slopes under the gauge of the input: 1/a where the scale is negative."""
        scale = gauges[self.inputs[0]].scale
        if np.all(scale >= 0):
            return self.params
        return np.where(scale < 0, 1.0 / self.params, self.params)

    def cost(self, params: Array) -> float:
        """LeakyRelu is computed within the convolution before it; slopes by channel measured six passes."""
        return 0.0 if params.size == 1 else 6.0

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel, whose positive constant passes."""
        return _same(self, widenings)

    def widened(self, widenings: Widenings) -> Array:
        """Return the slopes with 1 on the new channel, where they differ by channel."""
        w = _given(self, widenings)
        return _inserted(self.params, w, 1.0, self.outputs[0]) if self.params.shape[w.axis] > 1 else self.params

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays one."""
        before = known.get(self.inputs[0])
        slopes = None if before is None else Affine.of(self.params, 0.0).channels(1, len(before))
        if before is None or slopes is None:
            return [None]
        return [np.where(before < 0, slopes[0] * before, before)]

    def write(self, graph: Writing) -> None:
        """Write the slopes as LeakyRelu or PRelu."""
        node, x, like = self.node, self.inputs[0].value, self.outputs[0].value.name or "prelu"
        if self.params.size == 1:
            result = graph.insert("LeakyRelu", [x], node, like, alpha=float(self.params.reshape(())))
        else:
            slope = self.params.reshape(self.params.shape[1:]) if self.params.shape[0] == 1 else self.params
            result = graph.insert("PRelu", [x, graph.constant(slope, f"{like}.slope")], node, like)
        self.outputs[0].value = graph.replace(self.outputs[0].value, result)


@dataclass(eq=False)
class Same(Op):
    """Identity and Dropout in inference: y = x."""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Input and output have the same gauge."""
        (x,), y = self.inputs, self.outputs[0]
        return {y: gauges[x]} if x in gauges else {x: gauges[y]}

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel passes."""
        return _same(self, widenings)

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays one."""
        return [known.get(self.inputs[0])]


@dataclass(eq=False)
class Shape(Op):
    """Shape and Size: they read no numbers, so any gauge will do; one more channel would be seen."""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge."""
        return {}


@dataclass(eq=False)
class Activation(Op):
    """An activation through which no affine passes (sigmoid, tanh, ELU, GELU, ...): a fold ends before or behind it.

    A constant channel stays constant, so a carrier passes: v = act(1).
    """

    #: Its value at a point.
    function: Any = None

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """No gauge passes."""
        raise Refused(f"{self} is neither linear nor positively homogeneous: a scale or shift cannot pass through it")

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel, holding the activation of its constant."""
        (x,), (y,) = self.inputs, self.outputs
        if x in widenings and y not in widenings:
            return {y: replace(widenings[x], value=self.function(widenings[x].value))}
        if y in widenings and x not in widenings:
            return {x: replace(widenings[y], value=1.0)}
        return {}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays one."""
        before = known.get(self.inputs[0])
        if before is None:
            return [None]
        return [np.array([self.function(v) if np.isfinite(v) else np.nan for v in before])]


def _same(op: Op, widenings: Widenings) -> dict[Tensor, Widening]:
    x, y = op.inputs[0], op.outputs[0]
    if x in widenings and y not in widenings:
        return {y: widenings[x]}
    return {x: widenings[y]} if y in widenings and x not in widenings else {}


def _given(op: Op, widenings: Widenings) -> Widening:
    return widenings[op.inputs[0]] if op.inputs[0] in widenings else widenings[op.outputs[0]]


def _inserted(part: Array, w: Widening, value: float, tensor: Tensor) -> Array:
    if part.shape[w.axis] == 1:
        if np.all(part == value):
            return part
        shape = list(part.shape)
        shape[w.axis] = tensor.size(w.axis)
        part = np.broadcast_to(part, shape)
    return np.insert(part, [w.index] * w.count, value, axis=w.axis)

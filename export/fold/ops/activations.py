"""Activations of two slopes and smooth ones, and what leaves every entry as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Gauges, Op, Refused, Tensor, Widening, Widenings, Writing
from normfold.export.fold.ops.widening import given, inserted, same


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
        return same(self, widenings)

    def widened(self, widenings: Widenings) -> Array:
        """Return the slopes with 1 on the new channel, where they differ by channel."""
        w = given(self, widenings)
        return inserted(self.params, w, 1.0, self.outputs[0]) if self.params.shape[w.axis] > 1 else self.params

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
        graph.replace(self.outputs[0], result)


@dataclass(eq=False)
class Same(Op):
    """Identity and Dropout in inference: y = x."""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Input and output have the same gauge."""
        (x,), y = self.inputs, self.outputs[0]
        return {y: gauges[x]} if x in gauges else {x: gauges[y]}

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel passes."""
        return same(self, widenings)

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

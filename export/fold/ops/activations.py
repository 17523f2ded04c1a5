"""Activations other than clamps, and operators that leave every number as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.net import AddedChannels, Constants, Gauges, Op, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops import costs
from normfold.export.fold.ops.entrywise import Entrywise
from normfold.export.fold.ops.widening import channel_of, passed_on, with_entry
from normfold.export.fold.ranges import Range
from normfold.export.graphs.writing import Writing


class SlopeForm(Enum):
    """The node that slopes are written as; the value is the ONNX operator's name."""

    ONE = "LeakyRelu"
    BY_CHANNEL = "PRelu"


@dataclass(eq=False)
class Sloped(Entrywise):
    """LeakyRelu and PRelu with a constant slope a; positively homogeneous, so a scale passes and a shift does not.

    s > 0:  f(s x; a) = s f(x; a)
    s < 0:  f(s x; a) = (a s) f(x; 1/a)
    """

    passes_scale: ClassVar[bool] = True

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

    @staticmethod
    def form(params: Array) -> SlopeForm:
        """Return the node that these slopes are written as; an attribute holds one slope that float32 has exactly."""
        one = params.size == 1 and float(np.float32(params.reshape(()))) == float(params.reshape(()))
        return SlopeForm.ONE if one else SlopeForm.BY_CHANNEL

    def cost(self, params: Array) -> float:
        """LeakyRelu is computed within the convolution before it; slopes by channel are not."""
        return 0.0 if self.form(params) is SlopeForm.ONE else costs.PRELU_COST

    def stored(self, params: Array) -> Sequence[Array]:
        """The slopes."""
        return (params,)

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel, whose positive constant passes."""
        return passed_on(self, added)

    def with_channel(self, added: AddedChannels) -> Array:
        """Return the slopes with 1 on the new channel, where they differ by channel."""
        w = channel_of(self, added)
        return with_entry(self.params, w, 1.0, self.outputs[0]) if self.params.shape[w.axis] > 1 else self.params

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant."""
        before = known.get(self.inputs[0])
        slopes = None if before is None else Affine.of(self.params, 0.0).channels(1, len(before))
        if before is None or slopes is None:
            return [None]
        return [np.where(before < 0, slopes[0] * before, before)]

    def at(self, entries: Array) -> Array:
        """The negative entries multiplied by the slope."""
        product: Array = np.where(entries < 0, self.params * entries, entries)
        return product

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> Array:
        """Return the slopes of the channels that stay."""
        return removed[self.outputs[0]].cut(self.params)

    def range(self, inputs: Sequence[Range]) -> Range:
        """The input's ends, the negative one multiplied by the slope."""
        return Range.between(*map(self.at, inputs[0].ends))

    def write(self, graph: Writing) -> None:
        """Write the slopes in their form."""
        node, x, like = self.node, self.inputs[0].value, self.outputs[0].value.name or "prelu"
        if self.form(self.params) is SlopeForm.ONE:
            result = graph.insert("LeakyRelu", [x], node, like, alpha=float(self.params.reshape(())))
        else:
            slope = self.params.reshape(self.params.shape[1:]) if self.params.shape[0] == 1 else self.params
            result = graph.insert("PRelu", [x, graph.constant(slope, f"{like}.slope")], node, like)
        self.outputs[0].become(result, graph)


@dataclass(eq=False)
class Same(Entrywise):
    """Identity and Dropout in inference: y = x."""

    passes_scale: ClassVar[bool] = True
    is_identity: ClassVar[bool] = True

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Input and output have the same gauge."""
        (x,), y = self.inputs, self.outputs[0]
        return {y: gauges[x]} if x in gauges else {x: gauges[y]}

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel passes."""
        return passed_on(self, added)

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant."""
        return [known.get(self.inputs[0])]

    def at(self, entries: Array) -> Array:
        """The same entries."""
        return entries

    def range(self, inputs: Sequence[Range]) -> Range:
        """The range of the input."""
        return inputs[0]


@dataclass(eq=False)
class Shape(Op):
    """Shape and Size: they read no numbers, so any gauge fits; but they would see one more channel, and refuse it."""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge."""
        return {}


@dataclass(eq=False)
class Activation(Entrywise):
    """An activation through which no affine passes (sigmoid, tanh, ELU, GELU, ...): a fold ends before or behind it.

    A constant channel stays constant, so a carrier passes: v = act(1).
    """

    is_smooth: ClassVar[bool] = True

    #: Its value at a point.
    function: Any = None

    @property
    def refusal(self) -> str:
        """The reason why no scale or shift passes."""
        return f"{self} is neither linear nor positively homogeneous: a scale or shift cannot pass through it"

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel, which holds the activation of its constant."""
        (x,), (y,) = self.inputs, self.outputs
        if x in added:
            return {y: replace(added[x], value=self.function(added[x].value))}
        return {x: replace(added[y], value=1.0)}

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """A constant channel stays constant."""
        before = known.get(self.inputs[0])
        if before is None:
            return [None]
        return [np.array([self.function(v) if np.isfinite(v) else np.nan for v in before])]

    def at(self, entries: Array) -> Array:
        """The activation of each entry."""
        return np.array([self.function(v) for v in entries.flat]).reshape(entries.shape)

    def range(self, inputs: Sequence[Range]) -> Range | None:
        """The activation of the input's ends, where it is finite."""
        ends = [self.at(end) for end in inputs[0].ends]
        return Range.between(*ends) if all(np.isfinite(end).all() for end in ends) else None

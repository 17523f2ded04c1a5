"""Products with constants that weigh some axes of a tensor and leave the others alone.

    W (s x + t) + b = s (W x) + (W t + b)     where s is the same all along the axes that W weighs

Such a scale passes. A shift ends here: what is added behind the product takes it, in as many entries as it needs. An
affine along the weighed axes is taken into W, as by every linear operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Dim, Gauges, Op, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops.axis_labels import AxisLabels
from normfold.export.fold.ops.bias import write_bias_behind
from normfold.export.fold.ops.costs import BIAS_COST
from normfold.export.fold.ops.linear import Linear, inverse, stem_of
from normfold.export.fold.ops.weights import Weights
from normfold.export.fold.silencing import Silencing
from normfold.export.graphs.writing import Writing


@dataclass(frozen=True, eq=False)
class Weighing:
    """What a product computes: the sum of products of its input with ``constant``, plus ``added``."""

    labels: AxisLabels
    constant: Array
    #: Of the output's rank, with length 1 where it does not differ.
    added: Array

    def spread(self, op: Op, gauges: Gauges) -> dict[Tensor, Affine]:
        """Return the gauges that follow: a scale along other axes than the weighed ones is that of both sides."""
        (x,), (y,) = op.inputs, op.outputs
        if x in gauges and gauges[x].shifts and self.labels.adds_up:
            raise Refused(f"{op} adds up entries, and how often it would add the shift is not known")
        if x in gauges and self.labels.passes(gauges[x], op, of_result=False):
            scale = self.labels.passed(gauges[x].scale, on=True)
            shift = gauges[y].shift if y in gauges else 0.0
            # A scale of 0 leaves a constant, which the product passes on.
            return {y: Affine.of(scale, np.where(scale == 0, self.at(gauges[x].shift), shift))}
        if y in gauges:
            inverse(gauges[y], op)
            if self.labels.passes(gauges[y], op, of_result=True):
                shift = gauges[x].shift if x in gauges else 0.0
                return {x: Affine.of(self.labels.passed(gauges[y].scale, on=False), shift)}
        return {}

    def at(self, entries: Array) -> Array:
        """Return what is computed from entries, an array with length 1 along each axis where they are equal."""
        return self.labels.weighed(self.constant, entries) + self.added

    def silenced(self, op: Op, wanted: Affine, silencing: Silencing) -> tuple[Affine, Weighing]:
        """Return what entries hold once those before it are constant along an axis that passes, and the product then.

        What is added, where anything is, then makes the constant the same at each position.
        """
        if self.labels.adds_up or not self.labels.passes(wanted, op, of_result=True):
            raise Refused(f"{op} does not keep the channel constant")
        before = silencing.of(op.inputs[0], Affine.of(self.labels.passed(wanted.scale, on=False), 0.0))
        constant = wanted.scale == 0
        held = self.at(before.shift)
        if not self.added.any():
            return Affine.of(wanted.scale, np.where(constant, held, 0.0)), self
        added = self.added + np.where(constant, wanted.shift - held, 0.0)
        return wanted, Weighing(self.labels, self.constant, Affine.of(1.0, added).shift)

    def rewritten(self, op: Op, gauges: Gauges) -> Weighing:
        """Return K' = K s_x / s_y for scales along the weighed axes, and what is added: (K t_x + b - t_y) / s_y."""
        (x,), (y,) = op.inputs, op.outputs
        constant, before, after = self.constant, x.gauge(gauges), y.gauge(gauges)
        if not self.labels.passes(before, op, of_result=False):
            constant = constant * self.labels.onto_constant(before.scale, of_result=False)
        if not self.labels.passes(after, op, of_result=True):
            constant = constant / self.labels.onto_constant(after.scale, of_result=True)
        held = after.scale == 0
        added = (self.at(before.shift) - after.shift) / np.where(held, 1.0, after.scale)
        return Weighing(self.labels, constant, Affine.of(1.0, np.where(held, 0.0, added)).shift)


@dataclass(eq=False)
class MatrixProduct(Linear):
    """MatMul and Einsum with a constant matrix, which weighs one axis."""

    def _passes(self, gauges: Gauges) -> bool:
        """Whether anything differs along another axis than the one that it weighs."""
        others = [a for a in range(self.inputs[0].rank) if a != self.axis_in]
        known = [gauges[t] for t in (*self.inputs, *self.outputs) if t in gauges]
        return self.params.offset is not None or any(g.varies(a) for g in known for a in others)

    @property
    def _weighing(self) -> Weighing:
        rank, offset = self.inputs[0].rank, self.params.offset
        added = self.params.bias.reshape([-1 if a == self.axis_out else 1 for a in range(rank)])
        return Weighing(
            AxisLabels.along(self.axis_in, rank), self.params.weight[0], added if offset is None else added + offset
        )

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """An affine along its axis ends here; a scale along another axis passes."""
        if not self._passes(gauges):
            return super().spread(gauges)
        if self.carrier_needed(gauges):
            raise Refused(f"{self} reads zeros of a padding, and here the scale differs along another axis")
        return self._weighing.spread(self, gauges)

    def rewritten(self, gauges: Gauges, carrier: tuple[int, float] | None = None) -> Weights:
        """Return the weights, and what else is added where the bias has too few entries."""
        if not self._passes(gauges):
            return super().rewritten(gauges, carrier)
        return self._weights(self._weighing.rewritten(self, gauges))

    def _weights(self, new: Weighing) -> Weights:
        """Return new params, with an offset only where the bias has too few entries for what is added."""
        if new.added.size == new.added.shape[self.axis_out]:
            size = self.params.weight.shape[1]
            return Weights(new.constant[None], np.broadcast_to(new.added.reshape(-1), (size,)))
        return Weights(new.constant[None], 0 * self.params.bias, new.added)

    @property
    def added(self) -> Array:
        """The constant that the Add behind it adds."""
        return super().added if self.params.offset is None else self._weighing.added

    @property
    def lacks_bias(self) -> bool:
        """Whether nothing is added behind it yet."""
        return super().lacks_bias and self.params.offset is None

    def stored(self, params: Weights) -> Sequence[Array]:
        """Weight, bias and offset."""
        return (*super().stored(params), *([] if params.offset is None else [params.offset]))

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """An output channel whose weights are all zero holds its bias, where nothing else is added."""
        return super().constants(known) if self.params.offset is None else [None]

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """Zero weights and the values in the bias; along another axis, constants before it."""
        if any(wanted.varies(a) for a in range(wanted.rank) if a != self.axis_out):
            held, new = self._weighing.silenced(self, wanted, silencing)
            silencing.edits[self] = self._weights(new)
            return held
        self._require_one_bias()
        return super().silenced(tensor, wanted, silencing)

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel of the input; one of the output where nothing but the bias is added."""
        self._require_one_bias()
        return super().add_channel(added)

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Channels go where nothing but the bias is added."""
        self._require_one_bias()
        return super().remove_channels(removed)

    def _require_one_bias(self) -> None:
        if self.params.offset is not None:
            raise Refused(f"{self} has another bias at each position")


@dataclass(eq=False)
class Contraction(Op):
    """Einsum with any other constant, such as several adjacency matrices of a graph: "nkctv,kvw->nctw"."""

    takes_affines: ClassVar[bool] = True
    emits_affines: ClassVar[bool] = True

    params: Weighing
    #: The place of the constant among the node's inputs.
    place: int = 1

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """A scale along weighed axes ends here, one along others passes; a shift ends here."""
        return self.params.spread(self, gauges)

    def rewritten(self, gauges: Gauges) -> Weighing:
        """Return the constant under the gauges, and what is added behind it."""
        return self.params.rewritten(self, gauges)

    def cost(self, params: Weighing) -> float:
        """Return the cost of an Add behind it."""
        return BIAS_COST if np.any(params.added != 0) else 0.0

    def undoes_shift(self, gauges: Gauges) -> bool:
        """It takes any shift of its input into what is added."""
        (x,) = self.inputs
        return x in gauges and gauges[x].shifts

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """Constants before it, along an axis that passes."""
        held, silencing.edits[self] = self.params.silenced(self, wanted, silencing)
        return held

    def stored(self, params: Weighing) -> Sequence[Array]:
        """The constant and what is added."""
        return params.constant, params.added

    def rows(self, params: Weighing) -> Array:
        """The largest weight along the first axis of the constant."""
        constant = np.abs(params.constant)
        return constant.reshape(len(constant), -1).max(axis=1)  # type: ignore[no-any-return]

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim]:
        """The lengths of the axes that stay, and those of the constant."""
        labels, (shape,) = self.params.labels, shapes
        sizes: dict[str, Dim] = dict(zip(labels.data, shape, strict=True))
        sizes.update(zip(labels.constant, self.params.constant.shape, strict=True))
        return [sizes[name] for name in labels.result]

    def write(self, graph: Writing) -> None:
        """Write the constant as a new initializer, and what is added as an Add behind."""
        old = self.node.inputs[self.place]
        stem = stem_of(old.name if old is not None else self.name)
        self.node.replace_input_with(self.place, graph.constant(self.params.constant, f"{stem}.weight"))
        write_bias_behind(self, graph, self.params.added, stem)

"""Linear operators with constant weights: they take any affine, before or behind, into weight and bias.

    s (W x + b) + t    =  (s W) x + (s b + t)            fold back, exact for any padding, stride, dilation and groups
    W (s x + t) + b    =  (W s) x + (b + W t)            fold forward, exact where nothing is padded
    W pad(s x + t) + b =  (W s) pad(x) + (W t / c) pad(x_k) + b    where channel k of x always holds c ≠ 0

In the last line channel k is a carrier: zero padding pads it as it pads every other channel, so the shift ends where
the tensor ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.net import AddedChannels, Constants, Dim, Gauges, Op, Refused, RemovedFrom, Tensor
from normfold.export.fold.ops.bias import PRODUCTS, write_bias_behind
from normfold.export.fold.ops.weights import WeightForm, Weights
from normfold.export.fold.ranges import Range
from normfold.export.fold.silencing import Silencing
from normfold.export.graphs.writing import Writing


@dataclass(eq=False)
class Linear(Op):
    """Conv, ConvTranspose, Gemm, MatMul and Einsum with constant weights."""

    takes_affines: ClassVar[bool] = True
    emits_affines: ClassVar[bool] = True
    reads_past_zeros: ClassVar[bool] = True
    fuses_clamps: ClassVar[bool] = True
    constant_by_itself: ClassVar[bool] = True

    params: Weights
    #: The axis of the channels in the input and in the output.
    axis_in: int = 1
    axis_out: int = 1
    #: Whether some outputs see fewer taps than others (zero padding, or the ends of a transposed convolution).
    edges: bool = False
    #: Whether it is a convolution whose output has the lengths of its input.
    keeps_lengths: bool = False
    #: The tap that each output reads at its own position, (): a product has no taps; None where there is none.
    middle: tuple[int, ...] | None = None
    #: How the node holds its weight.
    form: WeightForm = WeightForm.CONV
    #: The place of the weight among the node's inputs: a MatMul or Einsum may have it before the data.
    place: int = 1

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the input, any invertible gauge of the output: neither concerns the other."""
        (x,), (y,) = self.inputs, self.outputs
        if x in gauges:
            self._whole_channels(gauges[x], self.axis_in)
            if self.carrier_needed(gauges) and self.params.groups > 1:
                raise Refused(
                    f"{self} pads with zeros and is depthwise or grouped, so no carrier channel can hold the shift"
                )
        if y in gauges:
            self._whole_channels(gauges[y], self.axis_out)
            inverse(gauges[y], self)
        return {}

    def _whole_channels(self, gauge: Affine, axis: int) -> None:
        if any(gauge.varies(a) for a in range(gauge.rank) if a != axis % gauge.rank):
            raise Refused(f"{self} weighs whole channels, and here the scale differs within one")

    def carrier_needed(self, gauges: Gauges) -> bool:
        """Whether it must read the shift of its input from a channel that holds a constant."""
        (x,) = self.inputs
        return x in gauges and gauges[x].shifts and (self.edges or self.unpadded is not x)

    @property
    def reads(self) -> int:
        """The number of channels that it reads."""
        return int(self.params.weight.shape[0] * self.params.weight.shape[2])

    def weighed(self, channels: Array) -> Array:
        """Return |W| x of shape (out,), where x of shape (in,) has one number for each channel."""
        weight = self.params.weight
        taps = np.abs(weight).reshape(*weight.shape[:3], -1).sum(axis=3)
        product: Array = (taps * channels.reshape(len(weight), 1, -1)).sum(axis=2).reshape(-1)
        return product

    @property
    def is_product(self) -> bool:
        """Whether it is a product with a matrix, whose bias is an Add behind it."""
        return self.node.op_type in PRODUCTS

    @property
    def lacks_bias(self) -> bool:
        """Whether a bias would be a node of its own that is not there: a product without an Add behind it."""
        return self.is_product and self.outputs[0].value is self.node.outputs[0] and not self.params.bias.any()

    @property
    def added(self) -> Array:
        """The constant in the Add behind a product, of the rank of its output without the axes before the channels."""
        return self.params.bias.reshape(-1, *[1] * (self.inputs[0].rank - 1 - self.axis_out))

    @property
    def unpadded(self) -> Tensor:
        """Its input; where a Pad with zeros computes that, the input of the Pad."""
        (x,) = self.inputs
        return x.producer.inputs[0] if x.producer is not None and x.producer.ends_in_zeros else x

    def rewritten(self, gauges: Gauges, carrier: tuple[int, float] | None = None) -> Weights:
        """Return the weights under the gauges: W' = s_y⁻¹ W s_x,  b' = s_y⁻¹ (b + W t_x - t_y)."""
        (x,), (y,) = self.inputs, self.outputs
        weights = self.params
        if x in gauges:
            weights = weights.after_input(*self._channels(gauges[x], x, self.axis_in), carrier)
        if y in gauges:
            weights = weights.before_output(*self._channels(inverse(gauges[y], self), y, self.axis_out))
        return weights

    def _channels(self, gauge: Affine, tensor: Tensor, axis: int) -> tuple[Array, Array]:
        size = self.params.weight.shape[0] * self.params.weight.shape[2 if tensor in self.inputs else 1]
        self._whole_channels(gauge, axis)
        channels = gauge.channels(axis, size)
        assert channels is not None
        return channels

    def undoes_shift(self, gauges: Gauges) -> bool:
        """It takes any shift of its input into its weights or bias."""
        (x,) = self.inputs
        return x in gauges and gauges[x].shifts

    def stored(self, params: Weights) -> Sequence[Array]:
        """Weight and bias."""
        return params.weight, params.bias

    def rows(self, params: Weights) -> Array:
        """The largest weight of each pair of an output and an input channel."""
        weight = params.weight
        return np.abs(weight).max(axis=tuple(range(2, weight.ndim)))  # type: ignore[no-any-return]

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """One more channel of the input is read with weight 0; one more of the output is emitted from the bias."""
        if self.outputs[0] in added and self.axis_out != 1:
            raise Refused(f"{self} moves the channels to another axis, through which no constant is followed")
        for tensor, axis in ((self.inputs[0], self.axis_in), (self.outputs[0], self.axis_out)):
            if tensor in added:
                if self.params.groups > 1:
                    raise Refused(
                        f"{self} is depthwise or grouped, so it can neither emit nor pass over one more channel"
                    )
                if added[tensor].axis != axis % tensor.rank:
                    raise Refused(f"{self} has its channels on another axis")
        return {}

    def with_channel(self, added: AddedChannels) -> Weights:
        """Return the weights with zeros for the input's new channel, and a constant row for the output's."""
        (x,), (y,) = self.inputs, self.outputs
        weight, bias = self.params.weight, self.params.bias
        if x in added:
            w = added[x]
            weight = np.insert(weight, [w.index] * w.count, 0.0, axis=2)
        if y in added:
            w = added[y]
            weight = np.insert(weight, [w.index] * w.count, 0.0, axis=1)
            bias = np.insert(bias, [w.index] * w.count, w.value)
        return Weights(weight, bias)

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """An output channel whose weights are all zero holds its bias."""
        if self.axis_out != 1:
            return [None]
        zero = np.all(self.params.weight == 0, axis=tuple(range(2, self.params.weight.ndim))).reshape(-1)
        return [np.where(zero, self.params.bias, np.nan)]

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """Zero weights and the values in the bias make output channels constant."""
        self._whole_channels(wanted, self.axis_out)
        weights: Weights = silencing.edits.get(self, self.params)
        scale, values = self._channels(wanted, tensor, self.axis_out)
        constant = scale == 0
        weight = weights.weight.copy()
        weight.reshape(-1, *weight.shape[2:])[constant] = 0.0
        silencing.edits[self] = replace(weights, weight=weight, bias=np.where(constant, values, weights.bias))
        return wanted

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Input and output channels go independently, where there are no groups and its channels are on that axis."""
        if self.params.groups > 1:
            raise Refused(f"{self} is depthwise or grouped")
        for tensor, axis in ((self.inputs[0], self.axis_in), (self.outputs[0], self.axis_out)):
            if tensor in removed and removed[tensor].axis != axis % tensor.rank:
                raise Refused(f"{self} has its channels on another axis")
        return {}

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> Weights:
        """Return the weights of the channels that stay, with the constants of the input's in the bias."""
        (x,), (y,) = self.inputs, self.outputs
        weight, bias = self.params.weight, self.params.bias
        if x in removed:
            gone, whole = removed[x].where, constants(x)
            assert whole is not None
            taps = np.tensordot(weight[:, :, gone], whole[gone], axes=(2, 0))  # (groups, out, *taps)
            if np.any(taps != 0) and (self.edges or self.unpadded is not x):
                raise Refused(f"{self} pads with zeros, and reads the constant")
            bias = bias + taps.reshape(len(bias), -1).sum(axis=1)
            weight = np.delete(weight, gone, axis=2)
        if y in removed:
            gone = removed[y].where
            weight, bias = np.delete(weight, gone, axis=1), np.delete(bias, gone)
        return Weights(weight, bias)

    def read_channels(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return two arrays of the input's rank as one number for each channel that it reads, (in,) each.

        Where they differ along another axis, all channels get the least and the greatest.
        """
        channels = Affine(low, high).channels(self.axis_in, self.reads)
        return (np.full(self.reads, low.min()), np.full(self.reads, high.max())) if channels is None else channels

    def range(self, inputs: Sequence[Range]) -> Range:
        """The range of independent channels: their means add up by the weights, their variances by the squares."""
        mean, deviation = self.params.spread_of(*self.read_channels(*inputs[0].ends))
        shape = [1] * self.outputs[0].rank
        shape[self.axis_out] = -1
        return Range.around(mean.reshape(shape), deviation.reshape(shape))

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim] | None:
        """A product with a matrix keeps all lengths but that of the channels, and so do some convolutions."""
        if self.form.has_taps and not self.keeps_lengths:
            return None
        return [None if axis == self.axis_out % len(shapes[0]) else size for axis, size in enumerate(shapes[0])]

    def output_shape(self) -> tuple[Dim, ...] | None:
        """The shape of the output of a convolution or Gemm, its lengths under names of their own."""
        if self.is_product:
            return None
        x, name = self.inputs[0], self.outputs[0].name
        groups, out, _, *taps = self.params.weight.shape
        batch = x.shape[0] if x.shape else f"{name}[0]"
        return (batch, groups * out, *(f"{name}[{i + 2}]" for i in range(len(taps))))

    def write(self, graph: Writing) -> None:
        """Write weight and bias as new initializers, in the form of the old ones."""
        weight, bias = self.params.weight, self.params.bias
        node = self.node
        old = node.inputs[self.place]
        stem = stem_of(old.name if old is not None else self.name)
        had_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        new_weight = graph.constant(self.form.of(weight), f"{stem}.weight")
        if self.is_product:
            node.replace_input_with(self.place, new_weight)
            write_bias_behind(self, graph, self.added, stem)
            return
        node.replace_input_with(1, new_weight)
        if node.op_type == "Gemm":
            for name in ("alpha", "beta"):
                node.attributes.pop(name, None)
        if had_bias or np.any(bias != 0):
            node.resize_inputs(3)
            node.replace_input_with(2, graph.constant(bias, f"{stem}.bias"))


def inverse(gauge: Affine, op: Op) -> Affine:
    """Return the inverse of a gauge; refused where a scale is 0."""
    try:
        return gauge.inverse()
    except ZeroDivisionError as error:
        raise Refused(f"a channel is scaled by 0 or nearly so, which {op} cannot undo") from error


def linears(ops: Iterable[Op]) -> list[Linear]:
    """Return the linear operators with constant weights among operators."""
    return [op for op in ops if isinstance(op, Linear)]


def stem_of(name: str | None) -> str:
    """Return the name of an initializer without its ending, for new ones in its place."""
    name = name or "folded"
    for ending in (".weight", ".bias", "_weight", "_W", ".folded"):
        name = name.removesuffix(ending)
    return name

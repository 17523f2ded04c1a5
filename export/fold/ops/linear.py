"""Linear operators with constant weights: they take any affine, before or behind, into weight and bias.

    s (W x + b) + t    =  (s W) x + (s b + t)            fold back, exact for any padding, stride, dilation and groups
    W (s x + t) + b    =  (W s) x + (b + W t)            fold forward, exact where nothing is padded
    W pad(s x + t) + b =  (W s) pad(x) + (W t / c) pad(x_k) + b    where channel k of x always holds c ≠ 0

The last line is the carrier: zero padding pads channel k as it pads every other, so the shift ends where the tensor
ends. A weight is held as (groups, out, in, *taps): one arithmetic serves convolution, its transpose and Gemm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Gauges, Op, Refused, Tensor, Widening, Widenings
from normfold.export.graphs.writing import Writing


@dataclass(frozen=True, eq=False)
class Weights:
    """weight (groups, out/groups, in/groups, *taps) and bias (out,), float64."""

    weight: Array
    bias: Array

    @property
    def groups(self) -> int:
        """Into how many groups the channels fall."""
        return int(self.weight.shape[0])

    def after_input(self, scale: Array, shift: Array, carrier: tuple[int, float] | None) -> Weights:
        """Return the weights that read ``x`` where these read ``scale * x + shift``; scale and shift of shape (in,).

        carrier: the index of a channel of x that always holds a constant, and that constant; it bears the shift where
        the operator pads with zeros. None where nothing is padded: the bias bears it.
        """
        groups, _, inner = self.weight.shape[:3]
        taps = (1,) * (self.weight.ndim - 3)
        shifted = (self.weight * shift.reshape(groups, 1, inner, *taps)).sum(axis=2)  # (groups, out, *taps)
        weight = self.weight * scale.reshape(groups, 1, inner, *taps)
        if carrier is None:
            return Weights(weight, self.bias + shifted.reshape(len(self.bias), -1).sum(axis=1))
        index, constant = carrier
        weight[:, :, index] += shifted / constant
        return Weights(weight, self.bias)

    def before_output(self, scale: Array, shift: Array) -> Weights:
        """Return the weights whose output is ``scale * y + shift`` of these; scale and shift of shape (out,)."""
        per_output = scale.reshape(*self.weight.shape[:2], *(1,) * (self.weight.ndim - 2))
        return Weights(self.weight * per_output, self.bias * scale + shift)


@dataclass(eq=False)
class Linear(Op):
    """Conv, ConvTranspose, Gemm and MatMul with constant weights."""

    params: Weights
    #: The axis of the channels, of input and of output.
    axis_in: int = 1
    axis_out: int = 1
    #: Whether some outputs see fewer taps than others (zero padding, or the ends of a transposed convolution).
    edges: bool = False
    #: Whether weight and bias came as ONNX has them: Conv, ConvTranspose, or a matrix (in, out) / (out, in).
    form: str = "conv"
    #: The node that adds the bias of a MatMul, where there is one.
    bias_name: str = ""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the input, any invertible gauge of the output: neither concerns the other."""
        (x,), (y,) = self.inputs, self.outputs
        if x in gauges:
            self._whole_channels(gauges[x], self.axis_in)
            if self.carrier_needed(gauges) and self.params.groups > 1:
                raise Refused(
                    f"{self} pads with zeros and is depthwise or grouped, so no carrier channel can bear the shift"
                )
        if y in gauges:
            self._whole_channels(gauges[y], self.axis_out)
            inverse(gauges[y], self)
        return {}

    def _whole_channels(self, gauge: Affine, axis: int) -> None:
        if any(gauge.varies(a) for a in range(gauge.rank) if a != axis % gauge.rank):
            raise Refused(f"{self} weighs whole channels, and here the scale differs within one")

    def carrier_needed(self, gauges: Gauges) -> bool:
        """Whether the shift of its input must be borne by a constant channel."""
        (x,) = self.inputs
        return x in gauges and gauges[x].shifts and (self.edges or self.unpadded is not x)

    @property
    def reads(self) -> int:
        """How many channels it reads."""
        return int(self.params.weight.shape[0] * self.params.weight.shape[2])

    def weighed(self, channels: Array) -> Array:
        """Return |W| x, (out,), for one number a channel, (in,)."""
        weight = self.params.weight
        taps = np.abs(weight).reshape(*weight.shape[:3], -1).sum(axis=3)
        product: Array = (taps * channels.reshape(len(weight), 1, -1)).sum(axis=2).reshape(-1)
        return product

    @property
    def lacks_bias(self) -> bool:
        """Whether a bias would be a node of its own that is not there: a MatMul without an Add behind it."""
        return (
            self.node.op_type == "MatMul"
            and self.outputs[0].value is self.node.outputs[0]
            and not self.params.bias.any()
        )

    @property
    def unpadded(self) -> Tensor:
        """Its input, or what that is before a Pad with zeros."""
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

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """A channel more of the input is read with weight 0; one more of the output is emitted from the bias."""
        for tensor, axis in ((self.inputs[0], self.axis_in), (self.outputs[0], self.axis_out)):
            if tensor in widenings:
                if self.params.groups > 1:
                    raise Refused(
                        f"{self} is depthwise or grouped, so it can neither emit nor pass over one more channel"
                    )
                if widenings[tensor].axis != axis % tensor.rank:
                    raise Refused(f"{self} has its channels on another axis")
        return {}

    def widened(self, widenings: Widenings) -> Weights:
        """Return the weights with zero columns for what the input has more, a constant row for the output's."""
        (x,), (y,) = self.inputs, self.outputs
        weight, bias = self.params.weight, self.params.bias
        if x in widenings:
            w = widenings[x]
            weight = np.insert(weight, [w.index] * w.count, 0.0, axis=2)
        if y in widenings:
            w = widenings[y]
            weight = np.insert(weight, [w.index] * w.count, 0.0, axis=1)
            bias = np.insert(bias, [w.index] * w.count, w.value)
        return Weights(weight, bias)

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """An output channel whose weights are all zero holds its bias."""
        if self.axis_out != 1:
            return [None]
        zero = np.all(self.params.weight == 0, axis=tuple(range(2, self.params.weight.ndim))).reshape(-1)
        return [np.where(zero, self.params.bias, np.nan)]

    def write(self, graph: Writing) -> None:
        """Write weight and bias as new initializers in the form the node had."""
        weight, bias = self.params.weight, self.params.bias
        groups, out, inner, *taps = weight.shape
        node = self.node
        if self.form == "conv":
            array = weight.reshape(groups * out, inner, *taps)
        elif self.form == "transposed":
            array = weight.swapaxes(1, 2).reshape(groups * inner, out, *taps)
        else:
            array = weight[0] if self.form == "out,in" else weight[0].T
        stem = _stem(node.inputs[1].name if node.inputs[1] is not None else self.name)
        had_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        new_weight = graph.constant(array, f"{stem}.weight")
        if node.op_type == "MatMul":
            node.replace_input_with(1, new_weight)
            self._write_matmul_bias(graph, stem)
            return
        node.replace_input_with(1, new_weight)
        if node.op_type == "Gemm":
            for name in ("alpha", "beta"):
                node.attributes.pop(name, None)
        if had_bias or np.any(bias != 0):
            node.resize_inputs(3)
            node.replace_input_with(2, graph.constant(bias, f"{stem}.bias"))

    def _write_matmul_bias(self, graph: Writing, stem: str) -> None:
        """Give a MatMul its bias by an Add behind it: the one that is there, or a new one."""
        product = self.node.outputs[0]
        final = self.outputs[0].value
        bias = graph.constant(self.params.bias, f"{stem}.bias")
        if final is not product:
            add = final.producer()
            assert add is not None
            product.shape = final.shape
            index = 0 if add.inputs[0] is not product else 1
            add.replace_input_with(index, bias)
        elif np.any(self.params.bias != 0):
            self.outputs[0].value = _append_add(graph, self.node, bias)


def _append_add(graph: Writing, node: ir.Node, bias: ir.Value) -> ir.Value:
    product = node.outputs[0]
    uses = list(product.uses())
    add = ir.node("Add", [product, bias], name=f"{node.name}_bias")
    total = add.outputs[0]
    total.name, product.name = product.name, f"{product.name}_product"
    total.type, total.shape = product.type, product.shape
    add.metadata_props.update(node.metadata_props)
    graph.graph.insert_after(node, add)
    for reader, index in uses:
        reader.replace_input_with(index, total)
    for i, output in enumerate(graph.graph.outputs):
        if output is product:
            graph.graph.outputs[i] = total
    return total


def inverse(gauge: Affine, op: Op) -> Affine:
    """Return the inverse of a gauge, refused in words where a scale is 0."""
    try:
        return gauge.inverse()
    except ZeroDivisionError as error:
        raise Refused(f"a channel is scaled by 0 or nearly so, which {op} cannot undo") from error


def _stem(name: str | None) -> str:
    name = name or "folded"
    for ending in (".weight", ".bias", "_weight", "_W", ".folded"):
        name = name.removesuffix(ending)
    return name


@dataclass(frozen=True, eq=False)
class Gates:
    """Input weights (directions, gates x hidden, in) and bias (directions, gates x hidden) of a recurrent operator."""

    weight: Array
    bias: Array
    #: The bias of the recurrent half, of the same shape; nothing of it changes.
    recurrent_bias: Array


@dataclass(eq=False)
class Recurrent(Op):
    """LSTM, GRU, RNN with constant input weights: linear in their input, whose last axis holds the channels.

    W (s x + t) + b = (W s) x + (b + W t)
    """

    params: Gates

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the input sequence; none of states and outputs."""
        for tensor in (*self.inputs[1:], *self.outputs):
            if tensor in gauges:
                raise Refused(f"{self} is recurrent: its state and output pass through sigmoid and tanh")
        if self.inputs[0] in gauges and gauges[self.inputs[0]].channels(-1, self.params.weight.shape[2]) is None:
            raise Refused(f"{self} weighs whole channels, and here the scale differs within one")
        return {}

    def rewritten(self, gauges: Gauges) -> Gates:
        """Return the input weights under the gauge of the input."""
        channels = gauges[self.inputs[0]].channels(-1, self.params.weight.shape[2])
        assert channels is not None
        scale, shift = channels
        return replace(
            self.params, weight=self.params.weight * scale, bias=self.params.bias + self.params.weight @ shift
        )

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """A channel more of the input is read with weight 0."""
        if any(t in widenings for t in (*self.inputs[1:], *self.outputs)) or widenings[self.inputs[0]].axis != 2:
            raise Refused(f"{self} cannot carry one more channel in its state")
        return {}

    def widened(self, widenings: Widenings) -> Gates:
        """Return the input weights with zero columns for what the input has more."""
        w = widenings[self.inputs[0]]
        return replace(self.params, weight=np.insert(self.params.weight, [w.index] * w.count, 0.0, axis=2))

    def write(self, graph: Writing) -> None:
        """Write W and B; the recurrent half of B keeps what it was."""
        stem = _stem(self.node.inputs[1].name if self.node.inputs[1] is not None else self.name)
        self.node.replace_input_with(1, graph.constant(self.params.weight, f"{stem}.weight"))
        self.node.resize_inputs(max(4, len(self.node.inputs)))
        both = np.concatenate([self.params.bias, self.params.recurrent_bias], axis=1)
        self.node.replace_input_with(3, graph.constant(both, f"{stem}.bias"))


@dataclass(eq=False)
class Embedding(Op):
    """Gather of rows of a constant table by computed indices: linear in the table.  s E[i] + t = (s E + t)[i]."""

    params: Array

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Any gauge of the rows."""
        if self.outputs[0] in gauges:
            self.rewritten(gauges)
        return {}

    def rewritten(self, gauges: Gauges) -> Array:
        """Return the table under the gauge of its rows."""
        channels = inverse(gauges[self.outputs[0]], self).channels(-1, self.params.shape[1])
        if channels is None:
            raise Refused(f"{self} looks up whole rows, and here the scale differs from position to position")
        return self.params * channels[0] + channels[1]

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more column of the table."""
        if widenings[self.outputs[0]].axis != self.outputs[0].rank - 1:
            raise Refused(f"{self} has its channels on another axis")
        return {}

    def widened(self, widenings: Widenings) -> Array:
        """Return the table with a constant column."""
        w = widenings[self.outputs[0]]
        return np.insert(self.params, [w.index] * w.count, w.value, axis=1)

    def write(self, graph: Writing) -> None:
        """Write the table."""
        self.node.replace_input_with(0, graph.constant(self.params, f"{_stem(self.name)}.table"))

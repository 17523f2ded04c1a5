"""Carriers: channels that always hold one constant, from which a zero-padded convolution reads a shift.

    conv(pad(x + t)) = conv'(pad([x, 1]))  with the taps Σ_c W[:, c] t_c on the new channel

Zero padding pads the constant as it pads x, so the shift ends exactly where the tensor ends, at any length. The
operator before emits the channel from its bias, with weights of zero; every other reader weighs it with zero.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Affine, Array, joined
from normfold.export.fold.engine.plan import BLOCK_COST, CARRIER_COST, NODE_MACS, OPEN_LENGTH, PASS_MACS, PUT_COST
from normfold.export.fold.net import Gauges, Net, Op, Refused, Tensor, Widening, Widenings
from normfold.export.fold.ops.activations import Scaling
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.moving import Select, Transpose
from normfold.export.graphs.writing import Writing


class ConstantChannels:
    """What the channels (axis 1) of tensors always hold, followed no further back than the linear operators before."""

    def __init__(self) -> None:
        self._known: dict[Tensor, Array | None] = {}

    def of(self, tensor: Tensor) -> Array | None:
        """Return what each channel of a tensor always holds, NaN where it is not constant; None where none is."""
        stack = [tensor]
        while stack:
            top = stack[-1]
            op = top.producer
            waiting = [] if op is None or isinstance(op, Linear) else [x for x in op.inputs if x not in self._known]
            # A sum is constant where all its branches are: one that is not spares following the others.
            if op is not None and any(self._known.get(x, top) is None for x in op.inputs) and isinstance(op, Sum):
                waiting = []
            if waiting:
                # A branch with a linear operator is told at once, so it comes first.
                stack.append(next((x for x in waiting if isinstance(x.producer, Linear)), waiting[0]))
                continue
            stack.pop()
            if top in self._known:
                continue
            if op is None:
                self._known[top] = None
                continue
            known = {x: held for x in op.inputs if (held := self._known.get(x)) is not None}
            for y, held in zip(op.outputs, op.constants(known), strict=False):
                self._known[y] = None if held is None or np.all(np.isnan(held)) else held
        return self._known[tensor]


def carrier_of(linear: Linear, gauges: Gauges, constants: ConstantChannels) -> tuple[int, float] | None:
    """Return the best constant channel of a linear operator's input and what it holds under its gauge; None if none."""
    (x,) = linear.inputs
    source = linear.unpadded
    known = constants.of(source) if linear.axis_in == 1 else None
    if known is None:
        return None
    channels = gauges[x].channels(1, len(known))
    if channels is None:
        return None
    scale, shift = channels
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.where(scale == 0, 0.0, (known - shift) / scale)
    held = np.where(np.isfinite(held), held, 0.0)
    # Neither huge nor tiny: the taps are divided by it.
    fit = np.where(
        (np.abs(held) > 1e-3) & (np.abs(held) < 1e3), -np.abs(np.log(np.abs(np.where(held == 0, 1.0, held)))), -np.inf
    )
    best = int(np.argmax(fit))
    return (best, float(held[best])) if np.isfinite(fit[best]) else None


@dataclass
class Widened:
    """One channel more in a tensor and in all that must follow."""

    tensor: Tensor
    widenings: dict[Tensor, Widening]
    touched: list[Op]

    @property
    def cost(self) -> float:
        """What the linear operators that compute a channel more cost, in passes, but for their multiply-adds.

        A 2-D convolution runs in blocks of channels where 4 divides their number: one more measured 1.1 to 2.5 times
        slower.
        """
        linears = [op for op in self.touched if isinstance(op, Linear)]
        return sum(BLOCK_COST if _in_blocks(op) and op.outputs[0] in self.widenings else CARRIER_COST for op in linears)

    def more_work(self, target: Scaling) -> float:
        """Return what the multiply-adds for one channel more cost, in passes over what the affine computes."""
        more = 0.0
        for op in self.touched:
            if isinstance(op, Linear):
                _, out, inner = op.params.weight.shape[:3]
                share = (op.inputs[0] in self.widenings) / inner + (op.outputs[0] in self.widenings) / out
                more += share * work(op, target)
        return more

    def carry_out(self) -> None:
        """Give every tensor its channel and every operator its params."""
        params = {op: op.widened(self.widenings) for op in self.touched}
        for op, new in params.items():
            # One constant for all channels is written as it was: GELU is known to runtimes by its pattern. But a
            # BatchNorm, also that of one channel, has as many entries as there are channels.
            same = isinstance(op, Scaling) and not op.is_batchnorm and new.shift is op.params.shift
            op.params, op.changed = new, op.changed or not same
        for tensor, w in self.widenings.items():
            tensor.resize(w.axis, w.count)
        for op in self.touched:
            if isinstance(op, Select):
                op.follow_sizes()


def _in_blocks(op: Linear) -> bool:
    out = op.params.weight.shape[1]
    return op.form == "conv" and op.params.weight.ndim == 5 and out % 4 == 0 and out >= 8


def work(op: Linear, target: Scaling) -> float:
    """Return what the multiply-adds of a linear operator cost, in passes over what an affine near it computes."""
    here = _positions(op.inputs[0] if op.form == "transposed" else op.outputs[0])
    there = _positions(target.outputs[0])
    if here is None or there is None:
        # Of open lengths only the ratio is known, and that only of what stands next to each other.
        strides = op.node.attributes["strides"].as_ints() if "strides" in op.node.attributes else ()
        here, there = (1, math.prod(strides)) if op in target.outputs[0].readers else (1, 1)
    return op.params.weight.size * here / (there * _channels(target) * PASS_MACS)


def call(target: Scaling) -> float:
    """Return what calling an operator costs, in passes over what an affine computes."""
    return NODE_MACS / ((_positions(target.outputs[0]) or OPEN_LENGTH) * _channels(target) * PASS_MACS)


def _channels(target: Scaling) -> int:
    return max(target.params.scale.size, target.params.shift.size)


def _positions(tensor: Tensor) -> int | None:
    lengths = tensor.shape[2:] if tensor.shape is not None else (None,)
    known = [n for n in lengths if isinstance(n, int)]
    return max(1, math.prod(known)) if len(known) == len(lengths) else None


def widened(tensor: Tensor) -> Widened:
    """Return how a tensor gets a carrier at the end of its channels, or raise Refused."""
    if tensor.rank < 2:
        raise Refused(f"'{tensor.name}' has no channels")
    found: dict[Tensor, Widening] = {}
    queue: list[tuple[int, int, Op]] = []
    queued: set[Op] = set()
    touched: dict[Op, None] = {}

    def settle(t: Tensor, w: Widening) -> None:
        if t in found:
            if replace(found[t], value=0.0) != replace(w, value=0.0):
                raise Refused(f"'{t.name}' would carry the new channel at two places")
            return
        if t.pinned:
            raise Refused(f"'{t.name}' {t.pinned}, so it cannot get one more channel")
        t.size(w.axis)
        found[t] = w
        for op in (t.producer, *t.readers):
            if op is not None and op not in queued:
                queued.add(op)
                heapq.heappush(queue, (op.order, id(op), op))

    settle(tensor, Widening(axis=1, index=tensor.size(1)))
    while queue:
        _, _, op = heapq.heappop(queue)
        queued.discard(op)
        touched[op] = None
        if isinstance(op, Transpose) or (isinstance(op, Linear) and op.outputs[0] in found and op.axis_out != 1):
            raise Refused(f"{op} moves the channels, and no constant is followed through it")
        for t, w in op.widen(found).items():
            settle(t, w)
    order = sorted(touched, key=lambda op: op.order)
    # What each new channel holds follows from what the operators before it emit.
    for op in order:
        given = {x: found[x] for x in op.inputs if x in found}
        if given and not isinstance(op, Linear):
            for t, w in op.widen(given).items():
                if t in op.outputs:
                    found[t] = w
    if not np.isfinite(found[tensor].value) or abs(found[tensor].value) < 1e-3:
        raise Refused(f"no constant other than 0 reaches '{tensor.name}'")
    return Widened(tensor, found, order)


@dataclass(eq=False)
class Carrier(Op):
    """One channel of ones, put behind a tensor's channels for one reader: a Pad along the channel axis."""

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """The channels' gauge passes; the ones are read as they are."""
        (x,), (y,) = self.inputs, self.outputs
        size = x.size(1)
        if x in gauges and y not in gauges:
            return {y: joined([gauges[x], Affine.identity(x.rank)], [size, 1], 1)}
        gauge = gauges[y]
        if not gauge.take(1, np.array([size])).is_identity:
            raise Refused(f"{self} holds ones, which are not to be scaled")
        return {x: gauge.take(1, np.arange(size))}

    def cost(self, params: Any) -> float:
        """One pass."""
        return PUT_COST

    def widen(self, widenings: Widenings) -> dict[Tensor, Widening]:
        """One more channel passes before the ones."""
        (x,), (y,) = self.inputs, self.outputs
        return {y: widenings[x]} if x in widenings and y not in widenings else {}

    def constants(self, known: dict[Tensor, Array]) -> list[Array | None]:  # type: ignore[override]
        """The last channel holds 1."""
        x = self.inputs[0]
        return [np.append(known.get(x, np.full(x.size(1), np.nan)), 1.0)]

    def write(self, graph: Writing) -> None:
        """Write a Pad of one along the channel axis."""
        rank = self.inputs[0].rank
        pads = np.zeros(2 * rank)
        pads[rank + 1] = 1
        like = self.outputs[0].name
        (reader,) = self.outputs[0].readers
        x = self.inputs[0].value
        if graph.opset < 11:
            padded = graph.insert("Pad", [x], reader.node, like, pads=[int(p) for p in pads], value=1.0)
        else:
            ends = graph.constant(pads, f"{like}.pads", np.dtype(np.int64))
            one = graph.constant(np.ones(()), f"{like}.one")
            padded = graph.insert("Pad", [x, ends, one], reader.node, like)
        reader.node.replace_input_with(0, padded)


def put_before(net: Net, linear: Linear) -> Carrier:
    """Put a Carrier before one reader, which weighs its channel with zero so far."""
    (x,) = linear.inputs
    if linear.params.groups > 1 or linear.axis_in != 1:
        raise Refused(f"{linear} is depthwise or grouped, so it cannot read a carrier")
    assert x.shape is not None
    shape = (x.shape[0], x.size(1) + 1, *x.shape[2:])
    y = Tensor(ir.Value(name=f"{x.name}_carried"), shape)
    carrier = Carrier(linear.node, f"carrier of {linear.name}", [x], [y], changed=True, order=linear.order)
    linear.params = linear.widened({x: Widening(axis=1, index=x.size(1))})
    linear.changed = True
    linear.inputs = [y]
    x.readers[x.readers.index(linear)] = carrier
    y.producer, y.readers = carrier, [linear]
    net.ops.insert(net.ops.index(linear), carrier)
    return carrier

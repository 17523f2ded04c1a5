"""Carriers: channels that always hold one constant, from which a zero-padded convolution reads a shift.

    conv(pad(x + t)) = conv'(pad([x, 1]))  with the taps Σ_c W[:, c] t_c on the new channel

Zero padding pads the constant as it pads x, so the shift ends exactly where the tensor ends, at any length. The
operator before emits the channel from its bias, with weights of zero; every other reader has zero weights for it.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.engine.constant_channels import ConstantChannels
from normfold.export.fold.engine.ones import check_ones_before, put_ones_before
from normfold.export.fold.net import Gauges, Net, Op, Refused, Tensor, TooDear
from normfold.export.fold.ops.costs import (
    BLOCK_COST,
    CARRIER_COST,
    NODE_MACS,
    OPEN_LENGTH,
    PASS_MACS,
    PUT_COST,
    SCALE_SHIFT_COST,
    fits_blocks,
)
from normfold.export.fold.ops.linear import Linear, linears
from normfold.export.fold.ops.scaling import Scaling
from normfold.export.fold.ops.weights import WeightForm

#: The shift of a channel may be this many times larger than (constant - shift): the difference then loses ten bits.
MOST_LOST = 1024.0
#: A carrier in more linear operators than this costs more than any affine: each emits it, or reads it with weights 0.
MOST_LINEARS = round(SCALE_SHIFT_COST / CARRIER_COST)


def carrier_of(linear: Linear, gauges: Gauges, constants: ConstantChannels) -> tuple[int, float] | None:
    """Return the best constant channel of a linear operator's input and what it holds under its gauge; None if none."""
    (x,) = linear.inputs
    known = constants.of(linear.unpadded) if linear.axis_in == 1 else None
    if known is None:
        return None
    channels = gauges[x].channels(1, len(known))
    if channels is None:
        return None
    scale, shift = channels
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.where(scale == 0, 0.0, (known - shift) / scale)
        exact = np.abs(shift) <= MOST_LOST * np.abs(known - shift)
    held = np.where(np.isfinite(held) & exact, held, 0.0)
    # The nearest to 1, because the taps are divided by it.
    fit = np.where(
        (np.abs(held) > 1e-3) & (np.abs(held) < 1e3), -np.abs(np.log(np.abs(np.where(held == 0, 1.0, held)))), -np.inf
    )
    best = int(np.argmax(fit))
    return (best, float(held[best])) if np.isfinite(fit[best]) else None


@dataclass
class NewCarrier:
    """One channel more in a tensor and in all that must follow."""

    #: Whether it brings a node of its own.
    is_node = False

    tensor: Tensor
    added: dict[Tensor, AddedChannel]
    touched: list[Op]

    @property
    def cost(self) -> float:
        """The cost of one more channel in the linear operators, in passes, without their multiply-adds."""
        return sum(
            BLOCK_COST if _in_blocks(op) and op.outputs[0] in self.added else CARRIER_COST for op in self.linears
        )

    @property
    def linears(self) -> list[Linear]:
        """The linear operators that emit the channel or read past it."""
        return linears(self.touched)

    def more_work(self, target: Scaling) -> float:
        """Return the cost of the multiply-adds for one more channel, in passes over the output of the target."""
        more = 0.0
        for op in self.linears:
            _, out, inner = op.params.weight.shape[:3]
            share = (op.inputs[0] in self.added) / inner + (op.outputs[0] in self.added) / out
            more += share * work_cost(op, target)
        return more

    def carry_out(self, net: Net) -> list[tuple[Linear, AddedChannel]]:
        """Give every tensor its channel and every operator its params; return the readers and their new channel."""
        new = new_carrier(self.tensor)  # followed again: a carrier before may have changed some of the same tensors
        params = {op: op.with_channel(new.added) for op in new.touched}
        for op, with_channel in params.items():
            op.take(with_channel, changed=op.is_rewritten(with_channel))
        for tensor, w in new.added.items():
            tensor.resize(w.axis, w.count)
        return [(op, new.added[op.inputs[0]]) for op in new.linears if op.inputs[0] in new.added]


@dataclass
class PutOnes:
    """A channel of ones that a Pad puts before one reader."""

    is_node = True
    cost = PUT_COST

    reader: Linear

    @property
    def linears(self) -> list[Linear]:
        """The reader."""
        return [self.reader]

    def more_work(self, target: Scaling) -> float:
        """Nothing: the cost of the Pad is that of all its work."""
        return 0.0

    def carry_out(self, net: Net) -> list[tuple[Linear, AddedChannel]]:
        """Put the Pad before its reader; return the reader and its new channel."""
        put_ones_before(net, self.reader)
        return [(self.reader, AddedChannel(self.reader.axis_in, self.reader.reads - 1))]


def carrier_for(linear: Linear, at_any_cost: bool = False) -> NewCarrier | PutOnes:
    """Return how a linear operator gets a carrier: from the operators before it, else from a Pad; or raise Refused.

    Where a Pad cannot be, a carrier for more than MOST_LINEARS linear operators is followed only ``at_any_cost``: the
    time to follow it grows with the network.
    """
    (x,) = linear.inputs
    try:
        return new_carrier(x, MOST_LINEARS)
    except Refused as refusal:
        try:
            check_ones_before(linear)
        except Refused:
            if at_any_cost and isinstance(refusal, TooDear):
                return new_carrier(x)
            raise
        return PutOnes(linear)


def _in_blocks(op: Linear) -> bool:
    """Whether it is a 2-D convolution whose output the runtime may hold in blocks of channels."""
    weight = op.params.weight
    return op.form is WeightForm.CONV and weight.ndim == 5 and fits_blocks(weight.shape[1])


def work_cost(op: Linear, target: Scaling) -> float:
    """Return the cost of a linear operator's multiply-adds, in passes over the output of an affine near it."""
    here = _positions(op.inputs[0] if op.form is WeightForm.TRANSPOSED else op.outputs[0])
    there = _positions(target.outputs[0])
    if here is None or there is None:
        # If a length is dynamic, only the ratio of neighbouring lengths (the stride) is known.
        strides = op.node.attributes["strides"].as_ints() if "strides" in op.node.attributes else ()
        here, there = (1, math.prod(strides)) if op in target.outputs[0].readers else (1, 1)
    return op.params.weight.size * here / (there * _channels(target) * PASS_MACS)


def call_cost(target: Scaling) -> float:
    """Return the cost of calling an operator, in passes over the output of an affine."""
    return NODE_MACS / ((_positions(target.outputs[0]) or OPEN_LENGTH) * _channels(target) * PASS_MACS)


def _channels(target: Scaling) -> int:
    return max(target.params.scale.size, target.params.shift.size)


def _positions(tensor: Tensor) -> int | None:
    """Return the number of positions of a tensor; None where a length is dynamic."""
    lengths = tensor.shape[2:] if tensor.shape is not None else (None,)
    known = [n for n in lengths if isinstance(n, int)]
    return max(1, math.prod(known)) if len(known) == len(lengths) else None


def new_carrier(tensor: Tensor, most_linears: float = math.inf) -> NewCarrier:
    """Return how a tensor gets a carrier at the end of its channels, or raise Refused.

    Raises TooDear where more than ``most_linears`` linear operators would have to change.
    """
    if tensor.rank < 2:
        raise Refused(f"'{tensor.name}' has no channels")
    found: dict[Tensor, AddedChannel] = {}
    queue: list[tuple[int, int, Op]] = []
    queued: set[Op] = set()
    touched: dict[Op, None] = {}
    linear: set[Op] = set()

    def settle(t: Tensor, w: AddedChannel) -> None:
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

    settle(tensor, AddedChannel(axis=1, index=tensor.size(1)))
    while queue:
        _, _, op = heapq.heappop(queue)
        queued.discard(op)
        touched[op] = None
        if isinstance(op, Linear):
            linear.add(op)
        if len(linear) > most_linears:
            raise TooDear(f"more than {most_linears} linear operators would have to carry one more channel")
        for t, w in op.add_channel(found).items():
            settle(t, w)
    order = sorted(touched, key=lambda op: op.order)
    # What each new channel holds follows from what the operators before it emit.
    for op in order:
        given = {x: found[x] for x in op.inputs if x in found}
        if given:
            for t, w in op.add_channel(given).items():
                if t in op.outputs:
                    found[t] = w
    if not np.isfinite(found[tensor].value) or abs(found[tensor].value) < 1e-3:
        raise Refused(f"no constant other than 0 reaches '{tensor.name}'")
    return NewCarrier(tensor, found, order)

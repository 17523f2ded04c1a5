"""Ways to be rid of one affine, each followed through the network to where it ends or is refused.

An affine ``y = A(u)`` with A = (s, t) goes when u takes a part G back, y passes the rest F on, and nothing or a sign R
stays between:  A = F ∘ R ∘ G. Which G and F can be taken is asked of the operators around, one after the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.engine.streams import MOST_TOUCHED, Streams
from normfold.export.fold.net import Gauges, Op, Refused, Tensor
from normfold.export.fold.ops.activations import Clamp, Scaling
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear

#: An option must save at least this many passes to be taken.
LEAST_GAIN = 1e-6
#: How many times larger than a tensor's usual entries a shift may be that other readers of the tensor must undo.
MOST_CANCELLED = 4.0
#: How many times larger, over the channels, what the readers add up may be than what it adds up to.
MOST_APART = 3.0
#: What one more channel costs a convolution that carries it, and what a Pad that puts it before one costs, in passes.
CARRIER_COST = 0.05
PUT_COST = 0.85
#: What the Add costs that gives a MatMul its bias, in passes: no more than the Add of a shift that would stay.
BIAS_COST = 0.9
#: What one more channel costs a convolution that leaves a blocked layout for it: more than any affine is worth.
BLOCK_COST = 10.0
#: How many multiply-adds of a convolution, for each number of the tensor, take as long as a pass over it: 10 to 20 were
#: measured, in one and in two dimensions, 4 to 128 channels and 3 to 15 taps.
PASS_MACS = 12.0
#: What calling an operator takes, however little it computes, in the same: 15,000 to 30,000 were measured.
NODE_MACS = 20_000.0
#: The length that an open one is taken for, where that matters: a short one, where a node less is worth most.
OPEN_LENGTH = 100
#: By how much of their own time the convolutions that carry a channel may be slower than they and the affine were. They
#: are a part of a network, others gain: of the public networks none is slower so, and all that can go is gone.
LOSS = 0.05


@dataclass(frozen=True)
class Option:
    """One way to part an affine: ``back`` is G, ``on`` is F, ``stays`` is R (the identity or a sign)."""

    label: str
    back: Affine
    stays: Affine
    on: Affine
    holds_zeros: bool = False

    def again(self, target: Scaling) -> Option:
        """Return the same option of the target as it is now."""
        return next(option for option in options(target) if option.label == self.label)


@dataclass
class Plan:
    """An option that every operator around can take, and what it makes of them."""

    target: Scaling
    option: Option
    gauges: Gauges
    touched: list[Op]
    #: The new params of touched operators but linear ones, whose weights are computed when the plan is carried out.
    params: dict[Op, Any]
    #: Linear operators with zero padding that must read the shift from a carrier channel.
    carried: list[Linear]
    cost: float = 0.0


def options(target: Scaling) -> Iterator[Option]:
    """Yield the ways to part the target's affine, most direct first."""
    a = target.params
    identity = Affine.identity(a.rank)
    s, t = a.scale, a.shift
    one, none = identity.scale, identity.shift
    zero = np.broadcast_to(s == 0, np.broadcast_shapes(s.shape, t.shape))
    holds = bool(zero.any())
    # No part of a scale of 0 can be undone: in such channels nothing goes back.
    factor = np.where(zero, 1.0, s)
    size, sign = np.abs(factor), np.sign(factor)
    offset = np.where(zero, 0.0, t / factor)

    def on(scale: Array, shift: Array) -> Affine:
        return Affine.of(np.where(zero, 0.0, scale), np.where(zero, t, shift))

    parts: list[tuple[str, Callable[[], Affine], Callable[[], Affine]]] = [
        ("back", lambda: Affine.of(factor, factor * offset), lambda: on(one, none)),
        ("on", lambda: identity, lambda: a),
        ("scale back, shift on", lambda: Affine.of(factor, none), lambda: on(one, t)),
        ("positive scale back, sign and shift on", lambda: Affine.of(size, none), lambda: on(sign, t)),
        ("shift back, scale on", lambda: Affine.of(one, offset), lambda: on(s, none)),
        ("sign back, positive scale and shift on", lambda: Affine.of(sign, none), lambda: on(size, t)),
        ("sign and shift back, positive scale on", lambda: Affine.of(sign, sign * offset), lambda: on(size, none)),
        ("positive scale and shift back, sign on", lambda: Affine.of(size, size * offset), lambda: on(sign, none)),
    ]
    if len(target.inputs[0].readers) > 1:
        # Others read u as it is: what leaves its scale alone ends nearby, what changes it spreads along the stream.
        parts.sort(key=lambda part: part[0] not in ("on", "shift back, scale on"))
    seen: set[bytes] = set()
    for label, make_back, make_on in parts:
        back = make_back()
        same = (back.scale + 0.0).tobytes() + (back.shift + 0.0).tobytes()  # of -0.0 and 0.0 one
        if same not in seen:
            forward = make_on()
            seen.add(same)
            yield Option(label, back, identity, forward)
            if holds:
                yield Option(f"{label}, constant channels held", back, identity, forward, holds_zeros=True)
    flip = Affine.of(np.where(zero, 0.0, sign), none)
    if (s <= 0).any() and target.cost(flip) < target.cost(a):
        if not holds:
            yield Option("positive scale and shift back, a sign stays", Affine.of(size, sign * t), flip, identity)
            yield Option(
                "shift back, positive scale on, a sign stays", Affine.of(one, offset), flip, Affine.of(size, none)
            )
        yield Option("positive scale back, shift on, a sign stays", Affine.of(size, none), flip, Affine.of(one, t))
        yield Option("positive scale and shift on, a sign stays", identity, flip, Affine.of(size, t))
    if not holds and target.cost(Affine.of(one, t)) < target.cost(a):
        yield Option("scale on, a shift stays", identity, Affine.of(one, offset), Affine.of(s, none))
        yield Option("scale back, a shift stays", Affine.of(s, none), Affine.of(one, t), identity)


def planned(target: Scaling, option: Option, streams: Streams) -> Plan:
    """Return the plan of one option, or raise Refused with the operator and the reason."""
    (u,), (y,) = target.inputs, target.outputs
    for tensor, part in ((u, option.back), (y, option.on)):
        streams.check(tensor, part)  # most ways that are refused end here, before anything is computed
    try:
        gauge_u = option.back.inverse()
    except ZeroDivisionError as error:
        raise Refused(f"{target} scales a channel by 0 or nearly so") from error
    large = gauge_u.shifts and bool(np.any(np.abs(gauge_u.shift) > MOST_CANCELLED * target.params.usual))
    elsewhere = f"'{u.name}' is read elsewhere too, and undoing so large a shift there would cost its last digits"
    if large and len(u.readers) > 1:
        raise Refused(elsewhere)
    if option.on.shifts and target.cancels > MOST_APART:
        raise Refused(f"{target} takes a mean much larger than its deviation off, and its readers would lose digits")
    gauges = Gauges()
    gauges.holds_zeros = option.holds_zeros
    queue: list[tuple[int, int, Op]] = []
    queued: set[Op] = set()

    def enqueue(tensor: Tensor) -> None:
        for op in (tensor.producer, *tensor.readers):
            if op is not None and op is not target and op not in queued:
                queued.add(op)
                heapq.heappush(queue, (op.order, id(op), op))

    def settle(tensor: Tensor, gauge: Affine) -> None:
        if tensor in gauges:
            if gauges[tensor] is not gauge and not gauges[tensor].equals(gauge):
                raise Refused(f"'{tensor.name}' would need two different scales or shifts at once")
            return
        if gauge.is_identity:
            return
        if tensor.pinned:
            raise Refused(f"'{tensor.name}' {tensor.pinned}, so its numbers may not change")
        streams.check(tensor, gauge)
        gauges[tensor] = gauge
        enqueue(tensor)

    for tensor, gauge in ((u, gauge_u), (y, option.on)):
        if gauge.is_identity:
            gauges[tensor] = gauge
        else:
            settle(tensor, gauge)
    touched: dict[Op, None] = {}
    # An operator is asked again whenever another of its tensors was settled, so its last answer knew all of them.
    while queue:
        _, _, op = heapq.heappop(queue)
        queued.discard(op)
        touched[op] = None
        if len(touched) > MOST_TOUCHED:
            raise Refused(f"more than {MOST_TOUCHED} operators around would have to change")
        for tensor, gauge in op.spread(gauges).items():
            settle(tensor, gauge)
    plan = Plan(target, option, gauges, sorted(touched, key=lambda op: op.order), {}, [])
    plan.cost = target.cost(option.stays) - target.cost(target.params)
    for op in plan.touched:
        # Of a shift that goes back whole, only a reader of what is before the target can come to know.
        if large and not option.on.shifts and _undoes_shift(op, gauges):
            raise Refused(elsewhere)
        if isinstance(op, Linear):
            if op.carrier_needed(gauges):
                plan.carried.append(op)
            elif op.lacks_bias and any(gauges[t].shifts for t in (*op.inputs, *op.outputs) if t in gauges):
                plan.cost += BIAS_COST
        else:
            plan.params[op] = op.rewritten(gauges)
            plan.cost += op.cost(plan.params[op]) - op.cost(op.params)
    return plan


def _undoes_shift(op: Op, gauges: Gauges) -> bool:
    """Whether a shift that comes to an operator's inputs does not go on to its output."""
    shifts = [np.abs(gauges[x].shift) for x in op.inputs if x in gauges]
    if isinstance(op, Sum):
        y = op.outputs[0]
        passed = np.abs(gauges[y].shift) if y in gauges else 0.0
        return bool(np.any(sum(shifts) > passed * (1 + 1e-9)))
    return isinstance(op, (Linear, Scaling)) and any(shift.any() for shift in shifts)


def plans(target: Scaling, refusals: dict[str, str], streams: Streams) -> Iterator[Plan]:
    """Yield the plans that gain, cheapest first; note in ``refusals``, by option, what refused the others.

    Options that stand in ``refusals`` already are not followed again.
    """
    found: list[Plan] = []
    for option in options(target):
        if option.label in refusals:
            continue
        try:
            plan = planned(target, option, streams)
        except Refused as refusal:
            refusals[option.label] = str(refusal)
            continue
        if plan.cost <= LEAST_GAIN - target.cost(target.params):
            # It goes whole and leaves nothing: no other option can gain more.
            yield plan
        elif plan.cost < -LEAST_GAIN:
            found.append(plan)
        else:
            refusals[option.label] = _saves_nothing(plan)
    # Of equals, one that takes the shift back rounds less: what is stored is centred.
    yield from sorted(found, key=lambda p: (round(p.cost, 6), len(p.carried), _size(p.option.on.shift), len(p.touched)))


def _saves_nothing(plan: Plan) -> str:
    """Return why a plan that gains nothing gains nothing."""
    dearer = (op.dearer(params) for op, params in plan.params.items() if isinstance(op, Clamp))
    return next((reason for reason in dearer if reason), "it would take as many operations as it saves")


def _size(shift: Array) -> float:
    return round(float(np.abs(shift).mean()), 6)

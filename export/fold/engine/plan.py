"""Ways to remove one affine, each followed through the network to where it ends or is refused.

An affine ``y = A(u)`` with A = (s, t) goes when u takes a part G back, y passes the rest F on, and nothing or a sign R
stays between:  A = F ∘ R ∘ G. The operators around it say, one after the other, whether they can take G and F.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.engine.spreading import spread
from normfold.export.fold.engine.streams import Streams
from normfold.export.fold.net import Gauges, Op, Refused, TooDear
from normfold.export.fold.number_readers import number_readers
from normfold.export.fold.ops.costs import BIAS_COST, LEAST_GAIN
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.scaling import Scaling

#: Largest accepted shift that other readers of a tensor must undo, in the usual size of the tensor's entries.
MOST_CANCELLED = 4.0
#: Largest accepted ratio, over the channels, of the terms that a reader adds up to their sum.
MOST_APART = 3.0
#: The word for the whole affine as a part of itself.
ALL = "all"


@dataclass(frozen=True)
class Option:
    """One way to part an affine: ``back`` is G, ``on`` is F, ``stays`` is R (the identity, a sign or a part)."""

    back: Affine
    stays: Affine
    on: Affine
    #: What goes back, goes forward and stays, in words ("the shift"); "" for nothing.
    goes_back: str = ""
    goes_forward: str = ""
    left: str = ""
    holds_zeros: bool = False

    @property
    def label(self) -> str:
        """Its name in the report; options of one affine have different names."""
        parts = [f"{self.goes_back} back"] if self.goes_back else []
        parts += [f"{self.goes_forward} forward"] if self.goes_forward else []
        parts += [f"{self.left} stays"] if self.left else []
        parts += ["the clamp holds constant channels"] if self.holds_zeros else []
        return ", ".join(parts)

    def again(self, target: Scaling) -> Option:
        """Return the same option of the target as it is now."""
        return next(option for option in options(target) if option.label == self.label)


class Refusals(dict[str, str]):
    """Why each option of an affine was refused, by the option's label."""

    #: Whether an option that removes the whole affine was refused only because it costs more than it saves.
    by_cost: bool = False

    def add(self, option: Option, refusal: Refused) -> None:
        """Note a refusal."""
        self[option.label] = str(refusal)
        self.by_cost = self.by_cost or (isinstance(refusal, TooDear) and option.stays.is_identity)


@dataclass
class FoldPlan:
    """An option that every operator around it can take, and their params and gauges under it."""

    target: Scaling
    option: Option
    gauges: Gauges
    touched: list[Op]
    #: The new params of the touched operators. Linear ones are missing: their weights are computed later, when the plan
    #: is carried out.
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
    # A scale of 0 has no inverse: in such channels nothing goes back.
    factor = np.where(zero, 1.0, s)
    size, sign = np.abs(factor), np.sign(factor)
    offset = np.where(zero, 0.0, t / factor)

    def on(scale: Array, shift: Array) -> Affine:
        return Affine.of(np.where(zero, 0.0, scale), np.where(zero, t, shift))

    magnitude, but_sign = "the absolute scale", "the absolute scale and the shift"
    parts: list[tuple[str, str, Callable[[], Affine], Callable[[], Affine]]] = [
        (ALL, "", lambda: Affine.of(factor, factor * offset), lambda: on(one, none)),
        ("", ALL, lambda: identity, lambda: a),
        ("the scale", "the shift", lambda: Affine.of(factor, none), lambda: on(one, t)),
        (magnitude, "the sign and the shift", lambda: Affine.of(size, none), lambda: on(sign, t)),
        ("the shift", "the scale", lambda: Affine.of(one, offset), lambda: on(s, none)),
        ("the sign", but_sign, lambda: Affine.of(sign, none), lambda: on(size, t)),
        ("the sign and the shift", magnitude, lambda: Affine.of(sign, sign * offset), lambda: on(size, none)),
        (but_sign, "the sign", lambda: Affine.of(size, size * offset), lambda: on(sign, none)),
    ]
    if len(number_readers(target.inputs[0])) > 1:
        # Other operators read u. A change of its shift ends nearby; a change of its scale spreads along the stream.
        parts.sort(key=lambda part: part[0] not in ("", "the shift"))
    seen: set[bytes] = set()
    for goes_back, goes_forward, make_back, make_on in parts:
        back = make_back()
        same = (back.scale + 0.0).tobytes() + (back.shift + 0.0).tobytes()  # makes -0.0 and 0.0 equal
        if same not in seen:
            forward = make_on()
            seen.add(same)
            yield Option(back, identity, forward, goes_back, goes_forward)
            if holds:
                yield Option(back, identity, forward, goes_back, goes_forward, holds_zeros=True)
    flip = Affine.of(np.where(zero, 0.0, sign), none)
    if (s <= 0).any() and target.cost(flip) < target.cost(a):
        if not holds:
            yield Option(Affine.of(size, sign * t), flip, identity, but_sign, "", "the sign")
            forward = Affine.of(size, none)
            yield Option(Affine.of(one, offset), flip, forward, "the shift", magnitude, "the sign")
        forward = Affine.of(one, t)
        yield Option(Affine.of(size, none), flip, forward, magnitude, "the shift", "the sign")
        yield Option(identity, flip, Affine.of(size, t), "", but_sign, "the sign")
    if not holds and target.cost(Affine.of(one, t)) < target.cost(a):
        yield Option(identity, Affine.of(one, offset), Affine.of(s, none), "", "the scale", "a shift")
        yield Option(Affine.of(s, none), Affine.of(one, t), identity, "the scale", "", "a shift")


def planned(target: Scaling, option: Option, streams: Streams) -> FoldPlan:
    """Return the plan of one option, or raise Refused with the operator and the reason."""
    (u,), (y,) = target.inputs, target.outputs
    for tensor, part in ((u, option.back), (y, option.on)):
        streams.check(tensor, part)  # most ways that are refused end here, before anything is computed
    try:
        gauge_u = option.back.inverse()
    except ZeroDivisionError as error:
        raise Refused(f"{target} scales a channel by 0 or nearly so") from error
    large = gauge_u.shifts and bool(np.any(np.abs(gauge_u.shift) > MOST_CANCELLED * target.params.usual))
    elsewhere = f"'{u.name}' has other readers, and undoing so large a shift there would cost its last digits"
    if large and len(number_readers(u)) > 1:
        raise Refused(elsewhere)
    if loses_digits(target, option.on.shift):
        raise Refused(
            f"{target} subtracts a mean much larger than its deviation, and readers that took this would lose digits"
        )
    gauges = Gauges()
    gauges.holds_zeros = option.holds_zeros
    touched = spread(((u, gauge_u), (y, option.on)), gauges, streams, without=target)
    plan = FoldPlan(target, option, gauges, touched, {}, [])
    plan.cost = target.cost(option.stays) - target.cost(target.params)
    for op in plan.touched:
        # Where the whole shift goes back, only another reader of the target's input can have to undo it.
        if large and not option.on.shifts and op.undoes_shift(gauges):
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


def loses_digits(target: Scaling, shift: Array) -> bool:
    """Whether operators that add many terms would lose digits if they took this shift of the affine.

    They would where it subtracts a mean much larger than the deviation. Where the scale is 0, the shift is a constant
    of its own, from which nothing is subtracted.
    """
    return target.cancels > MOST_APART and bool(np.any(np.where(target.params.scale == 0, 0.0, shift)))


def plans(target: Scaling, refusals: Refusals, streams: Streams, fold_all: bool = False) -> Iterator[FoldPlan]:
    """Yield the plans that gain, cheapest first; note in ``refusals``, by option, why the others were refused.

    Options that are in ``refusals`` already are not followed again. With ``fold_all`` every plan after which nothing of
    the affine stays comes first, whatever it costs.
    """
    found: list[FoldPlan] = []
    for option in options(target):
        if option.label in refusals:
            continue
        try:
            plan = planned(target, option, streams)
        except Refused as refusal:
            refusals.add(option, refusal)
            continue
        whole = fold_all and option.stays.is_identity
        if plan.cost <= LEAST_GAIN - target.cost(target.params):
            # The whole affine goes and costs nothing elsewhere: no other option can gain more.
            yield plan
        elif plan.cost < -LEAST_GAIN or whole:
            found.append(plan)
        else:
            refusals.add(option, TooDear(_saves_nothing(plan)))
    # Of equal costs, a plan that takes the shift back rounds less, because the stored tensor is centred.
    yield from sorted(
        found,
        key=lambda p: (
            fold_all and not p.option.stays.is_identity,
            round(p.cost, 6),
            len(p.carried),
            _size(p.option.on.shift),
            len(p.touched),
        ),
    )


def _saves_nothing(plan: FoldPlan) -> str:
    """Return why a plan gains nothing."""
    dearer = (op.dearer(params) for op, params in plan.params.items())
    return next((reason for reason in dearer if reason), "it would take as many operations as it saves")


def _size(shift: Array) -> float:
    return round(float(np.abs(shift).mean()), 6)

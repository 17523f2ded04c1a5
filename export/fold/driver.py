"""The driver: takes one affine after the other, the cheapest way each, until none can go."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normfold.export.fold.carrier import Widened, carrier_of, constant_channels, put_before, widened
from normfold.export.fold.net import Gauges, Net, Op, Refused, Writing
from normfold.export.fold.ops.linear import Embedding, Gates, Linear, Recurrent, Weights
from normfold.export.fold.ops.pointwise import Clamp, Scaling
from normfold.export.fold.plan import CARRIER_COST, LEAST_GAIN, Plan, planned, plans
from normfold.export.fold.report import Fold
from normfold.export.fold.silence import silence_zero_scales


@dataclass
class Folding:
    """The folding of one graph: the network, and what was done so far."""

    net: Net
    folds: list[Fold] = field(default_factory=list)
    removed: list[Scaling] = field(default_factory=list)
    carriers: int = 0

    def run(self) -> None:
        """Fold until nothing more goes; every step removes an affine or makes one cheaper, so it ends."""
        targets = [op for op in self.net.ops if isinstance(op, Scaling) and op.target]
        for target in targets:
            silence_zero_scales(target)
        reasons: dict[Scaling, list[str]] = {}
        how: dict[Scaling, list[str]] = {}
        progress = True
        while progress:
            progress = False
            for target in [t for t in targets if t not in self.removed]:
                done, refusals = self._try(target)
                if done is None:
                    reasons[target] = refusals
                else:
                    how.setdefault(target, []).append(_how(done))
                    progress = True
        for target in targets:
            gone = target in self.removed
            words = "; ".join(how.get(target, ()))
            kind = "BatchNorm" if target.is_batchnorm else "affine"
            self.folds.append(Fold(target.name, kind, gone, words, () if gone else tuple(reasons.get(target, ()))))

    def _try(self, target: Scaling) -> tuple[Plan | None, list[str]]:
        if target.params.is_identity:
            plan = Plan(target, _nothing(target), Gauges(), [], {}, [])
            self._remove(target)
            return plan, []
        found, refusals = plans(target)
        for plan in found:
            try:
                return self._carry_out(plan), []
            except Refused as refusal:
                refusals.insert(0, f"{plan.option.label}: {refusal}")
        return None, refusals

    def _carry_out(self, plan: Plan) -> Plan:
        """Carry out a plan whole, or raise Refused with nothing changed but channels that carry a constant."""
        if plan.carried:
            constants = constant_channels(self.net)
            missing = [op for op in plan.carried if carrier_of(op, plan.gauges, constants) is None]
            if missing:
                self._bring_carriers(plan, missing)
                plan = planned(plan.target, _same_option(plan))
                constants = constant_channels(self.net)
        params = dict(plan.params)
        for op in plan.touched:
            if isinstance(op, Linear):
                carrier = carrier_of(op, plan.gauges, constants) if op in plan.carried else None
                if op in plan.carried and carrier is None:
                    raise Refused(f"no constant channel reaches {op}")
                params[op] = op.rewritten(plan.gauges, carrier)
            _survives_rounding(op, params[op], self.net.dtype)
        for op, new in params.items():
            op.params, op.changed = new, True
        target = plan.target
        if plan.option.stays.is_identity:
            self._remove(target)
        else:
            target.params, target.changed = plan.option.stays, True
        return plan

    def _bring_carriers(self, plan: Plan, missing: list[Linear]) -> None:
        """Widen what the zero-padded readers read by one constant channel, or put the channel before each."""
        whole: list[Widened | Linear] = []
        cost = plan.cost
        for op in missing:
            (x,) = op.inputs
            if any(isinstance(w, Widened) and x in w.widenings for w in whole):
                continue
            if op.params.groups > 1:
                raise Refused(
                    f"{op} pads with zeros and is depthwise or grouped, so no carrier channel can bear the shift"
                )
            try:
                w = widened(x)
                cost += CARRIER_COST * w.linears
                whole.append(w)
            except Refused:
                cost += 0.85
                whole.append(op)
        if cost >= -LEAST_GAIN:
            raise Refused("carrying the shift past the zero padding would cost more than the operation it saves")
        for step in whole:
            self.carriers += 1
            if isinstance(step, Linear):
                put_before(self.net, step)
            elif not any(x in step.widenings for x in ()):
                widened(next(iter(step.widenings))).carry_out()

    def _remove(self, target: Scaling) -> None:
        self.net.remove(target)
        self.removed.append(target)


def _nothing(target: Scaling):  # type: ignore[no-untyped-def]
    from normfold.export.fold.affine import Affine
    from normfold.export.fold.plan import Option

    identity = Affine.identity(target.params.rank)
    return Option("it did nothing", identity, identity, identity)


def _same_option(plan: Plan):  # type: ignore[no-untyped-def]
    from normfold.export.fold.plan import options

    return next(o for o in options(plan.target) if o.label == plan.option.label)


def _how(plan: Plan) -> str:
    """Return where a plan takes its affine, in words."""
    into = [op for op in plan.touched if isinstance(op, (Linear, Scaling, Embedding, Recurrent))]
    before = [f"'{op.name}'" for op in into if op.order < plan.target.order]
    behind = [f"'{op.name}'" for op in into if op.order > plan.target.order]
    words = plan.option.label
    if before:
        words += f", back into {', '.join(before)}"
    if behind:
        words += f", on into {', '.join(behind)}"
    if plan.carried:
        words += f" (past the zero padding of {', '.join(repr(op.name) for op in plan.carried)} by a carrier channel)"
    bounds = [
        f"'{op.name}' becomes {op.params.form}"
        for op in plan.touched
        if isinstance(op, Clamp) and op.params.form in ("Max", "Min", "Max, Min")
    ]
    return words + (f"; {', '.join(bounds)}" if bounds else "")


def _survives_rounding(op: Op, params: object, dtype: np.dtype) -> None:  # type: ignore[type-arg]
    """Refuse weights that overflow the graph's type, or whose row would lose its digits to underflow."""
    arrays = (params.weight, params.bias) if isinstance(params, (Weights, Gates)) else ()
    info = np.finfo(dtype)
    for array in arrays:
        top = float(np.abs(array).max(initial=0.0))
        if not np.isfinite(top) or top > float(info.max):
            raise Refused(f"the weights of {op} would overflow {dtype}")
    if isinstance(params, Weights):
        rows = np.abs(params.weight).max(axis=tuple(range(2, params.weight.ndim)))
        if np.any((rows > 0) & (rows < float(info.tiny) / float(info.eps))):
            raise Refused(f"the weights of {op} would underflow {dtype}")


def write(folding: Folding, graph: ir.Graph) -> None:
    """Write what changed into the graph."""
    writing = Writing(graph, folding.net.dtype)
    for op in folding.net.ops:
        if op.changed:
            op.write(writing)
    for target in folding.removed:
        writing.replace(target.outputs[0], target.inputs[0].value)

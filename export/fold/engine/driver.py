"""The driver: takes one affine after the other, the cheapest way each, until none can go."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from normfold.export.fold.engine.carrier import ConstantChannels, Widened, call, carrier_of, put_before, widened, work
from normfold.export.fold.engine.magnitudes import Sizes
from normfold.export.fold.engine.plan import LEAST_GAIN, LOSS, PUT_COST, Plan, planned, plans
from normfold.export.fold.engine.silence import silence_zero_scales
from normfold.export.fold.engine.streams import Streams
from normfold.export.fold.engine.words import refused, went
from normfold.export.fold.net import Net, Op, Refused, Widening
from normfold.export.fold.ops.activations import Bounds, Scaled, Scaling
from normfold.export.fold.ops.linear import Gates, Linear, Weights
from normfold.export.fold.report import Fold
from normfold.export.graphs.writing import Writing


@dataclass
class Folding:
    """The folding of one graph: the network, and what was done to it."""

    net: Net
    folds: list[Fold] = field(default_factory=list)
    removed: list[Scaling] = field(default_factory=list)
    carriers: int = 0
    targets: list[Scaling] = field(default_factory=list)
    streams: Streams = field(init=False)
    sizes: Sizes = field(init=False)

    def __post_init__(self) -> None:
        self.streams, self.sizes = Streams(self.net), Sizes(self.net)

    def run(self) -> None:
        """Fold until nothing more goes. Every step removes an affine or makes one cheaper, so it ends."""
        targets = self.targets = [op for op in self.net.ops if isinstance(op, Scaling) and op.target]
        reasons: dict[Scaling, tuple[str, ...]] = {}
        how: dict[Scaling, list[str]] = defaultdict(list)
        left, progress = targets, True
        while progress:
            progress = False
            for target in tuple(left):
                words, refusals = self._try(target)
                if words:
                    how[target].append(words)
                    # One that only became a sign opens no way for the others.
                    progress = progress or target in self.removed
                reasons[target] = tuple(refusals)
            gone = set(self.removed)
            left = [t for t in targets if t not in gone]
        for target in targets:
            is_gone = target not in left
            kind = "BatchNorm" if target.is_batchnorm else "affine"
            self.folds.append(
                Fold(target.name, kind, is_gone, "; then ".join(how[target]), () if is_gone else reasons[target])
            )

    def _try(self, target: Scaling) -> tuple[str, list[str]]:
        """Fold one affine the cheapest way there is; return where it went, or "" and what refused each way."""
        if target.params.is_identity:
            self._remove(target)
            return "it changed nothing", []
        silence_zero_scales(target)
        refusals: dict[str, str] = {}
        while True:
            carriers = self.carriers
            for plan in plans(target, refusals, self.streams):
                try:
                    return went(self._carry_out(plan)), refused(target, refusals)
                except Refused as refusal:
                    refusals[plan.option.label] = str(refusal)
                if self.carriers != carriers:
                    break  # tensors have a channel more: what was planned before does not fit them
            else:
                return "", refused(target, refusals)

    def _carry_out(self, plan: Plan) -> Plan:
        """Carry out a plan, or raise Refused; then nothing has changed but that a constant may be carried."""
        for op in plan.touched:
            if isinstance(op, Linear):
                self.sizes.check(op, plan.gauges)
        constants = ConstantChannels()
        missing = [op for op in plan.carried if carrier_of(op, plan.gauges, constants) is None]
        if missing:
            self._bring_carriers(plan, missing)
            plan = planned(plan.target, plan.option.again(plan.target), self.streams)
            constants = ConstantChannels()
        params = dict(plan.params)
        for op in plan.touched:
            if isinstance(op, Linear):
                carrier = carrier_of(op, plan.gauges, constants) if op in plan.carried else None
                if op in plan.carried and carrier is None:
                    raise Refused(f"no constant channel reaches {op}")
                params[op] = op.rewritten(plan.gauges, carrier)
            _survives_rounding(op, params[op], self.net.dtype_of(op))
        for op, new in params.items():
            op.params, op.changed = new, True
            if isinstance(op, Linear):
                self.sizes.follow(op, plan.gauges)
            if isinstance(op, Scaling) and not op.target and op.by_channel:
                op.target = True  # a uniform factor that took an affine by channel is one itself now
                self.targets.append(op)
        usual = plan.target.usual_under(plan.target.inputs[0].gauge(plan.gauges))
        if plan.option.stays.is_identity:
            for op in plan.target.outputs[0].readers:
                if isinstance(op, Scaling):  # it reads now what the target read, and the target knew that as well
                    op.params = Scaled.like(op.params, np.minimum(op.params.usual, usual))
            self._remove(plan.target)
        else:
            plan.target.params = Scaled.like(plan.option.stays, usual)
            plan.target.changed = True
        return plan

    def _bring_carriers(self, plan: Plan, missing: list[Linear]) -> None:
        """Widen what the zero-padded readers read by one constant channel, or put the channel before each."""
        steps: list[Widened | Linear] = []
        cost, more, carrying = plan.cost, 0.0, set(missing)
        for op in missing:
            if any(isinstance(step, Widened) and op.inputs[0] in step.widenings for step in steps):
                continue
            try:
                wide = widened(op.inputs[0])
                cost += wide.cost
                more += wide.more_work(plan.target)
                carrying.update(other for other in wide.touched if isinstance(other, Linear))
                steps.append(wide)
            except Refused:
                cost += PUT_COST
                steps.append(op)
        if cost >= -LEAST_GAIN:
            raise Refused("carrying the shift past the zero padding would cost as much as the operation it saves")
        if all(isinstance(step, Widened) for step in steps):
            more -= call(plan.target)  # and nothing is called in its place
        if cost + more > LOSS * sum(work(op, plan.target) for op in carrying):
            raise Refused(
                "carrying the shift past the zero padding takes a channel more, which costs more than it saves"
            )
        for step in steps:
            self.carriers += 1
            if isinstance(step, Linear):
                put_before(self.net, step)
                self.sizes.widen(step, Widening(step.axis_in, step.reads - 1))
            else:
                # Followed anew: the step before may have widened some of the same tensors.
                wide = widened(step.tensor)
                wide.carry_out()
                for reader in wide.touched:
                    if isinstance(reader, Linear) and reader.inputs[0] in wide.widenings:
                        self.sizes.widen(reader, wide.widenings[reader.inputs[0]])

    def _remove(self, target: Scaling) -> None:
        self.streams.join(target.inputs[0], target.outputs[0])
        self.net.remove(target)
        self.removed.append(target)


def _survives_rounding(op: Op, params: Any, dtype: np.dtype[Any]) -> None:
    """Refuse weights that overflow the graph's type, or of which a row would lose its digits to underflow."""
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    arrays: tuple[Any, ...] = ()
    if isinstance(params, (Weights, Gates)):
        arrays = (params.weight, params.bias)
    elif isinstance(params, Scaled):
        arrays = (params.scale, params.shift)
    elif isinstance(params, Bounds):
        # A bound from beyond all numbers may become infinite; one that holds every number may not.
        arrays = (np.maximum(params.lo, 0.0), np.minimum(params.hi, 0.0))
    elif isinstance(params, np.ndarray):
        arrays = (params,)
    for array in arrays:
        largest = float(np.abs(array).max(initial=0.0))
        if not largest <= float(info.max):
            raise Refused(f"the weights of {op} would overflow {dtype}")
    rows: Any = ()
    if isinstance(params, Weights):
        rows = np.abs(params.weight).max(axis=tuple(range(2, params.weight.ndim)))
    elif isinstance(params, Scaled):
        rows = np.abs(params.scale)
    # Rounding moves an entry by eps/2 of the larger of itself and tiny, so no more than the largest of a normal row.
    if np.any((np.asarray(rows) > 0) & (np.asarray(rows) < float(info.tiny))):
        raise Refused(f"the weights of {op} would underflow {dtype}")


def write(folding: Folding, graph: ir.Graph, opset: int) -> None:
    """Write what changed into the graph."""
    writing = Writing(graph, opset, dtype=folding.net.dtype)
    for op in folding.net.ops:
        if op.changed:
            writing.dtype = folding.net.dtype_of(op)
            op.write(writing)
    for target in folding.removed:
        target.outputs[0].value = writing.replace(target.outputs[0].value, target.inputs[0].value)

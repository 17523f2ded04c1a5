"""The driver: removes one affine after the other, each in the cheapest way, until none can go."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from normfold.export.fold.engine.beside import Beside, beside, identity_beside
from normfold.export.fold.engine.carrier import NewCarrier, PutOnes, call_cost, carrier_for, carrier_of, work_cost
from normfold.export.fold.engine.constant_channels import ConstantChannels
from normfold.export.fold.engine.magnitudes import Magnitudes
from normfold.export.fold.engine.plan import FoldPlan, Refusals, loses_digits, planned, plans
from normfold.export.fold.engine.silence import settle_constants, silence_zero_scales
from normfold.export.fold.engine.streams import MOST_TOUCHED, Streams
from normfold.export.fold.engine.words import refused, went
from normfold.export.fold.net import Net, Op, Refused, TooDear
from normfold.export.fold.ops.costs import LEAST_GAIN, LOSS
from normfold.export.fold.ops.linear import Linear, linears
from normfold.export.fold.ops.scaling import Scaled, Scaling, scalings, targets
from normfold.export.fold.report import Fold
from normfold.export.graphs.writing import Writing


@dataclass
class Folding:
    """The folding of one graph: the network, and the changes made to it."""

    net: Net
    #: Whether every affine goes that mathematics lets go, also where the network becomes slower.
    fold_all: bool = False
    #: Whether an affine goes into a linear operator that reads the same tensor and is added to it.
    beside: bool = True
    folds: list[Fold] = field(default_factory=list)
    #: The affines that went, and the sums that went with them.
    removed: list[Op] = field(default_factory=list)
    carriers: int = 0
    #: The sums whose affine or tensor went into the linear operator that they add it to.
    sums: int = 0
    targets: list[Scaling] = field(default_factory=list)
    streams: Streams = field(init=False)
    magnitudes: Magnitudes = field(init=False)

    def __post_init__(self) -> None:
        self.streams = Streams(self.net, math.inf if self.fold_all else MOST_TOUCHED)
        self.magnitudes = Magnitudes(self.net)

    def run(self) -> None:
        """Fold until nothing more goes. Every step removes an affine or makes one cheaper, so it ends."""
        self.targets = targets(self.net.ops)
        reasons: dict[Scaling, Refusals] = {}
        how: dict[Scaling, list[str]] = defaultdict(list)
        left, progress = self.targets, True
        while progress:
            progress = False
            for target in tuple(left):
                known = len(self.targets)
                words, reasons[target] = self._try(target)
                if words:
                    how[target].append(words)
                    # Leaving just a sign (y = ±x) behind unblocks no other affine, so it does not count as progress;
                    # but a factor that became an affine by channel then has not been tried yet.
                    progress = progress or target in self.removed or len(self.targets) > known
            gone = set(self.removed)
            left = [t for t in self.targets if t not in gone]
        for target in self.targets:
            is_gone = target not in left
            kind = "BatchNorm" if target.is_batchnorm else "affine"
            why = () if is_gone else tuple(refused(target, reasons[target]))
            by_cost = not is_gone and reasons[target].by_cost
            self.folds.append(Fold(target.name, kind, is_gone, "; then ".join(how[target]), why, by_cost))

    def _try(self, target: Scaling) -> tuple[str, Refusals]:
        """Fold one affine in the cheapest way; return where it went, or "", and why each other way was refused."""
        refusals = Refusals()
        if target.params.is_identity:
            self._remove(target)
            return "it changed nothing", refusals
        settle_constants(target)
        if self.beside and (words := self._into_what_is_beside(target)):
            return words, refusals
        silence_zero_scales(target)
        while True:
            carriers = self.carriers
            for plan in plans(target, refusals, self.streams, self.fold_all):
                try:
                    return went(self._carry_out(plan)), refusals
                except Refused as refusal:
                    refusals.add(plan.option, refusal)
                if self.carriers != carriers:
                    break  # some tensors got one more channel, which the plans made before do not fit
            else:
                return "", refusals

    def _into_what_is_beside(self, target: Scaling) -> str:
        """Fold an affine into a linear operator that reads the same tensor; return where it went, or ""."""
        while (identity := identity_beside(target.inputs[0])) is not None and self._fits(identity):
            self._take_beside(identity)
        found = None if loses_digits(target, target.params.shift) else beside(target)
        if found is None or not self._fits(found):
            return ""
        self._take_beside(found)
        target.inputs[0].readers.remove(target)
        self.net.ops.remove(target)
        self.removed.append(target)
        return f"into '{found.linear.name}', which reads the same tensor"

    def _fits(self, found: Beside) -> bool:
        try:
            survives_rounding(found.linear, found.weights, self.net.dtype_of(found.linear))
        except Refused:
            return False
        return True

    def _take_beside(self, found: Beside) -> None:
        found.carry_out(self.net)
        self.removed.append(found.sum)
        self.sums += 1
        self.streams.part(found.summand)  # the sum no longer makes one stream of its inputs

    def _carry_out(self, plan: FoldPlan) -> FoldPlan:
        """Carry out a plan, or raise Refused; in that case nothing has changed, except that a carrier may be new."""
        for linear in linears(plan.touched):
            self.magnitudes.check(linear, plan.gauges)
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
            survives_rounding(op, params[op], self.net.dtype_of(op))
        for op, new in params.items():
            op.take(new)
        for linear in linears(params):
            self.magnitudes.follow(linear, plan.gauges)
        for scaling in scalings(params):
            if not scaling.target and scaling.by_channel:
                scaling.target = True  # a uniform factor that took an affine by channel is now one itself
                self.targets.append(scaling)
        usual = plan.target.usual_under(plan.target.inputs[0].gauge(plan.gauges))
        if plan.option.stays.is_identity:
            for reader in scalings(plan.target.outputs[0].readers):
                # It now reads the target's input, whose usual size the target may have known better.
                reader.params = Scaled.like(reader.params, np.minimum(reader.params.usual, usual))
            self._remove(plan.target)
        else:
            plan.target.take(Scaled.like(plan.option.stays, usual))
        return plan

    def _bring_carriers(self, plan: FoldPlan, missing: list[Linear]) -> None:
        """Give the inputs of the zero-padded readers a constant channel, or put the channel before each reader."""
        carriers: list[NewCarrier | PutOnes] = []
        cost, more, carrying = plan.cost, 0.0, set(missing)
        for op in missing:
            if any(isinstance(carrier, NewCarrier) and op.inputs[0] in carrier.added for carrier in carriers):
                continue
            carrier = carrier_for(op, self.fold_all)
            cost += carrier.cost
            more += carrier.more_work(plan.target)
            carrying.update(carrier.linears)
            carriers.append(carrier)
        if cost >= -LEAST_GAIN and not self.fold_all:
            raise TooDear("carrying the shift past the zero padding would cost as much as the operation it saves")
        if not any(carrier.is_node for carrier in carriers):
            more -= call_cost(plan.target)  # one node less is called
        if cost + more > LOSS * sum(work_cost(op, plan.target) for op in carrying) and not self.fold_all:
            raise TooDear(
                "carrying the shift past the zero padding takes one more channel, which costs more than it saves"
            )
        for carrier in carriers:
            self.carriers += 1
            for reader, added in carrier.carry_out(self.net):
                self.magnitudes.add_channel(reader, added)

    def _remove(self, target: Scaling) -> None:
        self.streams.join(target.inputs[0], target.outputs[0])
        self.net.remove(target)
        self.removed.append(target)


def survives_rounding(op: Op, params: Any, dtype: np.dtype[Any]) -> None:
    """Refuse weights that overflow the type, or a row whose weights would all lose digits to underflow."""
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    for array in op.stored(params):
        largest = float(np.abs(array).max(initial=0.0))
        if not largest <= float(info.max):
            raise Refused(f"the weights of {op} would overflow {dtype}")
    rows = op.rows(params)
    # Rounding moves an entry by eps/2 of the larger of itself and tiny, so no more than the largest of a normal row.
    if np.any((rows > 0) & (rows < float(info.tiny))):
        raise Refused(f"the weights of {op} would underflow {dtype}")


def write(folding: Folding, graph: ir.Graph, opset: int) -> None:
    """Write what changed into the graph."""
    writing = write_net(folding.net, graph, opset)
    for op in folding.removed:
        op.outputs[0].become(op.inputs[0].value, writing)


def write_net(net: Net, graph: ir.Graph, opset: int) -> Writing:
    """Write the changed params of a network into its graph; return what wrote them."""
    writing = Writing(graph, opset, dtype=net.dtype)
    for op in net.ops:
        if op.changed:
            writing.dtype = net.dtype_of(op)
            op.write(writing)
    return writing

"""A graph rewritten for onnxruntime's CPU kernels: the same function with the same inputs and outputs.

onnxruntime has its fast blocked layout (NCHWc) only for tensors of four axes: a 2-D convolution can use it, a Conv1d
cannot. Rules that gain nothing on a CPU, and rules that change what the network computes, may not come in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.export.cpu_layout.axes import LIFTED, TURNED
from normfold.export.cpu_layout.blocked import hold_constants, write_blocked
from normfold.export.cpu_layout.region import turn
from normfold.export.cpu_layout.round_channels import round_up
from normfold.export.cpu_layout.views import join_views
from normfold.export.fold import FoldReport, fold
from normfold.export.graphs.shapes import infer_shapes

__all__ = ["fold_in_blocks", "lift", "lift_and_round"]


def lift(model: ir.Model) -> bool:
    """Give tensors with one running axis an axis of height 1, in place; return whether anything changed.

    The operators between convolutions are written as operators that keep the blocked layout.
    """
    public = [(v.shape, v.type) for v in model.graph.outputs]
    infer_shapes(model)
    graph, opset = model.graph, model.opset_imports.get("", 18)
    changed = turn(model, TURNED, _taller_than_wide) + turn(model, LIFTED)
    changed += hold_constants(graph, opset) + write_blocked(graph, opset) + join_views(graph, opset)
    passes.RemoveUnusedNodesPass()(model)
    for value, (shape, kind) in zip(model.graph.outputs, public, strict=True):
        value.shape, value.type = shape, kind
    return changed > 0


def lift_and_round(model: ir.Model) -> bool:
    """Lift, then round channel counts up to whole blocks, in place; return whether any count was rounded."""
    lift(model)
    return round_up(model)


def fold_in_blocks(model: ir.Model, by: Callable[[ir.Model], FoldReport] = fold) -> FoldReport:
    """Lift a graph, then fold it, then round its channel counts up, in place.

    On a lifted graph the fold knows that convolutions compute blocks of channels: it leaves a BatchNorm between two of
    them where one more channel, to carry its shift, would cost more than the BatchNorm. ``by`` is the fold.
    """
    lift(model)
    report = by(model)
    lift_and_round(model)
    return report


def _taller_than_wide(nodes: Iterable[ir.Node]) -> bool:
    """Whether more convolutions of a region run along H alone than along W alone."""
    taller = 0
    for node in nodes:
        weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") else None
        if weight is not None and weight.shape is not None:
            high, wide = weight.shape.numpy()[2:]  # known, because a rule has read it
            taller += (high > 1 and wide == 1) - (wide > 1 and high == 1)
    return taller > 0

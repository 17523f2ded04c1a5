"""The folded graph rewritten for onnxruntime's CPU kernels: another form of the same function, same inputs and outputs.

onnxruntime keeps its fast blocked layout (NCHWc) for pictures: a Conv of rank 4 has it, a Conv1d has not.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    """Write what runs along one axis as pictures of height 1, and what lies between in the operators that keep the
    blocked layout, in place; return whether anything changed.
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
    """The same, and round channel counts up to the block, in place; return whether any was."""
    lift(model)
    return round_up(model)


def fold_in_blocks(model: ir.Model) -> FoldReport:
    """Lift a graph, fold it then, and widen it, in place: a fold that knows that convolutions run in blocks of channels
    leaves a BatchNorm between two of them where a channel more to carry its shift would cost more.
    """
    lift(model)
    report = fold(model)
    lift_and_round(model)
    return report


def _taller_than_wide(nodes: Iterable[ir.Node]) -> bool:
    """Whether more convolutions of a region run along H alone than along W alone."""
    taller = 0
    for node in nodes:
        weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") else None
        if weight is not None and weight.shape is not None:
            high, wide = weight.shape.numpy()[2:]  # known: a rule read it
            taller += (high > 1 and wide == 1) - (wide > 1 and high == 1)
    return taller > 0

"""Folding: every BatchNorm and per-channel affine of a graph into the weights around it, exactly."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.export.fold.driver import Folding, write
from normfold.export.fold.net import Net
from normfold.export.fold.ops.pointwise import Scaling
from normfold.export.fold.padding import join_padding
from normfold.export.fold.prune import prune
from normfold.export.fold.reading import Reading
from normfold.export.fold.report import Fold, FoldReport

__all__ = ["Fold", "FoldReport", "fold"]


def fold(model: ir.Model) -> FoldReport:
    """Fold every BatchNorm and per-channel affine that mathematics lets go, in place, and report each.

    The model computes the same function of its inputs: float32 weights are computed in float64 and rounded once.
    """
    before = _counts(model)
    try:
        passes.ShapeInferencePass()(model)
    except Exception:  # a model that shape inference cannot read is folded with the shapes it has
        pass
    opset = model.opset_imports.get("", 18)
    folds: list[Fold] = []
    carriers = removed = 0
    affines_before = affines_after = 0
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        join_padding(graph, opset)
        net = Reading(graph, opset).net()
        affines_before += _targets(net)
        folding = Folding(net)
        folding.run()
        removed += prune(net)
        write(folding, graph)
        affines_after += _targets(folding.net)
        folds += folding.folds
        carriers += folding.carriers
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    after = _counts(model)
    return FoldReport(
        folds=tuple(folds),
        batchnorms_before=before[0],
        batchnorms_after=after[0],
        affines_before=affines_before,
        affines_after=affines_after,
        nodes_before=before[1],
        nodes_after=after[1],
        parameters_before=before[2],
        parameters_after=after[2],
        carriers=carriers,
        channels_removed=removed,
    )


def _targets(net: Net) -> int:
    return sum(isinstance(op, Scaling) and op.target for op in net.ops)


def _counts(model: ir.Model) -> tuple[int, int, int]:
    nodes = list(model.graph.all_nodes())
    batchnorms = sum(n.op_type == "BatchNormalization" for n in nodes)
    floats = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    held = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return batchnorms, len(nodes), sum(int(c.size) for c in held if c.dtype in floats)

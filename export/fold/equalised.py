"""A graph whose channels have the scales that int8 holds best, before it is quantised; in float the same function."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.export.fold.engine.driver import write_net
from normfold.export.fold.engine.equalising import Channels, Measure, equalise_net
from normfold.export.fold.reading import Reading
from normfold.export.graphs.shapes import infer_shapes

__all__ = ["Channels", "Measure", "equalise"]


def equalise(model: ir.Model, measure: Measure) -> tuple[str, ...]:
    """Equalise the ranges of the channels in the main graph, in place; return the names of the layers that changed.

    ``measure`` gets the axis of the channels for the name of each value that matters, and returns what these channels
    hold on inputs that calibrate; a value that it leaves out stays as it is. See
    :mod:`normfold.export.fold.engine.equalising`.
    """
    infer_shapes(model)
    opset = model.opset_imports.get("", 18)
    net = Reading(model.graph, opset).net()
    changed = equalise_net(net, measure)
    write_net(net, model.graph, opset)
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    return tuple(changed)

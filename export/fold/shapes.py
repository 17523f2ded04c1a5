"""The shapes of a graph's values, where shape inference can find them."""

from __future__ import annotations

import contextlib

import onnx_ir as ir
import onnx_ir.passes.common as passes

__all__ = ["infer_shapes"]


def infer_shapes(model: ir.Model) -> None:
    """Write shapes where values have none, in place; a model that inference cannot read keeps those it has."""
    values = [v for n in model.graph.all_nodes() for v in n.outputs]
    # Shape inference would take what sequences hold for tensors.
    sequences = any(n.op_type.startswith(("Sequence", "SplitToSequence")) for n in model.graph.all_nodes())
    if any(v.shape is None for v in values) and not sequences:
        with contextlib.suppress(Exception):
            passes.ShapeInferencePass()(model)

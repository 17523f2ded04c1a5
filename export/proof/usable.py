"""Weights that no network can answer with (NaN, infinity, a variance that is negative): a training failed, or a file.

Such a network runs and gives NaN, and its exact answer is NaN too, so that a comparison would find nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from normfold.export.errors import CheckpointError
from normfold.export.graphs.unrounded import FLOATS

__all__ = ["require_usable"]

#: Operators whose constants multiply or are added: one infinity makes answers infinite or NaN.
LINEAR = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})


def require_usable(model: ir.Model) -> None:
    """Raise CheckpointError where a weight of the network holds what no training means.

    A single number may be NaN (``masked_fill(mask, nan)``), and constants outside of linear operators infinite (masks,
    bounds).
    """
    for graph in model.graphs():
        trouble = next(_troubles(graph), "")
        if trouble:
            raise CheckpointError(
                f"the weights cannot be used: {trouble}, so no answer that depends on it is a number. Was the training "
                "unstable, or the file damaged? Export an earlier checkpoint"
            )


def _troubles(graph: ir.Graph) -> Iterator[str]:
    for name, value in graph.initializers.items():
        held = value.const_value
        if held is None or held.dtype not in FLOATS or held.size < 2:
            continue
        array = held.numpy().astype(np.float64)
        linear = any(node.op_type in LINEAR for node, _ in value.uses())
        wrong, what = (~np.isfinite(array), "NaN or infinity") if linear else (np.isnan(array), "NaN")
        if wrong.any():
            yield f"'{name}' holds {what} ({int(wrong.sum())} of {array.size} numbers)"
    for node in graph:
        given = node.inputs[4] if node.op_type == "BatchNormalization" and len(node.inputs) > 4 else None
        held = None if given is None or given.is_graph_input() else given.const_value
        if given is None or held is None:
            continue
        variance, epsilon = held.numpy().astype(np.float64), node.attributes.get_float("epsilon", 1e-5)
        channel = int(np.argmin(variance))
        if variance[channel] + epsilon <= 0:
            yield (
                f"'{given.name}' is a variance, and it is {variance[channel]:g} in channel {channel} "
                f"(with epsilon {variance[channel] + epsilon:g}; it must be above 0)"
            )

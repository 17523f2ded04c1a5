"""Weights that no network can answer with (NaN, infinity, a variance that is negative): a training failed, or a file.

Such a network runs and gives NaN, and its exact answer is NaN too, so that a comparison would find nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from normfold.counting import counted
from normfold.export.errors import CheckpointError
from normfold.export.graphs.unrounded import FLOATS

__all__ = ["require_usable"]

NORM = "BatchNormalization"
#: The roles of a BatchNormalization's inputs, in their order.
ROLES = ("input", "scale", "shift", "mean", "variance")
#: Operators whose constants multiply or are added: one infinity makes answers infinite or NaN.
LINEAR = frozenset({NORM, "Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})


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
    for value in _constants(graph):
        held = ir.convenience.get_const_tensor(value)
        norm = next((node for node, place in value.uses() if node.op_type == NORM and 0 < place < len(ROLES)), None)
        if held is None or held.dtype not in FLOATS or (held.size < 2 and norm is None):
            continue
        array = held.numpy().astype(np.float64)
        linear = any(node.op_type in LINEAR for node, _ in value.uses())
        wrong, what = (~np.isfinite(array), "NaN or infinity") if linear else (np.isnan(array), "NaN")
        if wrong.any():
            share = f"{int(wrong.sum())} of {counted(array.size, 'number')}"
            yield f"'{value.name}'{_role(value, norm)} holds {what} ({share})"
    for node in graph:
        given = node.inputs[4] if node.op_type == NORM and len(node.inputs) > 4 else None
        held = None if given is None or given.is_graph_input() else ir.convenience.get_const_tensor(given)
        if given is None or held is None:
            continue
        variance, epsilon = held.numpy().astype(np.float64), node.attributes.get_float("epsilon", 1e-5)
        channel = int(np.argmin(variance))
        if variance[channel] + epsilon <= 0:
            yield (
                f"'{given.name}' is the variance of {_called(node)}, and it is {variance[channel]:g} in channel "
                f"{channel} (with epsilon {variance[channel] + epsilon:g}; it must be above 0)"
            )


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    yield from (node.outputs[0] for node in graph if node.op_type == "Constant")


def _role(value: ir.Value, norm: ir.Node | None) -> str:
    """The role of a constant in the BatchNorm that reads it, for a sentence; "" without one."""
    return "" if norm is None else f", the {ROLES[list(norm.inputs).index(value)]} of {_called(norm)},"


def _called(norm: ir.Node) -> str:
    return f"the BatchNorm '{norm.name or norm.outputs[0].name}'"

"""Operators between convolutions that leave onnxruntime's blocked layout, written as operators that keep it.

There is one rule for each kind of operator, in one table. A rule returns nodes that give the same value, or None where
its side conditions do not hold. All are exact except `gelu` and `exchanged`, which compute in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from normfold.export.cpu_layout.activations import FUSED, after_pool, before_concat, gelu
from normfold.export.cpu_layout.cut import cut
from normfold.export.cpu_layout.exchange import exchanged
from normfold.export.cpu_layout.rules import ANCHORS
from normfold.export.graphs.constants import Constants
from normfold.export.graphs.node import NodeView
from normfold.export.graphs.writing import Writing

__all__ = ["RULES", "Rule", "hold_constants", "write_blocked"]

#: Returns what replaces a node: new nodes, the last of which gives its value, or a value that exists already.
Rule = Callable[[NodeView, Writing], list[ir.Node] | ir.Value | None]

#: Operators that keep the blocked layout of the values that a convolution gives.
KEPT = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "Add", "MaxPool"}) | ANCHORS


def hold_constants(graph: ir.Graph, opset: int) -> int:
    """conv(x, w, b) -> conv(x, W, B), B an initializer if constants give b, absent if b is zero.

    In place; return the number of inputs that changed.

    onnxruntime uses the blocked layout only if the bias is an initializer; torch's exporter computes the absent bias of
    a Conv1d as zeros.
    """
    constants, writing = Constants(graph, opset), Writing(graph, opset, suffix="held")
    changed = 0
    for node in graph:
        if node.op_type not in ANCHORS or node.domain not in ("", "ai.onnx"):
            continue
        for index in range(1, len(node.inputs)):
            value = node.inputs[index]
            held = constants.get(value)
            if value is None or held is None:
                continue
            if index == 2 and not held.any():
                node.replace_input_with(index, None)
            elif not value.is_initializer():
                node.replace_input_with(index, writing.shared(np.ascontiguousarray(held), like=value))
            else:
                continue
            changed += 1
    return changed


def write_blocked(graph: ir.Graph, opset: int) -> int:
    """Apply the rules to every node of the main graph, in place; return the number of nodes that were replaced.

    Rules that need a shape change nothing where it is not known.
    """
    constants, writing = Constants(graph, opset), Writing(graph, opset, suffix="blocked")
    changed = 0
    for node in graph:
        rules = RULES.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ()
        view = NodeView(node, constants, opset)
        written = next((w for rule in rules if (w := rule(view, writing)) is not None), None)
        if written is None:
            continue
        if isinstance(written, list):
            writing.exchange(node, written)
        else:
            ir.convenience.replace_all_uses_with(node.outputs[0], written)
            graph.remove(node, safe=True)
        changed += 1
    return changed


def parametric(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """prelu(x; a) = leakyrelu(x; a) for one slope; max(x, a·x) for one slope 0 < a ≤ 1 per channel, min for a ≥ 1.

    Slopes of 0 are refused: 0 · x is NaN for an infinite x. An attribute is a float32 number, so one slope is written
    as an attribute only where float32 holds it exactly.
    """
    slope, x = node.constant(1), node.value(0)
    if slope is None or slope.dtype not in (np.float32, np.float64) or not np.isfinite(slope).all():
        return None
    if np.unique(slope).size == 1 and slope.ndim <= (node.rank(0) or 0):
        alpha = float(slope.flat[0])
        return [writing.node("LeakyRelu", [x], {"alpha": alpha})] if float(np.float32(alpha)) == alpha else None
    least, most = slope.min(), slope.max()
    if not ((least > 0 and most <= 1) or least >= 1):
        return None
    scaled = writing.node("Mul", [x, node.value(1)])
    return [scaled, writing.node("Max" if most <= 1 else "Min", [x, scaled.outputs[0]])]


def times_one(node: NodeView, writing: Writing) -> ir.Value | None:
    """x · 1 = x, as torch writes the scale of an ELU; the constant 1 must not have more axes than x."""
    if node.node.outputs[0].is_graph_output():
        return None
    for index in (0, 1):
        one, x = node.constant(index), node.value(1 - index)
        if one is not None and one.size == 1 and one.ndim <= (node.rank(1 - index) or 0) and one.reshape(()) == 1:
            return x
    return None


def global_max(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """max(x; all axes behind C) = globalmaxpool(x), where x has four axes and comes out of blocked convolutions.

    An axis behind C that is not reduced must have one entry. Elsewhere ReduceMax is faster. ReduceMean stays as it is:
    GlobalAveragePool adds one entry after the other, and its error is larger.
    """
    x, axes = node.value(0), node.given_axes(1)
    if axes is None or x is None or x.shape is None or len(x.shape) != 4 or not _blocked(x):
        return None
    over = {a % 4 for a in axes}
    if over - {2, 3} or not over or any(x.shape[a] != 1 for a in {2, 3} - over):
        return None
    pool = writing.node("GlobalMaxPool", [x])
    pool.outputs[0].shape, pool.outputs[0].type = ir.Shape([*x.shape[:2], 1, 1]), x.type
    if node.attribute("keepdims", 1):
        return [pool]
    return [pool, writing.over_axes("Squeeze", pool.outputs[0], sorted(over))]


def _blocked(value: ir.Value) -> bool:
    """Whether a value comes out of a convolution through operators that keep the blocked layout."""
    producer = value.producer()
    while producer is not None and producer.op_type in KEPT - ANCHORS and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "Conv"


RULES: Mapping[str, tuple[Rule, ...]] = {
    "PRelu": (parametric,),  # prelu(x; a) -> leakyrelu(x; a), max(x, a·x), min(x, a·x)
    "Mul": (times_one, gelu),  # x · 1 -> x; x · (½ · (1 + erf(x / √2))) -> (x · (1 + erf(x / √2))) · ½
    "ReduceMax": (global_max,),  # max(x; H, W) -> globalmaxpool(x)
    "MaxPool": (after_pool,),  # maxpool(f(x)) -> f(maxpool(x))
    "Conv": (exchanged,),  # (x ∗ u) ∗ v -> (x ∗ v) ∗ u
    "Slice": (cut,),  # conv(x; pads)[…, : −n] -> conv(x; pads − n)
    **dict.fromkeys(FUSED, (before_concat,)),  # f(concat(conv(x), …)) -> concat(f(conv(x)), …)
}

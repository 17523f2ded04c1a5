"""Exchange two convolutions in a row, the first along W, the second along H and depthwise, where that is cheaper."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfold.export.graphs.node import NodeView
from normfold.export.graphs.writing import Writing

__all__ = ["exchanged"]


def exchanged(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """(x ∗ u[f]) ∗ v[o] + b = (x ∗ v[o]) ∗ u[f(o)] + b' for u along W and v along H, as EEGNet has them.

        b'[o] = b[o] + b_u[f(o)] · Σ v[o]

    x has one channel; u (F, 1, 1, k) makes F channels of it, v (D·F, 1, h, 1) reads each alone: f(o) = ⌊o / D⌋. With H
    first, fewer rows are left to convolve along W, each with its own u. That is cheaper where D times the number of
    rows that are left is less than the number of rows of x. Only v may read u, and v may not pad: a padded row would
    hold b_u after u, but 0 before it.
    """
    middle = node.value(0)
    first = middle.producer() if middle is not None else None
    if middle is None or first is None or first.op_type != "Conv" or first.domain not in ("", "ai.onnx"):
        return None
    along_given = first.inputs[2] if len(first.inputs) > 2 else None
    along, along_bias = node.held(first.inputs[1]), node.held(along_given)
    across, across_bias = node.constant(1), node.constant(2)
    x = first.inputs[0]
    if x is None or along is None or across is None or len(middle.uses()) != 1 or middle.is_graph_output():
        return None
    if along.ndim != 4 or along.shape[1:3] != (1, 1) or across.shape[1] != 1 or across.shape[3] != 1:
        return None
    filters, made = len(along), len(across)
    if first.attributes.get_int("group", 1) != 1 or node.attribute("group", 1) != filters or made % filters:
        return None
    steps = [*first.attributes.get_ints("strides", [1, 1])[:1], *node.attribute("strides", [1, 1])[1:]]
    first_pads, pads = first.attributes.get_ints("pads", [0] * 4), node.attribute("pads", [0] * 4)
    if any(pads) or first_pads[0] or first_pads[2] or steps != [1, 1]:
        return None
    if any(a.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" for a in (first, node.node)):
        return None
    rows, left = (v.shape[2] if v.shape is not None else None for v in (x, node.node.outputs[0]))
    each = made // filters
    if not isinstance(rows, int) or not isinstance(left, int) or each * left >= rows:
        return None
    if (along_given is not None and along_bias is None) or (node.value(2) is not None and across_bias is None):
        return None
    read = writing.node("Conv", [x, node.value(1)])
    read.attributes.update(node.node.attributes)
    read.attributes["group"] = ir.AttrInt64("group", 1)
    assert x.shape is not None
    read.outputs[0].shape, read.outputs[0].type = ir.Shape([x.shape[0], made, left, x.shape[3]]), x.type
    bias = np.zeros(made) if across_bias is None else across_bias.astype(np.float64)
    if along_bias is not None:
        bias = bias + np.repeat(along_bias.astype(np.float64), each) * across.astype(np.float64).sum((1, 2, 3))
    weight = writing.shared(np.repeat(along, each, axis=0), like=first.inputs[1])
    last = writing.node("Conv", [read.outputs[0], weight, writing.shared(bias.astype(along.dtype), like=weight)])
    last.attributes.update(first.attributes)
    last.attributes["group"] = ir.AttrInt64("group", made)
    return [read, last]

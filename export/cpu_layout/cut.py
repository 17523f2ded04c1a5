"""Do not compute entries that a Slice cuts off again."""

from __future__ import annotations

import onnx_ir as ir

from normfold.export.graphs.node import NodeView
from normfold.export.graphs.writing import Writing

__all__ = ["cut"]

#: An end from here on means "no end": exporters write the largest integer of 32 or 64 bits.
OPEN = (1 << 31) - 1


def cut(node: NodeView, writing: Writing) -> list[ir.Node] | ir.Value | None:
    """conv(x; pads b, e)[…, m : −n] = conv(x; pads b − m·s, e − n·s) for stride s, as causal convolutions are written.

    1. Nothing is cut: the result is the value itself.
    2. Only the Slice reads the convolution, no pad becomes negative, and the remaining pads span the kernel, so that
       an entry remains for every length.
    """
    bounds = _bounds(node)
    x = node.value(0)
    if x is None or bounds is None:
        return None
    axis, start, end = bounds
    if start == end == 0:
        return None if node.node.outputs[0].is_graph_output() else x
    convolution = x.producer()
    rank = node.rank(0)
    if convolution is None or convolution.op_type != "Conv" or convolution.domain not in ("", "ai.onnx"):
        return None
    if len(x.uses()) != 1 or x.is_graph_output():
        return None
    kernel, pads = (convolution.attributes.get_ints(name, []) for name in ("kernel_shape", "pads"))
    if rank is None or axis % rank < 2 or len(pads) != 2 * (rank - 2) or len(kernel) != rank - 2:
        return None
    if convolution.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    at, ones = axis % rank - 2, [1] * (rank - 2)
    stride, dilation = (convolution.attributes.get_ints(name, ones)[at] for name in ("strides", "dilations"))
    left = list(pads)
    left[at] -= start * stride
    left[at + rank - 2] -= end * stride
    before, behind = left[at], left[at + rank - 2]
    if min(before, behind) < 0 or before + behind < dilation * (kernel[at] - 1):
        return None
    shorter = writing.node("Conv", convolution.inputs)
    shorter.attributes.update(convolution.attributes)
    shorter.attributes["pads"] = ir.AttrInt64s("pads", left)
    return [shorter]


def _bounds(node: NodeView) -> tuple[int, int, int] | None:
    """Return the one axis that a Slice (opset 10 on) cuts, and the number of entries it removes at either end."""
    starts, ends, axes = node.constant_integers(1), node.constant_integers(2), node.constant_integers(3)
    steps = node.constant_integers(4) if node.value(4) is not None else [1]
    if starts is None or ends is None or axes is None or len(axes) != 1 or steps != [1]:
        return None
    (start,), (end,) = starts, ends
    if start < 0 or 0 <= end < OPEN:
        return None
    return axes[0], start, -end if end < 0 else 0

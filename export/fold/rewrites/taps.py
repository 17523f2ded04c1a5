"""Taps of a convolution that meet nothing but its zero padding are cut.

    y[t] = Σ_j w[j] · x[t·stride + j·dilation - pads]      x is 0 outside of 0 … L-1

A tap j that falls outside for every t adds nothing. With L = 8, 64 taps and 31 zeros on each side, only 15 of them ever
meet a number. The lengths must be fixed: they are where every input of the network has fixed sizes but for its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfold.export.graphs.writing import Writing


@dataclass(frozen=True)
class _Axis:
    """One position axis of a convolution."""

    length: int
    taps: int
    stride: int
    dilation: int
    before: int
    behind: int

    def kept(self) -> tuple[int, int]:
        """The first tap that is kept, and the first one behind the last; (0, 0) where no tap meets a number."""
        outputs = (self.length + self.before + self.behind - self.dilation * (self.taps - 1) - 1) // self.stride + 1
        met = np.arange(max(outputs, 0))[:, None] * self.stride + np.arange(self.taps) * self.dilation - self.before
        useful = np.flatnonzero(((met >= 0) & (met < self.length)).any(axis=0))
        if not len(useful):
            return 0, 0
        # what is cut comes off the padding, of which there must be enough
        first = min(int(useful[0]), self.before // self.dilation)
        cut_behind = min(self.taps - 1 - int(useful[-1]), self.behind // self.dilation)
        return first, self.taps - cut_behind


def cut_taps(graph: ir.Graph, opset: int) -> list[tuple[ir.Node, str]]:
    """Cut such taps in place; each convolution that lost some, and in words how many."""
    if not all(_fixed(value) for value in graph.inputs if not value.is_initializer()):
        return []
    cut, writing = [], Writing(graph, opset)
    for conv in graph:
        axes = _axes(conv) if conv.op_type == "Conv" and conv.domain in ("", "ai.onnx") else []
        kept = [axis.kept() for axis in axes]
        if not kept or any(first == end for first, end in kept):
            continue
        if all((first, end) == (0, axis.taps) for (first, end), axis in zip(kept, axes, strict=True)):
            continue
        _cut(writing, conv, axes, kept)
        has = "×".join(str(end - first) for first, end in kept)
        had = "×".join(str(axis.taps) for axis in axes)
        cut.append((conv, f"keeps {has} of its {had} taps: at this length the others meet nothing but padding"))
    return cut


def _fixed(value: ir.Value) -> bool:
    """Whether an input has fixed sizes but for its rows. Sizes of inner values may be those of an example otherwise."""
    return value.shape is not None and all(isinstance(size, int) for size in value.shape[1:])


def _axes(conv: ir.Node) -> list[_Axis]:
    """Return the position axes of a convolution; none where something about them is not known."""
    x, weight = conv.inputs[0], conv.inputs[1]
    if x is None or x.shape is None or weight is None or weight.const_value is None or weight.is_graph_input():
        return []
    taps = weight.const_value.shape.numpy()[2:]
    lengths = x.shape[2:]
    automatic = conv.attributes["auto_pad"].as_string() if "auto_pad" in conv.attributes else "NOTSET"
    if automatic != "NOTSET" or len(lengths) != len(taps) or not all(isinstance(length, int) for length in lengths):
        return []
    rank = len(taps)
    strides, dilations = _ints(conv, "strides", [1] * rank), _ints(conv, "dilations", [1] * rank)
    pads = _ints(conv, "pads", [0] * 2 * rank)
    rows = zip(lengths, taps, strides, dilations, pads[:rank], pads[rank:], strict=True)
    return [_Axis(*map(int, row)) for row in rows]


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


def _cut(writing: Writing, conv: ir.Node, axes: list[_Axis], kept: list[tuple[int, int]]) -> None:
    weight = conv.inputs[1]
    assert weight is not None
    held = weight.const_value
    assert held is not None
    array = held.numpy()[(slice(None), slice(None), *(slice(*ends) for ends in kept))]
    conv.replace_input_with(1, writing.constant(array, f"{weight.name}_met", held.dtype.numpy()))
    if weight.is_initializer() and not weight.uses():
        writing.graph.initializers.pop(weight.name or "", None)
    before = [axis.before - first * axis.dilation for axis, (first, _) in zip(axes, kept, strict=True)]
    behind = [axis.behind - (axis.taps - end) * axis.dilation for axis, (_, end) in zip(axes, kept, strict=True)]
    conv.attributes["pads"] = ir.AttrInt64s("pads", [*before, *behind])
    conv.attributes.pop("kernel_shape", None)

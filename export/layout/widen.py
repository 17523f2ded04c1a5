"""Round channel counts up to the block of onnxruntime's blocked layout, where only convolutions see the difference.

    conv(f(conv(x; W₁, b₁)); W₂) = conv(f(conv(x; [W₁; 0], [b₁; 0])); [W₂, 0])

for f that takes each channel alone and gives finite numbers of zeros: the new channels are read with weights of zero.
A convolution is blocked only if the channels that it reads are whole blocks; folding leaves other counts, by a carrier
channel or by channels that it takes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.export.fold.constants import Constants
from normfold.export.layout.node import Array
from normfold.export.layout.writing import Writing

__all__ = ["BLOCK", "widen"]

#: Channels of a block on processors with AVX2 and NEON; AVX-512 takes two at a time.
BLOCK = 8
#: How many times the channels may become more: convolutions then have more to do, and are faster by about as much.
MOST = 1.25
#: What takes each channel alone and gives finite numbers of zeros; constants beside the data are no channels' own.
POINTWISE = {
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign",
    "Gelu", "Mish", "Erf", "Abs", "Neg", "Identity", "Clip",
}  # fmt: skip
POOLS = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
ENTRYWISE = frozenset(POINTWISE | POOLS)
#: The same for operators whose inputs are broadcast against each other; constants a channel get zeros.
BROADCAST = frozenset({"Add", "Sub", "Mul", "Max", "Min", "PRelu"})


@dataclass
class Bundle:
    """Values that have the same channels, and the convolutions at their ends."""

    channels: int
    values: dict[ir.Value, None] = field(default_factory=dict)
    #: Convolutions that make them, that read them, and that do both for each channel alone.
    makers: dict[ir.Node, None] = field(default_factory=dict)
    readers: dict[ir.Node, None] = field(default_factory=dict)
    depthwise: dict[ir.Node, None] = field(default_factory=dict)
    #: Inputs that hold a constant a channel.
    constants: dict[tuple[ir.Node, int], None] = field(default_factory=dict)


def widen(model: ir.Model) -> bool:
    """Round channel counts up, in place, where everything that a value meets allows it; return whether any was.

    Shapes are known; values of other than four axes stay as they are.
    """
    graph, opset = model.graph, model.opset_imports.get("", 18)
    constants, writing = Constants(graph, opset), Writing(graph, opset, "widened")
    seen, widened = set[ir.Value](), False
    for node in list(graph):
        if node.op_type != "Conv" or node.outputs[0] in seen:
            continue
        channels = _channels(node.outputs[0])
        wide = -(-channels // BLOCK) * BLOCK
        if not channels < wide <= MOST * channels:
            continue
        bundle = Bundle(channels)
        fits = _grow(bundle, node.outputs[0], constants)
        seen.update(bundle.values)
        if fits and (bundle.readers or bundle.depthwise):
            _carry_out(bundle, wide - channels, constants, writing)
            widened = True
    passes.RemoveUnusedNodesPass()(model)
    return widened


def _channels(value: ir.Value | None) -> int:
    """The channels of a picture, 0 where they are not known."""
    shape = None if value is None else value.shape
    return shape[1] if shape is not None and len(shape) == 4 and isinstance(shape[1], int) else 0


def _grow(bundle: Bundle, start: ir.Value, constants: Constants) -> bool:
    """Follow the channels from one value to all that share them; whether each node on the way allows more of them."""
    stack = [start]
    while stack:
        value = stack.pop()
        if value in bundle.values:
            continue
        producer = value.producer()
        if producer is None or value.is_graph_output() or _channels(value) != bundle.channels:
            return False
        bundle.values[value] = None
        for node, index in [(producer, -1), *((n, i) for n, i in value.uses())]:
            further = _neighbours(bundle, node, index, constants)
            if further is None or node.graph is not producer.graph:
                return False
            stack.extend(further)
    return True


def _neighbours(bundle: Bundle, node: ir.Node, index: int, constants: Constants) -> list[ir.Value] | None:
    """What shares its channels with input ``index`` of a node, or with its output for -1; None where it refuses."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Conv" and index <= 0:
        return _convolution(bundle, node, index, constants)
    first, output = node.inputs[0], node.outputs[0]
    if node.op_type in ENTRYWISE and index <= 0:
        shared = [first, output]
    elif node.op_type in BROADCAST:
        shared = [output]
        for place, value in enumerate(node.inputs):
            constant = constants.get(value)
            if constant is None and _channels(value) == bundle.channels:
                shared.append(value)
            elif constant is not None and constant.ndim in (3, 4) and constant.shape[-3] == bundle.channels:
                bundle.constants[node, place] = None
            elif _channels(value) != 1 and not (
                constant is not None and (constant.ndim < 3 or constant.shape[-3] == 1)
            ):
                return None
    else:
        return None
    further_outputs = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return None if further_outputs else [v for v in shared if v is not None]


def _convolution(bundle: Bundle, node: ir.Node, index: int, constants: Constants) -> list[ir.Value] | None:
    weight, bias = constants.get(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or (bias is not None and constants.get(bias) is None) or node.inputs[0] is None:
        return None
    group = node.attributes.get_int("group", 1)
    if group == 1:
        (bundle.makers if index < 0 else bundle.readers)[node] = None
        return []
    if group == len(weight) == bundle.channels and weight.shape[1] == 1:
        bundle.depthwise[node] = None
        return [node.inputs[0], node.outputs[0]]
    return None


def _carry_out(bundle: Bundle, more: int, constants: Constants, writing: Writing) -> None:
    for node in (*bundle.makers, *bundle.depthwise):
        _pad(node, 1, 0, more, constants, writing)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _pad(node, 2, 0, more, constants, writing)
    for node in bundle.depthwise:
        node.attributes["group"] = ir.AttrInt64("group", bundle.channels + more)
    for node in bundle.readers:
        _pad(node, 1, 1, more, constants, writing)
    for node, place in bundle.constants:
        _pad(node, place, -3, more, constants, writing)
    for value in bundle.values:
        assert value.shape is not None
        value.shape = ir.Shape([value.shape[0], bundle.channels + more, *value.shape[2:]])


def _pad(node: ir.Node, index: int, axis: int, more: int, constants: Constants, writing: Writing) -> None:
    """Give an input's constant ``more`` zeros at the end of an axis."""
    value = node.inputs[index]
    held: Array | None = constants.get(value)
    assert held is not None
    ends = [(0, 0)] * held.ndim
    ends[axis] = (0, more)
    node.replace_input_with(index, writing.constant(np.pad(held, ends), like=value))

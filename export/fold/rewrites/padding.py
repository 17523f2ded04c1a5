"""A Pad with zeros before a convolution becomes the convolution's own padding.

    Conv(Pad(x)) = Conv with the pads added      mode constant, value 0, positions only, no other reader

This saves a node and a copy, and a convolution can read a shift past its own padding from a carrier channel.
"""

from __future__ import annotations

import onnx_ir as ir

from normfold.export.graphs.constants import Constants


def join_padding(graph: ir.Graph, opset: int) -> int:
    """Give every convolution the zero padding before it, in place, and return the number of nodes that this saved."""
    constants = Constants(graph, opset)
    count = 0
    for pad in list(graph):
        if pad.op_type != "Pad" or pad.domain not in ("", "ai.onnx"):
            continue
        added = _positions(pad, constants)
        readers = list(pad.outputs[0].uses())
        if added is None or not readers or pad.outputs[0].is_graph_output():
            continue
        convs = [(node, index) for node, index in readers if not _reads_type(node, index)]
        if not convs or not all(_takes(node, index, graph, len(added[0])) for node, index in convs):
            continue
        before, behind = added
        source = pad.inputs[0]
        for conv, _ in convs:
            own = conv.attributes["pads"].as_ints() if "pads" in conv.attributes else [0] * 2 * len(before)
            half = len(before)
            pads = [a + b for a, b in zip((*before, *behind), (*own[:half], *own[half:]), strict=True)]
            conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
            conv.attributes.pop("auto_pad", None)
        for node, index in readers:
            node.replace_input_with(index, source)
        graph.remove(pad, safe=True)
        count += 1
    return count


def _positions(pad: ir.Node, constants: Constants) -> tuple[list[int], list[int]] | None:
    """Return the numbers of zeros before and behind each position axis, or None where the node does anything else."""
    x = pad.inputs[0]
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    if mode != "constant" or x is None or x.shape is None:
        return None
    rank = len(x.shape)
    if "pads" in pad.attributes:
        given = list(pad.attributes["pads"].as_ints())
        value = pad.attributes["value"].as_float() if "value" in pad.attributes else 0.0
        axes = list(range(rank))
    else:
        array = constants.get(pad.inputs[1])
        if array is None:
            return None
        given, value, axes = [int(v) for v in array], 0.0, list(range(rank))
        if len(pad.inputs) > 2 and pad.inputs[2] is not None:
            fill = constants.get(pad.inputs[2])
            if fill is None:
                return None
            value = float(fill.reshape(()))
        if len(pad.inputs) > 3 and pad.inputs[3] is not None:
            chosen = constants.get(pad.inputs[3])
            if chosen is None:
                return None
            axes = [int(a) % rank for a in chosen]
    before, behind = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        before[axis], behind[axis] = given[k], given[len(axes) + k]
    if value != 0 or any(before[:2]) or any(behind[:2]) or min(*before, *behind) < 0:
        return None
    return before[2:], behind[2:]


def _reads_type(node: ir.Node, index: int) -> bool:
    """Whether a node reads only the type of an input, as in the nodes of torch's exporter for a bias of zeros."""
    return node.op_type == "CastLike" and node.domain in ("", "ai.onnx") and index == 1


def _takes(node: ir.Node, index: int, graph: ir.Graph, axes: int) -> bool:
    """Whether a node is a convolution that can take padding along this number of position axes."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or index != 0 or node.graph is not graph:
        return False
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    weight = node.inputs[1]
    return automatic in ("NOTSET", "VALID") and weight is not None and axes > 0

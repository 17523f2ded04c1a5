"""Whether the numbers in a request, and not only its shapes, decide how long a run takes.

A loop may have its number of rounds from an input, and an operator such as Range the size of its output. A run that was
short with zeros says nothing about the next one then.
"""

from __future__ import annotations

from collections.abc import Mapping

from normfold.protos import onnx_file as onnx

#: Operators whose output's size is a number in one of these inputs.
SIZED_BY: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1,),
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Tile": (1,),
    "Upsample": (1,),
}

#: Operators whose output follows from the shape of their input alone.
_OF_SHAPES = ("Shape", "Size")


def numbers_decide(model: onnx.ModelProto) -> bool:
    """Whether runs with equal shapes may take very different times.

    True for every model with functions or graphs inside nodes (Loop, If, Scan, ...), and where an input's numbers reach
    the size of an output other than through its own shape.
    """
    if model.functions:
        return True
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    free = {value.name for value in graph.input if value.name not in constant}
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return True
        if node.op_type in _OF_SHAPES:
            continue
        places = SIZED_BY.get(node.op_type, ())
        if any(place < len(node.input) and node.input[place] in free for place in places):
            return True
        if any(name in free for name in node.input):
            free.update(name for name in node.output if name)
    return False

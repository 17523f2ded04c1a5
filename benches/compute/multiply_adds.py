"""The multiply-adds of a graph for one input, counted from the shapes in a run of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from benches.folding.measure import session
from numpy.typing import NDArray

RECURRENT = ("LSTM", "GRU", "RNN")
COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class MultiplyAdds:
    """Counts of multiply-adds."""

    all: int
    #: Those in convolutions.
    convolutions: int
    #: Those in convolutions with one input channel in each group, which compute little with each number they read.
    depthwise: int


def count(path: Path, x: NDArray[np.float32]) -> MultiplyAdds:
    """Return the multiply-adds of the graph for the input ``x``; subgraphs are not counted."""
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    shapes = shapes_of(model, nodes, x)
    total = convolutions = depthwise = 0
    for node in nodes:
        number = of_node(node, shapes)
        total += number
        if node.op_type.startswith("Conv"):
            convolutions += number
            depthwise += number if _groups(node) > 1 and shapes[node.input[1]][1] == 1 else 0
    return MultiplyAdds(total, convolutions, depthwise)


def of_node(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Return the multiply-adds of one node from the shapes of what it reads and writes.

    In a convolution each output is a sum over a window of the channels of its group; in a transposed one each input is
    spread over such a window. A recurrent cell multiplies the input and the state of each step by its weights.
    """
    read, kind = [shapes[name] for name in node.input[:3] if name], node.op_type
    if kind in RECURRENT:
        steps, batch, _ = read[0]
        return steps * batch * (math.prod(read[1]) + math.prod(read[2]))
    written = shapes[node.output[0]]
    if kind == "Conv":
        return math.prod(written) * math.prod(read[1][1:])
    if kind == "ConvTranspose":
        return math.prod(read[0]) * math.prod(read[1][1:])
    if kind == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(written) * read[0][0 if transposed else 1]
    return math.prod(written) * read[0][-1]


def shapes_of(model: onnx.ModelProto, nodes: list[onnx.NodeProto], x: NDArray[np.float32]) -> Shapes:
    """Return the shapes of all values that ``nodes`` read and write when the graph runs on ``x``."""
    known = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    known[model.graph.input[0].name] = x.shape
    given = {output.name for output in model.graph.output}
    wanted = {name for node in nodes for name in (*node.input[:3], *node.output[:1]) if name and name not in known}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - given))
    run = session(probe.SerializeToString())
    names = sorted(wanted)
    values = run.run(names, {run.get_inputs()[0].name: x}) if names else []  # no names ask for all outputs
    return known | {name: value.shape for name, value in zip(names, values, strict=True)}


def _groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)

"""Count BatchNorms in an ONNX graph, also those that have another form.

A simplifier that leaves no BatchNormalization node may have left its arithmetic: a Mul and an Add by one constant for
each channel, a 1x1 convolution that only scales channels, or, where a ReLU follows, a Max and a Min by such constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

#: Operators that only move entries: behind a linear operator the result is still linear.
LAYOUT = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
#: Constants are computed through these operators only, and up to LARGEST entries: those of channels are small.
CONSTANT = LAYOUT | ARITHMETIC | {"Cast", "Expand", "Concat", "Slice", "Gather", "Neg", "Sqrt", "Reciprocal", "Pow"}
LARGEST = 1 << 20

Array = NDArray[Any]


@dataclass(frozen=True)
class Count:
    """The counts of one graph."""

    nodes: int
    #: BatchNormalization nodes.
    batchnorms: int
    #: Mul, Add, Sub and Div by one constant for each channel; the first bias of a MatMul or convolution is not counted.
    affines: int
    #: Convolutions that mix no channels and no positions: kernel 1, and one group a channel or a diagonal weight.
    diagonals: int
    #: Max and Min by one constant for each channel.
    clamps: int
    #: ReLU, LeakyReLU, PReLU and Clip nodes.
    rectifiers: int

    def left(self, before: Count) -> int:
        """Return how many BatchNorms are left, in any form, of the graph whose counts are ``before``.

        A clamp in the place of a rectifier costs nothing, so it is not counted. Neither is a convolution that mixes
        nothing and was there before.
        """
        replaced = max(0, before.rectifiers - self.rectifiers)
        diagonals = max(0, self.diagonals - before.diagonals)
        return self.batchnorms + self.affines + diagonals + max(0, self.clamps - before.clamps - replaced)


def count(model: onnx.ModelProto) -> Count:
    """Return the counts of the graph of ``model``, its subgraphs included."""
    nodes = list(walk(model.graph))
    constants = work_out(
        nodes, initializers(model.graph), {entry.domain: entry.version for entry in model.opset_import}
    )
    made_by = {name: node for node in nodes for name in node.output}
    kinds = [node.op_type for node in nodes]
    return Count(
        nodes=sum(not all(name in constants for name in node.output) for node in nodes),
        batchnorms=kinds.count("BatchNormalization"),
        affines=sum(is_affine(node, constants, made_by) for node in nodes),
        diagonals=sum(is_diagonal(node, constants) for node in nodes),
        clamps=sum(node.op_type in ("Max", "Min") and operand(node, constants) is not None for node in nodes),
        rectifiers=sum(kind in ("Relu", "LeakyRelu", "PRelu", "Clip") for kind in kinds),
    )


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from walk(inner)


def initializers(graph: onnx.GraphProto) -> dict[str, Array]:
    """Return the initializers of a graph and of its subgraphs."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= initializers(inner)
    return found


def work_out(nodes: list[onnx.NodeProto], known: dict[str, Array], opsets: Mapping[str, int]) -> dict[str, Array]:
    """Return all constants: ``known``, those of Constant nodes, and what the operators in CONSTANT make of them."""
    for node in nodes:
        if node.op_type == "Constant":
            (attribute,) = node.attribute
            value = onnx.helper.get_attribute_value(attribute)
            tensor = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
            known[node.output[0]] = tensor
        elif node.op_type in CONSTANT and node.input and all(not name or name in known for name in node.input):
            feeds = {name: known[name] for name in node.input if name}
            if sum(value.size for value in feeds.values()) <= LARGEST:
                values = ReferenceEvaluator(node, opsets=dict(opsets)).run(None, feeds)
                known |= dict(zip(node.output, map(np.asarray, values), strict=True))
    return known


def operand(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Array | None:
    """Return the constant input of a two-input node, if it varies along one axis, the channels, only; else None."""
    if len(node.input) != 2:
        return None
    found = [constants[name] for name in node.input if name in constants]
    if len(found) != 1 or not np.issubdtype(found[0].dtype, np.floating):
        return None
    return found[0] if sum(size > 1 for size in found[0].shape) == 1 else None


def is_affine(node: onnx.NodeProto, constants: Mapping[str, Array], made_by: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a node scales or shifts each channel by a constant, and is not the only bias of a linear operator."""
    if node.op_type not in ARITHMETIC or operand(node, constants) is None:
        return False
    if node.op_type != "Add":
        return True
    (data,) = (name for name in node.input if name not in constants)
    source = made_by.get(data)
    while source is not None and source.op_type in LAYOUT:
        source = made_by.get(source.input[0])
    if source is None:
        return True
    if source.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return len(source.input) > 2 and bool(source.input[2])
    return source.op_type != "MatMul"


def is_diagonal(node: onnx.NodeProto, constants: Mapping[str, Array]) -> bool:
    """Whether a convolution only scales its channels: a simplifier can write a BatchNorm so."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return False
    weight = constants.get(node.input[1])
    if weight is None or weight.ndim < 3 or any(size != 1 for size in weight.shape[2:]):
        return False
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    matrix = weight.reshape(weight.shape[:2])
    if groups > 1:
        return bool(groups == len(matrix) and matrix.shape[1] == 1)
    square = matrix.shape[0] == matrix.shape[1] > 1
    return square and not np.any(matrix - np.diag(np.diag(matrix)))

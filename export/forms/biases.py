"""Bias correction: biases that make up for what rounding shifts the mean of a layer's outputs by.

Rounded weights and clipped activations move the mean of an output channel. A mean over positions, with which many
networks end, takes the noise of rounding away, but not such a shift. Nagel et al. 2019 (arXiv:1906.04721, section 4.2)
take it off the bias:

    b' = b + E[y] - E[y_int8]

Both means are measured on the inputs that calibrate. y_int8 is what the layer gives with its own weights in int8 and
its own input rounded, where the layers before it are still in float32: a shift that comes from an earlier layer is
taken off there, and would otherwise be taken off once more in every layer behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from normfold.export.forms.int8 import named
from normfold.export.forms.ranges import with_outputs
from normfold.export.graphs.runtime import Runtime

__all__ = ["corrected"]

Arrays = Mapping[str, NDArray[Any]]
#: The operators whose third input is a bias, one number for each channel of axis 1 of the output.
_BIASED = frozenset({"Conv", "Gemm"})
#: Begins the names of what is added to the float32 graph to compute y_int8.
_TWIN = "int8."


def corrected(content: bytes, int8: bytes, inputs: Sequence[Arrays]) -> bytes | None:
    """Return the float32 graph ``content`` with corrected biases, to be written in int8 once more.

    int8: the file that was written from it. None where no layer in int8 has a bias of its own. Raises ExportError where
    a graph does not run.
    """
    model = named(onnx.load_model_from_string(content))
    biases = _biases(model)
    both = onnx.ModelProto()
    both.CopyFrom(model)
    twins = _add_twins(both, onnx.load_model_from_string(int8), biases)
    if not twins:
        return None
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in twins}
    graph = with_outputs(bytes(both.SerializeToString()), [*twins.values(), *outputs.values()])
    means = _means(graph, [*twins.values(), *outputs.values()], inputs)
    for name, twin in twins.items():
        moved = numpy_helper.to_array(biases[name]) + (means[outputs[name]] - means[twin])
        biases[name].CopyFrom(numpy_helper.from_array(moved.astype(np.float32), biases[name].name))
    return bytes(model.SerializeToString())


def _biases(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the bias of each node that has one which no other node reads, by the node's name."""
    held = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 1}
    reads = [name for node in model.graph.node for name in node.input]
    return {
        node.name: held[node.input[2]]
        for node in model.graph.node
        if node.op_type in _BIASED and len(node.input) > 2 and node.input[2] in held and reads.count(node.input[2]) == 1
    }


def _add_twins(model: onnx.ModelProto, int8: onnx.ModelProto, biases: Mapping[str, object]) -> dict[str, str]:
    """Add each biased layer of ``int8`` to the float32 graph, behind the float32 value that it reads.

    Returns the outputs of the added layers, by the layers' names.
    """
    makers = {name: node for node in int8.graph.node for name in node.output}
    held = {t.name: t for t in int8.graph.initializer}
    there = {v.name for v in model.graph.input} | {name for node in model.graph.node for name in node.output}
    added: dict[str, onnx.NodeProto] = {}
    constants: dict[str, onnx.TensorProto] = {}
    twins = {}
    for node in int8.graph.node:
        read = makers.get(node.input[0]) if node.input else None
        rounded = makers.get(read.input[0]) if read is not None and read.op_type == "DequantizeLinear" else None
        if node.name not in biases or read is None or rounded is None or rounded.input[0] not in there:
            continue
        parts = [rounded, read, *(makers[name] for name in node.input[1:] if name in makers), node]
        for part in parts:
            if part.name not in added:
                added[part.name] = _renamed(part, there)
                constants.update({name: held[name] for name in part.input if name in held})
        twins[node.name] = _TWIN + node.output[0]
    for name, tensor in constants.items():
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = _TWIN + name
    model.graph.node.extend(added.values())
    return twins


def _renamed(node: onnx.NodeProto, there: set[str]) -> onnx.NodeProto:
    """Return a copy of a node of the int8 file under names of its own; a QuantizeLinear reads the float32 value."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = _TWIN + node.name
    for index, name in enumerate(node.input):
        if not (node.op_type == "QuantizeLinear" and index == 0 and name in there):
            copy.input[index] = _TWIN + name
    for index, name in enumerate(node.output):
        copy.output[index] = _TWIN + name
    return copy


def _means(graph: Runtime, outputs: Sequence[str], inputs: Sequence[Arrays]) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each channel (axis 1) of each output, over all entries of all inputs."""
    totals: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for x in inputs:
        values = graph.run(x)
        for name in outputs:
            y = values[name].astype(np.float64)
            totals[name] = totals.get(name, 0.0) + y.sum((0, *range(2, y.ndim)))
            counts[name] = counts.get(name, 0) + y.size // y.shape[1]
    return {name: total / counts[name] for name, total in totals.items()}

"""A split that an exporter wrote with a sequence becomes a plain Split, through which channels can be followed.

SequenceAt(SplitToSequence(x), k) = the k-th output of Split(x)      sizes and places constant, axes kept
"""

from __future__ import annotations

import onnx_ir as ir

from normfold.export.graphs.constants import Constants
from normfold.export.graphs.names import Names


def split_plainly(graph: ir.Graph, opset: int) -> None:
    """Replace SplitToSequence and its readers by a Split, in place, where sizes and places are constant."""
    if opset < 13:
        return
    constants, names = Constants(graph, opset), Names(graph)
    for node in list(graph):
        if node.op_type != "SplitToSequence" or node.outputs[0].is_graph_output():
            continue
        x = node.inputs[0]
        kept = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        given = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if x is None or x.shape is None or given is None or not kept:
            continue
        axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(x.shape)
        whole = x.shape[axis]
        if given.ndim == 0:
            if not isinstance(whole, int):
                continue
            size = int(given)
            sizes = [size] * (whole // size) + ([whole % size] if whole % size else [])
        else:
            sizes = [int(s) for s in given]
        readers = list(node.outputs[0].uses())
        places = [constants.get(use.node.inputs[1]) if use.node.op_type == "SequenceAt" else None for use in readers]
        if (
            not readers
            or any(p is None for p in places)
            or any(use.node.outputs[0].is_graph_output() for use in readers)
        ):
            continue
        tensor = ir.tensor(sizes, dtype=ir.DataType.INT64, name=names.fresh(f"{node.outputs[0].name}_sizes"))
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(sizes)]), const_value=tensor
        )
        graph.register_initializer(value)
        split = ir.node("Split", [x, value], attributes={"axis": axis}, num_outputs=len(sizes), name=node.name)
        split.metadata_props.update(node.metadata_props)
        for k, (output, size) in enumerate(zip(split.outputs, sizes, strict=True)):
            output.name = names.fresh(f"{node.outputs[0].name}_{k}")
            output.type = x.type
            output.shape = ir.Shape([size if a == axis else d for a, d in enumerate(x.shape)])
        graph.insert_before(node, split)
        for use, place in zip(readers, places, strict=True):
            assert place is not None
            use.node.outputs[0].replace_all_uses_with(split.outputs[int(place) % len(sizes)])
        graph.remove([use.node for use in readers], safe=True)
        graph.remove(node, safe=True)

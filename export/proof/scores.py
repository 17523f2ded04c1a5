"""The scores behind an argmax: labels alone hardly show that a network is another one.

A label changes only where the order of two scores does. On noise most networks answer with one label throughout, so a
fold with a wrong bias would give the same labels. The fold passes nothing through such an operator, and no rewrite
changes the layout that it reads: its scores are the same numbers in every form of a network.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

__all__ = ["scores_of"]

#: Operators that answer with places: their first input is what the places are chosen by.
CHOOSING = frozenset({"ArgMax", "ArgMin", "TopK"})
#: Operators that may stand between such places and an output.
PASSING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def scores_of(content: bytes) -> bytes | None:
    """Return the graph with the scores that its outputs are chosen by as its outputs; None where none is a choice."""
    model = onnx.load_model_from_string(content)
    producers = {name: node for node in model.graph.node for name in node.output}
    outputs = [output.name for output in model.graph.output]
    del model.graph.output[:]
    for output in outputs:
        node = producers.get(output)
        while node is not None and node.op_type in PASSING:
            node = producers.get(node.input[0])
        if node is not None and node.op_type in CHOOSING and node.input[0] not in outputs:
            name = f"scores of {output}"
            model.graph.node.append(helper.make_node("Identity", [node.input[0]], [name]))
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None))
    return bytes(model.SerializeToString()) if model.graph.output else None

"""The scores behind an argmax: labels alone hardly show that a network is another one.

A label changes only where the order of two scores does. On noise most networks answer with one label throughout, so a
fold with a wrong bias would give the same labels. The fold passes nothing through such an operator, and no rewrite
changes the layout that it reads: its scores are the same numbers in every form of a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import helper

__all__ = ["with_scores"]

#: Operators that answer with places: their first input is what the places are chosen by.
CHOOSING = frozenset({"ArgMax", "ArgMin", "TopK"})
#: Operators that may stand between such places and an output: they move entries, look them up, or change their type.
PASSING = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def with_scores(content: bytes) -> tuple[bytes, frozenset[str]]:
    """Return the graph with the scores that its outputs are chosen by as further outputs, and the names of these.

    Scores that are an output already are added, too: in another form of the network they may be another tensor.
    """
    model = onnx.load_model_from_string(content)
    producers = {name: node for node in model.graph.node for name in node.output}
    added = []
    for output in [output.name for output in model.graph.output]:
        for count, scores in enumerate(dict.fromkeys(_scores(output, producers)), 1):
            name = f"scores of {output}" if count == 1 else f"scores {count} of {output}"
            model.graph.node.append(helper.make_node("Identity", [scores], [name]))
            model.graph.output.add(name=name)
            added.append(name)
    return (bytes(model.SerializeToString()) if added else content), frozenset(added)


def _scores(output: str, producers: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """Yield what the entries of ``output`` are chosen by, in the order of the inputs on the way to it."""
    ahead, seen = [output], set[str]()
    while ahead:
        name = ahead.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in CHOOSING:
            yield node.input[0]
        elif node.op_type in PASSING:
            ahead += reversed(node.input)

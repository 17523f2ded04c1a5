"""An If with a constant condition is replaced by the branch that it takes.

if(true; f, g) = f

TorchScript's exporter writes a squeeze of an axis as an If on the length of the axis, which is known from the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from normfold.export.graphs.constants import settled
from normfold.export.graphs.names import Names


def take_branches(model: ir.Model) -> int:
    """Replace every such If of the main graph by its branch, in place; return the number of them."""
    graph, sides = model.graph, settled(model)
    for node in list(graph):
        side = sides.get(node.outputs[0].name or "") if node.op_type == "If" else None
        if side is None:
            continue
        taken, left = ("then_branch", "else_branch") if side else ("else_branch", "then_branch")
        _inline(node.attributes[taken].as_graph(), node, graph)
        for inner in node.attributes[left].as_graph().all_nodes():  # this drops its uses of the outer graph
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    return len(sides)


def _inline(branch: ir.Graph, node: ir.Node, graph: ir.Graph) -> None:
    """Move the nodes of a branch before its If, under new names; their results take the place of the If's outputs."""
    names = Names(graph)
    for value in list(branch.initializers.values()):
        branch.initializers.pop(value.name or "")
        value.name = names.fresh(f"{node.name}.{value.name}")
        graph.register_initializer(value)
    outputs = list(branch.outputs)
    nodes = list(branch)
    branch.outputs.clear()
    branch.remove(nodes)
    for inner in nodes:
        inner.name = names.fresh(f"{node.name}.{inner.name}")
        for value in inner.outputs:
            value.name = names.fresh(f"{node.name}.{value.name}")
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        if old.is_graph_output() or new.producer() not in nodes:  # the output is computed outside the branch
            same = ir.node("Identity", [new], name=names.fresh(f"{node.name}_{old.name}"))
            graph.insert_before(node, [same])
            new = same.outputs[0]
        name, old.name = old.name, names.fresh(f"{old.name}_was")
        new.name = name
        new.type = new.type or old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)

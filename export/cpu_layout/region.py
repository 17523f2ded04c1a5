"""Apply one order of axes: find the regions around convolutions that can take it, and rewrite each as a whole.

A region is a set of nodes that values connect. At its edges a value changes its order of axes once, even if several
nodes read it; inside, nothing does. The network's own inputs and outputs keep names, types and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.export.cpu_layout.axes import AxisOrder
from normfold.export.cpu_layout.edges import Edges
from normfold.export.cpu_layout.rules import ANCHORS, RULES, Moved, takes
from normfold.export.graphs.constants import Constants
from normfold.export.graphs.node import NodeView

__all__ = ["Wanted", "turn"]

#: Says whether a region, given by its nodes, is to be rewritten.
Wanted = Callable[[Iterable[ir.Node]], bool]


def has_anchor(nodes: Iterable[ir.Node]) -> bool:
    """Whether one of the nodes is faster in the new order."""
    return any(n.op_type in ANCHORS for n in nodes)


def turn(model: ir.Model, order: AxisOrder, wanted: Wanted = has_anchor) -> int:
    """Rewrite every wanted region of the main graph, in place; return the number of nodes that were rewritten.

    Shapes must have been inferred: a value whose rank is not known stays as it is.
    """
    graph, opset = model.graph, model.opset_imports.get("", 18)
    moved = _movable(graph, order, opset)
    regions = [r for r in _regions(moved) if wanted(r)]
    chosen = {node: moved[node] for region in regions for node in region}
    if not chosen:
        return 0
    edges = Edges(graph, order, opset)
    for node in [n for n in graph if n in chosen]:
        _carry_out(node, chosen, edges)
    passes.RemoveUnusedNodesPass()(model)
    return len(chosen)


def _movable(graph: ir.Graph, order: AxisOrder, opset: int) -> dict[ir.Node, Moved]:
    """Return what each node that can take the new order becomes."""
    constants = Constants(graph, opset)
    moved = {}
    for node in graph:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        view = NodeView(node, constants, opset)
        answer = rule(view, order) if rule else None
        if answer is None or not all(takes(view, i, order) for i in answer.data):
            continue
        if answer.outputs and not all(v.shape is not None and len(v.shape) == order.rank for v in _used(node.outputs)):
            continue
        moved[node] = answer
    return moved


def _used(values: Iterable[ir.Value]) -> list[ir.Value]:
    return [v for v in values if v.uses() or v.is_graph_output()]


def _regions(moved: Mapping[ir.Node, Moved]) -> list[list[ir.Node]]:
    """Return the nodes in groups that values in the new order connect."""
    neighbours: dict[ir.Node, list[ir.Node]] = {node: [] for node in moved}
    for node, answer in moved.items():
        for index in answer.data:
            value = node.inputs[index]
            assert value is not None
            near = [n for n, i in value.uses() if n in moved and i in moved[n].data]
            if (producer := _turning(value, moved)) is not None:
                near.append(producer)
            for other in near[:1] + near[-1:]:  # one reader connects all readers of the value
                neighbours[node].append(other)
                neighbours[other].append(node)
    regions, seen = [], set[ir.Node]()
    for start in moved:
        if start in seen:
            continue
        region, stack = [], [start]
        seen.add(start)
        while stack:
            region.append(node := stack.pop())
            fresh = [n for n in neighbours[node] if n not in seen]
            seen.update(fresh)
            stack.extend(n for i, n in enumerate(fresh) if n not in fresh[:i])
        regions.append(region)
    return regions


def _turning(value: ir.Value, moved: Mapping[ir.Node, Moved]) -> ir.Node | None:
    """Return the node that gives a value in the new order, if one does."""
    producer = value.producer()
    return producer if producer is not None and producer in moved and moved[producer].outputs else None


def _carry_out(node: ir.Node, chosen: Mapping[ir.Node, Moved], edges: Edges) -> None:
    answer = chosen[node]
    for index in answer.data:
        value = node.inputs[index]
        assert value is not None
        if _turning(value, chosen) is None:
            node.replace_input_with(index, edges.enter(value, before=node))
    for index, array in answer.constants.items():
        like = node.inputs[index] if index < len(node.inputs) else None
        _set_input(node, index, edges.writing.shared(array, like))
    for name, attribute in answer.attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, attribute)
    if answer.outputs:
        for value in (v for v in node.outputs if v.shape is not None and len(v.shape) == edges.order.rank):
            outside = [(n, i) for n, i in value.uses() if not (n in chosen and i in chosen[n].data)]
            edges.turned(value)
            if outside or value.is_graph_output():
                edges.leave(value, outside)


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)

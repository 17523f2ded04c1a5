"""Leave as few nodes that only change the shape as possible, none of them with a computed shape.

    v₂(v₁(x)) = v(x)                     one view replaces several; none is left where the shape is that of x
    reshape(x; computed) = reshape(x; constant)
    concat(squeeze(x₁), squeeze(x₂), …) = squeeze(concat(x₁, x₂, …))
    squeeze(mean(x; keepdims)) = mean(x)

None of these nodes moves a number, but in a small network each costs as much as a kernel; torch writes the view of an
average as five nodes that compute the batch size. The identities are applied where the known shapes, with dynamic
sizes compared by name, prove them.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from normfold.export.graphs.constants import Constants
from normfold.export.graphs.writing import Writing

__all__ = ["join_views"]

VIEWS = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})
#: One entry for each axis: its size, its name, or a key of its own for an unknown size, which equals no other.
Dims = list[Hashable]


def join_views(graph: ir.Graph, opset: int) -> int:
    """Apply the identities to the main graph, in place; return the number of nodes that were replaced."""
    constants, writing = Constants(graph, opset), Writing(graph, opset, suffix="joined")
    changed = 0
    for node in list(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Concat":
            changed += _behind_concat(node, constants, writing)
        elif node.op_type in VIEWS and not _only_views_read(node):
            changed += _joined(node, graph, constants, writing)
    return changed


def _only_views_read(node: ir.Node) -> bool:
    """Whether only other views read this view, so that the last of them replaces all."""
    output = node.outputs[0]
    return not output.is_graph_output() and all(n.op_type in VIEWS and i == 0 for n, i in output.uses())


def _joined(node: ir.Node, graph: ir.Graph, constants: Constants, writing: Writing) -> int:
    """Replace the last of a chain of views by one view of the value at the chain's start."""
    chain, start = [node], node.inputs[0]
    while start is not None and (producer := start.producer()) is not None and producer.op_type in VIEWS:
        if producer.domain not in ("", "ai.onnx"):
            break
        chain.append(producer)
        start = producer.inputs[0]
    output = node.outputs[0]
    before = _dims(start)
    if start is None or before is None or constants.get(start) is not None:
        return 0
    after: Dims | None = before
    for view in reversed(chain):
        after = _viewed(view, after, constants)
    if after is None:
        return 0
    alone = all(len(view.outputs[0].uses()) == 1 and not view.outputs[0].is_graph_output() for view in chain[1:])
    if alone and (reduced := _without_axes(start, before, after, constants, writing)):
        writing.exchange(node, [reduced])
        return len(chain)
    if before == after and not output.is_graph_output():
        ir.convenience.replace_all_uses_with(output, start)
        graph.remove(node, safe=True)
        return len(chain)
    if len(chain) == 1 and not _computed(node, constants):
        return 0
    whole = _view(start, before, after, writing)
    if whole is None:
        return 0
    writing.exchange(node, [whole])
    return len(chain)


def _viewed(view: ir.Node, dims: Dims | None, constants: Constants) -> Dims | None:
    """Return the dimensions after a view; None where they are not known."""
    axes = _axes(view, constants)
    if dims is not None and view.op_type == "Identity":
        return dims
    if dims is not None and axes is not None and view.op_type == "Squeeze":
        gone = {a % len(dims) for a in axes}
        return [d for i, d in enumerate(dims) if i not in gone]
    if dims is not None and axes is not None and view.op_type == "Unsqueeze":
        rank, rest = len(dims) + len(axes), iter(dims)
        new = {a % rank for a in axes}
        return [1 if i in new else next(rest) for i in range(rank)]
    return _dims(view.outputs[0])


def _axes(node: ir.Node, constants: Constants) -> list[int] | None:
    """Return the axes of a node, an attribute or an input by opset; None where they are absent or computed."""
    if (given := node.attributes.get("axes")) is not None:
        return [int(a) for a in given.value]
    held = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(a) for a in held.reshape(-1)] if held is not None else None


def _computed(node: ir.Node, constants: Constants) -> bool:
    """Whether the network computes the shape of this view while it runs."""
    return len(node.inputs) > 1 and constants.get(node.inputs[1]) is None


def _view(start: ir.Value, before: Dims, after: Dims, writing: Writing) -> ir.Node | None:
    """Return the one view from a shape to another: Squeeze, Unsqueeze or a Reshape by constants; None if none works."""
    if (axes := _dropped(before, after)) is not None:
        return writing.over_axes("Squeeze", start, axes)
    if (axes := _dropped(after, before)) is not None:
        return writing.over_axes("Unsqueeze", start, axes)
    same = [i < len(before) and d == before[i] and not isinstance(d, int) for i, d in enumerate(after)]
    target = [0 if kept else d if isinstance(d, int) else -1 for d, kept in zip(after, same, strict=True)]
    if target.count(-1) > 1 or 0 in before or 0 in after:
        return None
    return writing.node("Reshape", [start, writing.shared(np.array(target, np.int64))])


def _dropped(long: Dims, short: Dims) -> list[int] | None:
    """Return the axes of one entry that ``long`` has and ``short`` has not; None where they differ otherwise."""
    axes, rest = [], list(short)
    for axis, d in enumerate(long):
        if rest and d == rest[0]:
            rest.pop(0)
        elif d == 1:
            axes.append(axis)
        else:
            return None
    return axes if axes and not rest else None


def _without_axes(start: ir.Value, before: Dims, after: Dims, constants: Constants, writing: Writing) -> ir.Node | None:
    """Return the reduction that gives ``start``, rewritten to drop the reduced axes instead of keeping them."""
    node = start.producer()
    if node is None or node.op_type not in REDUCTIONS or node.domain not in ("", "ai.onnx"):
        return None
    if len(start.uses()) != 1 or start.is_graph_output() or node.attributes.get_int("keepdims", 1) != 1:
        return None
    given = _axes(node, constants)
    if not given:  # absent axes mean all axes or, by another attribute, none
        return None
    axes = {a % len(before) for a in given}
    if [d for i, d in enumerate(before) if i not in axes] != after:
        return None
    reduction = writing.node(node.op_type, node.inputs)
    reduction.attributes.update(node.attributes)
    reduction.attributes["keepdims"] = ir.AttrInt64("keepdims", 0)
    return reduction


def _behind_concat(node: ir.Node, constants: Constants, writing: Writing) -> int:
    """Replace the same Squeeze of every input of a Concat by one Squeeze behind it."""
    views = [value.producer() if value is not None else None for value in node.inputs]
    if len(views) < 2 or any(
        v is None or v.op_type != "Squeeze" or v.domain not in ("", "ai.onnx") or len(v.outputs[0].uses()) != 1
        or v.outputs[0].is_graph_output() for v in views
    ):  # fmt: skip
        return 0
    sources = [v.inputs[0] for v in views if v is not None]
    ranks = {len(s.shape) if s is not None and s.shape is not None else None for s in sources}
    given = {tuple(_axes(v, constants) or ()) for v in views if v is not None}
    rank = ranks.pop()
    if ranks or rank is None or len(given) != 1 or not (axes := sorted(a % rank for a in given.pop())):
        return 0
    kept = [a for a in range(rank) if a not in axes]
    axis = kept[node.attributes.get_int("axis", 0) % len(kept)]
    joined = writing.node("Concat", sources, {"axis": axis})
    joined.outputs[0].type, whole = node.outputs[0].type, node.outputs[0].shape
    if whole is not None:
        joined.outputs[0].shape = ir.Shape([1 if a in axes else whole[kept.index(a)] for a in range(rank)])
    writing.exchange(node, [joined, writing.over_axes("Squeeze", joined.outputs[0], axes)])
    return 1


def _dims(value: ir.Value | None) -> Dims | None:
    """Return the dimensions of a value; None where not even their number is known."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value or (value.name, i) for i, d in enumerate(value.shape)]

"""Bounds by channel before a max-pool or a maximum over positions move behind it, where there are fewer entries.

    maxpool(max(x, c)) = max(maxpool(x), c)      and the same with min: both keep the order of entries

A Relu or Clip stays where it is: the runtime computes it within the convolution before it. An Unsqueeze may be between
the two, because exporters put one before an adaptive max-pool.
"""

from __future__ import annotations

import onnx_ir as ir

from normfold.export.graphs.names import Names
from normfold.export.graphs.unrounded import holding


def gathered(pool: ir.Node) -> tuple[int | None, ...]:
    """Return for each axis how many entries a max-pool or a maximum makes one of, None where that is dynamic.

    It is () where bounds cannot move behind the node.
    """
    if pool.op_type in ("GlobalMaxPool", "ReduceMax"):
        x, axes = pool.inputs[0], _axes(pool)
        if x is None or x.shape is None or not axes or min(axes) < 2:
            return ()
        lengths = [x.shape[axis] for axis in axes]
        return tuple(length if isinstance(length, int) else None for length in lengths)
    # With ceil_mode or dilations a window can lie wholly in the padding, where the maximum is -inf: then the bound
    # cannot move behind the pool.
    odd = "ceil_mode" in pool.attributes and pool.attributes["ceil_mode"].as_int() != 0
    odd = odd or ("dilations" in pool.attributes and any(d != 1 for d in pool.attributes["dilations"].as_ints()))
    if odd or pool.op_type != "MaxPool" or "strides" not in pool.attributes:
        return ()
    return tuple(pool.attributes["strides"].as_ints())


def thin(graph: ir.Graph) -> None:
    """Move every Max and Min by channel behind the max-pool or maximum that alone reads it, if it has fewer entries."""
    for pool in list(graph):
        if pool.domain not in ("", "ai.onnx") or any(y.is_graph_output() for y in pool.outputs):
            continue
        if any(y.uses() for y in pool.outputs[1:]):
            continue  # the places of the largest entries are read: without the bounds, others may be the largest
        if any(length != 1 for length in gathered(pool)):
            unsqueeze = _only(pool, pool, "Unsqueeze")
            if unsqueeze is not None and (not _axes(unsqueeze) or min(_axes(unsqueeze)) < 2):
                continue
            first = unsqueeze or pool
            while (clamp := _only(first, pool, "Max", "Min")) is not None and _by_channel(clamp):
                _swap(graph, clamp, first, pool)


def _only(reader: ir.Node, pool: ir.Node, *types: str) -> ir.Node | None:
    """Return the node of one of these types whose output ``reader`` alone reads, or None."""
    x = reader.inputs[0]
    node = x.producer() if x is not None else None
    if x is None or node is None or node.op_type not in types or node.domain not in ("", "ai.onnx"):
        return None
    return node if len(x.uses()) == 1 and not x.is_graph_output() and node.graph is pool.graph else None


def _by_channel(clamp: ir.Node) -> bool:
    y = clamp.outputs[0]
    if len(clamp.inputs) != 2 or clamp.inputs[0] is None or y.shape is None:
        return False
    bound = clamp.inputs[1]
    if bound is None or bound.const_value is None:
        return False
    shape = bound.const_value.shape.numpy()
    return len(shape) == len(y.shape) and all(size == 1 for size in shape[2:])


def _swap(graph: ir.Graph, clamp: ir.Node, first: ir.Node, pool: ir.Node) -> None:
    """Move ``clamp`` behind ``pool``; ``first``, the pool or the Unsqueeze before it, then reads the clamp's input."""
    (before, bound), between, behind = clamp.inputs, clamp.outputs[0], pool.outputs[0]
    assert before is not None
    assert bound is not None
    added, dropped = (_axes(first) if first is not pool else ()), (_axes(pool) if _drops_axes(pool) else ())
    before.shape = before.shape or between.shape  # bounds by channel change no shape
    behind.replace_all_uses_with(between)
    between.shape = behind.shape
    first.replace_input_with(0, before)
    clamp.replace_input_with(0, behind)
    if added or dropped:
        clamp.replace_input_with(1, _with_axes(graph, bound, added, dropped))
        if bound.is_initializer() and not bound.uses():
            graph.initializers.pop(bound.name or "", None)
    graph.remove(clamp)
    graph.insert_after(pool, clamp)


def _with_axes(graph: ir.Graph, bound: ir.Value, added: tuple[int, ...], dropped: tuple[int, ...]) -> ir.Value:
    """Return the bound with axes of one entry added, and others dropped."""
    held = bound.const_value
    assert held is not None
    array = held.numpy()
    for axis in sorted(added):
        array = array.reshape(*array.shape[:axis], 1, *array.shape[axis:])
    name = Names(graph).fresh(f"{bound.name}_by_channel")
    value = ir.Value(name=name, const_value=holding(array.squeeze(dropped), held, name))
    graph.register_initializer(value)
    return value


def _axes(node: ir.Node) -> tuple[int, ...]:
    """Return the axes of a maximum or an Unsqueeze, counted from the front; () where they are not known."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        return ()
    rank = len(x.shape)
    if node.op_type == "GlobalMaxPool":
        return tuple(range(2, rank))
    given = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else []
    if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        given = node.inputs[1].const_value.numpy().reshape(-1).tolist()
    rank += len(given) if node.op_type == "Unsqueeze" else 0
    return tuple(axis % rank for axis in given)


def _drops_axes(pool: ir.Node) -> bool:
    given = pool.attributes.get("keepdims")
    return pool.op_type == "ReduceMax" and given is not None and not given.as_int()

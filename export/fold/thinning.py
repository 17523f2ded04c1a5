"""Bounds by channel before a max-pool go behind it, where there are fewer entries.

    maxpool(max(x, c)) = max(maxpool(x), c)      and with min alike: both keep the order of entries

A Relu or Clip stays where it is: the runtime computes it within the convolution before it.
"""

from __future__ import annotations

import math

import onnx_ir as ir


def kept(pool: ir.Node) -> float:
    """Return how many of a max-pool's entries it keeps, as a share; 1 where bounds may not go behind it."""
    strides = pool.attributes["strides"].as_ints() if "strides" in pool.attributes else ()
    # A window that holds nothing but padding has no largest entry; with these a window may.
    odd = "ceil_mode" in pool.attributes and pool.attributes["ceil_mode"].as_int() != 0
    odd = odd or ("dilations" in pool.attributes and any(d != 1 for d in pool.attributes["dilations"].as_ints()))
    return 1.0 if odd or pool.op_type != "MaxPool" else 1.0 / math.prod(strides)


def thin(graph: ir.Graph) -> None:
    """Let every Max and Min by channel that only a max-pool reads, and that it thins out, read the pool instead."""
    for pool in list(graph):
        if pool.domain in ("", "ai.onnx") and kept(pool) < 1 and not any(y.is_graph_output() for y in pool.outputs):
            while (clamp := _clamp_before(pool)) is not None:
                _swap(graph, clamp, pool)


def _clamp_before(pool: ir.Node) -> ir.Node | None:
    x = pool.inputs[0]
    clamp = x.producer() if x is not None else None
    if x is None or clamp is None or clamp.op_type not in ("Max", "Min") or clamp.domain not in ("", "ai.onnx"):
        return None
    if len(x.uses()) != 1 or x.is_graph_output() or clamp.graph is not pool.graph or len(clamp.inputs) != 2:
        return None
    bound = clamp.inputs[1]
    if bound is None or bound.const_value is None or clamp.inputs[0] is None or x.shape is None:
        return None
    shape = bound.const_value.shape.numpy()
    return clamp if len(shape) == len(x.shape) and all(size == 1 for size in shape[2:]) else None


def _swap(graph: ir.Graph, clamp: ir.Node, pool: ir.Node) -> None:
    before, between, behind = clamp.inputs[0], clamp.outputs[0], pool.outputs[0]
    behind.replace_all_uses_with(between)
    between.shape = behind.shape
    pool.replace_input_with(0, before)
    clamp.replace_input_with(0, behind)
    graph.remove(clamp)
    graph.insert_after(pool, clamp)

"""Readers of Reshape, Flatten, Squeeze and Unsqueeze, which find the output's shape where shape inference did not."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from normfold.export.fold.net import Dim, Op, Tensor
from normfold.export.fold.ops.moving import Reshape
from normfold.export.fold.reading.node import Node
from normfold.export.graphs.domains import STANDARD
from normfold.export.graphs.shapes import measured


def reshape(n: Node) -> Op:
    """Read Reshape, Flatten, Squeeze or Unsqueeze."""
    target = None
    if n.type == "Reshape":
        shape = n.constant(1)
        if shape is not None and not n.attribute("allowzero", 0):
            target = tuple(int(d) for d in shape)
    x, y = n.tensor(0), n.tensor_out()
    if y.shape is None or not all(isinstance(d, int) for d in y.shape):
        y.shape = _target_shape(x, target) or y.shape
    if n.type == "Reshape" and target is None and not n.attribute("allowzero", 0):
        y.shape = _merged(y, _target_shape(x, computed_target(n, n.value(1))))
    if x.shape is not None and y.shape is not None:
        y.shape = _same_dynamic(x.shape, y.shape)
    return Reshape(target=target, **n.parts())


def _same_dynamic(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the output's shape with the input's name for the only dynamic length that the two do not share.

    Both hold as many entries, so the two lengths are equal where the other factors are.
    """
    old, new = ([d for d in dims if not isinstance(d, int)] for dims in (before, after))
    for d in list(old):
        if d in new:
            old.remove(d)
            new.remove(d)
    products = [math.prod(d for d in dims if isinstance(d, int)) for dims in (before, after)]
    if len(old) != 1 or len(new) != 1 or products[0] != products[1]:
        return after
    return tuple(old[0] if d == new[0] else d for d in after)


def computed_target(n: Node, value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Return the lengths that a value computes from shapes, None for each that is not known, None if all are not.

    Before opset 13 shape inference does not follow ``x.view(x.size(0), -1)``: a Concat of a length that a Gather takes
    from a Shape, and a constant.
    """
    held, node = n.held(value), None if value is None else value.producer()
    if held is not None:
        return tuple(int(d) for d in held.reshape(-1))
    if node is None or node.domain not in STANDARD:
        return None
    if node.op_type == "Concat":
        parts = [computed_target(n, v) for v in node.inputs]
        return None if any(p is None for p in parts) else tuple(d for p in parts if p is not None for d in p)
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Cast"):
        return computed_target(n, node.inputs[0])
    if node.op_type == "Gather":
        whole, places = _lengths(n, node.inputs[0]), n.held(node.inputs[1])
        if whole is None or places is None or np.any(places >= len(whole)):
            return None
        return tuple(whole[int(p)] for p in places.reshape(-1))
    if node.op_type == "Slice":
        before = n.reader(node)
        whole, starts, ends = _lengths(n, node.inputs[0]), before.constant(1), before.constant(2)
        if whole is None or starts is None or ends is None or before.has(4):
            return None
        return whole[int(starts.item()) : int(ends.item())]
    return _lengths(n, value)


def _lengths(n: Node, value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Return the lengths that a Shape gives, or None."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Shape":
        return None
    lengths = n.dims(node.inputs[0])
    return None if lengths is None else tuple(measured(node, lengths))


def _merged(y: Tensor, found: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Return the shape that a target gives, with the lengths of shape inference where the target does not know them."""
    if found is None:
        return y.shape
    given = (
        y.shape if y.shape is not None and len(y.shape) == len(found) else [f"{y.name}[{i}]" for i in range(len(found))]
    )
    return tuple(g if f is None or isinstance(g, int) else f for f, g in zip(found, given, strict=True))


def _target_shape(x: Tensor, target: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Return the output's shape that follows from the input's and the target, or None."""
    if target is None or x.shape is None:
        return None
    dims: list[Dim] = [x.shape[i] if d == 0 and i < len(x.shape) else d for i, d in enumerate(target)]
    if -1 in dims:
        rest_in, rest_out = list(x.shape), [d for d in dims if d != -1]
        for d in list(rest_out):
            if not isinstance(d, int) and d in rest_in:
                rest_in.remove(d)
                rest_out.remove(d)
        if all(isinstance(d, int) for d in rest_in) and all(isinstance(d, int) for d in rest_out):
            held = math.prod(d for d in rest_out if isinstance(d, int))
            dims[dims.index(-1)] = math.prod(d for d in rest_in if isinstance(d, int)) // max(held, 1)
        else:
            names = [d for d in rest_in if not isinstance(d, int)]
            if len(names) != 1 or names[0] is None:
                return None
            inner = math.prod(d for d in rest_in if isinstance(d, int))
            held = math.prod(d for d in rest_out if isinstance(d, int))
            if inner % max(held, 1) or not all(isinstance(d, int) for d in rest_out):
                return None
            dims[dims.index(-1)] = names[0] if inner == held else f"{inner // held}*{names[0]}"
    return tuple(dims)

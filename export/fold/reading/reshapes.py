"""Readers of Reshape, Flatten, Squeeze and Unsqueeze, which find the output's shape where shape inference did not."""

from __future__ import annotations

import math

from normfold.export.fold.net import Dim, Op, Tensor
from normfold.export.fold.ops.moving import Reshape
from normfold.export.fold.reading.node import Node


def reshape(n: Node) -> Op:
    """Read Reshape, Flatten, Squeeze or Unsqueeze."""
    target = None
    if n.type == "Reshape":
        shape = n.constant(1)
        if shape is not None and not n.attribute("allowzero", 0):
            target = tuple(int(d) for d in shape)
    x, y = n.tensor(0), n.tensor_out()
    if y.shape is None or not all(isinstance(d, int) for d in y.shape):
        y.shape = _target_shape(n, x, target) or y.shape
    if x.shape is not None and y.shape is not None:
        y.shape = _same_dynamic(x.shape, y.shape)
    return Reshape(target=target, **n.parts())


def _same_dynamic(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the output's shape with the input's name for the only dynamic length, where the two must be equal."""
    old, new = ([d for d in dims if not isinstance(d, int)] for dims in (before, after))
    if len(old) != 1 or len(new) != 1:
        return after
    products = [math.prod(d for d in dims if isinstance(d, int)) for dims in (before, after)]
    return tuple(d if isinstance(d, int) else old[0] for d in after) if products[0] == products[1] else after


def _target_shape(n: Node, x: Tensor, target: tuple[int, ...] | None) -> tuple[Dim, ...] | None:
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

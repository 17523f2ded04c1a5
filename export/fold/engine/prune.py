"""Channels that always hold one constant are taken out, and readers take the constant into their bias.

    W x + b = W' x' + (b + W[:, k] c)      channel k of x is always c; exact where nothing is padded, or c = 0

Networks trained for sparsity scale such channels by γ = 0. A channel that serves as a carrier stays, and so do those
without which a picture's channels would fit onnxruntime's blocked layout no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.engine.carrier import ConstantChannels
from normfold.export.fold.net import Net, Op, Refused, Tensor
from normfold.export.fold.ops.activations import Activation, Bounds, Clamp, Same, Scaled, Scaling, Sloped
from normfold.export.fold.ops.joins import Product, Sum
from normfold.export.fold.ops.linear import Linear, Weights
from normfold.export.fold.ops.moving import Concat, Reshape, Select
from normfold.export.fold.ops.pools import Pooling

#: Channels that onnxruntime's blocked layout takes at a time, from this many on, and whole blocks of it in a Concat.
#: Measured: 93 channels of a Concat in place of 96 cost EEGInceptionMI 3 % of its time.
ALIGNED, BLOCK = 4, 16
LEAST = 8


@dataclass(frozen=True)
class Removal:
    """``count`` entries of an axis, from ``index`` on."""

    axis: int
    index: int
    count: int = 1


def prune(net: Net) -> int:
    """Take out every constant channel that everything around can do without; return how many."""
    count = 0
    sources = [op for op in net.ops if isinstance(op, Linear) and op.params.groups == 1 and op.axis_out == 1]
    for op in sources:
        weight, (tensor,) = op.params.weight, op.outputs
        zero = np.all(weight == 0, axis=tuple(i for i in range(weight.ndim) if i != 1))
        channels = [Removal(1, int(index)) for index in reversed(np.flatnonzero(zero))]
        step = _step(tensor)
        if step > 1:
            channels = [r for r in channels if len(channels) >= step and _can_go(tensor, r)]
        for removal in channels[: len(channels) // step * step]:
            try:
                _remove(*_without_channel(tensor, removal))
            except Refused:
                continue
            count += 1
    return count


def _step(tensor: Tensor) -> int:
    """Return how many channels must go at once for the rest to fit the blocked layout as they did."""
    if tensor.shape is None or len(tensor.shape) < 4 or tensor.size(1) < LEAST:
        return 1
    seen, queue = {tensor}, [tensor]
    while queue:
        for op in queue.pop().readers:
            if isinstance(op, Concat):
                return math.gcd(tensor.size(1), BLOCK)
            if isinstance(op, (Clamp, Sloped, Same, Activation, Scaling, Pooling, Sum, Product)):
                queue += [y for y in op.outputs if y not in seen]
                seen.update(op.outputs)
    return math.gcd(tensor.size(1), ALIGNED)


def _can_go(tensor: Tensor, removal: Removal) -> bool:
    try:
        _without_channel(tensor, removal)
    except Refused:
        return False
    return True


def _without_channel(tensor: Tensor, removal: Removal) -> tuple[dict[Tensor, Removal], dict[Op, Any]]:
    """Return what all tensors lose with a channel of one, and the params of all operators then, or raise Refused."""
    constants = ConstantChannels()
    found: dict[Tensor, Removal] = {}
    touched: dict[Op, None] = {}
    queue: list[Op] = []

    def settle(t: Tensor, r: Removal) -> None:
        if t in found:
            if found[t] != r:
                raise Refused(f"'{t.name}' would lose two channels")
            return
        if t.pinned or t.size(r.axis) <= r.count:
            raise Refused(f"'{t.name}' cannot do without the channel")
        held = constants.of(t)
        if r.axis != 1 or held is None or np.any(np.isnan(held[r.index : r.index + r.count])):
            raise Refused(f"the channel of '{t.name}' is not constant")
        found[t] = r
        queue.extend(op for op in (t.producer, *t.readers) if op is not None)

    settle(tensor, removal)
    while queue:
        op = queue.pop()
        touched[op] = None
        for t, r in _spread(op, found).items():
            settle(t, r)
    return found, {op: _without(op, found, constants) for op in touched}


def _remove(found: dict[Tensor, Removal], params: dict[Op, Any]) -> None:
    for op, new in params.items():
        op.params, op.changed = new, True
        if isinstance(op, Select):
            op.follow_sizes()
    for t, r in found.items():
        t.resize(r.axis, -r.count)


def _spread(op: Op, found: dict[Tensor, Removal]) -> dict[Tensor, Removal]:
    """Return what the other tensors of an operator lose with those known."""
    if isinstance(op, Linear):
        if op.params.groups > 1:
            raise Refused(f"{op} is depthwise or grouped")
        return {}
    if isinstance(op, (Sum, Product)):
        r = next(found[t] for t in (*op.inputs, *op.outputs) if t in found)
        if any(
            t.shape is None or len(t.shape) <= r.axis or t.shape[r.axis] != op.outputs[0].size(r.axis)
            for t in op.inputs
        ):
            raise Refused(f"{op} broadcasts one of its inputs")
        return dict.fromkeys((*op.inputs, *op.outputs), r)
    if isinstance(op, Concat) and op.axis == 1 and len(set(op.inputs)) == len(op.inputs):
        (y,) = op.outputs
        starts = np.cumsum([0, *(x.size(1) for x in op.inputs)])
        known = [k for k, x in enumerate(op.inputs) if x in found]
        if len(known) > 1:
            raise Refused(f"{op} would lose two channels")
        if known:
            r = found[op.inputs[known[0]]]
            return {y: replace(r, index=int(r.index + starts[known[0]]))}
        k = int(np.searchsorted(starts, found[y].index, side="right")) - 1
        return {op.inputs[k]: replace(found[y], index=int(found[y].index - starts[k]))}
    if isinstance(op, Select) and op.node.op_type == "Split" and op.axis == 1 and all(p is not None for p in op.picks):
        (x,) = op.inputs
        firsts = [int(s) for s in np.cumsum([0, *(len(p) for p in op.picks[:-1])])]
        known = [k for k, y in enumerate(op.outputs) if y in found]
        if len(known) > 1:
            raise Refused(f"{op} would lose two channels")
        if known:
            r = found[op.outputs[known[0]]]
            return {x: replace(r, index=r.index + firsts[known[0]])}
        k = max(k for k in range(len(firsts)) if firsts[k] <= found[x].index)
        return {op.outputs[k]: replace(found[x], index=found[x].index - firsts[k])}
    if isinstance(op, Reshape):
        (x,), (y,) = op.inputs, op.outputs
        if x not in found:
            raise Refused(f"{op} is asked from behind")
        block = y.size(1) // x.size(1)
        return {y: Removal(1, found[x].index * block, found[x].count * block)}
    if isinstance(op, Pooling) and not op.drops_axes and 1 not in op.axes:
        return dict.fromkeys(
            (op.inputs[0], op.outputs[0]), next(iter(found[t] for t in (op.inputs[0], op.outputs[0]) if t in found))
        )
    if isinstance(op, Pooling) and op.drops_axes and all(a > 1 for a in op.axes):
        return dict.fromkeys(
            (op.inputs[0], op.outputs[0]), next(iter(found[t] for t in (op.inputs[0], op.outputs[0]) if t in found))
        )
    if isinstance(op, (Clamp, Sloped, Same, Activation, Scaling)):
        return dict.fromkeys(
            (op.inputs[0], op.outputs[0]), next(iter(found[t] for t in (op.inputs[0], op.outputs[0]) if t in found))
        )
    raise Refused(f"{op} needs the channel")


def _without(op: Op, found: dict[Tensor, Removal], constants: ConstantChannels) -> Any:
    """Return the params of an operator without what its tensors lose."""
    if isinstance(op, Linear):
        (x,), (y,) = op.inputs, op.outputs
        weight, bias = op.params.weight, op.params.bias
        if x in found:
            r = found[x]
            gone = slice(r.index, r.index + r.count)
            whole = constants.of(x)
            assert whole is not None
            held = whole[gone]
            taps = np.tensordot(weight[:, :, gone], held, axes=(2, 0))  # (groups, out, *taps)
            if np.any(taps != 0) and (op.edges or op.unpadded is not x):
                raise Refused(f"{op} pads with zeros, and reads the constant")
            bias = bias + taps.reshape(len(bias), -1).sum(axis=1)
            weight = np.delete(weight, gone, axis=2)
        if y in found:
            r = found[y]
            weight = np.delete(weight, slice(r.index, r.index + r.count), axis=1)
            bias = np.delete(bias, slice(r.index, r.index + r.count))
        return Weights(weight, bias)
    r = next(found[t] for t in (*op.inputs, *op.outputs) if t in found)

    def cut(part: Array) -> Array:
        return np.delete(part, slice(r.index, r.index + r.count), axis=r.axis) if part.shape[r.axis] > 1 else part

    if isinstance(op, Scaling):
        return Scaled.like(Affine.of(cut(op.params.scale), cut(op.params.shift)), cut(op.params.usual))
    if isinstance(op, Clamp):
        return Bounds(cut(op.params.lo), cut(op.params.hi))
    if isinstance(op, Sloped):
        return cut(op.params)
    if isinstance(op, Select):
        return [len(p) - (found[y].count if y in found else 0) for y, p in zip(op.outputs, op.picks, strict=True)]
    if isinstance(op, Reshape):
        target = op.params if op.params is not None else op.target
        y = op.outputs[0]
        if op.node.op_type != "Reshape" or (target is not None and len(target) > 1 and target[1] in (-1, 0)):
            return op.params
        if target is None:
            raise Refused(f"the shape of {op} is computed")
        return (target[0], target[1] - found[y].count, *target[2:])
    return op.params

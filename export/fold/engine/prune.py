"""Channels that always hold one constant are removed, and their readers take the constant into the bias.

    W x + b = W' x' + (b + W[:, k] c)      channel k of x is always c; exact where nothing is padded, or c = 0

Networks trained for sparsity scale such channels by γ = 0. A channel that serves as a carrier stays. So do channels of
2-D tensors without which the number of channels would no longer fit onnxruntime's blocked layout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normfold.export.fold.channels import RemovedChannels
from normfold.export.fold.engine.constant_channels import ConstantChannels
from normfold.export.fold.net import Net, Op, Refused, Tensor
from normfold.export.fold.ops.costs import ALIGNED, BLOCK, LEAST
from normfold.export.fold.ops.linear import linears


def prune(net: Net) -> int:
    """Remove every constant channel that all operators around it can do without; return the number of channels."""
    count = 0
    sources = [op for op in linears(net.ops) if op.params.groups == 1 and op.axis_out == 1]
    for op in sources:
        weight, (tensor,) = op.params.weight, op.outputs
        zero = np.all(weight == 0, axis=tuple(i for i in range(weight.ndim) if i != 1))
        channels = [RemovedChannels(1, int(index)) for index in reversed(np.flatnonzero(zero))]
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
    """Return the number of channels that must go at once, so that the rest fit the blocked layout as all did."""
    channels = tensor.channels
    if tensor.shape is None or len(tensor.shape) < 4 or channels is None or channels < LEAST:
        return 1
    seen, queue = {tensor}, [tensor]
    while queue:
        for op in queue.pop().readers:
            if op.joins_tensors:
                return math.gcd(channels, BLOCK)
            if op.keeps_channels:
                queue += [y for y in op.outputs if y not in seen]
                seen.update(op.outputs)
    return math.gcd(channels, ALIGNED)


def _can_go(tensor: Tensor, removal: RemovedChannels) -> bool:
    try:
        _without_channel(tensor, removal)
    except Refused:
        return False
    return True


def _without_channel(tensor: Tensor, removal: RemovedChannels) -> tuple[dict[Tensor, RemovedChannels], dict[Op, Any]]:
    """Return what each tensor loses with a channel of one, and each operator's params without it, or raise Refused."""
    constants = ConstantChannels()
    found: dict[Tensor, RemovedChannels] = {}
    touched: dict[Op, None] = {}
    queue: list[Op] = []

    def settle(t: Tensor, r: RemovedChannels) -> None:
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
        for t, r in op.remove_channels(found).items():
            settle(t, r)
    return found, {op: op.without_channels(found, constants.of) for op in touched}


def _remove(found: dict[Tensor, RemovedChannels], params: dict[Op, Any]) -> None:
    for op, new in params.items():
        op.take(new)
    for t, r in found.items():
        t.resize(r.axis, -r.count)

"""Rules for calls over positions and for calls that only move entries: pools, pads, joins, views and slices."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from normfold.export.fold.modules.pointwise import each
from normfold.export.fold.modules.shapes import Kind
from normfold.export.fold.modules.skeleton import Call, Opaque, Skeleton
from normfold.export.fold.net import Dim

_PADS = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_RESIZES = {
    "nearest": "nearest",
    "nearest-exact": "nearest",
    "linear": "linear",
    "bilinear": "linear",
    "trilinear": "linear",
    "area": "linear",
}
_TO_THE_END = 2**31 - 1


def axis_of(value: Any, rank: int) -> int:
    """Return an axis counted from the front; opaque where it is not an integer."""
    if not isinstance(value, int):
        raise Opaque
    return value % rank


def axes_of(value: Any, rank: int) -> tuple[int, ...]:
    """Return one axis or several, counted from the front and sorted."""
    return tuple(sorted(axis_of(v, rank) for v in (value if isinstance(value, (tuple, list)) else (value,))))


def max_pool(c: Call, s: Skeleton) -> None:
    """F.max_pool1d, 2d, 3d."""
    if c.get("return_indices", False):
        raise Opaque
    s.result("MaxPool", [_batched(c, s)])


def avg_pool(c: Call, s: Skeleton) -> None:
    """F.avg_pool1d, 2d, 3d; they average their zero padding unless count_include_pad is False."""
    if c.get("divisor_override") is not None:
        raise Opaque
    x = _batched(c, s)
    count = len(s.dims(c.get("input"))) - 2
    s.result(
        "AveragePool",
        [x],
        pads=[*each(c.get("padding", 0), count)] * 2,
        ceil_mode=int(c.get("ceil_mode", False)),
        count_include_pad=int(c.get("count_include_pad", True)),
    )


def adaptive_avg_pool(c: Call, s: Skeleton) -> None:
    """F.adaptive_avg_pool1d, 2d, 3d: means of positions, of any number."""
    s.result("GlobalAveragePool", [_batched(c, s)])


def adaptive_max_pool(c: Call, s: Skeleton) -> None:
    """F.adaptive_max_pool1d, 2d, 3d."""
    if c.get("return_indices", False):
        raise Opaque
    s.result("GlobalMaxPool", [_batched(c, s)])


def _batched(c: Call, s: Skeleton) -> ir.Value:
    """Return the input of a call over positions, opaque where it has no batch axis."""
    x, y = s.dims(c.get("input")), s.dims(c.node)
    positions = re.search(r"(\d)d$", c.title)
    if len(x) < 3 or x[:2] != y[:2] or (positions is not None and len(x) != int(positions[1]) + 2):
        raise Opaque
    return s.operand(c.get("input"))


def mean(c: Call, s: Skeleton) -> None:
    """``x.mean(dim)``."""
    _reduced("ReduceMean", c, s, c.node)


def total(c: Call, s: Skeleton) -> None:
    """``x.sum(dim)``."""
    _reduced("ReduceSum", c, s, c.node)


def amax(c: Call, s: Skeleton) -> None:
    """``x.amax(dim)``."""
    _reduced("ReduceMax", c, s, c.node)


def amin(c: Call, s: Skeleton) -> None:
    """``x.amin(dim)``."""
    _reduced("ReduceMin", c, s, c.node)


def max_along(c: Call, s: Skeleton) -> None:
    """``x.max(dim)``, where only the values are read, not the indices."""
    for user in c.node.users:
        if user.target not in (operator.getitem, getattr) or user.args[1] not in (0, "values"):
            raise Opaque
    if len(c.node.users) != 1:
        raise Opaque
    _reduced("ReduceMax", c, s, next(iter(c.node.users)))


def _reduced(op: str, c: Call, s: Skeleton, to: fx.Node) -> None:
    if c.get("dim") is None or c.get("dtype") is not None:
        raise Opaque
    axes = axes_of(c.get("dim"), len(s.dims(c.get("input"))))
    s.results(op, [s.operand(c.get("input"))], [to], axes=list(axes), keepdims=int(c.get("keepdim", False)))


def interpolate(c: Call, s: Skeleton) -> None:
    """F.interpolate in the modes that weigh entries of one channel by weights that add up to 1."""
    mode = _RESIZES.get(c.get("mode", "nearest"))
    if mode is None or c.get("antialias", False):
        raise Opaque
    s.result("Resize", [_batched(c, s)], mode=mode)


def pad(c: Call, s: Skeleton) -> None:
    """F.pad."""
    rank, pads = len(s.dims(c.get("input"))), c.get("pad")
    mode, value = c.get("mode", "constant"), c.get("value")
    if mode not in _PADS or not isinstance(pads, (tuple, list)) or not all(isinstance(p, int) for p in pads):
        raise Opaque
    if value is not None and not isinstance(value, (int, float)):
        raise Opaque
    ends = np.zeros((2, rank), np.int64)
    for k in range(len(pads) // 2):
        ends[:, rank - 1 - k] = pads[2 * k : 2 * k + 2]
    inputs = [s.operand(c.get("input")), s.constant(ends.reshape(-1)), s.constant(float(value or 0))]
    s.result("Pad", inputs, mode=_PADS[mode])


def pad_layer(c: Call, s: Skeleton) -> None:
    """nn.ZeroPad1d, ConstantPad2d, ReflectionPad1d, ReplicationPad3d, CircularPad1d and their like."""
    name = type(c.layer).__name__
    modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
    mode = next((m for start, m in modes.items() if name.startswith(start)), "constant")
    pad(Call(c.node, {**c.given, "pad": c.get("padding"), "mode": mode}, c.layer), s)


def cat(c: Call, s: Skeleton) -> None:
    """torch.cat."""
    parts = c.get("tensors")
    if not isinstance(parts, (tuple, list)) or not parts:
        raise Opaque
    s.result("Concat", [s.operand(p) for p in parts], axis=axis_of(c.get("dim", 0), len(s.dims(c.node))))


def split(c: Call, s: Skeleton) -> None:
    """torch.split and chunk along an axis of fixed length, whose parts are read one by one."""
    x = c.get("tensor")
    axis = axis_of(c.get("dim", 0), len(s.dims(x)))
    parts = s.shapes.results.get(c.node)
    if not isinstance(parts, tuple) or not all(isinstance(p, Kind) for p in parts):
        raise Opaque
    sizes = [p.dims[axis] for p in parts]
    readers: dict[int, list[fx.Node]] = {}
    for user in c.node.users:
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            raise Opaque
        readers.setdefault(user.args[1] % len(parts), []).append(user)
    if not all(isinstance(n, int) for n in sizes) or any(len(r) > 1 for r in readers.values()):
        raise Opaque
    s.results("Split", [s.operand(x)], [readers.get(k, [None])[0] for k in range(len(parts))], axis=axis, split=sizes)


def transpose(c: Call, s: Skeleton) -> None:
    """``x.transpose(a, b)``."""
    rank = len(s.dims(c.get("input")))
    a, b = axis_of(c.get("dim0"), rank), axis_of(c.get("dim1"), rank)
    axes = list(range(rank))
    axes[a], axes[b] = b, a
    s.result("Transpose", [s.operand(c.get("input"))], perm=axes)


def permute(c: Call, s: Skeleton) -> None:
    """``x.permute(...)``."""
    rank = len(s.dims(c.get("input")))
    s.result("Transpose", [s.operand(c.get("input"))], perm=[axis_of(a, rank) for a in _listed(c, "dims")])


def attribute(c: Call, s: Skeleton) -> None:
    """``x.mT``, and ``x.T`` of a matrix."""
    rank = len(s.dims(c.get("input")))
    if c.get("name") not in ("mT", "T") or rank < 2 or (c.get("name") == "T" and rank != 2):
        raise Opaque
    s.result("Transpose", [s.operand(c.get("input"))], perm=[*range(rank - 2), rank - 1, rank - 2])


def _listed(c: Call, name: str) -> Sequence[Any]:
    """Return an argument given as a sequence, or as the rest of the arguments."""
    whole = c.get(name, c.rest)
    whole = (whole,) if isinstance(whole, fx.Node) else whole
    return whole[0] if len(whole) == 1 and isinstance(whole[0], (tuple, list)) else whole


def reshape(c: Call, s: Skeleton) -> None:
    """``x.view(...)`` and ``x.reshape(...)``, also with lengths that are computed."""
    before, after = s.dims(c.get("input")), s.dims(c.node)
    given = _listed(c, "shape")
    if len(given) == 1 and isinstance(given[0], fx.Node) and s.shapes.results.get(given[0]) is None and len(after) > 1:
        s.result("Reshape", [s.operand(c.get("input")), s.unknown()])  # ``x.view(y.shape)``
        return
    if len(given) != len(after) or not all(isinstance(d, (int, fx.Node)) for d in given):
        raise Opaque
    target = [target_of(d, k, before, after) for k, d in enumerate(given)]
    x = s.operand(c.get("input"))
    known = target.count(-1) <= 1
    s.result("Reshape", [x, s.constant(np.array(target, np.int64)) if known else s.unknown()])


def target_of(given: Any, k: int, before: Sequence[Dim], after: Sequence[Dim]) -> int:
    """Return one entry of a Reshape's target: a length, 0 for the input's length, -1 for the remaining entries."""
    if isinstance(given, int):
        return given
    length = after[k]
    if isinstance(length, int):
        return length
    return 0 if k < len(before) and before[k] == length else -1


def flatten(c: Call, s: Skeleton) -> None:
    """``x.flatten(...)``."""
    s.result("Flatten", [s.operand(c.get("input"))])


def squeeze(c: Call, s: Skeleton) -> None:
    """``x.squeeze(...)``."""
    s.result("Squeeze", [s.operand(c.get("input"))])


def unsqueeze(c: Call, s: Skeleton) -> None:
    """``x.unsqueeze(dim)``."""
    s.result("Unsqueeze", [s.operand(c.get("input"))])


def getitem(c: Call, s: Skeleton) -> None:
    """``x[:, 2:, -1, None]``: a Slice of all axes that are cut, then what drops and adds axes of length 1."""
    x, after = c.get("input"), s.dims(c.node)
    dims, index = s.dims(x), _full_index(c.get("index"), len(s.dims(x)))
    kept: list[Dim] = []
    cuts: list[tuple[int, Any, Any, int]] = []
    out = axis = 0
    for entry in index:
        if entry is None:
            out += 1
            continue
        if isinstance(entry, int):
            cuts.append((axis, entry, entry + 1 if entry != -1 else _TO_THE_END, 1))
            kept.append(1)
        else:
            if entry != slice(None):
                start = 0 if entry.start is None else entry.start
                cuts.append((axis, start, _TO_THE_END if entry.stop is None else entry.stop, entry.step or 1))
            kept.append(after[out])
            out += 1
        axis += 1
    value = s.operand(x)
    drops = tuple(kept) != after
    if cuts:
        axes, starts, ends, steps = zip(*cuts, strict=True)
        inputs = [value, _numbers(starts, s), _numbers(ends, s), _numbers(axes, s), _numbers(steps, s)]
        if not drops:
            s.result("Slice", inputs)
            return
        value = s.between("Slice", inputs, kept)
    s.result("Squeeze" if drops or dims != after else "Identity", [value])


def _full_index(index: Any, rank: int) -> list[Any]:
    entries = list(index) if isinstance(index, tuple) else [index]
    if not all(
        e is None or e is Ellipsis or (isinstance(e, (int, slice)) and not isinstance(e, bool)) for e in entries
    ):
        raise Opaque
    named = sum(e is not None and e is not Ellipsis for e in entries)
    fill: list[Any] = [slice(None)] * (rank - named)
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        return [*entries[:at], *fill, *entries[at + 1 :]]
    return [*entries, *fill]


def _numbers(values: Sequence[Any], s: Skeleton) -> ir.Value:
    return s.constant(np.array(values, np.int64)) if all(isinstance(v, int) for v in values) else s.unknown()

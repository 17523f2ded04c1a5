"""Readers of operators that make one position of many, or many of one: pools, reductions, upsampling, Expand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normfold.export.fold.net import Op
from normfold.export.fold.ops.activations import Same
from normfold.export.fold.ops.costs import OPEN_LENGTH
from normfold.export.fold.ops.pools import Pooling
from normfold.export.fold.reading.node import Node, NotKnown, Reader
from normfold.export.fold.rewrites.thinning import gathered


def _pool(n: Node) -> Op:
    rank = n.rank()
    padded = any(n.attribute("pads", ()) or ()) or n.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    counts = (
        n.type == "AveragePool"
        and bool(n.attribute("count_include_pad", 0))
        and (padded or bool(n.attribute("ceil_mode", 0)))
    )
    if not n.only_first_read():
        raise NotKnown
    parts = n.parts()
    parts["outputs"] = parts["outputs"][:1]
    return Pooling(
        axes=tuple(range(2, rank)),
        monotone=n.type in ("MaxPool", "GlobalMaxPool"),
        counts_zeros=counts,
        kept=_kept(n),
        **parts,
    )


def _kept(n: Node) -> float:
    """Return the share of its entries that a maximum keeps; 1 where clamps by channel cannot move behind it."""
    return 1.0 / math.prod(OPEN_LENGTH if length is None else length for length in gathered(n.node))


def _reduce(n: Node) -> Op:
    rank = n.rank()
    axes = n.axes(1)
    if not axes:
        if n.attribute("noop_with_empty_axes", 0):
            return Same(**n.parts())
        axes = tuple(range(rank))
    axes = tuple(sorted(a % rank for a in axes))
    drops_axes = not n.attribute("keepdims", 1)
    terms = _terms(n, axes) if n.type == "ReduceSum" else 1
    monotone = n.type in ("ReduceMax", "ReduceMin")
    return Pooling(axes=axes, monotone=monotone, kept=_kept(n), terms=terms, drops_axes=drops_axes, **n.parts())


def _terms(n: Node, axes: Sequence[int]) -> int | None:
    """Return the number of entries along some axes of the input; None where a length is dynamic, or 0."""
    shape = n.tensor(0).shape
    assert shape is not None
    lengths = [d for a in axes if isinstance(d := shape[a], int)]
    return math.prod(lengths) or None if len(lengths) == len(axes) else None


def _resize(n: Node) -> Op:
    x, y = n.tensor(0), n.tensor_out()
    mode = n.attribute("mode", "nearest")
    scales = n.constant(1 if n.type == "Upsample" else 2)
    if mode not in ("nearest", "linear") or n.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise NotKnown
    axes = [a % n.rank() for a in n.attribute("axes", range(n.rank()))]
    kept = scales is not None and len(axes) == scales.size
    if scales is not None and kept:
        kept = all(s == 1 for a, s in zip(axes, scales, strict=True) if a < 2)
    kept = kept or (x.shape is not None and y.shape is not None and x.shape[:2] == y.shape[:2])
    if not kept:
        raise NotKnown
    # TorchScript's exporter writes scales without entries beside sizes.
    fixed = n.has(3) and (scales is None or not scales.size) and 1 in axes
    return Pooling(axes=tuple(range(2, n.rank())), fixed=fixed, **n.parts())


def _expand(n: Node) -> Op:
    x, y = n.tensor(0), n.tensor_out()
    if n.computed()[:1] != [0] or x.shape is None or y.shape is None or len(x.shape) != len(y.shape):
        raise NotKnown
    target = n.integers(1)
    given = [None] * len(x.shape) if target is None else [*[1] * (len(x.shape) - len(target)), *target]
    # An axis of length 1 is repeated; every other axis keeps its length, by the operator's definition.
    y.shape = tuple(d if wanted == 1 else y.shape[a] for a, (d, wanted) in enumerate(zip(x.shape, given, strict=True)))
    repeated = tuple(a for a, d in enumerate(x.shape) if d == 1 and y.shape[a] != 1)
    if any(d != y.shape[a] for a, d in enumerate(x.shape) if a not in repeated):
        raise NotKnown
    fixed = len(given) > 1 and given[1] != 1
    return Pooling(axes=repeated, fixed=fixed, **n.parts())


def _tile(n: Node) -> Op:
    repeats = n.integers(1)
    if n.computed()[:1] != [0] or repeats is None or len(repeats) != n.rank() or [*repeats, 1, 1][1] != 1:
        raise NotKnown
    # A computed number may be 1 or not; it is read as not.
    return Pooling(axes=tuple(a for a, count in enumerate(repeats) if count != 1), **n.parts())


#: Operators that keep channels apart.
READERS: dict[str, Reader] = {
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalMaxPool": _pool,
    "GlobalAveragePool": _pool,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Resize": _resize,
    "Upsample": _resize,
    "Expand": _expand,
    "Tile": _tile,
}

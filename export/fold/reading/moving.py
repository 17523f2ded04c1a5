"""Readers of operators that move entries and change none."""

from __future__ import annotations

import itertools

import numpy as np

from normfold.export.fold.net import Op
from normfold.export.fold.ops.moving import Transpose
from normfold.export.fold.ops.pads import Padding
from normfold.export.fold.ops.recurrent import Embedding
from normfold.export.fold.ops.selecting import Concat, Select
from normfold.export.fold.ops.taking import DepthToSpace, Take, TakeEach
from normfold.export.fold.reading.node import Node, NotKnown, Reader
from normfold.export.fold.reading.reshapes import reshape


def _transpose(n: Node) -> Op:
    axes = n.attribute("perm") or tuple(reversed(range(n.rank())))
    return Transpose(axes=tuple(int(a) for a in axes), **n.parts())


def _concat(n: Node) -> Op:
    if len(n.computed()) != len(n.node.inputs):
        raise NotKnown
    rank = n.rank()
    return Concat(axis=n.attribute("axis", 1) % rank, **n.parts(range(len(n.node.inputs))))


def _split(n: Node) -> Op:
    x = n.tensor(0)
    axis = n.attribute("axis", 0) % n.rank()
    sizes = n.attribute("split")
    if sizes is None and n.has(1):
        given = n.constant(1)
        if given is None:
            raise NotKnown
        sizes = given.tolist()
    if sizes is None:
        total, parts = x.shape[axis] if x.shape else None, len(n.node.outputs)
        if not isinstance(total, int):
            raise NotKnown
        each = -(-total // parts)
        sizes = [each] * (parts - 1) + [total - each * (parts - 1)]
    starts = np.cumsum([0, *sizes])
    picks = tuple(np.arange(a, b) for a, b in itertools.pairwise(starts))
    return Select(axis=axis, picks=picks, **n.parts())


def _slice(n: Node) -> Op:
    rank = n.rank()
    if n.attribute("starts") is not None:
        starts, ends, axes, steps = (*(n.attribute(k) for k in ("starts", "ends", "axes")), None)
    else:
        starts, ends = n.constant(1), n.constant(2)
        axes, steps = n.constant(3), n.constant(4)
        if n.has(3) and axes is None:
            raise NotKnown
    if axes is None:
        if starts is None:
            raise NotKnown
        axes = range(len(starts))
    axes = tuple(int(a) % rank for a in axes)
    shape = n.tensor(0).shape
    assert shape is not None
    if (
        axes == (1,)
        and isinstance(shape[1], int)
        and starts is not None
        and ends is not None
        and not (n.has(4) and steps is None)
    ):
        step = 1 if steps is None else int(steps[0])
        pick = np.arange(shape[1])[slice(int(starts[0]), int(ends[0]) if abs(int(ends[0])) < 2**31 - 1 else None, step)]
        return Select(axis=1, picks=(pick,), **n.parts())
    y = n.tensor_out()
    # Where the ends are computed, shape inference gives the output no lengths.
    dims = y.shape if y.shape is not None and len(y.shape) == rank else (None,) * rank
    y.shape = tuple((f"{y.name}[{a}]" if d is None else d) if a in axes else shape[a] for a, d in enumerate(dims))
    return Select(axis=axes[0], picks=(None,), positions=axes, **n.parts())


def _gather(n: Node) -> Op:
    table, index = n.constant(0), n.constant(1)
    if table is not None and index is None and table.ndim == 2 and n.attribute("axis", 0) == 0:
        return Embedding(params=table.astype(np.float64), **n.parts((1,)))
    if table is not None:
        raise NotKnown
    axis, shape = n.attribute("axis", 0) % n.rank(), n.tensor(0).shape
    assert shape is not None
    size = shape[axis]
    if index is not None and index.ndim == 1 and isinstance(size, int):
        return Select(axis=axis, picks=(index.astype(np.int64) % size,), **n.parts())
    # Whatever the indices are, an affine passes that is the same all along the axis.
    known = None if index is None or not isinstance(size, int) else index.astype(np.int64) % size
    return Take(axis=axis, index_rank=n.rank(1) if index is None else index.ndim, index=known, **n.parts())


def _gather_nd(n: Node) -> Op:
    """Read a GatherND whose indices name one axis each: a Gather along the axis behind those of the batch."""
    index = n.constant(1)
    shape = n.tensor(1).shape if index is None else index.shape
    batch = n.attribute("batch_dims", 0)
    if n.constant(0) is not None or shape is None or shape[-1] != 1 or batch:
        raise NotKnown
    size = (n.tensor(0).shape or (None,))[0]
    known = None if index is None or not isinstance(size, int) else index[..., 0].astype(np.int64) % size
    return Take(axis=0, index_rank=len(shape) - 1, index=known, **n.parts())


def _gather_elements(n: Node) -> Op:
    rank, y = n.rank(), n.tensor_out()
    if y.shape is None or len(y.shape) != rank or n.constant(0) is not None:
        raise NotKnown
    return TakeEach(axis=n.attribute("axis", 0) % rank, **n.parts())


def _depth_to_space(n: Node) -> Op:
    if n.rank() != 4:
        raise NotKnown
    return DepthToSpace(block=n.attribute("blocksize"), neighbours=n.attribute("mode", "DCR") == "CRD", **n.parts())


def _pad(n: Node) -> Op:
    rank = n.rank()
    pads = n.attribute("pads")
    if pads is None:
        given, axes = n.integers(1), n.constant(3)
        ends = given if given is not None and len(given) == 2 * rank else [None] * (2 * rank)
        if not n.has(3) and n.channels_kept() and not ends[1] and not ends[rank + 1]:
            given = [0 if place in (1, rank + 1) else end for place, end in enumerate(ends)]
        if given is None or (n.has(3) and axes is None):
            raise NotKnown
        half = len(given) // 2
        places = range(half) if axes is None else [int(a) % rank for a in axes]
        before, behind = [0] * rank, [0] * rank
        for k, a in enumerate(places):
            # A computed number may be 0 or not, also that of the batch; it is read as not.
            before[a], behind[a] = (1 if v is None else v for v in (given[k], given[half + k]))
        if rank > 1 and any(given[k] is None or given[half + k] is None for k, a in enumerate(places) if a == 1):
            raise NotKnown
    else:
        before, behind = list(pads[:rank]), list(pads[rank:])
    mode = n.attribute("mode", "constant")
    value = n.attribute("value", 0.0)
    if n.has(2):
        filled = n.constant(2)
        if filled is None:
            raise NotKnown
        value = float(filled.reshape(()))
    if mode == "constant" and value != 0 and (any(p > 0 for p in before) or any(p > 0 for p in behind)):
        raise NotKnown
    if rank > 1 and (before[1] < 0 or behind[1] < 0):
        raise NotKnown
    return Padding(before=tuple(before), behind=tuple(behind), zeros=mode == "constant", **n.parts())


#: Transposes, reshapes, operators that join or take parts, and padding.
READERS: dict[str, Reader] = {
    "Transpose": _transpose,
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "DepthToSpace": _depth_to_space,
    "Pad": _pad,
}

"""Streams: tensors that must all be scaled alike, such as all sums of a residual network.

Sums, pools, clamps and operators that only move entries pass a scale on, from either side. So if one tensor of a stream
is scaled, all are. Whether all of them can be is found once for the stream, and not for every affine that meets it.
"""

from __future__ import annotations

from dataclasses import dataclass

from normfold.export.fold.affine import Affine
from normfold.export.fold.net import Net, Op, Refused, Tensor, TooDear

#: A change that spreads over more operators is not followed, so that the time stays linear in the size of the graph.
MOST_TOUCHED = 48
#: A change is followed through a stream of at most this many tensors even if one of them refuses it: the refusal then
#: names the operator that is nearest.
_FOLLOWED = 8


@dataclass
class StreamState:
    """The tensors of one stream, and whether they may be scaled."""

    tensors: list[Tensor]
    #: Why none of them may be scaled, or "".
    refusal: str


class Streams:
    """The streams of a network: a union-find over its tensors."""

    def __init__(self, net: Net, most_touched: float = MOST_TOUCHED) -> None:
        #: A change that spreads over more operators is not followed.
        self.most_touched = most_touched
        self._parents: dict[Tensor, Tensor] = {}
        self._streams: dict[Tensor, StreamState] = {}
        for op in net.ops:
            for tensor in (*op.inputs, *op.outputs):
                self._root(tensor)
            self._join_along(op)

    def join(self, one: Tensor, other: Tensor) -> None:
        """Make one stream of two."""
        a, b = self._root(one), self._root(other)
        if a is b:
            return
        small, large = (a, b) if len(self._streams[a].tensors) < len(self._streams[b].tensors) else (b, a)
        gone, kept = self._streams.pop(small), self._streams[large]
        self._parents[small] = large
        kept.tensors += gone.tensors
        kept.refusal = kept.refusal or gone.refusal

    def part(self, tensor: Tensor) -> None:
        """Find the stream of a tensor anew, after an operator that was a part of it is gone."""
        tensors = self._streams.pop(self._root(tensor)).tensors
        for one in tensors:
            del self._parents[one]
        for one in tensors:
            self._root(one)
        for one in tensors:
            for op in (one.producer, *one.readers):
                if op is not None:
                    self._join_along(op)

    def check(self, tensor: Tensor, gauge: Affine) -> None:
        """Raise Refused where the gauge scales a tensor of a stream that cannot be scaled."""
        stream = self._streams[self._root(tensor)]
        refused = stream.refusal if len(stream.tensors) > _FOLLOWED else ""
        if (refused or len(stream.tensors) > self.most_touched) and ((gauge.scale != 1) & (gauge.scale != 0)).any():
            if refused:
                raise Refused(refused)
            raise TooDear(f"more than {self.most_touched} operators around it would have to change")

    def _join_along(self, op: Op) -> None:
        if op.passes_scale:
            for tensor in op.inputs:
                self.join(tensor, op.outputs[0])

    def _root(self, tensor: Tensor) -> Tensor:
        parent = self._parents.setdefault(tensor, tensor)
        if parent is tensor:
            if tensor not in self._streams:
                self._streams[tensor] = StreamState([tensor], _refusal(tensor))
            return tensor
        while parent is not (above := self._parents[parent]):
            self._parents[tensor] = above
            tensor, parent = parent, above
        return parent


def _refusal(tensor: Tensor) -> str:
    """Return why a tensor may not be scaled, whatever the scale, or ""."""
    if tensor.pinned:
        return f"'{tensor.name}' {tensor.pinned}, so its numbers may not change"
    for op in (tensor.producer, *tensor.readers):
        if op is not None and op.passes_nothing:
            return op.refusal
    return ""

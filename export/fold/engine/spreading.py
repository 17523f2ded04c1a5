"""From the gauges of a few tensors to those of all that must change with them.

Every operator that a gauge reaches is asked for the gauges of its other tensors, until all have answered with all of
theirs known. A linear operator takes any gauge into its weights, so there a spread ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from normfold.export.fold.affine import Affine
from normfold.export.fold.engine.streams import Streams
from normfold.export.fold.net import Gauges, Op, Refused, Tensor, TooDear

__all__ = ["spread"]


def spread(
    start: Iterable[tuple[Tensor, Affine]], gauges: Gauges, streams: Streams, without: Op | None = None
) -> list[Op]:
    """Add to ``gauges`` those of ``start`` and all that follow from them; return the operators that were asked.

    without: an operator that is not asked. Operators come in the graph's order. Raises Refused where one of them takes
    no gauge or two different ones, or where a tensor may not change; TooDear where too many operators would change.
    """
    queue: list[tuple[int, int, Op]] = []
    queued: set[Op] = set()

    def settle(tensor: Tensor, gauge: Affine) -> None:
        if tensor in gauges:
            if gauges[tensor] is not gauge and not gauges[tensor].equals(gauge):
                raise Refused(f"'{tensor.name}' would need two different scales or shifts at once")
            return
        if gauge.is_identity:
            return
        if tensor.pinned:
            raise Refused(f"'{tensor.name}' {tensor.pinned}, so its numbers may not change")
        streams.check(tensor, gauge)
        gauges[tensor] = gauge
        for op in (tensor.producer, *tensor.readers):
            if op is not None and op is not without and op not in queued:
                queued.add(op)
                heapq.heappush(queue, (op.order, id(op), op))

    for tensor, gauge in start:
        if gauge.is_identity:
            gauges[tensor] = gauge
        else:
            settle(tensor, gauge)
    touched: dict[Op, None] = {}
    # An operator is asked again whenever another of its tensors was settled, so its last answer knew all of them.
    while queue:
        _, _, op = heapq.heappop(queue)
        queued.discard(op)
        touched[op] = None
        if len(touched) > streams.most_touched:
            raise TooDear(f"more than {streams.most_touched} operators around it would have to change")
        for tensor, gauge in op.spread(gauges).items():
            settle(tensor, gauge)
    return sorted(touched, key=lambda op: op.order)

"""``normfold.Metrics``: what a server has counted, in one message; with several workers the sum of all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from normfold.protos import metrics as mx
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.errors import Status
from normfold.serving.process.memory import resident_bytes
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.traffic import Traffic

PATH = "/normfold.Metrics/Snapshot"


class Snapshots:
    """Reads the counters of one process, and takes over those of its predecessor."""

    def __init__(self, catalog: Catalog, traffic: Traffic, worker: int) -> None:
        """``worker`` is the number of this process, from 1."""
        self._catalog, self._traffic, self._worker = catalog, traffic, worker

    def method(self) -> Method:
        """The method of the service."""
        return Method(PATH, mx.SnapshotRequest, unary=self.snapshot)

    async def snapshot(self, request: mx.SnapshotRequest) -> mx.SnapshotResponse:
        """The counters now."""
        response = mx.SnapshotResponse(failed_calls=self.failed_calls(), processes=[_process(self._worker)])
        for _, entry in sorted(self._catalog.entries.items()):
            response.models.extend(entry.snapshots())
        return response

    def failed_calls(self) -> list[mx.FailedCalls]:
        """The calls of this process that did not end with OK."""
        return [
            mx.FailedCalls(method=path.removeprefix("/"), status=status.name, count=count)
            for (path, status), count in sorted(self._traffic.failed.items())
        ]

    def restore(self, snapshot: mx.SnapshotResponse) -> None:
        """Count on from the counters of this worker's predecessor."""
        for row in snapshot.failed_calls:
            path = f"/{row.method}" if row.method else ""
            self._traffic.failed[path, Status[row.status]] += row.count
        for one in snapshot.models:
            if (entry := self._catalog.entries.get(one.statistics.name)) is not None:
                entry.restore(one)


def failed_sums(rows: Iterable[mx.FailedCalls]) -> list[mx.FailedCalls]:
    """One row for each method and status, with the sum of the counts."""
    sums: dict[tuple[str, str], int] = {}
    for row in rows:
        sums[row.method, row.status] = sums.get((row.method, row.status), 0) + row.count
    return [mx.FailedCalls(method=method, status=status, count=n) for (method, status), n in sorted(sums.items())]


def _process(worker: int) -> mx.ProcessSnapshot:
    times = os.times()
    cpu_seconds = times.user + times.system
    return mx.ProcessSnapshot(worker=worker, resident_bytes=resident_bytes(), cpu_seconds=cpu_seconds)

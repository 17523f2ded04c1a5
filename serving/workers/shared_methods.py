"""The methods that one worker cannot answer alone: those that change the server, and those that sum up all workers.

CHANGES   carried out by every worker, in one order for all; the client gets its answer when the last has done it
QUESTIONS answered by every worker; a function makes one answer of all
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx
from normfold.serving.catalog.entry import ASLEEP, LOADING, NO_FAILURE, READY
from normfold.serving.scheduling.statistics import Statistics
from normfold.serving.service.snapshot import failed_sums

#: The rows of an index by name and version.
Rows = dict[tuple[str, str], pb.RepositoryIndexResponse.ModelIndex]


class Remembered(NamedTuple):
    """A part of a change, by its key: the request that later workers repeat, or None to forget what has this key."""

    key: tuple[str, ...]
    request: Message | None


def changes(method: str, request: Any) -> list[Remembered]:
    """The parts of the server that ``request`` changes; empty when it only asks."""
    return CHANGES[method](request) if method in CHANGES else []


def _model(request: Any) -> list[Remembered]:
    return [Remembered(("model", request.model_name or request.repository_name), request)]


def _region(request: pb.SystemSharedMemoryRegisterRequest) -> list[Remembered]:
    return [Remembered(("region", request.name), request)]


def _no_region(request: pb.SystemSharedMemoryUnregisterRequest) -> list[Remembered]:
    return [Remembered(("region", request.name) if request.name else ("region",), None)]


def _trace(request: pb.TraceSettingRequest) -> list[Remembered]:
    name = request.model_name
    return [
        Remembered(
            ("trace", name, key),
            pb.TraceSettingRequest(model_name=name, settings={key: value}) if value.value else None,
        )
        for key, value in request.settings.items()
    ]


def _logs(request: pb.LogSettingsRequest) -> list[Remembered]:
    return [
        Remembered(("log", key), pb.LogSettingsRequest(settings={key: value}))
        for key, value in request.settings.items()
    ]


CHANGES: dict[str, Callable[[Any], list[Remembered]]] = {
    "RepositoryModelLoad": _model,
    "RepositoryModelUnload": _model,
    "SystemSharedMemoryRegister": _region,
    "SystemSharedMemoryUnregister": _no_region,
    "TraceSetting": _trace,
    "LogSettings": _logs,
}


def statistics(
    own: pb.ModelStatisticsResponse, others: Sequence[bytes], absent: Sequence[bytes]
) -> pb.ModelStatisticsResponse:
    """The sums over all workers, for the models and versions of those that answered.

    ``others`` are answers like ``own``, ``absent`` the last reports, SnapshotResponse each, of workers that have ended.
    """
    sums: dict[tuple[str, str], Statistics] = {}
    for answer in (own, *map(pb.ModelStatisticsResponse.FromString, others)):
        for each in answer.model_stats:
            sums.setdefault((each.name, each.version), Statistics()).add(each)
    for each in (one.statistics for data in absent for one in mx.SnapshotResponse.FromString(data).models):
        if (each.name, each.version) in sums:
            sums[each.name, each.version].add(each)
    return pb.ModelStatisticsResponse(model_stats=[total.message(*key) for key, total in sums.items()])


def snapshot(own: mx.SnapshotResponse, others: Sequence[bytes], absent: Sequence[bytes]) -> mx.SnapshotResponse:
    """The sums over all workers; requests that wait, devices and processes are of the workers that answered."""
    here = [own, *map(mx.SnapshotResponse.FromString, others)]
    gone = [mx.SnapshotResponse.FromString(data) for data in absent]
    processes = sorted((process for each in here for process in each.processes), key=lambda process: process.worker)
    total = mx.SnapshotResponse(
        failed_calls=failed_sums(row for each in (*here, *gone) for row in each.failed_calls), processes=processes
    )
    alive: dict[tuple[str, str], list[mx.ModelSnapshot]] = {}
    ended: dict[tuple[str, str], list[mx.ModelSnapshot]] = {}
    for snapshots, found in ((here, alive), (gone, ended)):
        for one in (one for each in snapshots for one in each.models):
            found.setdefault(_key(one), []).append(one)
    for key, reports in alive.items():
        sums = Statistics()
        for one in (*reports, *ended.get(key, ())):
            sums.add_snapshot(one)
        row = sums.snapshot(*key)
        row.waiting, row.device = sum(one.waiting for one in reports), reports[0].device
        total.models.append(row)
    return total


def _key(one: mx.ModelSnapshot) -> tuple[str, str]:
    return one.statistics.name, one.statistics.version


def index(
    own: pb.RepositoryIndexResponse, others: Sequence[bytes], absent: Sequence[bytes]
) -> pb.RepositoryIndexResponse:
    """The rows of all workers; a model version is READY only if it is READY in every worker.

    Workers in which the next request loads the model do not count, unless that is so in all of them.
    """
    rows = _rows(own)
    for answer in map(pb.RepositoryIndexResponse.FromString, others):
        theirs = _rows(answer)
        here, there = _asleep(rows), _asleep(theirs)
        rows, theirs = _without(rows, here - there, theirs), _without(theirs, there - here, rows)
        rows = {key: row for key, row in rows.items() if row.state != READY or key in theirs or row.name in there}
        for key, row in theirs.items():
            if (row.state != READY or row.name in here) and _telling(row) > _telling(rows.get(key)):
                rows[key] = row
    # One worker has unloaded the versions of a model, where another has never loaded it.
    listed = {name for name, version in rows if version}
    rows = {
        key: row for key, row in rows.items() if row.version or row.name not in listed or row.reason not in NO_FAILURE
    }
    return pb.RepositoryIndexResponse(models=[row for _, row in sorted(rows.items())])


def _telling(row: pb.RepositoryIndexResponse.ModelIndex | None) -> tuple[bool, bool, bool, str]:
    """How much ``row`` says. Of several rows of one version the index has the one that says most."""
    if row is None:
        return False, False, False, ""
    return True, row.state != READY, row.state == LOADING or row.reason not in NO_FAILURE, row.reason


def _rows(answer: pb.RepositoryIndexResponse) -> Rows:
    return {(row.name, row.version): row for row in answer.models}


def _asleep(rows: Rows) -> set[str]:
    """The models that their next request loads."""
    return {row.name for row in rows.values() if row.reason in ASLEEP}


def _without(rows: Rows, asleep: set[str], others: Rows) -> Rows:
    """``rows`` without the models of ``asleep`` that ``others`` have."""
    there = {row.name for row in others.values()}
    return {key: row for key, row in rows.items() if row.name not in asleep & there or row.reason not in ASLEEP}


class Question(NamedTuple):
    """A method that all workers answer: the class of an answer, and how one answer is made of all."""

    response: type[Any]
    #: From the worker's own answer, those of the others, and the last reports of ended workers.
    sum_up: Callable[[Any, Sequence[bytes], Sequence[bytes]], Message]


QUESTIONS: dict[str, Question] = {
    "ModelStatistics": Question(pb.ModelStatisticsResponse, statistics),
    "RepositoryIndex": Question(pb.RepositoryIndexResponse, index),
    "Snapshot": Question(mx.SnapshotResponse, snapshot),
}

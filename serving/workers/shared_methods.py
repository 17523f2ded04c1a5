"""The methods that one worker cannot answer alone: those that change the server, and those that sum up all workers.

CHANGES   carried out by every worker, in one order for all; the client gets its answer when the last has done it
QUESTIONS answered by every worker; a function makes one answer of all
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from normfold.protos import grpc_service as pb
from normfold.serving.scheduling.statistics import Statistics


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
    """The sums over all workers, for the models and versions of ``own``.

    ``others`` are answers like ``own``, ``absent`` the last reports, ModelStatistics each, of workers that have ended.
    """
    reports = [pb.ModelStatistics.FromString(data) for data in absent]
    for data in others:
        reports += pb.ModelStatisticsResponse.FromString(data).model_stats
    sums = {}
    for each in own.model_stats:
        sums[each.name, each.version] = total = Statistics()
        total.add(each)
    for each in reports:
        if (each.name, each.version) in sums:
            sums[each.name, each.version].add(each)
    return pb.ModelStatisticsResponse(model_stats=[total.message(*key) for key, total in sums.items()])


def index(
    own: pb.RepositoryIndexResponse, others: Sequence[bytes], absent: Sequence[bytes]
) -> pb.RepositoryIndexResponse:
    """The rows of all workers; a model version is READY only if it is in every worker."""
    rows = {(row.name, row.version): row for row in own.models}
    for data in others:
        theirs = {(row.name, row.version): row for row in pb.RepositoryIndexResponse.FromString(data).models}
        rows = {key: row for key, row in rows.items() if row.state != "READY" or key in theirs}
        rows |= {key: row for key, row in theirs.items() if row.state != "READY"}
    return pb.RepositoryIndexResponse(models=[row for _, row in sorted(rows.items())])


#: Each function makes one answer of the worker's own, those of the others, and the last reports of ended workers.
QUESTIONS: dict[str, Callable[[Any, Sequence[bytes], Sequence[bytes]], Message]] = {
    "ModelStatistics": statistics,
    "RepositoryIndex": index,
}

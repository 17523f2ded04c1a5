"""The requests by which a client changes which models and versions are in service, and the answers to its questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normfold.digits import read_digits
from normfold.serving.client.arguments import LARGEST_VERSION, checked_model, checked_text
from normfold.serving.wire.proved_sizes import ALLOWED, BATCHNORMS, PROVED

if TYPE_CHECKING:
    from normfold.protos import grpc_service as pb
    from normfold.protos import metrics as mx
    from normfold.protos import model_config as mc

#: The method that gives the counters; only normfold has it.
SNAPSHOT = "/normfold.Metrics/Snapshot"


@dataclass(frozen=True)
class VersionState:
    """The state of one version of a model, as RepositoryIndex reports it."""

    model: str
    #: Empty for a model of which no version was ever loaded.
    version: str
    #: "READY", "LOADING", "UNAVAILABLE", or empty for a model that was never loaded.
    state: str
    #: Why it is not ready.
    reason: str

    @property
    def ready(self) -> bool:
        """Whether it answers requests."""
        return self.state == "READY"


@dataclass(frozen=True)
class VersionCounters:
    """The counters of a server for one version since the server started."""

    model: str
    version: str
    #: Requests that were answered, and that failed.
    answered: int
    failed: int
    #: The time within which half, and 99 of 100, of the answered requests were answered, in seconds; None without any.
    #: Between two powers of two nanoseconds it is estimated.
    p50_seconds: float | None
    p99_seconds: float | None
    #: Requests that wait for a run now.
    waiting: int
    device: str


def states(response: pb.RepositoryIndexResponse) -> list[VersionState]:
    """The rows of ``response``."""
    return [VersionState(row.name, row.version, row.state, row.reason) for row in response.models]


def counters(response: mx.SnapshotResponse) -> list[VersionCounters]:
    """The rows of ``response``."""
    rows = []
    for one in response.models:
        stats = one.statistics.inference_stats
        rows.append(
            VersionCounters(
                one.statistics.name,
                one.statistics.version,
                stats.success.count,
                stats.fail.count,
                quantile(one.request.counts, 0.5),
                quantile(one.request.counts, 0.99),
                one.waiting,
                one.device,
            )
        )
    return rows


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The duration in seconds that ``share`` of all did not exceed; ``counts[k]`` are durations of k bits in ns.

    >>> quantile([0, 0, 0, 4], 1.0), quantile([], 0.5)
    (8e-09, None)
    """
    wanted, before = share * sum(counts), 0
    for bits, count in enumerate(counts):
        if count and before + count >= wanted:
            # Durations of k bits lie between 2^(k-1) and 2^k; within that they are taken to be even on a log scale.
            return 0.0 if bits == 0 else float(2 ** (bits - 1 + (wanted - before) / count)) / 1e9
        before += count
    return None


def index() -> tuple[str, pb.RepositoryIndexRequest, type[pb.RepositoryIndexResponse]]:
    """The call that asks for the state of every version; as below: method, request, type of the response."""
    from normfold.protos import grpc_service as pb

    return "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse


def snapshot() -> tuple[str, mx.SnapshotRequest, type[mx.SnapshotResponse]]:
    """The call that asks for the counters."""
    from normfold.protos import metrics as mx

    return SNAPSHOT, mx.SnapshotRequest(), mx.SnapshotResponse


def load(
    model: str, config: str | None
) -> tuple[str, pb.RepositoryModelLoadRequest, type[pb.RepositoryModelLoadResponse]]:
    """``config`` is a configuration in JSON that replaces config.pbtxt. Raises ValueError."""
    from normfold.protos import grpc_service as pb

    request = pb.RepositoryModelLoadRequest(model_name=checked_model(model))
    if config is not None:
        if not isinstance(config, str):
            raise ValueError(f"config is a {type(config).__name__}, not a text: give JSON, such as json.dumps(config)")
        checked_text("config", config)
        request.parameters["config"].string_param = config
    return "RepositoryModelLoad", request, pb.RepositoryModelLoadResponse


def unload(model: str) -> tuple[str, pb.RepositoryModelUnloadRequest, type[pb.RepositoryModelUnloadResponse]]:
    """Raises ValueError."""
    from normfold.protos import grpc_service as pb

    request = pb.RepositoryModelUnloadRequest(model_name=checked_model(model))
    return "RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse


def config(model: str) -> tuple[str, pb.ModelConfigRequest, type[pb.ModelConfigResponse]]:
    """The call that asks for the configuration of ``model``. Raises ValueError."""
    from normfold.protos import grpc_service as pb

    return "ModelConfig", pb.ModelConfigRequest(name=checked_model(model)), pb.ModelConfigResponse


def with_versions(config: mc.ModelConfig, versions: Sequence[int]) -> str:
    """``config`` as JSON, with a version policy that puts just these versions in service."""
    from google.protobuf import json_format

    from normfold.protos import model_config as mc

    changed = mc.ModelConfig()
    changed.CopyFrom(config)
    changed.version_policy.specific.versions[:] = versions
    for key in (PROVED, ALLOWED, BATCHNORMS):  # the server sets them, and warns of others
        changed.parameters.pop(key, None)
    return json_format.MessageToJson(changed, preserving_proto_field_name=True)


def checked_number(version: int | str) -> int:
    """``version`` as a number. Raises ValueError."""
    text = str(version)
    number = read_digits(text, LARGEST_VERSION)
    if not number:
        raise ValueError(f"version {version!r} is not a number such as 1")
    return number

"""The scope that a token needs for each remote procedure, and the field by which a request names its model.

A procedure that is missing here is refused to every token, and a test fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Scope(StrEnum):
    """The rights that a token can have."""

    #: Ask models for answers.
    INFER = "infer"
    #: Read the state of models and server: health, metadata, configurations, counters, the index, reflection.
    READ = "read"
    #: Change the server: load and unload models, shared memory, traces, the log.
    ADMIN = "admin"


class Right(NamedTuple):
    """The right that a call of one procedure needs."""

    scope: Scope
    #: The fields of the request that name a model; the first that is not empty counts. NO_MODEL: the call concerns no
    #: model, and tokens that are limited to some models may make it. EVERY_MODEL: it concerns all, and they may not.
    model: tuple[str, ...] | None
    #: Whether the call asks for health and needs no token where health needs none.
    health: bool = False


#: ``Right.model`` of calls that concern no model, and of calls that concern all.
NO_MODEL, EVERY_MODEL = None, ()
#: Names of the health service that mean the whole server.
WHOLE_SERVER = ("", "inference.GRPCInferenceService")

_INFERENCE: Mapping[str, Right] = {
    "ServerLive": Right(Scope.READ, NO_MODEL, health=True),
    "ServerReady": Right(Scope.READ, NO_MODEL, health=True),
    "ModelReady": Right(Scope.READ, ("name",), health=True),
    "ServerMetadata": Right(Scope.READ, NO_MODEL),
    "ModelMetadata": Right(Scope.READ, ("name",)),
    "ModelConfig": Right(Scope.READ, ("name",)),
    "ModelStatistics": Right(Scope.READ, ("name",)),
    "ModelInfer": Right(Scope.INFER, ("model_name",)),
    "ModelStreamInfer": Right(Scope.INFER, ("model_name",)),
    "RepositoryIndex": Right(Scope.READ, EVERY_MODEL),
    "RepositoryModelLoad": Right(Scope.ADMIN, ("model_name", "repository_name")),
    "RepositoryModelUnload": Right(Scope.ADMIN, ("model_name", "repository_name")),
    "SystemSharedMemoryStatus": Right(Scope.READ, EVERY_MODEL),
    "SystemSharedMemoryRegister": Right(Scope.ADMIN, EVERY_MODEL),
    "SystemSharedMemoryUnregister": Right(Scope.ADMIN, EVERY_MODEL),
    "CudaSharedMemoryStatus": Right(Scope.READ, EVERY_MODEL),
    "CudaSharedMemoryRegister": Right(Scope.ADMIN, EVERY_MODEL),
    "CudaSharedMemoryUnregister": Right(Scope.ADMIN, EVERY_MODEL),
    "TraceSetting": Right(Scope.ADMIN, ("model_name",)),
    "LogSettings": Right(Scope.ADMIN, EVERY_MODEL),
}

#: By the path of the procedure.
RIGHTS: Mapping[str, Right] = {
    **{f"/inference.GRPCInferenceService/{name}": right for name, right in _INFERENCE.items()},
    "/grpc.health.v1.Health/Check": Right(Scope.READ, ("service",), health=True),
    "/grpc.health.v1.Health/Watch": Right(Scope.READ, ("service",), health=True),
    "/normfold.Metrics/Snapshot": Right(Scope.READ, EVERY_MODEL),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Right(Scope.READ, NO_MODEL),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Right(Scope.READ, NO_MODEL),
}

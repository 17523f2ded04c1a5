"""normfold on Ray Serve: replicas over one repository behind Ray's gRPC proxy. Settings: ``serve.yaml``.

Ray places replicas on machines, starts more of them under load, and starts another where one dies. Its proxy takes
messages as they are, and a replica hands them to the same procedures that ``normfold serve`` has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from ray import serve

from normfold.serving.process.logs import LogSettings
from normfold.serving.rpc.methods import Method, status_of
from normfold.serving.server import Server
from normfold.serving.service.polling import SERVICE as INTERNAL
from normfold.serving.settings import ServerConfig

#: The procedures that Ray's proxy takes, by service, and whether each is unary. Those that change a server are left
#: out: one replica alone would carry them out.
PROCEDURES = {
    "inference.GRPCInferenceService": {
        "ServerLive": True,
        "ServerReady": True,
        "ModelReady": True,
        "ServerMetadata": True,
        "ModelMetadata": True,
        "ModelConfig": True,
        "ModelInfer": True,
        "ModelStreamInfer": False,
        "ModelStatistics": True,
        "RepositoryIndex": True,
    },
    "grpc.health.v1.Health": {"Check": True},
}


class Answer(bytes):
    """A serialized message; Ray asks what a replica answers to serialize itself."""

    def SerializeToString(self) -> bytes:  # noqa: N802  the name is protobuf's
        """The message."""
        return bytes(self)


def add_procedures(servicer: object, server: grpc.Server) -> None:
    """Register the procedures at Ray's proxy, which replaces the functions by its own; messages stay bytes."""
    for service, procedures in PROCEDURES.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(_not_here)
            if unary
            else grpc.stream_stream_rpc_method_handler(_not_here)
            for name, unary in procedures.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _not_here(*arguments: object) -> None:
    raise NotImplementedError("Ray's proxy replaces this")


class Replica:
    """One replica: a whole server without a port. Its methods have the names of the procedures."""

    def __init__(self, repository: str, **options: Any) -> None:
        """``options`` are fields of ServerConfig. Raises StartError, and Ray reports it."""
        config = ServerConfig(
            Path(repository), **{"model_control": "none", "metrics_listen": "off", "shared_memory": False, **options}
        )
        self._methods: dict[str, Method] = {}
        self._server = Server(config, LogSettings(config.log_level), self._keep)
        self._loading: asyncio.Task[None] | None = None

    def _keep(self, methods: list[Method]) -> list[Method]:
        self._methods = {method.name: method for method in methods if method.service != INTERNAL}
        return methods

    async def _loaded(self) -> None:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        await self._server.load()
        self._server.look()

    async def check_health(self) -> None:
        """Ray asks this before the first request and then every few seconds; an exception makes it start another."""
        await self._loaded()

    async def _answer(self, name: str, data: bytes, context: Any) -> Answer:
        await self._loaded()
        try:
            answer = self._methods[name].answer(data)
            return Answer(answer if isinstance(answer, bytes) else await answer)
        except Exception as error:
            raise _as_status(error, name, context) from None

    async def _answers(self, name: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Answer]:
        await self._loaded()
        try:
            async for answer in self._methods[name].answers(requests):
                yield Answer(answer)
        except Exception as error:
            raise _as_status(error, name, context) from None


class Refused(Exception):
    """What a replica answers with another status than OK; Ray's proxy passes the status on."""


def _as_status(error: Exception, name: str, context: Any) -> Refused:
    status, details = status_of(error, name)
    context.set_code(next(code for code in grpc.StatusCode if code.value[0] == status))
    context.set_details(details)
    return Refused(details)


def _procedure(name: str, unary: bool) -> Callable[..., Any]:
    if unary:

        async def answer(self: Replica, request: bytes, grpc_context: Any) -> Answer:
            return await self._answer(name, request, grpc_context)

        return answer

    async def answers(self: Replica, requests: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Answer]:
        async for one in self._answers(name, requests, grpc_context):
            yield one

    return answers


for _procedures in PROCEDURES.values():
    for _name, _unary in _procedures.items():
        setattr(Replica, _name, _procedure(_name, _unary))


def application(arguments: dict[str, Any]) -> serve.Application:
    """The application; ``arguments`` are ``repository`` and fields of ServerConfig, from ``args`` in serve.yaml."""
    return serve.deployment(Replica, name="normfold").bind(**arguments)

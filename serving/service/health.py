"""grpc.health.v1: the state of the whole server ("" or the inference service's name) and of each model by its name.

Once the server stops nothing is SERVING, and every watcher hears that as its last answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice

from normfold.protos import health as pb
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.errors import NotFound
from normfold.serving.rpc.methods import Method
from normfold.serving.wording import near, quoted

SERVICE = "grpc.health.v1.Health"
WHOLE_SERVER = ("", "inference.GRPCInferenceService")

#: The watchers that are woken in one turn of the event loop: there may be thousands, and each has an answer to send.
WOKEN = 32

Status = pb.HealthCheckResponse.ServingStatus


class Health:
    """Answers Check and Watch from the catalog's state."""

    def __init__(self, catalog: Catalog, strict_readiness: bool) -> None:
        self._catalog, self._strict = catalog, strict_readiness
        self._watchers: set[asyncio.Event] = set()
        #: Those of them that are still to be woken since the last change, in their order.
        self._unaware: dict[asyncio.Event, None] = {}
        catalog.on_change(self._wake)

    def methods(self) -> list[Method]:
        """The service as methods; a server that stops does not wait for them."""
        request = pb.HealthCheckRequest
        return [
            Method(f"/{SERVICE}/Check", request, unary=self.check, counted=False),
            Method(f"/{SERVICE}/Watch", request, server_stream=self.watch, counted=False),
        ]

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Return the state now. Raises NotFound for a name that is neither the server's nor a model's."""
        status = self._status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            hint = near(request.service, self._catalog.nameable)
            raise NotFound(f"no model {quoted(request.service)} to report the health of{hint}")
        return pb.HealthCheckResponse(status=status)

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckResponse]:
        """Yield the state now and after every change, until the caller leaves or the server ends."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            last = None
            while True:
                changed.clear()
                leaving, status = self._catalog.leaving, self._status(request.service)
                if status != last:
                    yield pb.HealthCheckResponse(status=status)
                    last = status
                if leaving:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _wake(self) -> None:
        """Wake all watchers: a few now, and the rest in later turns of the event loop."""
        going_on = bool(self._unaware)
        self._unaware |= dict.fromkeys(self._watchers)
        if not going_on:
            self._wake_some()

    def _wake_some(self) -> None:
        for watcher in list(islice(self._unaware, WOKEN)):
            del self._unaware[watcher]
            watcher.set()
        if self._unaware:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _status(self, service: str) -> Status:
        if service in WHOLE_SERVER:
            serving = self._catalog.ready(self._strict)
        elif (entry := self._catalog.entries.get(service)) is not None and entry.known:
            serving = self._catalog.model_ready(service)
        else:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        return pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING

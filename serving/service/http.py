"""The answers of the HTTP port: metrics for scrapers, and health for probes and load balancers that speak only HTTP.

/metrics                                   Prometheus's text format
/livez, /v2/health/live                    200 while the event loop answers
/readyz, /v2/health/ready                  200 while the server is ready, else 503
/v2/models/NAME/ready, .../versions/V/ready    200 while the model, or this version of it, answers, else 503 or 404

The paths with /v2 are those of the Open Inference Protocol over HTTP. Health here is what Health.Check and ModelReady
say over gRPC.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import unquote

from normfold.protos import grpc_service as pb
from normfold.protos import health as hp
from normfold.protos import metrics as mx
from normfold.serving.errors import InvalidRequest, NotFound, ServingError
from normfold.serving.metrics import exposition
from normfold.serving.metrics.port import HttpAnswer
from normfold.serving.rpc.methods import Method
from normfold.serving.service.health import Health
from normfold.serving.service.service import InferenceService

log = logging.getLogger(__name__)

#: The event loop has this long to answer, in seconds; more than a question to all workers takes.
LOOP_SECONDS = 5.0

PATHS = ("/metrics", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/NAME/ready")

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/ready")

Answered = TypeVar("Answered")


class HttpAnswers:
    """Answers paths; called on any thread, and asks the event loop on which it was made."""

    def __init__(self, service: InferenceService, health: Health, snapshot: Method) -> None:
        """``snapshot`` is the method of ``normfold.Metrics``; it asks all workers where there are several."""
        self._service, self._health, self._snapshot = service, health, snapshot
        self._loop = asyncio.get_running_loop()

    def answer(self, path: str) -> HttpAnswer:
        """The answer to GET ``path``."""
        try:
            if path == "/metrics":
                snapshot, ready = self._ask(self._metrics())
                return HttpAnswer(HTTPStatus.OK, exposition.text(snapshot, ready), exposition.CONTENT_TYPE)
            if path in ("/livez", "/v2/health/live"):
                self._ask(self._ready())
                return _said(HTTPStatus.OK, "live")
            if path in ("/readyz", "/v2/health/ready"):
                return _ready(self._ask(self._ready()))
            if match := _MODEL.fullmatch(path):
                return self._model(unquote(match[1]), unquote(match[2] or ""))
        except concurrent.futures.TimeoutError:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, f"the server did not answer within {LOOP_SECONDS:g} s")
        except ServingError as error:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception:
            log.exception("%s could not be answered", path)
            return _said(HTTPStatus.INTERNAL_SERVER_ERROR, "an error; the log has the details")
        return _said(HTTPStatus.NOT_FOUND, f"there is no such path; there are {', '.join(PATHS)}")

    def _ask(self, question: Awaitable[Answered]) -> Answered:
        """The result of ``question``, which the event loop finds. Raises TimeoutError."""

        async def bounded() -> Answered:
            return await asyncio.wait_for(question, LOOP_SECONDS)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result(LOOP_SECONDS)

    async def _ready(self) -> bool:
        answer = await self._health.check(hp.HealthCheckRequest())
        return answer.status == hp.HealthCheckResponse.SERVING

    async def _metrics(self) -> tuple[mx.SnapshotResponse, bool]:
        answered = self._snapshot.answer(b"")
        data = answered if isinstance(answered, bytes) else bytes(await answered)
        return mx.SnapshotResponse.FromString(data), await self._ready()

    def _model(self, name: str, version: str) -> HttpAnswer:
        try:
            self._ask(self._health.check(hp.HealthCheckRequest(service=name)))
            return _ready(self._ask(self._service.model_ready(pb.ModelReadyRequest(name=name, version=version))).ready)
        except NotFound as error:
            return _said(HTTPStatus.NOT_FOUND, str(error))
        except InvalidRequest as error:
            return _said(HTTPStatus.BAD_REQUEST, str(error))


def _ready(ready: bool) -> HttpAnswer:
    return _said(HTTPStatus.OK, "ready") if ready else _said(HTTPStatus.SERVICE_UNAVAILABLE, "not ready")


def _said(status: HTTPStatus, text: str) -> HttpAnswer:
    return HttpAnswer(status, f"{text}\n".encode())

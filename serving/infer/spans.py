"""Spans of OpenTelemetry: a request, its time in the queue, its run, and the batch that it ran in.

    inference.GRPCInferenceService/ModelInfer    the request, below the caller's span (W3C traceparent)
    ├── queue
    ├── batch    below the first request of the batch, with links to the others
    └── run

What is sent, where and how much of it, is set by the environment variables of OpenTelemetry's specification. This
module imports opentelemetry, so it is imported only where traces are wanted (``wanted``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from normfold.serving.infer.tracing import Infer
from normfold.serving.process.file_thread import FileThread
from normfold.serving.process.logs import LOGGER
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import status_alone
from normfold.serving.rpc.pieces import Answer
from normfold.serving.scheduling.running import MARK, Mark, Ran
from normfold.serving.scheduling.statistics import RequestTiming

SERVICE = "inference.GRPCInferenceService"

#: The longest wait at the end for spans to be sent, in seconds.
FLUSH_SECONDS = 3.0

_PROPAGATOR = TraceContextTextMapPropagator()


class Exported:
    """Makes spans and sends them in the background."""

    def __init__(self, exporter: SpanExporter) -> None:
        about = {"service.version": version("normfold")}
        resource = Resource.create(about)
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "normfold"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        #: Ends the provider, which may wait for its collector far longer: no end of the process waits for this thread.
        self._ending = FileThread("normfold-spans")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("normfold")
        #: From time.perf_counter_ns to the time of day.
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        theirs = logging.getLogger("opentelemetry")
        theirs.propagate = False
        for handler in LOGGER.handlers:
            theirs.addHandler(handler)

    def traced(self, answer: Infer, method: str) -> Infer:
        """``answer``, the function of ``method``, with a span for each request."""
        name = f"{SERVICE}/{method}"
        attributes = {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": method}

        def follow(data: bytes) -> bytes | asyncio.Task[Answer]:
            caller = CALLER.get()
            above = _PROPAGATOR.extract({} if caller is None else caller.trace_headers())
            span = self._tracer.start_span(name, above, SpanKind.SERVER, attributes)
            token = MARK.set(_Request(self._tracer, span, self._epoch_ns) if span.is_recording() else None)
            try:
                answered = answer(data)
            except Exception as error:
                _end(span, error)
                raise
            finally:
                MARK.reset(token)
            if isinstance(answered, bytes):
                _end(span, None)
                return answered
            answered.add_done_callback(lambda done: _end(span, _error_of(done)))
            return answered

        return follow

    def answered(self, model: str, version: int, request_id: str, read: int, timing: RequestTiming | None) -> None:
        """Note an answered request, whose inputs were read at ``read`` (nanoseconds of time.perf_counter_ns)."""
        followed = MARK.get()
        if not isinstance(followed, _Request):
            return
        span = followed.span
        span.set_attributes({"normfold.model": model, "normfold.version": version})
        if request_id:
            span.set_attribute("normfold.request_id", request_id[:200])
        if timing is None:
            span.set_attribute("normfold.from_cache", True)
            return
        begun = read + timing.queue
        followed.child("queue", read, begun)
        followed.child("run", begun, begun + timing.infer)

    async def close(self) -> None:
        """Send what is left, within FLUSH_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._ending.run(self._provider.shutdown)


class _Request:
    """A request whose spans are sent."""

    def __init__(self, tracer: Tracer, span: Span, epoch_ns: int) -> None:
        self._tracer, self.span, self._epoch_ns = tracer, span, epoch_ns

    def child(self, name: str, begun: int, ended: int, links: Sequence[Link] = (), **attributes: Any) -> None:
        """A span below that of the request, whose beginning and end are by time.perf_counter_ns."""
        above, begin = set_span_in_context(self.span), begun + self._epoch_ns
        span = self._tracer.start_span(name, above, attributes=attributes, links=links, start_time=begin)
        span.end(ended + self._epoch_ns)

    def ran(self, run: Ran, others: Sequence[Mark]) -> None:
        """The batch, below this request, with links to the others."""
        links = [Link(each.span.get_span_context()) for each in others if isinstance(each, _Request)]
        ended = run.started_ns + run.input_ns + run.infer_ns + run.output_ns
        counts = {"normfold.rows": run.rows, "normfold.requests": len(run.answers)}
        self.child("batch", run.started_ns, ended, links, **counts)


def _error_of(done: asyncio.Task[Answer]) -> BaseException | None:
    return asyncio.CancelledError() if done.cancelled() else done.exception()


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        status = status_alone(error)
        span.set_attribute("rpc.grpc.status_code", int(status))
        span.set_status(Status(StatusCode.ERROR, status.name))
    else:
        span.set_attribute("rpc.grpc.status_code", 0)
    span.end()

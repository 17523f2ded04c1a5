"""Traces: timestamps of requests, written as lines of JSON. TraceSetting reads and changes which requests are traced.

A traced request gives two lines in Triton's form, in the file that the server was started with, or else in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from normfold.digits import read_digits
from normfold.serving.errors import InvalidRequest
from normfold.serving.infer.trace_file import TraceFile
from normfold.serving.rpc.pieces import Answer
from normfold.serving.scheduling.statistics import RequestTiming
from normfold.serving.wording import near, quoted

log = logging.getLogger(__name__)

#: ModelInfer from serialized to serialized message.
Infer = Callable[[bytes], bytes | asyncio.Task[Answer]]

OFF, TIMESTAMPS = "OFF", "TIMESTAMPS"
Settings = dict[str, list[str]]
#: The largest number that a setting may be.
MOST = (1 << 32) - 1


class Spans(Protocol):
    """Follows requests for OpenTelemetry."""

    def traced(self, answer: Infer, method: str) -> Infer:
        """``answer``, the function of ``method``, with a span for each request."""
        ...

    def answered(self, model: str, version: int, request_id: str, read: int, timing: RequestTiming | None) -> None:
        """Note an answered request, whose inputs were read at ``read`` (nanoseconds of time.perf_counter_ns)."""
        ...


class TraceSettings:
    """Which requests are traced: the settings of the server, and of models that have their own."""

    def __init__(self, file: Path | None = None) -> None:
        """Raises StartError when ``file`` cannot be written."""
        self._file = None if file is None else TraceFile(file)
        self._server = _defaults(file)
        self._models: dict[str, Settings] = {}
        self._seen: dict[str, int] = {}
        self._traced = 0
        #: Gets the times of every answered request; None: nobody does.
        self.spans: Spans | None = None
        #: Whether any request may be traced.
        self.active = False

    def collect(self, spans: Spans) -> None:
        """Give ``spans`` the times of every answered request from now on."""
        self.spans, self.active = spans, True

    def update(self, model: str, changes: Mapping[str, Sequence[str]]) -> Settings:
        """The settings of ``model``, or of the server for "", after ``changes``. An empty value is the server's value.

        Raises InvalidRequest, with nothing changed.
        """
        for key, values in changes.items():
            self._check(key, values)
        target = self._models.setdefault(model, {}) if model else self._server
        for key, values in changes.items():
            if values:
                target[key] = list(dict.fromkeys(values))  # a level may be there twice, or thousands of times
            elif model:
                target.pop(key, None)
            else:
                target[key] = _defaults(None if self._file is None else self._file.path)[key]
        every = [self._server, *({**self._server, **own} for own in self._models.values())]
        self.active = self.spans is not None or any(TIMESTAMPS in settings["trace_level"] for settings in every)
        return {**self._server, **self._models.get(model, {})}

    def _check(self, key: str, values: Sequence[str]) -> None:
        if key not in self._server:
            raise InvalidRequest(f"trace setting {quoted(key)} is not known{near(key, self._server)}")
        if not values:
            return
        if key == "trace_level":
            if not set(values) <= {OFF, TIMESTAMPS}:
                raise InvalidRequest(f"trace_level must be {OFF} or {TIMESTAMPS}, got {', '.join(map(quoted, values))}")
        elif key in ("trace_file", "trace_mode"):
            if list(values) != self._server[key]:
                raise InvalidRequest(f"{key} can not be updated through network protocol")
        elif len(values) != 1 or (values[0] != "-1" and read_digits(values[0], MOST) is None):
            raise InvalidRequest(f"{key} must be one number from -1 to {MOST}, got {', '.join(map(quoted, values))}")

    def record(
        self,
        model: str,
        version: int,
        request_id: str,
        started: int,
        read: int,
        timing: RequestTiming | None,
        ended: int,
    ) -> None:
        """Trace one answered request, if it is its turn; times are in nanoseconds."""
        if not self.active:
            return
        if self.spans is not None:
            self.spans.answered(model, version, request_id, read, timing)
        settings = {**self._server, **self._models.get(model, {})}
        if TIMESTAMPS not in settings["trace_level"]:
            return
        seen = self._seen[model] = self._seen.get(model, 0) + 1
        left = int(settings["trace_count"][0])
        if seen % max(1, int(settings["trace_rate"][0])) or left == 0:
            return
        if left > 0:
            (self._models[model] if "trace_count" in self._models.get(model, {}) else self._server)["trace_count"] = [
                str(left - 1)
            ]
        self._traced += 1
        stamps = [("REQUEST_START", started)]
        if timing is not None:
            begun = read + timing.queue
            stamps += [("QUEUE_START", read), ("COMPUTE_START", begun), ("COMPUTE_END", begun + timing.infer)]
        stamps.append(("REQUEST_END", ended))
        head = {"id": self._traced, "model_name": model, "model_version": version, "request_id": request_id[:200]}
        times = {"id": self._traced, "timestamps": [{"name": name, "ns": ns} for name, ns in stamps]}
        lines = [json.dumps(head), json.dumps(times)]
        if self._file is None:
            for line in lines:
                log.info("trace %s", line)
        else:
            self._file.write("".join(f"{line}\n" for line in lines))

    async def close(self) -> None:
        """Write what was traced, at the end of the server."""
        if self._file is not None:
            await self._file.close()


def _defaults(file: Path | None) -> Settings:
    return {
        "trace_mode": ["triton"],
        "trace_level": [OFF],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [str(file) if file else ""],
    }

"""How long a served network takes to answer, and how much CPU time of the server an answer costs.

Measured is the time from sending a request until its answer has come, over the loopback interface of one machine, by
the load generator of ``normfold bench`` (``normfold.serving.load``): a closed loop, in which N requests are on their
way at any time and the next one leaves when one is answered. A closed loop slows down with the server, so its latencies
are those of N patient clients, and not those under arrivals at a fixed rate. The requests are prepared bytes: the time
of a client library is not in the figures.

The comparison is the same onnxruntime session in this process, on the same input, one run after the other, timed by the
same load generator: the difference is the cost of serving.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.calls import infer_request
from normfold.serving.load import processes
from normfold.serving.load.calls import Calls, Ended, UnaryCalls
from normfold.serving.load.generator import Load, Slice, run
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

Array = NDArray[np.float32]


class SessionCalls:
    """A model in this process, as a server of the load generator: each call is one run of its session."""

    def __init__(self, model_file: Path, x: Array) -> None:
        # One thread, as a server chooses for a small model.
        self._session = Session(model_file.read_bytes(), Device("cpu"), SessionSettings())
        self._outputs = [self._session.outputs[0].name]
        self._x = x
        self._waiting: list[int] = []
        (self.answer,) = self._run()

    def _run(self) -> list[NDArray[Any]]:
        return self._session.run({"x": self._x}, self._outputs)

    def send(self, number: int) -> None:
        """Make a call; it runs with the next ``wait``."""
        self._waiting.append(number)

    def wait(self, seconds: float) -> Ended:
        """Run the oldest call that waits."""
        if not self._waiting:
            return []
        (self.answer,) = self._run()
        return [(self._waiting.pop(0), "OK")]

    def close(self) -> None:
        """Do nothing: there is no connection to close."""


def served_calls(address: str, model: str, x: Array) -> UnaryCalls:
    """Calls of a server with input ``x``, on one connection."""
    return UnaryCalls(address, [infer_request(model, {"x": x}, None, "", "").SerializeToString()])


def measure(calls: Calls, in_flight: int, seconds: float, pid: int | None = None) -> Slice:
    """Load a server in a closed loop and return what was measured; ``pid`` is its process, for its CPU time.

    Raises ValueError where a request failed.
    """
    cpu = (lambda: None) if pid is None else (lambda: processes.cpu_seconds([pid]))
    try:
        found = run(calls, Load(in_flight=in_flight), seconds, cpu)
    finally:
        calls.close()
    if found.errors:
        raise ValueError(f"requests failed: {', '.join(f'{n} {status}' for status, n in found.errors.items())}")
    return found


async def answers(address: str, model: str, x: Array, in_flight: int) -> list[Array]:
    """Ask a server ``in_flight`` times at once and return its answers."""
    async with AsyncClient(address) as client:
        found = await asyncio.gather(*(client.infer(model, {"x": x}) for _ in range(in_flight)))
    return [next(iter(answer.values())) for answer in found]

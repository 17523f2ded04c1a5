"""When a load is tried again that failed for a reason that may pass, and what the log says of it."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

#: The pause before a load is tried again. It doubles with each failure, up to the longest one, in seconds.
FIRST_SECONDS, LONGEST_SECONDS = 10.0, 300.0

#: A load that takes long, such as one that runs out of time, is tried again after this many times its time.
TIMES_LOAD = 10


@dataclass
class _Failed:
    failures: int
    #: When it is tried again, by time.monotonic.
    due: float
    #: Why it failed.
    reason: str


class Pauses:
    """The models whose loads are tried again; used on the event loop."""

    def __init__(self) -> None:
        self._models: dict[str, _Failed] = {}

    @property
    def names(self) -> set[str]:
        """The names of these models."""
        return {*self._models}

    def due(self, names: Collection[str], now: bool) -> list[str]:
        """Those of ``names``, which have failed, whose pause is over; all of them if somebody wants it ``now``."""
        for name in names:
            if name not in self._models:
                self.failed(name, 0.0, "")
        return sorted(name for name in names if now or self._models[name].due <= time.monotonic())

    def failed(self, name: str, seconds: float, reason: str) -> bool:
        """Note that a load failed after ``seconds``; whether it failed for another reason than before."""
        before = self._models.get(name, _Failed(0, 0.0, ""))
        pause = max(min(FIRST_SECONDS * 2**before.failures, LONGEST_SECONDS), TIMES_LOAD * seconds)
        failures = before.failures + 1 if pause < LONGEST_SECONDS else before.failures
        self._models[name] = _Failed(failures, time.monotonic() + pause, reason)
        return reason != before.reason

    def forget(self, name: str) -> None:
        """It was loaded, or it has failed for a reason that lies in its files, or its files are others now."""
        self._models.pop(name, None)

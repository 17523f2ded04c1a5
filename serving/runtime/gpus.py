"""One model on several GPUs: how many instances run on each GPU, and a session for each GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from normfold.protos import model_config as mc
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.stop import Stop

Array = NDArray[Any]


def instances(groups: Iterable[mc.ModelInstanceGroup], default: int) -> dict[int, int]:
    """GPU -> number of instances on it, as ``groups`` say; ``default`` is the GPU of a group that names none.

    As in Triton, ``count`` is for each GPU that a group names.
    """
    counts: dict[int, int] = {}
    for group in groups:
        for gpu in group.gpus or (default,):
            counts[gpu] = counts.get(gpu, 0) + (group.count or 1)
    return counts or {default: 1}


class Sessions:
    """A session on each of several GPUs, with its number of instances; a run goes to the least busy GPU."""

    def __init__(self, sessions: Sequence[tuple[Session, int]]) -> None:
        self._sessions = tuple(sessions)
        self._running = [0] * len(sessions)
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """The outputs named in ``outputs``, from the session with the smallest share of its instances in use.

        ``stop`` ends the run early. Raises what the session raises.
        """
        with self._lock:
            shares = [running / count for running, (_, count) in zip(self._running, self._sessions, strict=True)]
            chosen = shares.index(min(shares))
            self._running[chosen] += 1
        try:
            return self._sessions[chosen][0].run(feeds, outputs, stop=stop)
        finally:
            with self._lock:
                self._running[chosen] -= 1

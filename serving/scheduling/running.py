"""Runs, which can be ended early: because nobody waits for the answer any more, or because the server stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Run = Callable[[Mapping[str, NDArray[Any]], Sequence[str]], list[NDArray[Any]]]
#: Makes the function for one run, and a function for any thread that ends this run early.
Stoppable = Callable[[], tuple[Run, Callable[[], None]]]


@dataclass(frozen=True)
class Ran:
    """One run: the answer to each job of its batch, and how long the parts of the run took."""

    answers: list[list[NDArray[Any]] | Exception]
    rows: int
    input_ns: int
    infer_ns: int
    output_ns: int
    started_ns: int
    #: The outputs that do not have the rows of the inputs, so that they cannot be divided among the requests.
    odd: frozenset[str] = frozenset()


class Mark(Protocol):
    """A request that somebody follows through the queue."""

    def ran(self, run: Ran, others: Sequence[Mark]) -> None:
        """It was answered by ``run``, together with ``others``; called for the first followed request of a batch."""
        ...


#: The request that the running code answers, if somebody follows it.
MARK: ContextVar[Mark | None] = ContextVar("mark", default=None)


class Running:
    """A run on another thread; ``stop`` ends it early."""

    __slots__ = ("_waiting", "run", "stop")

    def __init__(self, run: Run, stop: Callable[[], None], waiting: int) -> None:
        """``waiting`` is the number of requests in the run."""
        self.run, self.stop, self._waiting = run, stop, waiting

    def left(self) -> None:
        """One of the requests does not wait for its answer any more; the last one to leave stops the run."""
        self._waiting -= 1
        if not self._waiting:
            self.stop()


def unstoppable(run: Run) -> Stoppable:
    """``run``, which cannot be ended early."""
    return lambda: (run, _nothing)


def _nothing() -> None:
    pass

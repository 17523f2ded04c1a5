"""Ends a run of onnxruntime from another thread, before its next node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
Answers = list[NDArray[Any]]


class Stop:
    """Ends one run, which may consist of several of onnxruntime's; may be called from any thread."""

    def __init__(self) -> None:
        self.called = False
        self._options: ort.RunOptions | None = None

    def __call__(self) -> None:
        """End the run under way, and those that still belong to it."""
        self.called = True
        if self._options is not None:
            self._options.terminate = True

    def attached(self, options: ort.RunOptions | None) -> ort.RunOptions:
        """``options``, or new ones, for the next run of onnxruntime."""
        options = options or ort.RunOptions()
        self._options = options
        if self.called:
            options.terminate = True
        return options


class StoppableRun(Protocol):
    """A run that takes a ``Stop``."""

    def __call__(self, feeds: Feeds, outputs: Sequence[str], *, stop: Stop | None = None) -> Answers:
        """The outputs named in ``outputs``."""
        ...


def stoppable(run: StoppableRun) -> Callable[[], tuple[Callable[[Feeds, Sequence[str]], Answers], Stop]]:
    """A function that makes ``run`` for one run, and what ends it."""

    def make() -> tuple[Callable[[Feeds, Sequence[str]], Answers], Stop]:
        stop = Stop()
        return (lambda feeds, outputs: run(feeds, outputs, stop=stop)), stop

    return make

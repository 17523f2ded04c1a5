"""The memory of all trials under way: together they have a bound, too.

Trials that take long go on beside each other. Each is expected to need some times the size of its files. The next one
begins when the others leave so much, so that loads without end, which need little, keep nobody waiting for memory. If
all together have more than the largest of their bounds nevertheless, the one that is farthest above what was expected
is ended; one that has no more than was expected never is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

#: The memory that a trial is expected to need: the process, and this many times the size of its files.
PROCESS_BYTES, TIMES_FILES = 128 << 20, 4


class TrialMemory:
    """The memory that the trials under way are expected to need, and have; used on any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: The bytes that each trial is expected to need, and those that it has.
        self._expected: dict[object, int] = {}
        self._has: dict[object, int] = {}
        #: The bytes that each trial and the others may have together.
        self._total: dict[object, int] = {}

    @contextlib.contextmanager
    def place(self, trial: object, file_bytes: int, total: int) -> Iterator[None]:
        """A place for ``trial`` in ``total`` bytes, as soon as the others leave one; one alone never waits."""
        expected = PROCESS_BYTES + TIMES_FILES * file_bytes
        with self._changed:
            self._changed.wait_for(lambda: not self._expected or self._needed() + expected <= total)
            self._expected[trial], self._has[trial], self._total[trial] = expected, 0, total
        try:
            yield
        finally:
            with self._changed:
                del self._expected[trial], self._has[trial], self._total[trial]
                self._changed.notify_all()

    def too_much(self, trial: object, resident: int) -> bool:
        """Whether ``trial``, which has ``resident`` bytes now, must end because several need too much together."""
        with self._changed:
            self._has[trial] = resident
            if len(self._has) == 1 or sum(self._has.values()) <= max(self._total.values()):
                return False
            worst = max(self._has, key=lambda each: self._has[each] - self._expected[each])
            return trial is worst and resident > self._expected[trial]

    def _needed(self) -> int:
        return sum(max(expected, self._has[trial]) for trial, expected in self._expected.items())

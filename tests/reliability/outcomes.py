"""What became of the requests of a load, and how that reads as a row of a table."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Outcomes:
    """Counts of requests and attempts. A request that is refused or cut is tried again; its attempts are counted."""

    #: Requests that the load began, and those that were answered with the right numbers.
    sent: int = 0
    right: int = 0
    #: Attempts that the server refused with UNAVAILABLE or RESOURCE_EXHAUSTED, or whose connection it did not accept.
    refused: int = 0
    #: Attempts whose connection ended under them.
    cut: int = 0
    #: A sentence for each request with a wrong answer, another status, or no answer in time.
    lost: list[str] = field(default_factory=list)
    #: The longest time between the start of a request and its right answer.
    longest_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count more of ``sent``, ``right``, ``refused`` or ``cut``."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def answered(self, seconds: float) -> None:
        """A request had its right answer after ``seconds``."""
        with self._lock:
            self.right += 1
            self.longest_seconds = max(self.longest_seconds, seconds)

    def lose(self, why: str) -> None:
        """A request is lost."""
        with self._lock:
            self.lost.append(why)

    def row(self) -> tuple[str, ...]:
        """The cells for ``COLUMNS``."""
        counts = (self.sent, self.right, self.refused, self.cut, len(self.lost))
        return (*(f"{count:,}" for count in counts), f"{self.longest_seconds:.2f} s")


COLUMNS = ("sent", "right", "refused", "cut", "lost", "longest wait")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown; all columns but the first are numbers.

    >>> print(table(("what", "sent"), [("a", "1")]))
    | what | sent |
    |---|---:|
    | a | 1 |
    """
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return "\n".join(
        "|" + "|".join(f" {cell} " if "---" not in cell else cell for cell in line) + "|" for line in lines
    )

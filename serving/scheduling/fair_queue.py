"""Requests that wait, taken by turns from the connections that they came on.

    connection a:  a1 a2 a3 ...        order: a1 b1 c1 a2 b2 a3 ...
    connection b:  b1 b2
    connection c:  c1

So a connection with one request never waits for more than one request of each other connection.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class FromConnection(Protocol):
    """Something that waits, and the connection that it came on."""

    @property
    def connection(self) -> object:
        """Equal for all that came on one connection."""
        ...


Item = TypeVar("Item", bound=FromConnection)


class FairQueue(Generic[Item]):
    """A line for each connection; lines take turns, and within a line the first comes first."""

    def __init__(self) -> None:
        #: The connection whose turn it is comes first.
        self._lines: OrderedDict[object, deque[Item]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        """All items in the order in which they are due."""
        turns = deque([iter(line) for line in self._lines.values()])
        while turns:
            line = turns.popleft()
            for item in line:
                yield item
                turns.append(line)
                break

    def append(self, item: Item) -> None:
        """Put ``item`` at the end of the line of its connection."""
        self._lines.setdefault(item.connection, deque()).append(item)
        self._size += 1

    def remove(self, item: Item) -> bool:
        """Take ``item`` out of its place; whether it was there."""
        line = self._lines.get(item.connection)
        if line is None:
            return False
        try:
            line.remove(item)  # at once for the first of the line, which is the ordinary case
        except ValueError:
            return False
        self._removed(item.connection, line)
        return True

    def take(self, item: Item) -> bool:
        """Take out ``item``, which is due, and let the other connections have their turn; whether it was there."""
        there = self.remove(item)
        if there and item.connection in self._lines:
            self._lines.move_to_end(item.connection)
        return there

    def _removed(self, connection: object, line: deque[Item]) -> None:
        self._size -= 1
        if not line:
            del self._lines[connection]


def displaced(queues: Sequence[FairQueue[Item]], connection: object) -> Item | None:
    """Take out the last item of the connection that has most, if it makes place for one that comes on ``connection``.

    None if ``connection`` would then have most itself. The items of each queue are due after those of the one before.
    """
    counts = Counter[object]()
    for queue in queues:
        counts.update({each: len(line) for each, line in queue._lines.items()})
    most = max(counts, key=counts.__getitem__, default=connection)
    if counts[most] <= counts[connection] + 1:
        return None
    last = next(queue for queue in reversed(queues) if most in queue._lines)
    line = last._lines[most]
    item = line.pop()
    last._removed(most, line)
    return item

"""Which requests may wait: refused at once is better than answered too late.

A request is *under way* from its arrival to its answer, unless it is answered on the event loop at once. Five bounds:

time       requests under way for a model x time for each (as its runs measure) <= ``seconds``
deadline   the same product <= half of the time that the caller still waits; only the requests that are answered before
           this one count, which are all, or one of each connection for each that its own has
requests   requests under way in the server <= ``requests``
bytes      bytes of these requests, with those that they name in shared memory and those that packed numbers and
           strings take once they are read, <= ``bytes``; a request that has such while no other does passes whatever
           they are, and counts so that at most half of the bytes are taken
connection how long the bytes of a request wait in its connection before it is answered at once <= half of ``seconds``

A longer queue answers nobody sooner, and costs memory and the deadlines of all that wait in it. FEW requests for each
model pass whatever their runs take: a queue for less than that would refuse the ordinary client of a slow model.

A connection may have at most TIMES as many requests (and bytes) under way as places are left free, and so may a model
in the server. So a single one gets 80 % of all places, two get 44 % each in the long run. As places become free, the
smaller shares get them first (the dynamic thresholds of Choudhury and Hahne, 1998). The places of one model are shared
out among its connections in the same way: a single connection gets 76 % of the server, and leaves some to the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from normfold.serving.errors import Overloaded

#: Requests under way for one model that are never too many, in full batches for each instance and at least.
FULL_BATCHES, FEW = 2, 128

#: A share may be this many times what is left free.
TIMES = 4

#: A request before which fewer were under way says nothing about the time for each: its wait is mostly chance.
TELLING = 16

#: The expected wait may be wrong by this factor before a request that was admitted misses its deadline.
MARGIN = 2

#: The shortest and longest time after which a refused caller may try again, in seconds.
SHORTEST_RETRY, LONGEST_RETRY = 0.02, 5.0


@dataclass(frozen=True)
class QueueLimits:
    """The bounds of one server process."""

    #: The longest time that a request should wait for its model, in seconds.
    seconds: float = 0.5
    #: Requests under way.
    requests: int = 8192
    #: Bytes of the requests under way.
    bytes: int = 512 << 20


@dataclass
class Share:
    """Requests under way, and their bytes."""

    requests: int = 0
    bytes: int = 0


@dataclass
class UnderWay(Share):
    """The requests under way in one place, and those of each connection among them."""

    of: dict[object, Share] = field(default_factory=dict)

    def own(self, connection: object) -> Share:
        """The share of a connection."""
        return self.of.get(connection, _NOTHING)

    def add(self, connection: object, size: int) -> None:
        """Count a request of ``size`` bytes."""
        share = self.of.get(connection)
        if share is None:
            share = self.of[connection] = Share()
        for each in (self, share):
            each.requests += 1
            each.bytes += size

    def end(self, connection: object, size: int) -> None:
        """The request has ended."""
        share = self.of[connection]
        for each in (self, share):
            each.requests -= 1
            each.bytes -= size
        self._forget_empty(connection, share)

    def grow(self, connection: object, size: int) -> None:
        """Requests that are counted already have ``size`` bytes more; less, if it is negative."""
        share = self.of.setdefault(connection, Share())
        for each in (self, share):
            each.bytes += size
        self._forget_empty(connection, share)

    def _forget_empty(self, connection: object, share: Share) -> None:
        if not share.requests and not share.bytes:
            del self.of[connection]


_NOTHING = Share()


class ModelLoad:
    """The requests under way for one version of a model, and how fast they are answered."""

    def __init__(self, instances: int = 1, batch_rows: int = 1) -> None:
        self.under_way = UnderWay()
        #: Requests under way that are never too many: now, and while requests run together.
        self.few = self._few_together = max(FEW, FULL_BATCHES * instances * batch_rows)
        self._instances = instances
        #: The time for each request by the runs alone, and by the waits of requests behind others; in seconds.
        self._by_runs, self._by_waits = 0.0, 0.0

    def ran(self, seconds: float, requests: int, runs: int = 1) -> None:
        """Learn from ``runs`` of requests that waited, which took ``seconds`` on their thread."""
        if requests > runs:
            self.few = self._few_together
        each = seconds / requests / self._instances
        self._by_runs += (each - self._by_runs) / 8 if self._by_runs else each

    def alone(self) -> None:
        """From now on requests run alone, until some run together again."""
        self.few = max(FEW, FULL_BATCHES * self._instances)

    def waited(self, seconds: float, behind: int) -> None:
        """Learn from a request that waited ``seconds`` for its run, with ``behind`` requests under way before it.

        A wait has all that a run has not: the event loop and other models take time, too.
        """
        each = seconds / behind if behind >= TELLING else 0.0
        self._by_waits += (each - self._by_waits) / 8

    @property
    def seconds_each(self) -> float:
        """The time for each request while the model is busy, in seconds; 0: not known, or too short to matter."""
        return max(self._by_runs, self._by_waits)

    @property
    def wait_seconds(self) -> float:
        """The expected wait of a request that comes now."""
        return self.under_way.requests * self.seconds_each

    def is_late(self, own: Share, left_seconds: float) -> bool:
        """Whether a request behind ``own`` of the same connection may be answered after ``left_seconds``.

        Connections take turns: it waits for one request of each of them in each of its turns, but for no more than all.
        The others may go on asking; then it waits for all of these turns.
        """
        lines = len(self.under_way.of)
        wait = min(self.under_way.requests, (own.requests + 1) * lines) * MARGIN
        return max(wait, own.requests * lines) * self.seconds_each > left_seconds

    def most(self, seconds: float) -> int:
        """The requests under way that keep the wait within ``seconds``, and at least ``few``."""
        return max(self.few, int(seconds / self.seconds_each))


class Admission:
    """The door of one server process: everything that waits has passed it."""

    def __init__(self, limits: QueueLimits | None = None) -> None:
        self.limits = QueueLimits() if limits is None else limits
        self.under_way = UnderWay()
        #: What requests under way have more, by ``more``.
        self._more = 0
        #: Requests that ever passed.
        self.entered = 0

    def work(self) -> tuple[int, int]:
        """The requests that ever passed, and those of them that are under way."""
        return self.entered, self.under_way.requests

    def refusal(
        self, load: ModelLoad | None, connection: object, size: int, left_seconds: float | None
    ) -> Overloaded | None:
        """The reason why a request of ``size`` bytes may not wait for its model; None: it may.

        ``load`` is that of the model, None if the model is not known yet; ``left_seconds`` is the time until the caller
        gives up.
        """
        # ``room`` is negative where the request does not fit: then a connection that has nothing is refused, too.
        total, own, limits = self.under_way, self.under_way.own(connection), self.limits
        places, room = TIMES * (limits.requests - total.requests), TIMES * (limits.bytes - total.bytes - size)
        if own.requests >= places:
            return _overloaded("too many requests are under way in this server", load)
        if total.bytes and own.bytes > room:  # the first may be of any size
            return _overloaded("requests of too many bytes are under way in this server", load)
        if load is None:
            return None
        model = load.under_way
        mine = model.own(connection)
        if mine.requests >= TIMES * (places - model.requests):
            return _overloaded("too many requests are under way for this model", load)
        if model.bytes and mine.bytes > TIMES * (room - model.bytes):
            return _overloaded("requests of too many bytes are under way for this model", load)
        if not load.seconds_each:
            return None
        if mine.requests >= TIMES * (load.most(limits.seconds) - model.requests):
            return _overloaded("too many requests are under way for this model", load)
        if left_seconds is not None and load.is_late(mine, left_seconds):
            return _overloaded("the answer would come after the deadline", load)
        return None

    def late(self, waited_seconds: float) -> Overloaded | None:
        """The reason why a request may not even run at once, after its bytes ``waited_seconds``; None: it may.

        They may have waited as long again before they were read.
        """
        if waited_seconds <= self.limits.seconds / 2:
            return None
        wait = min(waited_seconds, LONGEST_RETRY)
        return Overloaded("overloaded: requests wait too long in this server, try again later", wait)

    def enter(self, load: ModelLoad | None, connection: object, size: int) -> None:
        """Count a request without a ``refusal``; its end must call ``leave`` with the same arguments."""
        self.entered += 1
        self.under_way.add(connection, size)
        if load is not None:
            load.under_way.add(connection, size)

    @contextlib.contextmanager
    def more(self, load: ModelLoad, connection: object, size: int) -> Iterator[None]:
        """Meanwhile a request that was counted by ``enter`` has ``size`` bytes more: in shared memory, or unpacked.

        How many they are shows when the request is read. Raises Overloaded.
        """
        total, own, model = self.under_way, self.under_way.own(connection), load.under_way
        room, counted = TIMES * (self.limits.bytes - total.bytes - size), size
        if not self._more:  # one alone may be of any size; it leaves room for what comes meanwhile
            counted = min(size, max(0, self.limits.bytes // 2 - total.bytes))
        elif own.bytes > room:
            raise _overloaded("requests of too many bytes are under way in this server", load)
        elif model.requests > 1 and model.bytes > room:
            raise _overloaded("requests of too many bytes are under way for this model", load)
        self._more += size
        for place in (total, model):
            place.grow(connection, counted)
        try:
            yield
        finally:
            self._more -= size
            for place in (total, model):
                place.grow(connection, -counted)

    def leave(self, load: ModelLoad | None, connection: object, size: int) -> None:
        """Count the end of a request."""
        self.under_way.end(connection, size)
        if load is not None:
            load.under_way.end(connection, size)


def _overloaded(why: str, load: ModelLoad | None) -> Overloaded:
    """The refusal; its text has no numbers, so that it is written and encoded once for many."""
    wait = SHORTEST_RETRY if load is None else min(max(load.wait_seconds, SHORTEST_RETRY), LONGEST_RETRY)
    return Overloaded(f"overloaded: {why}, try again later", wait)

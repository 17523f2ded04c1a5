"""Two ways to load a server.

Closed loop: N calls are in flight at any time; when one ends, the next is sent. The load slows down with the server, so
it shows the latency for N patient clients, not for requests that arrive at a rate of their own.

Open loop: calls are sent at even intervals whatever the server does, and a latency counts from the moment at which the
call was *meant* to be sent. A server that stops for a second is charged with every call that should have been sent in
that second (to charge it with only one of them is Tene's "coordinated omission").
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from normfold.serving.load.calls import Calls
from normfold.serving.load.histogram import Histogram

#: The time at the beginning of each slice that is not measured, in seconds: the load builds up, and caches fill.
RAMP_SECONDS = 0.15
#: A call without an answer this long after the last call was sent counts as unanswered, in seconds.
DRAIN_SECONDS = 10.0

#: No two calls of a process have the same number, so an answer that comes too late is taken for no other call.
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Load:
    """How many calls a server gets: exactly one of the two is set."""

    #: Calls in flight at any time (closed loop).
    in_flight: int = 0
    #: Calls each second (open loop).
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.rate:g}/s" if self.rate else str(self.in_flight)


@dataclass
class Slice:
    """The measurement of one load on one server, without interruption."""

    #: In nanoseconds: of calls answered with OK the latency, of calls that were given up the time until then.
    latencies: Histogram = field(default_factory=Histogram)
    #: Calls answered with OK.
    answered: int = 0
    #: Calls that failed, by status.
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    #: CPU time of the server's processes; None if they are not known.
    cpu_seconds: float | None = None

    @property
    def calls(self) -> int:
        """All calls, answered or failed."""
        return self.answered + self.errors.total()

    @property
    def per_second(self) -> float:
        """Answered calls each second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float | None:
        """CPU time of the server for each call, in microseconds."""
        return None if self.cpu_seconds is None or not self.calls else self.cpu_seconds / self.calls * 1e6

    def milliseconds(self, percent: float) -> float:
        """A percentile of the latencies."""
        return self.latencies.percentile(percent) / 1e6

    def count(self, latency_ns: int, status: str, times: list[int]) -> None:
        """Count one call that ended; its latency goes to ``times`` if it was answered."""
        if status == "OK":
            self.answered += 1
            times.append(latency_ns)
        else:
            self.errors[status] += 1


def run(calls: Calls, load: Load, seconds: float, cpu: Callable[[], float | None] = lambda: None) -> Slice:
    """Load the server for ``seconds`` after a short ramp; ``cpu`` reads the CPU time of its processes so far."""
    return _open(calls, load.rate, seconds, cpu) if load.rate else _closed(calls, load.in_flight, seconds, cpu)


def merged(slices: Iterable[Slice]) -> Slice:
    """All of ``slices`` as one."""
    total = Slice(cpu_seconds=0.0)
    for one in slices:
        total.latencies += one.latencies
        total.answered += one.answered
        total.errors += one.errors
        total.seconds += one.seconds
        known = total.cpu_seconds is not None and one.cpu_seconds is not None
        total.cpu_seconds = (total.cpu_seconds or 0.0) + (one.cpu_seconds or 0.0) if known else None
    return total


def _closed(calls: Calls, in_flight: int, seconds: float, cpu: Callable[[], float | None]) -> Slice:
    now = time.perf_counter_ns
    sent: dict[int, int] = {}
    found, times = Slice(), list[int]()
    for _ in range(in_flight):
        number = next(_NUMBERS)
        sent[number] = now()
        calls.send(number)
    ramp_end, end = now() + int(RAMP_SECONDS * 1e9), 0
    begin, before = 0, cpu()
    while True:
        ended = calls.wait(1.0)
        at = now()
        if end and at >= end:
            break
        for one, status in ended:
            if one not in sent:
                continue  # this call was given up in the slice before
            found.count(at - sent.pop(one), status, times)
            number = next(_NUMBERS)
            sent[number] = at
            calls.send(number)
        if not end and at >= ramp_end:  # calls that end from here on are measured
            found, times = Slice(), []
            before = cpu()
            begin = now()
            end = begin + int(seconds * 1e9)
    found.seconds, found.cpu_seconds = (at - begin) / 1e9, _difference(before, cpu())
    found.latencies.add(times)
    waiting = set(sent) - {one for one, _ in ended}
    given_up = time.perf_counter() + DRAIN_SECONDS
    while waiting and time.perf_counter() < given_up:  # the next slice begins with an idle server
        waiting -= {one for one, _ in calls.wait(0.1)}
    return found


def _open(calls: Calls, rate: float, seconds: float, cpu: Callable[[], float | None]) -> Slice:
    now = time.perf_counter_ns
    gap, ramp = 1e9 / rate, int(RAMP_SECONDS * rate)
    total = ramp + max(int(seconds * rate), 1)
    found, times = Slice(), list[int]()
    before, made = cpu(), 0
    meant: dict[int, float] = {}  # number -> when the call was meant to be sent; calls of the ramp too
    begin = last = now()
    measured_from = begin + ramp * gap
    while made < total or meant:
        at = now()
        while made < total and at >= begin + made * gap:
            if made == ramp:
                before = cpu()
            number = next(_NUMBERS)
            meant[number] = begin + made * gap
            calls.send(number)
            made, last = made + 1, at
        if made == total and at > last + DRAIN_SECONDS * 1e9:
            break
        ended = calls.wait(max((begin + made * gap - now()) / 1e9, 0.0) if made < total else 0.1)
        at = now()
        for one, status in ended:
            left = meant.pop(one, None)
            if left is not None and left >= measured_from:
                found.count(int(at - left), status, times)
    at = now()
    for left in meant.values():
        if left >= measured_from:  # its latency is the time so far: a server that loses calls must not look fast
            times.append(int(at - left))
            found.errors["unanswered"] += 1
    found.seconds, found.cpu_seconds = (at - measured_from) / 1e9, _difference(before, cpu())
    found.latencies.add(times)
    return found


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before

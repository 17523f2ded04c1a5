"""Replicas as queues: what theory says of the simplest cases, and a simulation of the others.

Each replica answers one request at a time, in the order in which they came. Requests come at random times (a Poisson
process), and a balancer sends each to a replica:

random   to any replica, as many clients that each keep one connection do
two      to that of two random replicas which has fewer requests: Envoy's LEAST_REQUEST
shared   to whichever replica is free first: no balancer can do better
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

POLICIES = ("random", "two", "shared")
#: Draws this many service times, in seconds.
Service = Callable[[np.random.Generator, int], NDArray[np.float64]]


def wait_md1(load: float, seconds: float) -> float:
    """The mean wait, in seconds, for one replica whose every answer takes ``seconds``: ρ·s / (2·(1 − ρ)).

    ``load``: the part of its time that it works, ρ. Source: Pollaczek and Khinchine's formula without variance.

    >>> wait_md1(0.5, 1.0)
    0.5
    """
    return load * seconds / (2 * (1 - load))


def wait_mmc(load: float, seconds: float, replicas: int) -> float:
    """The mean wait, in seconds, in one queue before ``replicas`` with exponential times: Erlang's formula C.

    C(c, a) · s / (c − a) with a = ρ·c, and C from Erlang's B by its recursion.

    >>> wait_mmc(0.5, 1.0, 1)
    1.0
    """
    work = load * replicas
    blocked = 1.0
    for count in range(1, replicas + 1):
        blocked = work * blocked / (count + work * blocked)
    waits = blocked / (1 - load * (1 - blocked))
    return waits * seconds / (replicas - work)


def exponential(seconds: float) -> Service:
    """Service times with an exponential distribution of this mean."""
    return lambda chance, count: chance.exponential(seconds, count)


def constant(seconds: float) -> Service:
    """Service times that are all the same."""
    return lambda chance, count: np.full(count, seconds)


def waits(
    policy: str, replicas: int, load: float, service: Service, requests: int, seed: int = 0
) -> NDArray[np.float64]:
    """The wait of each request before a replica begins with it, in seconds; the first fifth is left out.

    ``load``: the part of their time that the replicas work. ``policy``: one of POLICIES.
    """
    chance = np.random.default_rng(seed)
    times = service(chance, requests)
    arrivals = np.cumsum(chance.exponential(float(times.mean()) / (load * replicas), requests))
    found = np.empty(requests)
    if policy == "shared":
        free = [0.0] * replicas
        for number, (now, seconds) in enumerate(zip(arrivals.tolist(), times.tolist(), strict=True)):
            begin = max(now, heapq.heappop(free))
            found[number] = begin - now
            heapq.heappush(free, begin + seconds)
        return found[requests // 5 :]
    one, other = (chance.integers(0, replicas, requests).tolist() for _ in range(2))
    until, held = [0.0] * replicas, [0] * replicas
    ends: list[tuple[float, int]] = []
    for number, (now, seconds) in enumerate(zip(arrivals.tolist(), times.tolist(), strict=True)):
        while ends and ends[0][0] <= now:
            held[heapq.heappop(ends)[1]] -= 1
        to = one[number]
        if policy == "two" and held[other[number]] < held[to]:
            to = other[number]
        begin = max(now, until[to])
        found[number] = begin - now
        until[to] = begin + seconds
        held[to] += 1
        heapq.heappush(ends, (until[to], to))
    return found[requests // 5 :]

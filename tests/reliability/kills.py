"""Processes that are killed or asked to stop at random moments while clients ask."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.reliability.load import Load
from tests.reliability.outcomes import Outcomes
from tests.reliability.servers import ServerProcess
from tests.waiting import wait_until

#: What may be lost at SIGTERM and in a flood, by frontend, because it cannot be prevented from Python: gRPC's library
#: ends calls that it has not handed to Python when it shuts down, or when too many wait, with CANCELLED instead of
#: UNAVAILABLE.
KNOWN_LOSSES = {"http2": set[str](), "grpcio": {"CANCELLED: CANCELLED"}}
#: The largest part of all requests that may be lost so: they are the few that are under way at that moment.
MOST_LOST = 0.1

#: Right answers between two signals, and the mean pause of a client between two requests.
BETWEEN, PAUSE_SECONDS = 40, 0.01
#: A signal comes at a random time within this many seconds after them.
MOMENT_SECONDS = 0.3


def surprises(outcomes: Outcomes, frontend: str) -> list[str]:
    """What was lost and is not known for ``frontend``; all of it where more was lost than a few."""
    if len(outcomes.lost) > MOST_LOST * outcomes.sent:
        return outcomes.lost
    return [why for why in outcomes.lost if why not in KNOWN_LOSSES[frontend]]


def signal_workers(server: ServerProcess, times: int, number: int, seed: int = 0) -> Outcomes:
    """One of the workers gets the signal ``number``, ``times`` times; each time another takes its place."""
    chance = random.Random(seed)
    with Load(server.address, clients=6, pause_seconds=PAUSE_SECONDS) as load:
        for _ in range(times):
            load.wait_for(BETWEEN)
            time.sleep(chance.random() * MOMENT_SECONDS)
            before = server.workers
            victim = chance.choice(before)
            os.kill(victim, number)
            wait_until(lambda before=before, victim=victim: len(set(server.workers) - {victim}) == len(before))
        load.wait_for(BETWEEN)
    return load.outcomes


def signal_server(server: ServerProcess, times: int, number: int, seed: int = 0) -> tuple[ServerProcess, Outcomes]:
    """The whole server gets the signal ``number``, ``times`` times, and is started again; the last one that started.

    Raises AssertionError when a server that was asked to stop does not end with 0, or leaves a process behind.
    """
    chance = random.Random(seed)
    with Load(server.address, pause_seconds=PAUSE_SECONDS) as load:
        for _ in range(times):
            load.wait_for(BETWEEN)
            time.sleep(chance.random() * MOMENT_SECONDS)
            listening = server.workers
            server.signal(number)
            code = server.wait()
            assert code == (0 if number == signal.SIGTERM else -number), server.printed
            wait_until(lambda pids=listening: not any(Path(f"/proc/{pid}").exists() for pid in pids))
            server = server.again()
            try:
                server.wait_ready()
            except AssertionError:
                server.kill()
                raise
        load.wait_for(BETWEEN)
    return server, load.outcomes

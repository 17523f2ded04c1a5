"""A server that is started, asked, and stopped, many times: how each one ended."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from tests.reliability.load import Load
from tests.reliability.outcomes import Outcomes
from tests.reliability.servers import ServerProcess

#: When the signal comes: while Python and libraries are read, or once the server is ready and was asked.
EARLY_SECONDS = 2.0
REQUESTS = 3


@dataclass
class Starts:
    """How the servers ended, by a few words; what one that ended in another way has printed."""

    ends: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    outcomes: Outcomes = field(default_factory=Outcomes)


def start_often(
    repository: Path,
    times: int,
    options: tuple[tuple[str, ...], ...],
    note: Callable[[str], None],
    seconds: float = 1e9,
    seed: int = 0,
) -> Starts:
    """Start a server ``times`` times, with each of ``options`` in turn; every fifth gets its signal at a random moment.

    No server is started after ``seconds``. ``note`` gets a line for each. A server that is ready is asked and must end
    with 0 and the word "stopped" at SIGTERM; one that is stopped before that ends in the same way, or by the signal if
    Python had not begun to run our code.
    """
    chance = random.Random(seed)
    found = Starts()
    end_of_time = time.monotonic() + seconds
    for number in range(times):
        if time.monotonic() > end_of_time:
            break
        chosen = options[number % len(options)]
        server = ServerProcess(repository, *chosen)
        try:
            early = number % 5 == 4
            end = _stopped_early(server, chance) if early else _asked_and_stopped(server, found)
        except (AssertionError, grpc.RpcError) as error:
            end = f"odd: {error}"
        finally:
            server.kill()
        found.ends[end.partition("\n")[0] if not end.startswith("odd") else "odd"] += 1
        if end.startswith("odd"):
            found.odd.append(f"start {number}, {' '.join(chosen)}: {end}; it printed {server.printed!r}")
        note(f"{number} {' '.join(chosen)}: {end}")
    return found


def _stopped_early(server: ServerProcess, chance: random.Random) -> str:
    time.sleep(chance.random() * EARLY_SECONDS)
    if server.has_ended:
        return f"odd: it ended by itself with {server.wait()}"
    server.signal(signal.SIGTERM)
    code = server.wait()
    if code == -signal.SIGTERM and not server.lines:
        return "by SIGTERM, before Python ran our code"
    if code == 0 and server.lines[-1] == "stopped":
        return 'with 0 and "stopped", during the start'
    return f"odd: it ended with {code} during the start"


def _asked_and_stopped(server: ServerProcess, found: Starts) -> str:
    server.wait_ready()
    with Load(server.address, clients=1) as load:
        load.wait_for(REQUESTS)
    found.outcomes.add(sent=load.outcomes.sent, right=load.outcomes.right)
    found.outcomes.lost += load.outcomes.lost
    server.signal(signal.SIGTERM)
    code = server.wait()
    if code == 0 and server.lines[-1] == "stopped":
        return 'with 0 and "stopped", after it was ready'
    return f"odd: it ended with {code}"

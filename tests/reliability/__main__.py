"""The long form: every kind of harm many times, on both frontends, and the table of docs/reliability.md.

python -m tests.reliability [--times 100] [--starts 1000] [--only NAME] [--log FILE] [--write]
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benches.machine import machine
from tests.reliability import disks
from tests.reliability.clients import FLOODS, SLOW_AND_VANISHING, harmed
from tests.reliability.kills import signal_server, signal_workers, surprises
from tests.reliability.outcomes import COLUMNS, Outcomes, table
from tests.reliability.page import write_section
from tests.reliability.progress import Progress
from tests.reliability.reloads import damage_files, swap_versions
from tests.reliability.servers import lasting_address, serving, write_repository
from tests.reliability.starts import Starts, start_often

from normfold.serving.frontends import FRONTENDS

#: What is done to a server; it gets a folder, the frontend and how often, and gives the counts and a remark.
Kind = Callable[[Path, str, int], tuple[Outcomes, str]]
TWO = ("--workers", "2")


def _workers(number: int) -> Kind:
    def kind(folder: Path, frontend: str, times: int) -> tuple[Outcomes, str]:
        with serving(write_repository(folder), "--frontend", frontend, *TWO) as server:
            return signal_workers(server, times, number), f"{times} signals"

    return kind


def _server(number: int) -> Kind:
    def kind(folder: Path, frontend: str, times: int) -> tuple[Outcomes, str]:
        with serving(write_repository(folder), "--frontend", frontend, listen=lasting_address()) as server:
            last, outcomes = signal_server(server, times, number)
            last.kill()
            return outcomes, f"{times} signals"

    return kind


def _swaps(folder: Path, frontend: str, times: int) -> tuple[Outcomes, str]:
    repository = write_repository(folder)
    with serving(repository, "--frontend", frontend) as server:
        return swap_versions(server, repository, 10 * times), f"{10 * times} versions"


def _damage(folder: Path, frontend: str, times: int) -> tuple[Outcomes, str]:
    repository = write_repository(folder)
    with serving(repository, "--frontend", frontend) as server:
        found = damage_files(server, repository, 10 * times)
        files = f"{found.refused + found.loaded} files: {found.refused} refused, {found.loaded} the same model still"
        return found.outcomes, files


def _clients(kinds: tuple[Callable[..., None], ...]) -> Kind:
    def kind(folder: Path, frontend: str, times: int) -> tuple[Outcomes, str]:
        with serving(write_repository(folder), "--frontend", frontend) as server:
            return harmed(server, kinds, 5 * times), f"{5 * times * len(kinds)} clients of {len(kinds)} kinds"

    return kind


def _disk(folder: Path, frontend: str, times: int) -> tuple[Outcomes, str]:
    if why := disks.why_not():
        return Outcomes(), f"not run: {why}"
    repository = write_repository(folder / "repository")
    server, outcomes = disks.on_a_full_disk(folder, repository, 50 * times, "--frontend", frontend, "--workers", "1")
    server.signal(signal.SIGTERM)
    code = server.wait()
    if code:
        outcomes.lose(f"the server ended with {code}")
    return outcomes, "log, cache and traces on a full tmpfs"


KINDS: dict[str, Kind] = {
    "kill -9 of a worker, of 2": _workers(signal.SIGKILL),
    "SIGTERM to a worker, of 2": _workers(signal.SIGTERM),
    "kill -9 of the server": _server(signal.SIGKILL),
    "SIGTERM to the server": _server(signal.SIGTERM),
    "a new version, the old one deleted": _swaps,
    "truncated and flipped files": _damage,
    "slow and vanishing clients": _clients(SLOW_AND_VANISHING),
    "floods": _clients(FLOODS),
    "a full disk": _disk,
}

ABOUT = """`make chaos` writes this section: {times} rounds of each kind of harm for each frontend, while 4 to 6 good
clients ask all the time. {machine} {date}.

*Sent* counts requests, and *right* those that were answered with exactly the right numbers. A good client tries a
request again if it was *refused* (UNAVAILABLE, RESOURCE_EXHAUSTED, or no connection) or *cut* (the connection ended
during the call, which cannot be avoided where a process is killed). A request is *lost* if its answer was wrong, if it
ended with any other status, or if it got no answer within 60 s. *Longest wait* is the longest time that a good client
waited for a right answer, with all its attempts. The clients and the harm share the CPUs with the server.

{table}

With grpcio a call can be lost that gRPC's library has not handed to Python when the server shuts down, or when too many
calls wait: the library ends it with CANCELLED, and clients do not try such a call again. This cannot be prevented from
Python. With `--frontend http2` it does not happen.

{starts}
"""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--start-minutes", type=float, default=1e6, help="no server is started after this time")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--log", type=Path, default=Path("build/chaos.log"), help="how each start ended")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    chosen = parser.parse_args()
    rows, lost, starts = [], [], Starts()
    for name, kind in KINDS.items():
        for frontend in FRONTENDS if chosen.only in name else ():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.monotonic()
                try:
                    outcomes, remark = kind(Path(folder), frontend, chosen.times)
                except AssertionError as error:
                    lost.append(f"{name}, {frontend}: {error}")
                    rows.append((f"{name}: not finished", frontend, *("" for _ in COLUMNS)))
                    continue
            rows.append((f"{name} ({remark})", frontend, *outcomes.row()))
            some_may_be = "SIGTERM" in name or name == "floods"
            found = surprises(outcomes, frontend) if some_may_be else outcomes.lost
            lost += [f"{name}, {frontend}: {why}" for why in found]
            print(*rows[-1], f"{time.monotonic() - begun:.0f} s", sep=" | ", flush=True)
            for why, count in Counter(outcomes.lost).most_common():
                print(f"    lost {count}: {why}", flush=True)
            if chosen.write:  # what is measured is kept, whatever comes
                write_section("Chaos", _text(chosen.times, rows, starts))
    starts = _start(chosen.starts, chosen.start_minutes, chosen.log)
    text = _text(chosen.times, rows, starts)
    print(text, *lost, *starts.odd, sep="\n")
    if chosen.write:
        write_section("Chaos", text)
    sys.exit(bool(lost or starts.odd))


def _text(times: int, rows: list[tuple[str, ...]], starts: Starts) -> str:
    return ABOUT.format(
        times=times,
        machine=machine(),
        date=datetime.date.today().isoformat(),
        table=table(("what", "frontend", *COLUMNS), rows),
        starts=describe(starts),
    )


def _start(times: int, minutes: float, path: Path) -> Starts:
    """Servers of each frontend, of one worker and of two."""
    options = tuple(("--frontend", frontend, "--workers", many) for frontend in FRONTENDS for many in ("1", "2"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, path.open("w", encoding="utf-8", buffering=1) as log:
        repository = write_repository(Path(folder))
        with Progress(sys.stderr) as progress:
            ended = itertools.count(1)

            def note(line: str) -> None:
                print(line, file=log)
                progress.show(f"{next(ended)} of {times} servers started and ended")

            return start_often(repository, times, options, note, 60 * minutes)


def describe(starts: Starts) -> str:
    """A sentence about how many servers were started, and a table of how they ended."""
    if not starts.ends:
        return ""
    total = sum(starts.ends.values())
    head = (
        f"{total:,} servers were started one after the other, with each frontend, and with one and two workers in "
        "turns. Four of five were asked once they were ready and then got SIGTERM; every fifth got it at a random "
        f"moment of its start. Of {starts.outcomes.sent:,} requests {len(starts.outcomes.lost)} were lost."
    )
    return f"{head}\n\n{table(('a server ended', 'times'), [(end, f'{n:,}') for end, n in starts.ends.most_common()])}"


if __name__ == "__main__":
    main()

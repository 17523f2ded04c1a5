"""The long form: a million of each kind by default, half of them to each frontend.

    python -m tests.fuzz [--cases 1000000] [--files 100000] [--seed 1] [--write]

A fault is printed with the bytes that show it, and is the end of the run with exit code 1.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from benches.machine import machine
from tests.fuzz.files import fuzz_configs, fuzz_models
from tests.fuzz.frames import fuzz_frames
from tests.fuzz.messages import INFER, bases, fuzz_messages, write_models
from tests.reliability.load import Load
from tests.reliability.outcomes import table
from tests.reliability.page import write_section
from tests.reliability.servers import serving

from normfold.serving.frontends import FRONTENDS

#: This many cases have one seed; after each such part the process shows how far it is.
BLOCK = 10_000
#: The number of model files per file that is loaded as by default, where another process tries the file first.
TRIED = 50
OPTIONS = ("--no-tune", "--log-level", "error")

#: Takes the number of cases and a seed; returns how often each end came, and a sentence for each fault.
Fuzz = Callable[[int, int], tuple[Counter[str], list[str]]]

ABOUT = """`make fuzz` writes this section. {machine} {date}.

Each case is drawn from a seed. *Messages* go to every unary method: drawn from their descriptors, or good ones with
fields or bytes changed; an answer of ModelInfer is compared with what the request asks for. *Connections* are good
conversations of HTTP/2 with frames changed, doubled, cut or put in, until the client's end; the server must end each.
*Model files* and *config.pbtxt* are loaded; each loads, or is refused with a sentence. A *fault* is a wrong answer, a
status that is not the caller's mistake, a connection that does not end within 20 s, a load that does not end within
60 s, or the end of the server. One good client asks all the time. Files are loaded with `--load-seconds 0`, so that
they reach the server itself; *tried first* are those that it loads as by default, in a process of their own.

{table}
"""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", type=int, default=1_000_000, help="messages and connections, for both frontends together"
    )
    parser.add_argument("--files", type=int, default=100_000, help="model files, and files config.pbtxt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    chosen = parser.parse_args()
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        for frontend in FRONTENDS:
            here = write_models(Path(folder) / frontend)
            # bad files reach the server itself: no load is tried in another process first
            with serving(here, "--frontend", frontend, "--load-seconds", "0", *OPTIONS) as server:
                for name, cases, fuzz in _kinds(server.address, here, chosen.cases // 2, chosen.files // 2):
                    rows.append(_row(server.address, name, frontend, cases, fuzz, chosen.seed, faults))
        here = write_models(Path(folder) / "tried")
        with serving(here, *OPTIONS) as server:
            cases = chosen.files // TRIED
            rows.append(
                _row(
                    server.address,
                    "model files, tried first",
                    FRONTENDS[0],
                    cases,
                    _models(server.address),
                    chosen.seed,
                    faults,
                )
            )
    text = ABOUT.format(
        machine=machine(),
        date=datetime.date.today().isoformat(),
        table=table(("what", "frontend", "cases", "faults", "how they ended"), rows),
    )
    print(text, *faults, sep="\n")
    if chosen.write:
        write_section("Fuzz", text)
    sys.exit(bool(faults))


def _kinds(address: str, repository: Path, cases: int, files: int) -> Iterator[tuple[str, int, Fuzz]]:
    """What one server is asked: a name, how many cases, and what makes them of their number and a seed."""
    requests = [(INFER, message.SerializeToString(deterministic=True)) for message in bases()]
    yield "messages", cases, lambda n, seed: _pair(fuzz_messages(address, n, seed))
    yield "connections", cases, lambda n, seed: _pair(fuzz_frames(address, requests, n, seed))
    yield "model files", files, _models(address)
    yield "config.pbtxt", files, lambda n, seed: _pair(fuzz_configs(address, repository, n, seed))


def _models(address: str) -> Fuzz:
    return lambda n, seed: _pair(fuzz_models(address, n, seed))


def _row(
    address: str, name: str, frontend: str, cases: int, fuzz: Fuzz, seed: int, faults: list[str]
) -> tuple[str, str, str, str, str]:
    """Run one kind beside a good client: its row of the table; what is wrong is added to ``faults``."""
    with Load(address, clients=1, pause_seconds=0.02) as load:
        counts, found = _blocks(fuzz, cases, seed, f"{name}, {frontend}")
    found += [f"good client: {why}" for why in load.outcomes.lost]
    faults += [f"{name}, {frontend}: {fault}" for fault in found]
    ends = ", ".join(f"{end} {count:,}" for end, count in counts.most_common())
    return name, frontend, f"{sum(counts.values()):,}", str(len(found)), ends


def _pair(found: object) -> tuple[Counter[str], list[str]]:
    return found.counts, found.faults  # type: ignore[attr-defined]


def _blocks(fuzz: Fuzz, cases: int, seed: int, name: str) -> tuple[Counter[str], list[str]]:
    """Counts and faults of ``cases`` cases in blocks with a seed each."""
    counts, faults, begun = Counter[str](), list[str](), time.monotonic()
    for number, first in enumerate(range(0, cases, BLOCK)):
        more, found = fuzz(min(BLOCK, cases - first), seed * 1_000_000 + number)
        counts += more
        faults += found
        for fault in found:  # at once: the end of the run is hours away
            print(name, fault, sep=": ", file=sys.stderr)
        print(name, sum(counts.values()), len(faults), f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return counts, faults


if __name__ == "__main__":
    main()

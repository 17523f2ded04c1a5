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
from collections.abc import Callable
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

#: So many cases have one seed; between two of them the process shows how far it is.
BLOCK = 10_000

ABOUT = """`make fuzz` writes this section. {machine} {date}.

Each case is drawn from a seed. *Messages* go to every unary method: drawn from their descriptors, or good ones with
fields or bytes changed; an answer of ModelInfer is compared with what the request asks for. *Connections* are good
conversations of HTTP/2 with frames changed, doubled, cut or put in, until the client's end; the server must end each.
*Model files* and *config.pbtxt* are loaded; each loads, or is refused with a sentence. A *fault* is a wrong answer, a
status that is not the caller's mistake, a connection that does not end within 20 s, a load that does not end within
60 s, or the end of the server. One good client asks all the time.

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
    requests = [(INFER, message.SerializeToString(deterministic=True)) for message in bases()]
    for frontend in FRONTENDS:
        with tempfile.TemporaryDirectory() as folder:
            repository = write_models(Path(folder))
            with serving(repository, "--frontend", frontend, "--no-tune", "--log-level", "error") as server:
                address = server.address
                kinds: list[tuple[str, int, Callable[[int, int], tuple[Counter[str], list[str]]]]] = [
                    ("messages", chosen.cases // 2, lambda n, seed, to=address: _pair(fuzz_messages(to, n, seed))),
                    (
                        "connections",
                        chosen.cases // 2,
                        lambda n, seed, to=address: _pair(fuzz_frames(to, requests, n, seed)),
                    ),
                    ("model files", chosen.files // 2, lambda n, seed, to=address: _pair(fuzz_models(to, n, seed))),
                    (
                        "config.pbtxt",
                        chosen.files // 2,
                        lambda n, seed, to=address, where=repository: _pair(fuzz_configs(to, where, n, seed)),
                    ),
                ]
                for name, cases, fuzz in kinds:
                    with Load(address, clients=1, pause_seconds=0.02) as load:
                        counts, found = _blocks(fuzz, cases, chosen.seed, f"{name}, {frontend}")
                    found += [f"good client: {why}" for why in load.outcomes.lost]
                    faults += [f"{name}, {frontend}: {fault}" for fault in found]
                    ends = ", ".join(f"{end} {count:,}" for end, count in counts.most_common())
                    rows.append((name, frontend, f"{sum(counts.values()):,}", str(len(found)), ends))
    text = ABOUT.format(
        machine=machine(),
        date=datetime.date.today().isoformat(),
        table=table(("what", "frontend", "cases", "faults", "how they ended"), rows),
    )
    print(text, *faults, sep="\n")
    if chosen.write:
        write_section("Fuzz", text)
    sys.exit(bool(faults))


def _pair(found: object) -> tuple[Counter[str], list[str]]:
    return found.counts, found.faults  # type: ignore[attr-defined]


def _blocks(
    fuzz: Callable[[int, int], tuple[Counter[str], list[str]]], cases: int, seed: int, name: str
) -> tuple[Counter[str], list[str]]:
    """Counts and faults of ``cases`` cases in blocks with a seed each."""
    counts, faults, begun = Counter[str](), list[str](), time.monotonic()
    for number, first in enumerate(range(0, cases, BLOCK)):
        more, found = fuzz(min(BLOCK, cases - first), seed * 1_000_000 + number)
        counts += more
        faults += found
        print(name, sum(counts.values()), len(faults), f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return counts, faults


if __name__ == "__main__":
    main()

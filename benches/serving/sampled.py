"""``normfold`` with its event loop sampled: the stack of the main thread, by the process's CPU time.

    python -m benches.serving.sampled STACKS serve --repository …

SIGUSR1 begins, SIGUSR2 ends and writes the file STACKS: a line for each stack, "frame;frame;frame count", outermost
first. The signal is taken when Python comes round again, so that time in C counts for the line that called it.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from normfold.cli import main

#: CPU time between two samples; most systems make it a tick, 4 ms.
EACH_SECONDS = 0.001


def sample(path: Path) -> None:
    """Be ready to sample into ``path``."""
    stacks = Counter[str]()

    def take(number: int, frame: FrameType | None) -> None:
        frames = []
        while frame is not None:
            frames.append(f"{_place(frame.f_code.co_filename)}:{frame.f_code.co_name}")
            frame = frame.f_back
        stacks[";".join(reversed(frames))] += 1

    def begin(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGPROF, take)
        signal.setitimer(signal.ITIMER_PROF, EACH_SECONDS, EACH_SECONDS)

    def end(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.write_text("".join(f"{stack} {count}\n" for stack, count in stacks.items()), encoding="utf-8")

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)


def _place(file: str) -> str:
    """The module of a file, as far as it says something: "http2/connection" or "asyncio/runners"."""
    return "/".join(Path(file).with_suffix("").parts[-2:])


if __name__ == "__main__":
    sample(Path(sys.argv[1]))
    sys.argv[1:2] = []
    main()

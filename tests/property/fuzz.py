"""Export drawn networks of mixed operators until a number or a time is reached, and print every fault.

    python -m tests.property.fuzz [--draws 2000] [--first 0] [--route file|module|fold|program]
        [--bits fp16|bf16|int8|any] [--minutes 60] [--verbose]

A line for each fault, with the smallest network that still has it; at the end how many were exported and refused, and
every sentence with which they were refused. Exit code 1 where there was a fault.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

from .mixed import ANY, FEWER_BITS, ROUTES, Drawn, Outcome, draw, names, smaller, tried, untimed


def outcome_of(drawn: Drawn) -> Outcome:
    folder = Path(tempfile.mkdtemp())
    try:
        return tried(drawn, folder)
    finally:
        shutil.rmtree(folder)


def smallest(drawn: Drawn, fault: Outcome) -> tuple[Drawn, Outcome]:
    """Return the smallest network that has the same kind of fault."""
    better = True
    while better:
        better = False
        for other in smaller(drawn):
            outcome = outcome_of(other)
            if outcome.kind == fault.kind:
                drawn, fault, better = other, outcome, True
                break
    return drawn, fault


def general(sentence: str) -> str:
    """Return a sentence without its names and numbers, to count equal ones."""
    return re.sub(r"'[^']*'|\d[\d.e+-]*|\[[^\]]*\]", "…", sentence)[:260]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--route", choices=sorted(set(ROUTES)), default="")
    parser.add_argument("--bits", choices=[*FEWER_BITS, ANY], default="", help="publish in fewer bits than float32")
    parser.add_argument("--verbose", action="store_true", help="a line for each network, before it is exported")
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * options.minutes
    kinds: collections.Counter[str] = collections.Counter()
    sentences: collections.Counter[str] = collections.Counter()
    first: dict[str, int] = {}
    faults = 0
    with untimed(), tempfile.TemporaryDirectory() as cache, mock.patch.dict("os.environ", NORMFOLD_CACHE_DIR=cache):
        for seed in range(options.first, options.first + options.draws):
            if time.monotonic() > end:
                break
            drawn = draw(seed, options.route, options.bits)
            if options.verbose:
                print(seed, drawn.route, names(drawn.steps), flush=True)
            outcome = outcome_of(drawn)
            kinds[f"{drawn.route} {outcome.kind}"] += 1
            for text in (*outcome.notes, *([outcome.text] if outcome.kind == "refused" else [])):
                sentences[general(text)] += 1
                first.setdefault(general(text), seed)
            if (seed + 1 - options.first) % 100 == 0:
                print(f"{seed + 1 - options.first} drawn, {faults} faults", flush=True)
            if outcome.fault:
                faults += 1
                drawn, outcome = smallest(drawn, outcome)
                bits = f"{drawn.precision}{'' if drawn.samples else ' without samples'}" if drawn.precision else ""
                how = f"{drawn.route} opset {drawn.opset} {drawn.variant} {bits}"
                free = "L free" if drawn.dynamic else "L fixed"
                shape = f"{'tokens ' if drawn.tokens else ''}[N,{drawn.channels},{drawn.length}] {free}"
                print(f"seed {seed}: {outcome.kind}: {how}, {shape}: {names(drawn.steps)}", flush=True)
                print(f"    {outcome.text}", flush=True)
    for text, count in sentences.most_common():
        print(f"{count:6} (seed {first[text]}) {text}")
    print(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())), f"{faults} faults", sep="\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

"""Compare the run time of the exported graphs with the other ways to run the same networks.

    python -m benches.compute ZOO                     every network of the roster; about 45 minutes on two cores
    python -m benches.compute ZOO --quick             batch 1, one thread, few rounds: to see that it works
    python -m benches.compute ZOO --networks m5,tsai_fcn

ZOO is a folder as ``python -m benches.zoo.build`` writes it. Networks that are not in it are built first; a network
that cannot be built is left out, and a line says so. Each network is measured in a process of its own. Its figures are
kept in ``compute.json`` in ZOO (with ``--quick`` in ``compute-quick.json``) as soon as they are there, so that an
interrupted run can be continued. Networks that were measured with other options are measured again; with ``--again``
all are. ``--write`` writes the figures beside this file: RESULTS.md, and a file for this kind of processor
(results-avx2.json and others).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benches.compute.measure import Effort, measure
from benches.compute.report import report, row
from benches.compute.roster import FAMILIES, network
from benches.compute.routes import PEERS
from benches.processors import on_others, results_file

from normfold.whole_file import write_whole

HERE = Path(__file__).parent
#: A network that takes longer is given up, because something in it hangs.
LONGEST_SECONDS = 600
FILES = ("unfolded.onnx", "torch_default.onnx")
#: Each route sets its own number of threads; a library that no route sets, such as NumPy's BLAS, has one.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


def main() -> int:
    """Measure the networks that are not measured yet, print a line for each, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.compute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="the folder of the networks' files")
    parser.add_argument("--networks", default="", help="names, separated by commas; default: all")
    parser.add_argument("--rounds", type=int, default=Effort.rounds, help=f"default {Effort.rounds}, at least 3")
    parser.add_argument("--quick", action="store_true", help="batch 1, one thread, short inputs, 5 rounds of 20 ms")
    parser.add_argument("--skip", default="", help=f"routes to leave out, separated by commas: {', '.join(PEERS)}")
    parser.add_argument("--again", action="store_true", help="measure also the networks that were measured before")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md and the figures")
    parser.add_argument("--here", action="store_true", help="measure the one network named, and print JSON")
    given = parser.parse_args()
    names = given.networks.split(",") if given.networks else list(FAMILIES)
    if unknown := [name for name in names if name not in FAMILIES]:
        parser.error(f"--networks: no {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    if given.rounds < 3:
        parser.error(f"--rounds: got {given.rounds}, expected at least 3: fewer have no quartiles")
    skip = tuple(given.skip.split(",")) if given.skip else ()
    if unknown := [route for route in skip if route not in PEERS]:
        parser.error(f"--skip: no {', '.join(unknown)}; there are {', '.join(PEERS)}")
    effort = Effort(given.rounds, skip=skip)
    if given.quick:
        effort = replace(effort, rounds=5, slice_ms=20.0, cell_seconds=3.0, quick=True)
    if given.here:
        print(json.dumps(measure(given.zoo / names[0], effort)))
        return 0
    kept = given.zoo / ("compute-quick.json" if given.quick else "compute.json")
    build_missing(names, given.zoo)
    results = {name: figures for name, figures in load(kept).items() if not (given.again and name in names)}
    for name in names:
        if name in results and results[name].get("effort") == effort.plain:
            continue
        if not all((given.zoo / name / file).is_file() for file in FILES):
            print(f"{name}: left out: no {' and '.join(FILES)} in {given.zoo / name}", file=sys.stderr)
            continue
        figures = in_a_process(name, sys.argv[1:])
        if figures is not None:
            results[name] = figures
            save(kept, results)
            print(row(name, figures), flush=True)
    ordered = {name: results[name] for name in FAMILIES if results.get(name, {}).get("effort") == effort.plain}
    if given.write and ordered:
        save(results_file(HERE), ordered)
        write_whole(HERE / "RESULTS.md", report(ordered, on_others(HERE)).encode())
        print(f"wrote {HERE / 'RESULTS.md'}")
    return 0


def build_missing(names: list[str], zoo: Path) -> None:
    """Write the files of the networks that are not in ``zoo`` yet."""
    from benches.zoo.build import build, is_built

    build([network(name) for name in names if not is_built(zoo / name)], zoo)


def in_a_process(name: str, arguments: list[str]) -> dict[str, Any] | None:
    """Return the figures of one network, measured in a process of its own; None if that process fails.

    A route that crashes then costs the figures of one network, and not of all. A line says why it failed.
    """
    command = [sys.executable, "-m", "benches.compute", *arguments, "--networks", name, "--here"]
    # A cache folder of its own: these measurements must not choose the variants of the user's exports.
    environment = os.environ | ONE_THREAD | {"NORMFOLD_CACHE_DIR": str(HERE.parents[1] / "build" / "compute")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{name}: given up after {LONGEST_SECONDS} s", file=sys.stderr)
        return None
    if done.returncode:
        print(f"{name}: ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def load(path: Path) -> dict[str, Any]:
    """Return the figures that were kept; an empty dict if there are none."""
    if not path.is_file():
        return {}
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def save(path: Path, results: dict[str, Any]) -> None:
    """Write the figures, one line for each network."""
    lines = (f"{json.dumps(name)}: {json.dumps(figures)}" for name, figures in results.items())
    write_whole(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the figures so far are kept
        sys.exit(130)

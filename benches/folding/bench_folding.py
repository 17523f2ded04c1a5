"""Fold the zoo by every route; report what each route leaves, how exact it is and how long its graph runs.

    python -m benches.folding.bench_folding ZOO [NAME ...] [--rounds 15] [--write]

ZOO is a folder that ``python -m benches.zoo.build`` wrote. Every route starts from the file that a user has: torch's
default export, or the unfolded file where torch wrote none. Each network is measured in one process. The files of all
routes are loaded there and run in turns, round after round, on one thread, so that what else the machine does slows all
of them alike. The figure is the CPU time of the process, so that waiting for a busy machine does not count. ``--write``
writes the figures beside this file, as results.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benches.interleaved import interleaved
from numpy.typing import NDArray

from normfold.whole_file import write_whole

HERE = Path(__file__).parent
#: In each round a file runs as often as fills this many milliseconds, at least once.
SLICE_MS = 8.0

Run = Callable[[NDArray[Any]], NDArray[Any]]


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one network: for each route what is left, the nodes, the error and the run times."""
    from benches.folding.routes import ROUTES

    names = ("unfolded", "unfolded_legacy", "torch_default")
    files = [path for name in names if (path := folder / f"{name}.onnx").is_file()]
    unfolded, exported = files[0], files[-1]
    reference = np.load(folder / "reference.npz")
    figures: dict[str, Any] = {}
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for index, (name, route) in enumerate({"unfolded": None, "torch export": None, **ROUTES}.items()):
            target = exported if index else unfolded
            try:
                start = time.perf_counter()
                if route is not None:
                    target = Path(scratch) / f"{index}.onnx"
                    route(exported, target)
                seconds = time.perf_counter() - start
                figures[name], runs[name] = describe(unfolded, target, reference)
                figures[name]["seconds"] = round(seconds, 3)
            except Exception as error:
                figures[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        try:
            figures["OpenVINO"], runs["OpenVINO"] = describe_openvino(exported, reference)
        except Exception as error:
            figures["OpenVINO"] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        bound = {name: partial(run, reference["x0"]) for name, run in runs.items()}
        for name, times in interleaved(bound, rounds, SLICE_MS).items():
            figures[name]["ms"] = times
    return figures


def describe(source: Path, target: Path, reference: Any) -> tuple[dict[str, Any], Run]:
    """Return the counts and the error of one file, and a function that runs it."""
    import onnx
    from benches.folding.count import count
    from benches.folding.measure import session

    before, after = count(onnx.load(source)), count(onnx.load(target))
    written = session(target)
    name = written.get_inputs()[0].name
    errors = error_of(lambda x: written.run(None, {name: x})[0], reference)
    fast = session(target, optimise=True)
    figures = {
        "left": after.left(before),
        "batchnorms": after.batchnorms,
        "affines": after.affines,
        "diagonals": after.diagonals,
        "clamps": after.clamps,
        "nodes": after.nodes,
        "error": errors,
    }
    return figures, lambda x: fast.run(None, {name: x})[0]


def describe_openvino(source: Path, reference: Any) -> tuple[dict[str, Any], Run]:
    from benches.folding.openvino_route import OpenVino

    network = OpenVino(source)
    return {"left": network.left(), "nodes": network.nodes(), "error": error_of(network.run, reference)}, network.run


def error_of(run: Run, reference: Any) -> float:
    """Return the largest relative error over the inputs of the size that the file was exported with."""
    from benches.folding.measure import relative_error

    names = [name for name in reference if name[0] == "x" and reference[name].shape == reference["x0"].shape]
    return max(relative_error(run(reference[name]), reference["y" + name[1:]]) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="the folder of the networks' files")
    parser.add_argument("names", nargs="*", help="networks; default: all that were built")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing, default 15")
    parser.add_argument("--write", action="store_true", help="write results.json and RESULTS.md")
    parser.add_argument("--here", action="store_true", help="measure the one network named, and print JSON")
    options = parser.parse_args()
    if options.here:
        (name,) = options.names
        print(json.dumps(measure(options.zoo / name, options.rounds)))
        return
    from benches.folding.results import page, table

    results: dict[str, Any] = {}
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C keeps the figures so far
        for name in options.names or sorted(path.parent.name for path in options.zoo.glob("*/facts.json")):
            command = [sys.executable, "-m", "benches.folding.bench_folding", str(options.zoo), name, "--here"]
            command += ["--rounds", str(options.rounds)]
            # One process for each network: a route that crashes costs the row of one network, and not the table.
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode:
                print(f"{name}: ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
                continue
            results[name] = json.loads(done.stdout.splitlines()[-1])
            print(table({name: results[name]}, heading=len(results) == 1), flush=True)
    if options.write:
        lines = (f"{json.dumps(name)}: {json.dumps(figures)}" for name, figures in results.items())
        write_whole(HERE / "results.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())
        write_whole(HERE / "RESULTS.md", page(results).encode())


if __name__ == "__main__":
    main()

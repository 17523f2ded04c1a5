"""Time the exported graphs on a GPU beside PyTorch: five networks, batch 1, 32 and 256.

    python -m benches.gpu --write          about five minutes on a GPU; writes RESULTS.md and results.json
    python -m benches.gpu --quick          batch 1, few rounds: to see that it works
    python -m benches.gpu --cpu-only       the columns of the CPU alone, where there is no GPU

First all networks are prepared, several at once: captured, folded, their answers computed in float64, and compiled once
by torch.compile and TensorRT, which keep that on the disk. Then each is measured in a process of its own, one after the
other, so that a route that crashes costs the figures of one network. A route that cannot be had is a cell with its
reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benches.gpu.measure import measure, warm
from benches.gpu.networks import BATCHES, FACTS, NAMES, named, prepare, prepared
from benches.gpu.present import NoGpu, gpus
from benches.gpu.report import cells, ratios, report, times
from benches.gpu.routes import CPU, MAIN, ON_CPU, ROUTES

from normfold.serving.process.cpus import available_cpus
from normfold.whole_file import write_whole

HERE = Path(__file__).resolve().parent
SECONDS = 300.0
#: The part of the time after which preparing is ended.
PREPARING = 0.4
#: A process that measures may take this many seconds more than it was given: a run is not interrupted.
GRACE_SECONDS = 30.0
ROUNDS, QUICK_ROUNDS = 15, 5


def main() -> int:
    """Measure, print the table, and return the exit code: 0 if our routes were right and timed in every cell."""
    given = arguments()
    names, batches = given.networks, BATCHES[:1] if given.quick else BATCHES
    routes = ON_CPU if given.cpu_only else ROUTES
    rounds = QUICK_ROUNDS if given.quick else ROUNDS
    if given.prepare:
        prepare(named(given.prepare), given.work / given.prepare, batches)
        warm(prepared(named(given.prepare), given.work / given.prepare), named(given.prepare), routes, batches)
        return 0
    if given.measure:
        folder = given.work / given.measure
        figures = measure(named(given.measure), folder, routes, batches, rounds, given.seconds)
        print(json.dumps(figures))
        return 0
    try:
        found = [] if given.cpu_only else gpus()
    except NoGpu as reason:
        print(f"{reason}; python -m benches.gpu --cpu-only tries the rest of this program", file=sys.stderr)
        return 1
    end = time.perf_counter() + given.seconds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        results = measured(names, work, end, found)
    print(times(results) + "\n\n" + ratios(results))
    if given.write:
        lines = (f"{json.dumps(name)}: {json.dumps(figures)}" for name, figures in results.items())
        write_whole(HERE / "results.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())
        write_whole(HERE / "RESULTS.md", report(results, found, rounds).encode())
        print(f"wrote {HERE / 'RESULTS.md'}")
    return judged(results, (CPU,) if given.cpu_only else MAIN)


def arguments() -> argparse.Namespace:
    """Return the arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", default=",".join(NAMES), help=f"names, separated by commas; default {','.join(NAMES)}"
    )
    parser.add_argument("--quick", action="store_true", help=f"batch 1, {QUICK_ROUNDS} rounds")
    parser.add_argument("--cpu-only", action="store_true", help="the columns of the CPU alone; needs no GPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time for all; default {SECONDS:g}")
    parser.add_argument("--write", action="store_true", help="write results.json and RESULTS.md")
    parser.add_argument(
        "--work", type=Path, help="a folder for forms, weights and answers; default: removed at the end"
    )
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.networks = given.networks.split(",")
    if unknown := [name for name in given.networks if name not in NAMES]:
        parser.error(f"--networks: no {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if given.cpu_only and given.write:
        parser.error("--write: RESULTS.md is of a GPU; leave out --cpu-only")
    return given


def measured(names: list[str], work: Path, end: float, found: list[str]) -> dict[str, Any]:
    """Return the figures of each network, or {"failed": the reason}; it is over about at ``end``."""
    begun = time.perf_counter()
    told = prepared_all(names, work, begun + PREPARING * (end - begun))
    print(f"prepared in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    results: dict[str, Any] = {}
    for number, name in enumerate(names):
        if not (work / name / FACTS).is_file():
            results[name] = {"failed": f"not prepared: {told[name]}"}
            continue
        share = max(1.0, (end - time.perf_counter()) / (len(names) - number))
        results[name] = in_a_process(name, work, share)
        print(f"{name}: {results[name].get('failed', 'measured')}", file=sys.stderr, flush=True)
    return results


def command(work: Path, *more: str) -> list[str]:
    """Return the command of a process that does one step, with the options of this one."""
    return [sys.executable, "-m", "benches.gpu", *sys.argv[1:], "--work", str(work), *more]


def environment(work: Path) -> dict[str, str]:
    """Return the environment of the steps: their caches are below ``work``, and not the user's."""
    return os.environ | {
        "NORMFOLD_CACHE_DIR": str(work / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "TRITON_CACHE_DIR": str(work / "triton"),
    }


def prepared_all(names: list[str], work: Path, end: float) -> dict[str, str]:
    """Prepare the networks, half as many at once as there are CPUs, until ``end``; return what went wrong with each."""
    waiting, running, told = list(names), {}, dict.fromkeys(names, "no time was left")
    while waiting or running:
        while waiting and len(running) < max(1, available_cpus() // 2):
            name = waiting.pop(0)
            log = (work / f"{name}.log").open("wb")
            running[name] = subprocess.Popen(
                command(work, "--prepare", name), stdout=log, stderr=subprocess.STDOUT, env=environment(work)
            )
            log.close()
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                told[name] = f"exit code {process.returncode}: {last_line(work / f'{name}.log')}"
        if time.perf_counter() > end:
            for process in running.values():
                process.kill()
                process.wait()
            break
        time.sleep(0.05)
    return told


def last_line(log: Path) -> str:
    """Return the last line of a log, shortened."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"


def in_a_process(name: str, work: Path, seconds: float) -> dict[str, Any]:
    """Return the figures of one network, or {"failed": the reason}."""
    asked = command(work, "--seconds", f"{seconds:.0f}", "--measure", name)
    try:
        done = subprocess.run(
            asked, capture_output=True, text=True, env=environment(work), timeout=seconds + GRACE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"given up after {seconds + GRACE_SECONDS:.0f} s"}
    if done.returncode:
        return {"failed": f"ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}"}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def judged(results: dict[str, Any], main_routes: tuple[str, ...]) -> int:
    """Return 0 if each of these routes was right and timed in every cell of every network, else 1, and say what not."""
    bad = [f"{name}: {figures['failed']}" for name, figures in results.items() if "failed" in figures]
    for cell, routes in cells(results):
        for route in main_routes:
            known = routes.get(route, {})
            if "ms" not in known:
                bad.append(
                    f"{cell}, {route}: {known.get('failed') or ('wrong' if 'wrong' in known else 'not measured')}"
                )
    for line in bad:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

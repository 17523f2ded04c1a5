"""Measure one network: every route at every batch, length and number of threads. Each answer is checked first.

On one thread the figure is the CPU time of the process, so that waiting for a busy machine does not count. On several
threads, which also wait for each other, it is the wall time.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benches.compute.forms import captured, forms, published
from benches.compute.multiply_adds import count
from benches.compute.roster import FAMILIES, is_first, network
from benches.compute.routes import COMPILED, EAGER, FIXED, PEERS, Array, Run, Subject, as_array, form
from benches.compute.where import where
from benches.folding.measure import relative_error
from benches.interleaved import LEAST_ROUNDS, WARMING, interleaved
from benches.zoo.build import kept
from benches.zoo.network import Network

from normfold.serving.process.cpus import available_cpus

#: A route with a larger error, relative to the largest output, computes something else and is not timed. The rounding
#: of float32 gives 1e-6 on the deepest of these networks.
WRONG = 1e-4
BATCHES = (1, 8, 32)
SHORT, LONG = "short", "long"
#: A long input is this many times the length that the network is exported and trained with.
LONGER = 4
ONE, ALL = "one thread", "all threads"
#: The speed of multiplying two square float32 matrices of this size counts as the peak of the machine.
PEAK_SIZE = 768
PEAK = "sgemm"
#: The published variant on one thread, in the cells where all other routes have all threads: it is timed by wall time.
ALONE = "published, one thread"
#: The threads of an onnxruntime session wait for more work in a loop after a run; 62 ms were measured.
REST_SECONDS = 0.1


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    #: Rounds of a cell at batch 1 on one thread.
    rounds: int = 11
    #: Rounds of any other cell.
    other_rounds: int = 5
    #: Length of a route's turn in a round; one run if a run takes longer.
    slice_ms: float = 25.0
    #: No round of a cell begins after this time.
    cell_seconds: float = 2.0
    #: Time for one network: a cell is left out if it is expected to take longer than the rest of this time.
    network_seconds: float = 100.0
    #: Only batch 1 of a short input on one thread.
    quick: bool = False
    #: Names of other tools' routes to leave out.
    skip: tuple[str, ...] = ()

    @property
    def plain(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return asdict(self) | {"skip": list(self.skip)}


@dataclass(frozen=True)
class Cell:
    """The sizes at which the routes are compared with each other."""

    batch: int
    length: str
    threads: str

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.length}, {self.threads}"


HEADLINE = Cell(1, SHORT, ONE)


def cells(dynamic: bool, effort: Effort) -> Iterator[Cell]:
    """Yield the cells of a network: every batch, and batch 1 of a longer input if its length is ``dynamic``."""
    if effort.quick:
        yield HEADLINE
        return
    for threads in (ONE, ALL)[: min(2, available_cpus())]:
        for batch in BATCHES:
            yield Cell(batch, SHORT, threads)
        if dynamic:
            yield Cell(1, LONG, threads)


def measure(folder: Path, effort: Effort) -> dict[str, Any]:
    """Return the figures of the network whose files are in ``folder``."""
    subject_of = network(folder.name)
    module = kept(subject_of, folder)
    x = inputs(subject_of, HEADLINE)
    made = forms(captured(subject_of, module, folder / "unfolded.onnx"))
    subject = Subject(folder.name, module, folder / "torch_default.onnx", made, published(made, x))
    adds = count(folder / "unfolded.onnx", x)
    figures: dict[str, Any] = {
        "family": FAMILIES.get(folder.name, "others"),
        "published": subject.published,
        "published on all threads": subject.published if effort.quick else published(made, x, available_cpus()),
        "forms": list(made),
        "input": list(x.shape),
        "multiply_adds": {"all": adds.all, "convolutions": adds.convolutions, "depthwise": adds.depthwise},
        "where": where(made[subject.published], x),
        "effort": effort.plain,
        "cells": {},
        "no time": [],
    }
    dynamic = "L" in subject_of.shape
    start = time.perf_counter()
    for cell in cells(dynamic, effort):
        if cell != HEADLINE and foreseen(figures, cell) > effort.network_seconds - (time.perf_counter() - start):
            figures["no time"].append(str(cell))
            continue
        try:
            figures["cells"][str(cell)] = measure_cell(subject, cell, inputs(subject_of, cell), effort)
        except Exception as error:
            figures["cells"][str(cell)] = {EAGER: failed(error)}
        if cell == HEADLINE:
            start = time.perf_counter()  # the time of torch.compile is not counted
    return figures


def foreseen(figures: Mapping[str, Any], cell: Cell) -> float:
    """Return the least time of a cell in seconds: every route has its fewest runs, and a larger input takes longer."""
    times = [entry["ms"] for entry in figures["cells"].get(str(HEADLINE), {}).values() if "ms" in entry]
    larger = cell.batch * (LONGER if cell.length == LONG else 1)
    return sum(map(statistics.median, times)) / 1e3 * larger * (WARMING + LEAST_ROUNDS)


def measure_cell(subject: Subject, cell: Cell, x: Array, effort: Effort) -> dict[str, Any]:
    """Return the error and the times of each route, or the reason why it has none."""
    threads = 1 if cell.threads == ONE else available_cpus()
    expected = reference(subject, cell, x)
    figures: dict[str, Any] = {}
    runs: dict[str, Run] = {}
    for name, route in (PEERS | {name: form(name) for name in subject.forms}).items():
        if name in effort.skip or not suits(name, cell, subject.name):
            continue
        try:
            start = time.perf_counter()
            run = route(subject, threads, x.shape)(x)
            error = relative_error(as_array(run()), expected)
            figures[name] = {"error": float(f"{error:.1e}"), "seconds": round(time.perf_counter() - start, 2)}
            if error > WRONG:
                figures[name]["wrong"] = True
            else:
                runs[name] = run
        except Exception as error:
            figures[name] = failed(error)
    if cell == HEADLINE:
        runs[PEAK], figures[PEAK] = peak(), {}
    if (cell.batch, cell.threads) == (1, ALL) and subject.published in runs:
        runs[ALONE], figures[ALONE] = form(subject.published)(subject, 1, x.shape)(x), {}
    main = (cell.batch, cell.threads) == (1, ONE)
    alone = cell.threads == ONE
    clock: Callable[[], float] = time.process_time if alone else time.perf_counter
    rounds = effort.rounds if main else effort.other_rounds
    rest = 0.0 if alone else REST_SECONDS
    times = interleaved(runs, rounds, effort.slice_ms, clock, effort.cell_seconds, rest)
    for name, ms in times.items():
        figures[name]["ms"] = [float(f"{value:.4g}") for value in ms]
    return figures


def suits(route: str, cell: Cell, name: str) -> bool:
    """Whether a route is timed at a cell of a network.

    OpenVINO compiled for one shape is timed at batch 1 on one thread only. torch.compile takes a minute: it is timed at
    one cell, for the first network of each family.
    """
    if route == COMPILED:
        return cell == HEADLINE and is_first(name)
    return route != FIXED or (cell.batch, cell.threads) == (1, ONE)


def inputs(subject: Network, cell: Cell) -> Array:
    """Return an input of the cell's size, drawn from a normal distribution, always the same one."""
    sizes = {**subject.sizes[0], "N": cell.batch}
    if cell.length == LONG:
        sizes["L"] *= LONGER
    drawn: Array = np.random.default_rng(0).standard_normal(subject.dims(sizes)).astype(np.float32)
    return drawn


def reference(subject: Subject, cell: Cell, x: Array) -> Array:
    """Return the expected answer: PyTorch's in float64; at batches above 1 in float32, which batch 1 has checked."""
    import torch

    given = torch.from_numpy(x)
    with torch.inference_mode():
        if cell.batch > 1:
            return as_array(subject.module(given))
        return as_array(copy.deepcopy(subject.module).double()(given.double()))


def peak() -> Run:
    """Return a run of PEAK_SIZE cubed multiply-adds in NumPy's BLAS."""
    a, b, c = np.random.default_rng(0).standard_normal((3, PEAK_SIZE, PEAK_SIZE)).astype(np.float32)
    return lambda: np.matmul(a, b, out=c)


def failed(error: Exception) -> dict[str, str]:
    """Return the reason why a route has no figures, in one line."""
    text = " ".join(str(error).split())
    return {"failed": f"{type(error).__name__}: {text}"[:200]}


def peak_per_second(times: list[float]) -> float:
    """Return the multiply-adds a second of the best run of ``peak``; ``times`` are in milliseconds."""
    return math.pow(PEAK_SIZE, 3) / min(times) * 1e3

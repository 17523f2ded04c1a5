"""Measure one network at every batch: each route's answer is checked in float64, then all are timed in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.compute.measure import WRONG, failed
from benches.compute.routes import within
from benches.folding.measure import relative_error
from benches.gpu.networks import Array, Subject, expected, inputs, prepared
from benches.gpu.routes import SLOW, NoRouteError, Route, Run
from benches.interleaved import LEAST_ROUNDS, WARMING, interleaved
from benches.zoo.network import Network

#: Length of a route's turn in a round; one run if a run takes longer.
SLICE_MS = 20.0
#: Before each turn: threads of the turn before that wait in a loop go to sleep.
REST_SECONDS = 0.01
#: The part of a cell's time that is kept for the rounds when slow routes are made.
FOR_ROUNDS = 0.3


def measure(
    network: Network, folder: Path, routes: Mapping[str, Route], batches: Sequence[int], rounds: int, seconds: float
) -> dict[str, Any]:
    """Return the figures of a network, which ``prepare`` has left in ``folder``, in about ``seconds``."""
    end = time.perf_counter() + seconds
    subject = prepared(network, folder)
    figures: dict[str, Any] = {
        "published": subject.published,
        "forms": list(subject.forms),
        "input": [str(size) for size in network.dims({**network.sizes[0], "N": 0})[1:]],
        "cells": {},
    }
    for number, batch in enumerate(batches):
        share = (end - time.perf_counter()) / (len(batches) - number)
        cell = measure_cell(subject, inputs(network, batch), expected(folder, batch), routes, rounds, share)
        figures["cells"][str(batch)] = cell
    return figures


def measure_cell(
    subject: Subject, x: Array, answer: Array, routes: Mapping[str, Route], rounds: int, seconds: float
) -> dict[str, Any]:
    """Return the error and the times in ms of each route, or the reason why it has none; in about ``seconds``."""
    end = time.perf_counter() + seconds
    figures: dict[str, Any] = {}
    runs: dict[str, Run] = {}
    for name, route in routes.items():
        try:
            begun = time.perf_counter()
            run = made(route, subject, x, end - begun - FOR_ROUNDS * seconds if name in SLOW else None)
            error = relative_error(run(), answer)
            known: dict[str, Any] = {"error": float(f"{error:.1e}"), "made_seconds": _since(begun)}
            begun = time.perf_counter()
            run()
            least = (time.perf_counter() - begun) * (WARMING + LEAST_ROUNDS)
            if error > WRONG:
                known["wrong"] = True
            elif least > max(0.0, end - time.perf_counter()) and runs:
                known["failed"] = f"five runs take {least:.1f} s, and no time was left for them"
            else:
                runs[name] = run
            figures[name] = known
        except NoRouteError as reason:
            figures[name] = {"none": str(reason)}
        except Exception as error:
            figures[name] = failed(error)
    budget = max(0.0, end - time.perf_counter())
    for name, ms in interleaved(runs, rounds, SLICE_MS, time.perf_counter, budget, REST_SECONDS).items():
        figures[name]["ms"] = [float(f"{value:.4g}") for value in ms]
    return figures


def made(route: Route, subject: Subject, x: Array, seconds: float | None) -> Run:
    """Return the run of a route. Raises TimeoutError where it takes more than ``seconds`` to make."""
    if seconds is None:
        return route(subject, x)
    if seconds < 1:
        raise TimeoutError("no time was left to make it")
    with within(int(seconds)):
        return route(subject, x)


def warm(subject: Subject, network: Network, routes: Mapping[str, Route], batches: Sequence[int]) -> None:
    """Make the slow routes once, so that the kernels which they compile are on the disk. What fails is passed over."""
    for batch in batches:
        for name in SLOW:
            if name in routes:
                try:
                    routes[name](subject, inputs(network, batch))()
                except Exception:  # the measurement says why
                    continue


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 2)

"""How graphs are timed against each other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any, cast

import numpy as np
import onnx.parser

from normfold.export.forms.measure import medians, shapes_of
from normfold.export.graphs.runtime import Runtime

GRAPH = '<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) { y = Relu(x) }'


class Ticking:
    """A graph whose runs take given times on a clock of its own."""

    def __init__(self, costs_ms: Sequence[float]) -> None:
        self._costs, self._now = cycle(costs_ms), 0.0

    def clock(self) -> float:
        return self._now

    def run(self, inputs: Any) -> dict[str, Any]:
        self._now += next(self._costs) / 1e3
        return {}


def test_each_graph_is_timed_by_its_own_clock_and_an_interruption_does_not_move_the_median():
    graphs = {"steady": Ticking([2.0]), "interrupted": Ticking([1.0, 1.0, 50.0])}
    times, rounds = medians(cast(Any, graphs), {}, seconds=0.0)
    assert rounds == 9
    assert {name: round(ms, 6) for name, ms in times.items()} == {"steady": 2.0, "interrupted": 1.0}


def test_runs_on_the_cpu_are_timed_by_the_cpu_time_of_the_thread_that_does_them():
    graph = Runtime(onnx.parser.parse_model(GRAPH).SerializeToString(), optimised=True)
    assert graph.clock is time.thread_time
    times, _ = medians({"relu": graph}, {"x": np.zeros(4, np.float32)}, seconds=0.0)
    assert times["relu"] > 0


def test_shapes_are_said_in_a_word():
    assert shapes_of({"x": np.zeros((1, 77, 17)), "mask": np.zeros(3)}) == "x[1,77,17] mask[3]"

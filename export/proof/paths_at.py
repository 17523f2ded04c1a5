"""Does a network take the path of its captured graph at given sizes? Both are run there, and their answers compared."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from math import prod

import numpy as np

from normfold.export.inputs.size_steps import SLOW_SECONDS
from normfold.export.inputs.sizes import CASE_ELEMENTS, Sizes
from normfold.export.inputs.specs import random_inputs
from normfold.export.proof.moving import moved_run
from normfold.export.proof.rounding import INDEX_SHARE
from normfold.export.proof.verify import Case, Key, Run, largest_errors, remembered, verify

__all__ = ["REFUSED", "TOO_LARGE", "PathsAt"]

REFUSED, TOO_LARGE = "the network refuses its input", "the inputs are too large to try"
#: Two answers on one path differ by less than this share of the output's scale where float32 rounds them usually.
SAME = 1e-5
#: For inputs of more elements than this, the share grows with their number: a sum of many numbers rounds worse.
LONG_ELEMENTS = 1 << 17
#: Where it rounds them worse: by less than this many times the network's own error.
FACTOR = 32.0


class PathsAt:
    """Compares a network and its captured graph at sizes, at each of them once."""

    def __init__(self, network: Run, graph: Run, sizes: Sizes) -> None:
        self._run, self._network, self._graph = network, remembered(network), remembered(graph)
        self._specs, self._trace = sizes.specs, sizes.trace
        #: The most elements of an input that are tried. The network was run at the traced sizes, so it is run at sizes
        #: that are not much larger, too; but at none beyond those where it is slow.
        self.most = max(CASE_ELEMENTS, 2 * self.elements(sizes.trace))
        self._known: dict[tuple[int, ...], str] = {}

    def elements(self, sizes: Mapping[str, int]) -> int:
        """Return the number of elements of the largest input at these sizes."""
        return max((prod(s.shape(sizes)) for s in self._specs), default=0)

    def differ(self, sizes: Mapping[str, int]) -> str:
        """Return in what network and graph differ at these sizes; "" if in nothing."""
        key = tuple(sizes[name] for name in self._trace)
        if key not in self._known:
            self._known[key] = self._differ(sizes)
        return self._known[key]

    def _differ(self, sizes: Mapping[str, int]) -> str:
        self._climb(sizes)
        if self.elements(sizes) > self.most:
            return TOO_LARGE
        case = self._case(sizes)
        try:
            wanted = self._network(case.inputs)
        except Exception:
            return REFUSED
        try:
            got = self._graph(case.inputs)
        except Exception:
            return "the network takes another path than the graph, which refuses its input"
        for name, array in wanted.items():
            if got[name].shape != array.shape:
                return f"the network takes another path: output '{name}' has the shape {list(array.shape)}"
        if self._other_output(case, {}) and (name := self._other_output(case, self._own(case))):
            return f"the network takes another path: output '{name}' has other numbers"
        return ""

    def _climb(self, sizes: Mapping[str, int]) -> None:
        """Run the network at doubled sizes on the way to larger ones, as far as it is not slow.

        What it takes may grow with the square of a length: attention over 5,000 positions holds gigabytes.
        """
        larger, factor = self._trace, 2
        while self.elements(sizes) <= self.most and (larger := self._times(factor, sizes)) != sizes:
            began = time.perf_counter()
            with contextlib.suppress(Exception):  # it may refuse a size in between
                self._run(self._case(larger).inputs)
            if time.perf_counter() - began > SLOW_SECONDS:
                self.most = self.elements(larger)
            factor *= 2

    def _times(self, factor: int, sizes: Mapping[str, int]) -> dict[str, int]:
        """The traced sizes times ``factor``, none beyond ``sizes``."""
        return {name: min(traced * factor, sizes[name]) for name, traced in self._trace.items()}

    def _case(self, sizes: Mapping[str, int]) -> Case:
        return Case("random", "", random_inputs(self._specs, sizes, np.random.default_rng(0)))

    def _other_output(self, case: Case, own: Mapping[Key, float]) -> str:
        """Return the first output in which the two differ by more than rounding, where ``own`` is the network's own."""
        longer = max(1.0, max((array.size for array in case.inputs.values()), default=0) / LONG_ELEMENTS)

        def bound(own: float, integers: bool) -> float:
            return (INDEX_SHARE if integers else SAME * longer) + FACTOR * own

        found = verify(self._network, self._graph, [case], "", own, bound)
        return next((d.output for d in found.differences if not d.passed), "")

    def _own(self, case: Case) -> dict[Key, float]:
        """How far the network's answer is from others that are as right.

        These are its answer to inputs that are moved by a unit in the last place, and the graph's at the traced sizes.
        """
        moved = largest_errors(self._network, [moved_run(self._network, 0)], [case])
        traced = largest_errors(self._network, [self._graph], [self._case(self._trace)])
        return {key: max(moved.get(key, 0.0), traced.get(key, 0.0)) for key in {*moved, *traced}}

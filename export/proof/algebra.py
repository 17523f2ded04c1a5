"""Is a rewritten graph the same function? Both are computed in float64, with weights that were never rounded.

This is the part of the proof that decides. The fold and every rewrite after it work on a float64 graph
(:mod:`normfold.export.graphs.exact`); ``model.onnx`` is that graph with each number rounded once. Before the rounding,
a right fold differs from the network by float64's own rounding alone, about 10^-15 of the output's scale for each of
some dozen operators. A wrong bias, sign or edge differs by the size of its fault. An error of 10^-6, which float32
would hide, fails here.

A network that computes partly in float16 or bfloat16 is proved in the same way: its weights are the numbers that its
file holds, and a Cast between floating types, which only rounds, changes nothing in float64. What its own roundings
cost is measured apart (:mod:`normfold.export.proof.rounding`).

The bound is 10^-12 of the output's scale for each output and kind of case: 4,500 float64 roundings. An ill-conditioned
network amplifies them; by how much is measured: the unfolded graph is computed once more with each weight and each
input moved by a unit in the last place of float64 (:mod:`normfold.export.proof.moving`). With d the largest distance
between the two,

    e(rewritten) <= max(10^-12, 64 d)

A fold multiplies and adds a few numbers for each weight, and a shift that is added and taken off again may cost five of
the 53 bits (``MOST_LOST`` in the fold's magnitudes): 2^5 units for a weight, and twice that for another order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normfold.export.graphs.float64 import Float64Graph
from normfold.export.proof.moving import moved_run, moved_weights
from normfold.export.proof.scores import with_scores
from normfold.export.proof.verify import Arrays, Case, Key, Run, Verification, largest_errors, remembered, verify

__all__ = ["BOUND", "FACTOR", "Algebra"]

#: Largest error of a well-conditioned network, relative to the output's scale.
BOUND = 1e-12
#: Times what the network itself moves by where its numbers move by a unit in float64's last place.
FACTOR = 64.0
#: Largest error that may be the rewritten graph's own rounding.
CAP = 1e-9
REFERENCE = "the unfolded graph, float64"
SEED = 64


class Algebra:
    """Compares rewritten graphs with one unfolded graph, all in float64."""

    def __init__(self, unfolded: bytes, cases: Sequence[Case]):
        """``unfolded`` is a float64 graph. Raises whatever its evaluation raises."""
        self._cases = cases
        content, scores = with_scores(unfolded)
        self._run: Run = remembered(Float64Graph(content).run)
        self._own: dict[Key, float] = largest_errors(self._run, [_moved(content)], cases)
        #: The outputs of the unfolded graph, without the scores. Kept apart: scores may be too large to be kept.
        self.reference: Run = remembered(lambda x: {n: a for n, a in self._run(x).items() if n not in scores})

    def of(self, exact: bytes) -> Verification:
        """Compare the float64 graph ``exact`` with the unfolded one on every case: outputs, and scores of labels."""
        content, _ = with_scores(exact)
        run = remembered(Float64Graph(content).run)
        found = verify(self._run, run, self._cases, REFERENCE, self._own, bound)
        if found.passed or any(one.trouble or one.relative > CAP for one in found.differences if not one.passed):
            return found
        own = dict(self._own)
        for key, distance in largest_errors(run, [_moved(content)], self._cases).items():
            own[key] = max(own.get(key, 0.0), min(distance, CAP / FACTOR))
        for key, spread in self._spreads().items():
            own[key] = max(own.get(key, 0.0), min(BOUND * spread, CAP) / FACTOR)
        return verify(self._run, run, self._cases, REFERENCE, own, bound)

    def _spreads(self) -> dict[Key, float]:
        """For each kind of case and output: the largest scale of the output in any case, over the smallest there."""
        scales: dict[Key, list[float]] = {}
        for case in self._cases:
            for output, array in self._run(case.inputs).items():
                finite = np.abs(array[np.isfinite(array)]) if array.dtype.kind == "f" else np.zeros(0)
                if finite.size and finite.max() > 0:
                    scales.setdefault((case.kind, output), []).append(float(finite.max()))
        largest = {output: max(max(s) for (_, o), s in scales.items() if o == output) for _, output in scales}
        return {(kind, output): largest[output] / min(found) for (kind, output), found in scales.items()}


def bound(own: float, integers: bool) -> float:
    """Return the error that a graph may have where the network's own float64 error is ``own``."""
    return max(BOUND, FACTOR * own)


def _moved(content: bytes) -> Run:
    """The float64 graph in ``content`` with its weights and its inputs moved."""
    run = moved_run(Float64Graph(moved_weights(content, SEED)).run, SEED)
    return lambda inputs: run(_wide(inputs))


def _wide(inputs: Arrays) -> Arrays:
    return {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in inputs.items()}

"""How far is one graph from another? Both run on every case, and each output is held against a bound.

An error is the largest difference over the scale of the case's output, which is its largest absolute value. Errors are
pooled by output and by kind of case, so that a large error on one kind of input cannot hide one on another. NaN and
infinity must be at the same places with the same sign; integers and booleans are compared by the share that differs.

The bound is a multiple of the network's own error: how far the network itself moves when it is computed in other ways
that are as right (:mod:`normfold.export.proof.rounding`, :mod:`normfold.export.proof.algebra`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.errors import ExportError
from normfold.export.user_code import first_line

__all__ = ["Arrays", "Case", "Difference", "Key", "Run", "Verification", "largest_errors", "remembered", "verify"]

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
#: Answers larger than this are computed again rather than kept.
REMEMBERED_BYTES = 16 << 20
#: A kind of case and the name of an output.
Key = tuple[str, str]
#: The bound on an error, from the network's own error and whether the output holds integers.
Bound = Callable[[float, bool], float]


@dataclass(frozen=True)
class Case:
    """One set of inputs."""

    #: "random", "scaled", "masks", "raw" or "sample": errors are pooled by kind.
    kind: str
    #: For a person: "N=2 L=17", "one.npy".
    name: str
    inputs: Arrays


@dataclass(frozen=True)
class Difference:
    """One output on all cases of one kind. Errors are relative to the largest |value| of the case's exact output."""

    output: str
    kind: str
    cases: int
    #: Largest and mean |graph - reference|, in the output's own units.
    max_abs: float
    mean_abs: float
    #: Largest error over the scale of its case: the graph's, the unfolded network's own, and what the first may be.
    relative: float
    unfolded_relative: float
    bound: float
    #: Share of rows whose largest score is the reference's, for outputs that are class scores; None otherwise.
    label_agreement: float | None
    #: What failed apart from size: a shape, NaN or infinity at other places; "" where nothing did.
    trouble: str = ""
    #: Rows that the label was compared in.
    rows: int = 0

    @property
    def passed(self) -> bool:
        """Whether the graph is within the bound."""
        return not self.trouble and self.relative <= self.bound

    @property
    def ratio(self) -> float:
        """The graph's error in units of the network's own; 0 where both are 0."""
        if self.unfolded_relative == 0:
            return 0.0 if self.relative == 0 else float("inf")
        return self.relative / self.unfolded_relative


@dataclass(frozen=True)
class Verification:
    """Every output on every kind of case."""

    differences: tuple[Difference, ...]
    #: What the reference was: "PyTorch, float64".
    reference: str
    #: The names of all cases that were run.
    cases: tuple[str, ...]
    #: Sentences on what the cases say nothing of.
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output is within its bound."""
        return all(d.passed for d in self.differences)

    @property
    def worst(self) -> Difference:
        """The output nearest to its bound, or furthest beyond it."""
        return max(self.differences, key=lambda d: (not d.passed, d.relative / d.bound))


@dataclass
class _Pool:
    """The differences seen of one output on the cases of one kind."""

    cases: int = 0
    max_abs: float = 0.0
    total_abs: float = 0.0
    elements: int = 0
    relative: float = 0.0
    rows: int = 0
    rows_agree: int = 0
    integers: bool = False
    troubles: list[str] = field(default_factory=list)


def verify(
    reference: Run,
    graph: Run,
    cases: Sequence[Case],
    reference_name: str,
    own: Mapping[Key, float],
    bound: Bound,
    plain: Run | None = None,
) -> Verification:
    """Run both on every case and return how far ``graph`` is from ``reference``, output by output.

    own holds the network's own error of each kind of case and output (:func:`largest_errors`); bound says what error
    that allows. plain is the network as a graph of the same precision as ``graph``: it says where NaN and infinity
    may be, which a reference with a wider range cannot. A kind of case on which an output has no
    number at all is left out, if another kind compared numbers of this output.
    """
    pools = _pools(reference, graph, cases, plain or reference)
    compared = {output for (_, output), pool in pools.items() if pool.elements or pool.troubles}
    differences = tuple(
        Difference(
            output=output,
            kind=kind,
            cases=pool.cases,
            max_abs=pool.max_abs,
            mean_abs=pool.total_abs / pool.elements if pool.elements else 0.0,
            relative=pool.relative,
            unfolded_relative=own.get((kind, output), 0.0),
            bound=bound(own.get((kind, output), 0.0), pool.integers),
            label_agreement=pool.rows_agree / pool.rows if pool.rows else None,
            trouble=f"output '{output}': {pool.troubles[0]}" if pool.troubles else "",
            rows=pool.rows,
        )
        for (kind, output), pool in pools.items()
        if pool.elements or pool.troubles or output not in compared
    )
    return Verification(differences, reference_name, tuple(case.name for case in cases))


def largest_errors(reference: Run, runs: Iterable[Run], cases: Sequence[Case]) -> dict[Key, float]:
    """Return the largest error of any of ``runs`` for each kind of case and output; what is not finite counts as 0."""
    largest: dict[Key, float] = {}
    for run in runs:
        for key, pool in _pools(reference, run, cases, None).items():
            largest[key] = max(largest.get(key, 0.0), pool.relative)
    return largest


def remembered(run: Run) -> Run:
    """Return the same function, which keeps its answers: several graphs are compared with one on the same inputs."""
    known: dict[int, tuple[Arrays, Arrays]] = {}

    def answer(inputs: Arrays) -> Arrays:
        if id(inputs) not in known:
            outputs = run(inputs)
            if sum(a.nbytes for a in outputs.values()) > REMEMBERED_BYTES:
                return outputs
            known[id(inputs)] = inputs, outputs  # holding the inputs keeps their id theirs
        return known[id(inputs)][1]

    return answer


def _pools(reference: Run, graph: Run, cases: Iterable[Case], plain: Run | None) -> dict[Key, _Pool]:
    """Compare case by case; without ``plain`` the graph may have NaN and infinity where it has them, and must run."""
    pools: dict[Key, _Pool] = {}
    for case in cases:
        expected, failed = reference(case.inputs), ""
        try:
            got = graph(case.inputs)
        except ExportError:  # a served model did not answer: nothing was compared
            raise
        except Exception as error:
            if plain is None:
                raise
            got, failed = {}, first_line(error)
        allowed = got if plain is None else plain(case.inputs)
        for output, exact in expected.items():
            pool = pools.setdefault((case.kind, output), _Pool())
            if failed:
                pool.cases += 1
                pool.troubles.append(f"on {case.name} the graph does not run: {failed}")
                continue
            _compare(pool, case, exact, got.get(output), allowed.get(output))
    return pools


def _compare(
    pool: _Pool, case: Case, exact: NDArray[Any], got: NDArray[Any] | None, plain: NDArray[Any] | None
) -> None:
    pool.cases += 1
    if got is None or plain is None:
        pool.troubles.append(f"on {case.name} the graph has no such output")
        return
    if got.shape != exact.shape or plain.shape != exact.shape:
        other = got if got.shape != exact.shape else plain
        pool.troubles.append(f"on {case.name} its shape is {list(other.shape)}, the network's {list(exact.shape)}")
        return
    if exact.dtype.kind != "f":
        pool.integers = True
        if exact.size:
            pool.relative = max(pool.relative, float((got != exact).mean()))
            pool.elements += exact.size
        return
    finite = np.isfinite(plain)
    if not (np.isfinite(got) == finite).all() or not np.array_equal(got[~finite], plain[~finite], equal_nan=True):
        pool.troubles.append(f"on {case.name} NaN or infinity is at other places than in the network")
        return
    # Where the reference overflows on its way to a number that both graphs give, the unfolded graph replaces it.
    truth = np.where(np.isfinite(exact), exact, plain)[finite].astype(np.float64)
    if truth.size:
        error = np.abs(got[finite].astype(np.float64) - truth)
        scale = max(float(np.abs(truth).max()), float(np.finfo(np.float32).tiny))
        pool.max_abs = max(pool.max_abs, float(error.max()))
        pool.total_abs += float(error.sum())
        pool.elements += error.size
        pool.relative = max(pool.relative, float(error.max()) / scale)
    if exact.ndim == 2 and exact.shape[1] > 1:
        pool.rows += len(exact)
        pool.rows_agree += int((exact.argmax(1) == got.argmax(1)).sum())

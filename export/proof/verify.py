"""Is the exported graph the same network? Measured against PyTorch in float64, in units of float32's own error.

Folding reorders float32 arithmetic, so its results differ from PyTorch's in the last bits; a deep network amplifies
that, and no fixed tolerance fits every network. The unfolded graph gives the unit: it is the network as written, in
float32, and its distance to the float64 answer is what float32 costs. With e the largest difference over the scale of
the case's output,

    e(folded) <= 2 e(unfolded) + 4 ulp,        ulp = 2^-23

per output and kind of case. One order of rounding on a few inputs is a poor estimate where few elements carry the error
(a gate near its threshold), so the unfolded graph runs twice, as it is written and optimised, which rounds in another
order; the larger error counts, up to four times the first. The floor is four roundings of the result itself (bias,
product, sum, last operator), so that a network whose unfolded error happens to be 0 is not asked for more than float32
can hold. NaN and infinity must stand at the same places with the same sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.errors import VerificationError

__all__ = ["FACTOR", "FLOOR", "Case", "Difference", "Verification", "require", "verify"]

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]

#: Times the unfolded graph's own error.
FACTOR = 2.0
#: How much larger than the error of the graph as written a second rounding of it may make the unit.
SECOND = 4.0
#: Relative floor: four units in the last place of float32.
FLOOR = 4 * 2.0**-23
#: Index outputs (argmax) may differ on this share more than twice the unfolded graph's: two scores closer than float32
#: tells apart.
INDEX_SHARE = 1e-3


@dataclass(frozen=True)
class Case:
    """One set of inputs."""

    #: "random", "scaled" or "sample": errors are pooled by kind.
    kind: str
    #: For a person: "N=2 L=17", "one.npy".
    name: str
    inputs: Arrays


@dataclass(frozen=True)
class Difference:
    """One output on all cases of one kind. Errors are relative to the largest |value| of the case's float64 output."""

    output: str
    kind: str
    cases: int
    #: Largest and mean |folded - reference|, in the output's own units.
    max_abs: float
    mean_abs: float
    #: Largest error over the scale of its case: the folded graph's, the unfolded graph's, and what the first may be.
    relative: float
    unfolded_relative: float
    bound: float
    #: Share of rows whose largest score is the reference's, for outputs that are class scores; None otherwise.
    label_agreement: float | None
    #: What failed apart from size: a shape, a dtype, NaN or infinity at other places; "" where nothing did.
    trouble: str = ""

    @property
    def passed(self) -> bool:
        """Whether the folded graph is within the bound."""
        return not self.trouble and self.relative <= self.bound

    @property
    def ratio(self) -> float:
        """The folded graph's error in units of the unfolded graph's; 0 where both are 0."""
        if self.unfolded_relative == 0:
            return 0.0 if self.relative == 0 else float("inf")
        return self.relative / self.unfolded_relative


@dataclass(frozen=True)
class Verification:
    """The proof: every output on every kind of case."""

    differences: tuple[Difference, ...]
    #: What the reference was: "PyTorch, float64".
    reference: str
    #: The names of all cases that were run.
    cases: tuple[str, ...]

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
    """What has been seen of one output on the cases of one kind."""

    cases: int = 0
    max_abs: float = 0.0
    total_abs: float = 0.0
    elements: int = 0
    relative: float = 0.0
    unfolded: float = 0.0
    second: float = 0.0
    rows: int = 0
    rows_agree: int = 0
    index: bool = False
    troubles: list[str] = field(default_factory=list)


def verify(
    reference: Run,
    unfolded: Run,
    folded: Run,
    cases: Iterable[Case],
    reference_name: str,
    rounded: Run | None = None,
) -> Verification:
    """Run all on every case and return how far the folded graph is from the reference, output by output.

    reference returns float64 for float outputs; the others what the graph declares. rounded is the unfolded graph once
    more, rounding in another order.
    """
    pools: dict[tuple[str, str], _Pool] = {}
    names = []
    for case in cases:
        names.append(case.name)
        want, before, after = reference(case.inputs), unfolded(case.inputs), folded(case.inputs)
        second = rounded(case.inputs) if rounded is not None else {}
        for output, expected in want.items():
            pool = pools.setdefault((case.kind, output), _Pool())
            _compare(pool, case, expected, before.get(output), after.get(output), second.get(output))
    differences = tuple(_difference(kind, output, pool) for (kind, output), pool in pools.items())
    return Verification(differences, reference_name, tuple(names))


def require(verification: Verification) -> None:
    """Raise VerificationError where the exported graph is not the network within the bound."""
    if verification.passed:
        return
    worst = verification.worst
    if worst.trouble:
        raise VerificationError(
            f"the exported graph differs from the network, so nothing was published: {worst.trouble}",
            output=worst.output,
        )
    raise VerificationError(
        f"the exported graph differs from the network, so nothing was published: output '{worst.output}' on "
        f"{worst.kind} "
        f"inputs is off by {worst.relative:.2e} of its scale ({worst.max_abs:.2e} absolute), where "
        f"{worst.bound:.2e} is "
        f"allowed (twice the unfolded float32 graph's own {worst.unfolded_relative:.2e})",
        output=worst.output,
        max_abs_diff=worst.max_abs,
        bound=worst.bound,
    )


def _compare(
    pool: _Pool,
    case: Case,
    expected: NDArray[Any],
    before: NDArray[Any] | None,
    after: NDArray[Any] | None,
    second: NDArray[Any] | None,
) -> None:
    pool.cases += 1
    if after is None or before is None:
        pool.troubles.append(f"on {case.name} the graph has no such output")
        return
    if after.shape != expected.shape:
        pool.troubles.append(f"on {case.name} its shape is {list(after.shape)}, the network's {list(expected.shape)}")
        return
    if expected.dtype.kind != "f":
        _compare_indices(pool, expected, before, after)
        return
    finite = np.isfinite(before)
    if not (np.isfinite(after) == np.isfinite(before)).all() or not np.array_equal(
        after[~finite], before[~finite], equal_nan=True
    ):
        pool.troubles.append(f"on {case.name} NaN or infinity stands at other places than in the unfolded graph")
        return
    # Where the reference overflows on its way to a number that neither graph misses, the unfolded graph stands in.
    exact = np.where(np.isfinite(expected), expected, before)[finite].astype(np.float64)
    error = np.abs(after[finite].astype(np.float64) - exact)
    unfolded_error = np.abs(before[finite].astype(np.float64) - exact)
    if error.size:
        scale = max(float(np.abs(exact).max()), float(np.finfo(np.float32).tiny))
        pool.max_abs = max(pool.max_abs, float(error.max()))
        pool.total_abs += float(error.sum())
        pool.elements += error.size
        pool.relative = max(pool.relative, float(error.max()) / scale)
        pool.unfolded = max(pool.unfolded, float(unfolded_error.max()) / scale)
        if second is not None:
            error = np.abs(second[finite].astype(np.float64) - exact)
            pool.second = max(pool.second, float(np.nan_to_num(error, nan=0.0, posinf=0.0).max()) / scale)
    if expected.ndim == 2 and expected.shape[1] > 1:
        pool.rows += len(expected)
        pool.rows_agree += int((expected.argmax(1) == after.argmax(1)).sum())


def _compare_indices(pool: _Pool, expected: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> None:
    """Integers and booleans are right or wrong; the share that is wrong takes the place of the error."""
    if expected.size:
        pool.index = True
        pool.relative = max(pool.relative, float((after != expected).mean()))
        pool.unfolded = max(pool.unfolded, float((before != expected).mean()))
        pool.elements += expected.size


def _difference(kind: str, output: str, pool: _Pool) -> Difference:
    unfolded = max(pool.unfolded, min(pool.second, SECOND * pool.unfolded + FLOOR))
    return Difference(
        output=output,
        kind=kind,
        cases=pool.cases,
        max_abs=pool.max_abs,
        mean_abs=pool.total_abs / pool.elements if pool.elements else 0.0,
        relative=pool.relative,
        unfolded_relative=unfolded,
        bound=FACTOR * unfolded + (INDEX_SHARE if pool.index else FLOOR),
        label_agreement=pool.rows_agree / pool.rows if pool.rows else None,
        trouble=f"output '{output}': {pool.troubles[0]}" if pool.troubles else "",
    )

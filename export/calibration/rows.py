"""Which rows an int8 file is calibrated on, and on which other rows a file of fewer bits is measured.

A row is one example of the batch. Where the inputs have no batch dimension, or the network does not take a part of the
batch, a whole file is a row.

    --sample and --test-sample    the samples calibrate, the test samples measure
    --sample alone                the rows of all samples are numbered in their order: 0, 2, 4, … calibrate, 1, 3, 5, …
                                  measure; so files that are sorted by class have every class on both sides
    a single row                  does both, and a warning says that this measures nothing

fp16 and bf16 are not calibrated: there every row measures. If n rows measure and none changes its class, up to 3/n of
all others may still change it (95 % confidence: (1 - 3/n)^n < 0.05). With fewer than 32 rows that is more than 9 %, so
a warning says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.counting import counted
from normfold.export.inputs.sizes import batch_dimension
from normfold.export.inputs.specs import InputSpec
from normfold.export.proof.verify import Case

__all__ = ["FEWEST", "DataSet", "Division", "Rows", "divide", "only_finite", "parts", "rows_of", "warnings_on"]

#: With fewer rows than this that measure, a warning is given.
FEWEST = 32


@dataclass(frozen=True)
class DataSet:
    """A set of inputs, as reports name it."""

    #: "sample", "test sample", "random" or "synthetic".
    kind: str
    #: Rows in all of its inputs.
    rows: int
    #: "every second row of 'a.npy', 'b.npy'"
    source: str

    def __str__(self) -> str:
        """Return "25 rows: every second row of 'a.npy'"."""
        return f"{counted(self.rows, 'row')}: {self.source}"


@dataclass(frozen=True)
class Rows:
    """A set of inputs and its name."""

    cases: tuple[Case, ...]
    data: DataSet

    @classmethod
    def of(cls, cases: Sequence[Case], kind: str, source: str, specs: Sequence[InputSpec]) -> Rows:
        """Count the rows of ``cases`` and give the cases this ``kind``."""
        count = sum(rows_of(case, specs) for case in cases)
        return cls(tuple(replace(case, kind=kind) for case in cases), DataSet(kind, count, source))


@dataclass(frozen=True)
class Division:
    """The inputs that calibrate (None where nothing is calibrated) and those that measure."""

    calibration: Rows | None
    measured: Rows
    #: Whether the same row does both.
    same: bool = False


def divide(calibrates: bool, samples: Sequence[Case], tests: Sequence[Case], specs: Sequence[InputSpec]) -> Division:
    """Return which rows of the user's inputs calibrate (where ``calibrates``) and which measure.

    samples or tests must hold a case; with ``calibrates``, samples must.
    """
    of_samples = Rows.of(samples, "sample", _files(samples), specs)
    if tests:
        measured = Rows.of(tests, "test sample", _files(tests), specs)
        return Division(of_samples if calibrates else None, measured)
    first, second = (_every_second(samples, start, specs) for start in (0, 1))
    if not calibrates or not second:
        return Division(of_samples if calibrates else None, of_samples, same=calibrates)
    unit = "row" if _divisible([rows_of(case, specs) for case in samples], specs) else "file"
    return Division(
        Rows.of(first, "sample", f"every second {unit} of {_files(samples)}", specs),
        Rows.of(second, "sample", f"the {unit}s between them, of {_files(samples)}", specs),
    )


def parts(case: Case, most: int, specs: Sequence[InputSpec]) -> Iterable[Case]:
    """Yield the case in pieces of at most ``most`` rows, where the network takes such pieces; else all of it."""
    count, batch = rows_of(case, specs), batch_dimension(specs)
    sizes = {min(most, count - start) for start in range(0, count, most)}
    if batch is None or not all(batch.holds(size) for size in sizes):
        yield case
        return
    for start in range(0, count, most):
        yield _taken(case, slice(start, start + most), specs)


def rows_of(case: Case, specs: Sequence[InputSpec]) -> int:
    """Return the number of rows in a case."""
    batch = batch_dimension(specs)
    return 1 if batch is None else len(next(case.inputs[s.name] for s in specs if s.dims))


def only_finite(rows: Rows, specs: Sequence[InputSpec]) -> Rows | None:
    """Return the rows without those that hold NaN or infinity; None where no row is left."""
    batch = batch_dimension(specs)
    kept = []
    for case in rows.cases:
        finite = np.array([all(_is_finite(one) for one in row) for row in _rows(case, specs)])
        if finite.all():
            kept.append(case)
        elif batch is not None and finite.any() and batch.holds(int(finite.sum())):
            kept.append(_taken(case, finite, specs))
    return Rows.of(kept, rows.data.kind, rows.data.source, specs) if kept else None


def warnings_on(division: Division, precision: str, specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Return what the user should know of how little the figures of ``precision`` say."""
    data, said = division.measured.data, []
    cure = f"give at least {FEWEST} rows that it did not see with --test-sample"
    if division.same:
        said.append(f"{precision} was calibrated and measured on the same {_same(data.rows)} of other inputs: {cure}")
    elif data.kind in ("random", "synthetic"):
        said.append(f"{precision} was measured on {data.kind} inputs only, not on real ones: {cure}")
    elif data.rows == 1:
        said.append(f"{precision} was measured on a single row, which says nothing of other inputs: {cure}")
    elif data.rows < FEWEST:
        said.append(
            f"{precision} was measured on {data.rows} rows only: if none of them changes its class, up to "
            f"{min(1.0, 3 / data.rows):.0%} of other inputs may still change theirs; {cure}"
        )
    if division.calibration is not None and not division.same:
        seen = {_bytes(row) for case in division.calibration.cases for row in _rows(case, specs)}
        again = sum(_bytes(row) in seen for case in division.measured.cases for row in _rows(case, specs))
        if again:
            said.append(
                f"{again} of the {data.rows} rows that {precision} was measured on {'is' if again == 1 else 'are'} "
                "among the rows that it was calibrated on, too"
            )
    return tuple(said)


def _every_second(samples: Sequence[Case], start: int, specs: Sequence[InputSpec]) -> list[Case]:
    """Return the rows of all samples that have the number start, start + 2, …; whole files where none can be split."""
    counts = [rows_of(case, specs) for case in samples]
    if not _divisible(counts, specs):
        return list(samples[start::2])
    firsts = np.cumsum([0, *counts[:-1]])
    return [
        _taken(case, slice(offset, None, 2), specs)
        for case, count, offset in zip(samples, counts, (int(first + start) % 2 for first in firsts), strict=True)
        if offset < count
    ]


def _divisible(counts: Sequence[int], specs: Sequence[InputSpec]) -> bool:
    """Whether the network takes both halves of each file."""
    batch = batch_dimension(specs)
    return batch is not None and all(batch.holds(size) for n in counts for size in (n // 2, n - n // 2) if size)


def _taken(case: Case, which: slice | NDArray[np.bool_], specs: Sequence[InputSpec]) -> Case:
    scalars = {s.name for s in specs if not s.dims}
    return replace(case, inputs={k: v if k in scalars else v[which] for k, v in case.inputs.items()})


def _rows(case: Case, specs: Sequence[InputSpec]) -> Iterable[list[NDArray[Any]]]:
    """Yield the arrays of each row, without scalars; of the whole case where it is one row."""
    arrays = [case.inputs[s.name] for s in specs if s.dims]
    if batch_dimension(specs) is None:
        yield list(case.inputs.values())
        return
    for index in range(rows_of(case, specs)):
        yield [array[index] for array in arrays]


def _same(rows: int) -> str:
    return "single row, which says nothing" if rows == 1 else f"{rows:,} rows, which says little"


def _bytes(row: Sequence[NDArray[Any]]) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in row)


def _is_finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _files(cases: Sequence[Case]) -> str:
    names = list(dict.fromkeys(case.name for case in cases))
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more files" if len(names) > 3 else shown

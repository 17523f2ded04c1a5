"""Which rows calibrate and which measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.export.calibration.rows import DataSet, Division, Rows, divide, only_finite, parts, rows_of, warnings_on
from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.verify import Case

SPECS = parse_inputs(["x=FP32[N,2]"])
WHOLE = parse_inputs(["x=FP32[1,2]"])


def numbered(*counts: int) -> list[Case]:
    """Files of these numbers of rows; the values in all of them count up from 0."""
    ends = np.cumsum([0, *counts])
    files = zip(ends, counts, strict=False)
    return [
        Case("sample", f"{i}.npy", {"x": np.repeat(np.arange(s, s + n, dtype=np.float32)[:, None], 2, 1)})
        for i, (s, n) in enumerate(files)
    ]


def numbers(rows: Rows | None) -> list[int]:
    assert rows is not None
    return [int(v) for case in rows.cases for v in case.inputs["x"][:, 0]]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 1))
def test_of_all_rows_every_second_one_calibrates_and_the_others_measure(counts: list[int]) -> None:
    division = divide(True, numbered(*counts), (), SPECS)
    assert numbers(division.calibration) == list(range(0, sum(counts), 2))
    assert numbers(division.measured) == list(range(1, sum(counts), 2))
    assert division.measured.data.rows == len(numbers(division.measured))
    assert not division.same


def test_test_samples_measure_and_all_samples_calibrate() -> None:
    samples, tests = numbered(3), [Case("sample", "t.npy", {"x": np.full((5, 2), 9, np.float32)})]
    division = divide(True, samples, tests, SPECS)
    assert numbers(division.calibration) == [0, 1, 2]
    assert division.measured.data == DataSet("test sample", 5, "'t.npy'")
    assert str(division.measured.data) == "5 rows: 't.npy'"
    assert {case.kind for case in division.measured.cases} == {"test sample"}


def test_what_is_not_calibrated_is_measured_on_every_row() -> None:
    division = divide(False, numbered(2, 3), (), SPECS)
    assert division.calibration is None
    assert numbers(division.measured) == [0, 1, 2, 3, 4]


def test_without_a_batch_or_where_parts_of_it_are_not_taken_whole_files_are_divided() -> None:
    files = numbered(1, 1, 1)
    division = divide(True, files, (), WHOLE)
    assert (numbers(division.calibration), numbers(division.measured)) == ([0, 2], [1])
    assert (division.measured.data.rows, rows_of(files[0], WHOLE)) == (1, 1)
    pairs = parse_inputs(["x=FP32[N:2..:2,2]"])
    division = divide(True, numbered(2, 4, 2), (), pairs)
    assert (numbers(division.calibration), numbers(division.measured)) == ([0, 1, 6, 7], [2, 3, 4, 5])
    (only,) = numbered(2)
    assert divide(True, [only], (), pairs).same, "a file that cannot be divided does both"


def test_a_case_is_run_in_pieces_where_the_network_takes_them() -> None:
    (case,) = numbered(5)
    assert [rows_of(piece, SPECS) for piece in parts(case, 2, SPECS)] == [2, 2, 1]
    assert list(parts(case, 2, parse_inputs(["x=FP32[N:2..,2]"]))) == [case]
    assert list(parts(case, 2, WHOLE)) == [case]


def test_scalars_are_not_divided() -> None:
    specs = parse_inputs(["x=FP32[N,2]", "t=FP32[]"])
    case = Case("sample", "a.npz", {"x": np.zeros((4, 2), np.float32), "t": np.float32(3).reshape(())})
    division = divide(True, [case], (), specs)
    assert [c.inputs["t"].shape for c in division.measured.cases] == [()]
    assert division.measured.data.rows == 2


def test_rows_that_are_not_finite_do_not_calibrate() -> None:
    cases = numbered(4, 2)
    cases[0].inputs["x"][2, 1] = np.nan
    rows = Rows.of(cases, "sample", "'0.npy'", SPECS)
    assert numbers(only_finite(rows, SPECS)) == [0, 1, 3, 4, 5]
    for case in cases:
        case.inputs["x"][:] = np.inf
    assert only_finite(rows, SPECS) is None


def test_the_fewer_rows_measure_the_more_is_said() -> None:
    def said(division: Division) -> str:
        return " ".join(warnings_on(division, "int8", SPECS))

    assert said(divide(True, numbered(64), (), SPECS)) == ""
    assert "measured on 31 rows only: if none of them changes its class, up to 10% of other" in said(
        divide(True, numbered(62), (), SPECS)
    )
    assert "calibrated and measured on the same single row" in said(divide(True, numbered(1), (), SPECS))
    assert "measured on a single row, which says nothing" in said(divide(True, numbered(2), (), SPECS))
    assert "measured on random inputs only, not on real ones" in said(
        Division(None, Rows.of(numbered(64), "random", "N(0, 1)", SPECS))
    )
    assert "with --test-sample" in said(divide(False, numbered(5), (), SPECS))


@pytest.mark.parametrize(("twice", "said"), [(1, "1 of the 40 rows that int8 was measured on is"), (3, "3 of the 40")])
def test_rows_that_calibrate_and_measure_are_counted(twice: int, said: str) -> None:
    samples, (tests,) = numbered(40), numbered(40)
    tests.inputs["x"][twice:] += 1000
    (warning,) = warnings_on(divide(True, samples, [tests], SPECS), "int8", SPECS)
    assert warning.startswith(said)

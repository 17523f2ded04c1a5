from __future__ import annotations

import numpy as np
import pytest

from normfold.export.proof.rounding import FACTOR, FLOOR, bound
from normfold.export.proof.verify import Case, largest_errors, verify

X = np.linspace(-1, 1, 12).reshape(3, 4)


def run(change=lambda y: y, dtype=np.float32):  # type: ignore[no-untyped-def]
    return lambda inputs: {"y": change(inputs["x"].astype(np.float64)).astype(dtype)}


def check(unfolded, folded, x=X, kind="random"):  # type: ignore[no-untyped-def]
    return held(run(dtype=np.float64), unfolded, folded, [Case(kind, "one", {"x": x})])


def held(reference, unfolded, graph, cases):  # type: ignore[no-untyped-def]
    """Hold a graph against the rounding bound of one run of the unfolded graph."""
    own = largest_errors(reference, [unfolded], cases)
    return verify(reference, graph, cases, "exact", own, bound, unfolded)


def test_a_graph_that_rounds_like_the_unfolded_one_passes() -> None:
    result = check(run(), run())
    assert result.passed
    (difference,) = result.differences
    assert difference.relative == difference.unfolded_relative <= 2**-24
    assert difference.label_agreement == 1.0


@pytest.mark.parametrize(("factor", "passes"), [(2.9, True), (3.1, False)])
def test_the_bound_is_three_times_the_networks_own_error(factor: float, passes: bool) -> None:
    off = 1e-3
    result = check(run(lambda y: y + off), run(lambda y: y + factor * off))
    assert result.passed is passes
    assert result.worst.ratio == pytest.approx(factor, rel=1e-4)


def test_the_floor_is_four_units_in_the_last_place_of_the_outputs_scale() -> None:
    x = X * 1e6
    inside, outside = check(run(), run(lambda y: y + 3e6 * 2**-23), x), check(run(), run(lambda y: y + 7e6 * 2**-23), x)
    assert inside.passed
    assert not outside.passed
    assert outside.worst.bound == pytest.approx(FACTOR * outside.worst.unfolded_relative + FLOOR)


def test_nan_and_infinity_must_stand_where_they_stood() -> None:
    def spoiled(value, at=(0, 0)):  # type: ignore[no-untyped-def]
        def change(y):  # type: ignore[no-untyped-def]
            y = y.copy()
            y[at] = value
            return y

        return change

    assert check(run(spoiled(np.nan)), run(spoiled(np.nan))).passed
    for other in (run(), run(spoiled(np.inf)), run(spoiled(np.nan, (1, 1)))):
        result = check(run(spoiled(np.nan)), other)
        assert not result.passed
        assert "NaN or infinity" in result.worst.trouble
    assert not check(run(spoiled(np.inf)), run(spoiled(-np.inf))).passed


def test_another_shape_or_a_missing_output_fails() -> None:
    assert "its shape is [3, 3]" in check(run(), run(lambda y: y[:, :3])).worst.trouble
    assert "no such output" in check(run(), lambda inputs: {}).worst.trouble


def test_an_error_in_one_kind_of_case_is_not_hidden_by_a_large_one_in_another() -> None:
    cases = [Case("random", "a", {"x": X}), Case("scaled", "b", {"x": X * 1e4})]

    def noisy(inputs):  # type: ignore[no-untyped-def]
        large = np.abs(inputs["x"]).max() > 2
        return {"y": (inputs["x"] + 1e-4 * large * np.abs(inputs["x"]).max()).astype("f4")}

    def off(inputs):  # type: ignore[no-untyped-def]
        return {"y": (inputs["x"] + 1e-5 * (np.abs(inputs["x"]).max() < 2)).astype("f4")}

    result = held(run(dtype=np.float64), noisy, off, cases)
    assert [d.passed for d in result.differences] == [False, True]


def test_indices_are_compared_exactly() -> None:
    reference = lambda inputs: {"label": inputs["x"].argmax(1)}  # noqa: E731
    wrong = lambda inputs: {"label": inputs["x"].argmin(1)}  # noqa: E731
    cases = [Case("random", "a", {"x": X})]
    assert held(reference, reference, reference, cases).passed
    worst = held(reference, reference, wrong, cases).worst
    assert (worst.passed, worst.output, worst.relative) == (False, "label", 1.0)


def test_the_networks_own_error_is_the_largest_of_all_its_roundings() -> None:
    cases = [Case("random", "a", {"x": X}), Case("sample", "b", {"x": X})]
    runs = [run(lambda y, off=off: y + off) for off in (1e-4, 3e-3, 2e-3)]
    errors = largest_errors(run(dtype=np.float64), runs, cases)
    assert errors.keys() == {("random", "y"), ("sample", "y")}
    assert all(error == pytest.approx(3e-3, rel=1e-3) for error in errors.values())


def test_where_only_the_reference_overflows_the_unfolded_graph_stands_in() -> None:
    def overflowing(inputs):  # type: ignore[no-untyped-def]
        return {"y": np.where(inputs["x"] == X[0, 0], -np.inf, inputs["x"])}

    def checked(change):  # type: ignore[no-untyped-def]
        return held(overflowing, run(), run(change), [Case("random", "one", {"x": X})])

    assert checked(lambda y: y * (1 + 2**-23)).passed
    assert not checked(lambda y: np.where(y == X[0, 0], y + 0.1, y)).passed

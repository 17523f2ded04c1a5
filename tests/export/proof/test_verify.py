from __future__ import annotations

import numpy as np
import pytest

from normfold.export.errors import VerificationError
from normfold.export.proof.verify import FACTOR, FLOOR, Case, require, verify

X = np.linspace(-1, 1, 12).reshape(3, 4)


def run(change=lambda y: y, dtype=np.float32):  # type: ignore[no-untyped-def]
    return lambda inputs: {"y": change(inputs["x"].astype(np.float64)).astype(dtype)}


def check(unfolded, folded, x=X, kind="random"):  # type: ignore[no-untyped-def]
    return verify(run(dtype=np.float64), unfolded, folded, [Case(kind, "one", {"x": x})], "exact")


def test_a_graph_that_rounds_like_the_unfolded_one_passes() -> None:
    result = check(run(), run())
    assert result.passed
    (difference,) = result.differences
    assert difference.relative == difference.unfolded_relative <= 2**-24
    assert difference.label_agreement == 1.0
    require(result)


@pytest.mark.parametrize(("factor", "passes"), [(1.9, True), (2.1, False)])
def test_the_bound_is_twice_the_unfolded_graphs_own_error(factor: float, passes: bool) -> None:
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
        with pytest.raises(VerificationError, match="NaN or infinity"):
            require(result)
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

    result = verify(run(dtype=np.float64), noisy, off, cases, "exact")
    assert [d.passed for d in result.differences] == [False, True]


def test_indices_are_compared_exactly_and_the_message_of_a_failure_names_output_and_figures() -> None:
    reference = lambda inputs: {"label": inputs["x"].argmax(1)}  # noqa: E731
    wrong = lambda inputs: {"label": inputs["x"].argmin(1)}  # noqa: E731
    cases = [Case("random", "a", {"x": X})]
    assert verify(reference, reference, reference, cases, "exact").passed
    with pytest.raises(VerificationError, match="output 'label' on random inputs") as caught:
        require(verify(reference, reference, wrong, cases, "exact"))
    assert caught.value.output == "label"


@pytest.mark.parametrize(("second", "unit"), [(0.5, 1.0), (3.0, 3.0), (100.0, 4.0)])
def test_a_second_rounding_of_the_unfolded_graph_widens_the_unit_up_to_four_times(second: float, unit: float) -> None:
    """A gate near its threshold makes the error of one rounding order, on few inputs, a matter of luck."""
    exact = np.ones((1, 4, 8))
    step = 2.0**-20

    def off(times: float):  # type: ignore[no-untyped-def]
        return lambda inputs: {"y": (exact + times * step).astype(np.float32)}

    cases = [Case("random", "one", {"x": exact.astype(np.float32)})]
    result = verify(lambda inputs: {"y": exact}, off(1), off(1), cases, "r", off(second))
    assert result.worst.unfolded_relative == pytest.approx(unit * step, rel=0.2 if second == 100.0 else 0.05)
    assert result.worst.bound == pytest.approx(2 * result.worst.unfolded_relative + 4 * 2.0**-23)


def test_where_only_the_reference_overflows_the_unfolded_graph_stands_in() -> None:
    def overflowing(inputs):  # type: ignore[no-untyped-def]
        return {"y": np.where(inputs["x"] == X[0, 0], -np.inf, inputs["x"])}

    def checked(change):  # type: ignore[no-untyped-def]
        return verify(overflowing, run(), run(change), [Case("random", "one", {"x": X})], "exact")

    assert checked(lambda y: y * (1 + 2**-23)).passed
    assert not checked(lambda y: np.where(y == X[0, 0], y + 0.1, y)).passed

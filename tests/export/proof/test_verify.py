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
    assert not result.passed


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


def test_the_figures_of_an_output_are_those_of_all_its_cases() -> None:
    answers = {"a": [[1.0, -4.0], [2.0, 0.0]], "b": [[0.5, 0.6]]}
    off = {"a": [[0.5, 0.0], [0.0, 0.0]], "b": [[0.0, -0.3]]}
    cases = [Case("random", name, {"x": np.array(array)}) for name, array in answers.items()]

    def graph(inputs):  # type: ignore[no-untyped-def]
        return {"y": inputs["x"] + np.array(off["a" if len(inputs["x"]) == 2 else "b"])}

    (found,) = verify(run(dtype=np.float64), graph, cases, "exact", {}, bound).differences
    assert (found.cases, found.rows, found.max_abs) == (2, 3, 0.5)
    assert found.mean_abs == pytest.approx(0.8 / 6)
    assert found.relative == pytest.approx(0.5), "0.3 of 0.6, which is more than 0.5 of 4"
    assert found.label_agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("errors", "worst"),
    [
        ({"far within": (0.5, 1.0), "just within": (0.01, 0.0125)}, "just within"),
        ({"just within": (0.5, 0.51), "twice": (0.2, 0.1), "three times": (0.09, 0.03)}, "three times"),
    ],
)
def test_the_worst_output_is_the_one_nearest_to_its_bound_or_furthest_beyond(errors, worst: str) -> None:  # type: ignore[no-untyped-def]
    def off(share: float):  # type: ignore[no-untyped-def]
        return lambda inputs: {name: inputs["x"] * (1 + share * error) for name, (error, _) in errors.items()}

    own = {("random", name): allowed for name, (_, allowed) in errors.items()}
    cases = [Case("random", "one", {"x": X})]
    assert verify(off(0), off(1), cases, "exact", own, lambda own, integers: own).worst.output == worst


def test_a_case_on_which_the_graph_does_not_run_fails_and_the_others_are_compared() -> None:
    def failing(inputs):  # type: ignore[no-untyped-def]
        if len(inputs["x"]) == 2:
            raise ValueError("no two rows")
        return run()(inputs)

    cases = [Case("random", "two rows", {"x": X[:2]}), Case("random", "three rows", {"x": X})]
    (found,) = verify(run(dtype=np.float64), failing, cases, "exact", {}, bound).differences
    assert not found.passed
    assert found.trouble == "output 'y': on two rows the graph does not run: no two rows"
    assert (found.cases, found.rows) == (2, 3)


@pytest.mark.parametrize(("numbers_in", "kinds"), [({"random"}, ["random"]), (set(), ["random", "scaled"])])
def test_a_kind_of_case_without_numbers_is_left_out_where_another_has_some(numbers_in: set[str], kinds) -> None:  # type: ignore[no-untyped-def]
    cases = [Case("random", "a", {"x": X}), Case("scaled", "b", {"x": 1e4 * X})]

    def same(inputs):  # type: ignore[no-untyped-def]
        kind = "random" if np.abs(inputs["x"]).max() < 2 else "scaled"
        return {"y": inputs["x"] if kind in numbers_in else np.full_like(inputs["x"], np.nan)}

    result = verify(same, same, cases, "exact", {}, bound)
    assert [(d.kind, d.passed, d.mean_abs) for d in result.differences] == [(kind, True, 0.0) for kind in kinds]


@pytest.mark.parametrize(("wrong", "passes"), [(1, True), (3, False)])
def test_of_integers_the_share_that_differs_counts_however_little_they_differ(wrong: int, passes: bool) -> None:
    places = np.arange(1000, 3000)
    cases = [Case("random", "one", {"x": places}), Case("random", "empty", {"x": places[:0]})]
    found = verify(
        lambda inputs: {"place": inputs["x"]},
        lambda inputs: {"place": inputs["x"] + (np.arange(len(inputs["x"])) < wrong)},
        cases, "exact", {}, bound,
    )  # fmt: skip
    assert found.worst.relative == wrong / len(places)
    assert found.passed is passes

"""Ratios of interleaved times: invented figures, with results worked out by hand."""

from __future__ import annotations

import math

import pytest
from benches.interleaved import interleaved
from benches.ratios import geometric_mean, with_spread

from normfold.serving.load.rounds import Ratio, turns


def test_a_ratio_is_taken_round_by_round():
    ratio = Ratio.of([2.0, 9.0, 8.0], [1.0, 3.0, 1.0])
    assert ratio.rounds == (2.0, 3.0, 8.0)
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 3.0, 8.0)
    assert str(ratio) == "3.00 (2.00 to 8.00)"


def test_the_spread_is_half_the_distance_of_the_quartiles():
    ratio = Ratio.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [1.0] * 7)
    assert ratio.spread == 2.0
    assert with_spread(ratio) == "4.00 ± 2.00"


def test_times_of_different_rounds_make_no_ratio():
    with pytest.raises(ValueError, match="zip"):
        Ratio.of([1.0, 2.0], [1.0])


def test_each_round_begins_with_another_and_leaves_none_out():
    assert ["".join(turns("abc", number)) for number in range(4)] == ["abc", "bca", "cab", "abc"]


def test_twice_as_fast_and_half_as_fast_are_as_fast_on_the_mean():
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert math.isnan(geometric_mean([]))


def test_programs_run_in_turns_each_round_beginning_with_another():
    now = 0.0
    calls: list[str] = []

    def program(name: str, seconds: float):
        def run() -> None:
            nonlocal now
            now += seconds
            calls.append(name)

        return run

    # These numbers are exact in binary, so their sums are exact, too.
    runs = {"slow": program("slow", 0.25), "fast": program("fast", 0.125)}
    times = interleaved(runs, 3, slice_ms=250, clock=lambda: now)
    assert times == {"slow": [250.0] * 3, "fast": [125.0] * 3}
    warm, first, second, third = calls[:4], calls[4:7], calls[7:10], calls[10:]
    assert warm == ["slow", "slow", "fast", "fast"]
    assert first == ["slow", "fast", "fast"]
    assert second == ["fast", "fast", "slow"]
    assert third == first


def test_a_budget_that_is_spent_ends_the_rounds_after_the_third():
    times = interleaved({"one": lambda: None}, 9, slice_ms=0.001, budget_seconds=-1)
    assert len(times["one"]) == 3

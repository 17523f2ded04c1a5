"""The histogram against exact percentiles of the same values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from normfold.serving.load.histogram import Histogram


def exact(values, percent):
    """Nearest rank."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


@pytest.mark.parametrize("percent", [0.1, 50, 90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("scale", [1, 1_000, 10_000_000])
def test_a_percentile_is_the_exact_one_or_at_most_a_thousandth_more(scale, percent):
    values = [int(v) for v in np.random.default_rng(0).lognormal(3, 1.5, 5000) * scale]
    found = Histogram(values).percentile(percent)
    wanted = exact(values, percent)
    assert wanted <= found <= wanted * (1 + 1 / 1024) + 1


def test_values_below_2048_are_kept_exactly():
    assert [Histogram([v]).percentile(50) for v in range(0, 2048, 7)] == list(range(0, 2048, 7))


@pytest.mark.parametrize("value", [2**n + d for n in range(11, 42) for d in (-1, 0, 1)])
def test_every_size_lands_in_the_bucket_that_holds_it(value):
    ((top, count),) = Histogram([value]).buckets()
    assert count == 1
    assert value <= top <= value * (1 + 1 / 1024)


def test_histograms_add_up():
    both = Histogram([1, 2, 3])
    both += Histogram([4_000_000])
    assert both.count == 4
    assert both.percentile(75) == 3
    assert both.percentile(100) >= 4_000_000


def test_the_mean_is_within_half_a_thousandth():
    values = [int(v) for v in np.random.default_rng(1).exponential(1e6, 10_000)]
    assert Histogram(values).mean() == pytest.approx(np.mean(values), rel=1 / 2048)


def test_nothing_has_a_percentile_of_0_and_what_is_out_of_range_counts_at_its_end():
    assert Histogram().percentile(99) == 0
    assert Histogram().mean() == 0
    assert Histogram([-5]).percentile(50) == 0
    assert Histogram([1 << 50]).percentile(50) == (1 << 42) - 1
    with pytest.raises(ValueError, match="lies in"):
        Histogram([1]).percentile(0)

"""The cost of metrics and the access log: invented figures, with the results by hand, and options that there are."""

from __future__ import annotations

import pytest
from benches.serving.watched import KINDS, LOAD, counting, differences, spread

from normfold.cli.serve import serve
from normfold.serving.load.generator import Slice
from normfold.serving.load.rounds import Target


def test_servers_are_compared_within_a_round():
    def target(*cpu_us: float) -> Target:
        found = Target("t", None)
        found.slices[LOAD] = [part(each) for each in cpu_us]
        return found

    assert differences(target(31.0, 42.5, 30.0), target(30.0, 42.0, 32.0)) == pytest.approx([1.0, 0.5, -2.0])


def part(cpu_us: float) -> Slice:
    """A slice of 1,000 answers that took this much CPU time each."""
    return Slice(answered=1000, seconds=1.0, cpu_seconds=cpu_us / 1e3)


def test_a_spread_is_the_median_between_the_quartiles():
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == "3.0 (2.0 to 4.0)"
    assert spread([1.234, 1.234], 2) == "1.23 (1.23 to 1.23)"


def test_counting_a_request_takes_some_time():
    median = float(counting(3).split()[0])
    assert median > 0.0


def test_every_server_is_started_with_options_that_there_are():
    options = {name for option in serve.params for name in option.opts}
    for given in KINDS.values():
        assert {word for word in given if word.startswith("--")} <= options
    base, again, *_ = KINDS.values()
    assert base == again, "the second shows how large a difference of nothing looks"

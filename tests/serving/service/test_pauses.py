"""A load that failed for a reason that may pass is tried again, seldom enough to cost nobody anything."""

from __future__ import annotations

import pytest

from normfold.serving.service import pauses
from normfold.serving.service.pauses import FIRST_SECONDS, LONGEST_SECONDS, TIMES_LOAD, Pauses


@pytest.fixture
def clock(monkeypatch):
    """What ``time.monotonic`` says there, as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(pauses.time, "monotonic", lambda: now[0])
    return now


def gap(one, clock, seconds=0.0):
    """The time until a load is due that fails now after ``seconds``."""
    one.failed("m", seconds, "no memory")
    begun = clock[0]
    while not one.due(["m"], now=False):
        clock[0] += 1.0
    return clock[0] - begun


def test_pauses_grow_to_a_bound_and_a_load_that_takes_long_takes_a_small_part_of_the_time(clock):
    one = Pauses()
    gaps = [gap(one, clock) for _ in range(100)]
    assert gaps[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert gaps[-90:] == [LONGEST_SECONDS] * 90
    assert gap(one, clock, 120.0) == 120.0 * TIMES_LOAD
    one.forget("m")
    assert gap(one, clock) == FIRST_SECONDS


def test_a_model_that_failed_at_the_start_waits_too_and_whoever_asks_has_it_at_once(clock):
    one = Pauses()
    assert one.due(["m", "n"], now=False) == []
    assert one.due(["m", "n"], now=True) == ["m", "n"]
    clock[0] += FIRST_SECONDS
    assert one.due(["m"], now=False) == ["m"]


def test_a_reason_is_new_once(clock):
    one = Pauses()
    assert [one.failed("m", 0.0, reason) for reason in ("a", "a", "b", "b")] == [True, False, True, False]

"""Runs stay on the event loop where they were shorter than the detour over another thread, by exact shape."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from normfold.serving.scheduling import inline
from normfold.serving.scheduling.batching import BatchPolicy
from normfold.serving.scheduling.inline import LoopTurn, RunTime, RunTimes
from normfold.serving.scheduling.scheduler import Scheduler
from normfold.serving.scheduling.statistics import Statistics

BOUND = 100_000
SHORT, LONG, VERY_LONG = BOUND // 2, BOUND * 2, 5_000_000


def _x(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros(shape, np.float32)}


def test_short_runs_come_onto_the_loop_and_very_long_ones_do_not():
    short, long = RunTime(BOUND), RunTime(BOUND)
    for _ in range(inline.TRIED_RUNS):
        assert not short.inline
        short.note(SHORT)
        long.note(VERY_LONG)
    assert short.inline
    assert not long.inline


def test_runs_that_look_long_elsewhere_try_the_loop_and_stay_if_they_are_short_there():
    short, long = RunTime(BOUND), RunTime(BOUND)
    for run_time in (short, long):
        for _ in range(inline.TRIED_RUNS):
            run_time.note(LONG)
        assert run_time.inline
    for _ in range(10):
        short.note(SHORT)
        long.note(LONG)
    assert short.inline
    assert not long.inline


@pytest.fixture
def clock(monkeypatch):
    """The seconds of a clock that the test sets."""

    class Clock:
        seconds = 1.0

        def perf_counter_ns(self):
            return int(self.seconds * 1e9)

    clock = Clock()
    monkeypatch.setattr(inline, "time", clock)
    return clock


def _inline() -> RunTime:
    run_time = RunTime(BOUND)
    for _ in range(inline.TRIED_RUNS):
        run_time.note(SHORT)
    return run_time


@pytest.mark.parametrize(("ns", "stays"), [(LONG, 9), (VERY_LONG, 1)])
def test_long_runs_in_a_row_leave_the_loop_and_try_it_again_after_a_pause(ns, stays, clock):
    run_time = _inline()
    clock.seconds += 1
    for _ in range(stays):
        run_time.note(ns)
        assert run_time.inline
    run_time.note(ns)
    assert not run_time.inline
    for length in (SHORT, LONG, VERY_LONG) * 50:  # what other threads measure says little
        run_time.note(length)
        assert not run_time.tries_again()
    clock.seconds += inline.FIRST_PAUSE
    assert run_time.tries_again()
    assert run_time.inline


def test_runs_that_stay_long_try_again_less_and_less(clock):
    run_time, tries, begun = _inline(), 0, clock.seconds
    while clock.seconds < begun + 1000:
        if run_time.inline or run_time.tries_again():
            tries += not run_time._doubt
            run_time.note(VERY_LONG)
        clock.seconds += 0.005
    assert 150 < tries < 250


def test_runs_that_only_look_long_now_and_then_are_on_the_loop_nearly_always(clock):
    run_time, elsewhere = _inline(), 0
    for number in range(100_000):
        clock.seconds += 0.0001
        if run_time.inline or run_time.tries_again():
            run_time.note(VERY_LONG if number % 5000 < 4 else SHORT)
        else:
            elsewhere += 1
    assert 0 < elsewhere < 6000


def test_runs_that_were_never_short_do_not_try(clock):
    run_time = RunTime(BOUND)
    for _ in range(100):
        run_time.note(VERY_LONG)
        clock.seconds += 1
        assert not run_time.tries_again()


def test_a_run_that_is_interrupted_now_and_then_stays():
    run_time = RunTime(BOUND)
    for number in range(2000):
        run_time.note(VERY_LONG if number % 20 == 19 else SHORT)
    assert run_time.inline


def test_every_set_of_shapes_is_timed_by_itself():
    times = RunTimes(BOUND / 1e9)
    for _ in range(inline.TRIED_RUNS):
        times.of(_x(1, 3)).note(SHORT)
        times.of(_x(2, 3)).note(VERY_LONG)
    assert times.of(_x(1, 3)).inline
    assert not times.of(_x(2, 3)).inline
    assert not times.of(_x(1, 4)).inline
    assert times.of_rows(_x(9, 3), 1) is times.of(_x(1, 3))


def test_as_many_shapes_are_remembered_as_are_allowed(monkeypatch):
    monkeypatch.setattr(inline, "LIMIT", 3)
    times = RunTimes(1.0)
    for size in range(10):
        times.of(_x(size))
        assert len(times) <= 3


def test_requests_of_an_open_shape_teach_where_their_runs_belong():
    threads = []

    def model(feeds, outputs):
        threads.append(threading.current_thread() is threading.main_thread())
        return [feeds["x"]]

    async def scenario(bound_seconds):
        threads.clear()
        with ThreadPoolExecutor(1) as executor:
            scheduler = Scheduler(model, BatchPolicy(), 1, executor, Statistics(), RunTimes(bound_seconds))
            for _ in range(inline.TRIED_RUNS + 2):
                await scheduler.submit(_x(5), 1, ["y"], 0, 0)
        return list(threads)

    # The boundary is so high, or so low, that every run is on one side of it.
    inline_after = [False] * inline.TRIED_RUNS + [True] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline, "VERY_LONG_SECONDS", 100.0)
        assert asyncio.run(scenario(100.0)) == inline_after
    assert asyncio.run(scenario(0.0)) == [False] * (inline.TRIED_RUNS + 2)


def _short_times(turn: LoopTurn | None = None) -> RunTimes:
    """Run times in which one row of five numbers belongs on the event loop, whatever the runs of the test take."""
    times = RunTimes(100.0, turn)
    for _ in range(inline.TRIED_RUNS):
        times.of(_x(1, 5)).note(SHORT)
    return times


def test_what_is_too_much_for_a_turn_of_the_loop_runs_elsewhere_in_its_order():
    runs: list[tuple[bool, list[float]]] = []

    def model(feeds, outputs):
        runs.append((threading.current_thread() is threading.main_thread(), feeds["x"][:, 0].tolist()))
        return [feeds["x"]]

    async def scenario(policy):
        runs.clear()
        turn = LoopTurn()
        with ThreadPoolExecutor(1) as executor:
            one, other = (Scheduler(model, policy, 1, executor, Statistics(), _short_times(turn)) for _ in range(2))

            def ask(scheduler, value):
                return scheduler.submit({"x": np.full((1, 5), value, np.float32)}, 1, ["y"], 0, 0)

            # the first run takes the whole turn, of the other model, too
            await asyncio.wait_for(asyncio.gather(*[ask((one, other)[n % 2], n) for n in range(40)]), 20)
            assert not turn.is_over
            await ask(other, 40)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline, "TURN_SECONDS", 0.0)
        for policy in (BatchPolicy(), BatchPolicy(max_rows=8), BatchPolicy(max_rows=8, in_order=True)):
            asyncio.run(scenario(policy))
            assert runs[0] == (True, [0])
            assert (True, [1]) not in runs
            assert runs[-1] == (True, [40])
            for parity in (0, 1):
                own = [n for _, given in runs for n in given if n % 2 == parity]
                assert own == sorted(own)
            assert sorted(n for _, given in runs for n in given) == list(range(41))


def test_a_run_on_the_loop_is_counted_and_an_output_without_its_rows_is_noticed():
    alone, statistics = [], Statistics()

    def model(feeds, outputs):
        return [np.zeros((2, 1)) if name == "z" else feeds["x"] for name in outputs]

    async def scenario():
        with ThreadPoolExecutor(1) as executor:
            policy = BatchPolicy(max_rows=8)
            scheduler = Scheduler(model, policy, 1, executor, statistics, _short_times(), on_alone=alone.append)
            await scheduler.submit(_x(1, 5), 1, ["y"], 0, 0)
            assert alone == []
            await scheduler.submit(_x(1, 5), 1, ["y", "z"], 0, 0)

    asyncio.run(scenario())
    assert alone == [["z"]]
    assert statistics.executions == 2


def test_the_turn_of_the_loop_ends_with_it():
    async def scenario():
        turn = LoopTurn()
        for _ in range(2):
            turn.spend(int(inline.TURN_SECONDS * 1e9))
            assert not turn.is_over
            turn.spend(1)
            assert turn.is_over
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not turn.is_over

    asyncio.run(scenario())

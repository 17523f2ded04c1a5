"""Which of the waiting requests run together next, at moments that the tests choose."""

from __future__ import annotations

import asyncio

import pytest

from normfold.serving.scheduling.batching import BatchPolicy
from normfold.serving.scheduling.inline import RunTime
from normfold.serving.scheduling.queues import Job, Queues


@pytest.fixture
def wait():
    """A function that lets a job wait, and the queues that it waits in: a batch of up to 4 rows waits for 1000 ns."""
    loop = asyncio.new_event_loop()
    queues = Queues(BatchPolicy(max_rows=4, max_delay_us=1, preferred=frozenset({3}), levels=2, default_level=2))

    def add(key: str, arrived_ns: int = 0, rows: int = 1, level: int = 2) -> Job:
        job = Job({}, rows, ("y",), level, arrived_ns, loop.create_future(), RunTime(0))
        job.key = key
        queues.add(job)
        return job

    yield add, queues
    loop.close()


def take(queues: Queues, now_ns: int) -> tuple[list[Job], int]:
    begun: list[list[Job]] = []
    batch, left_ns = queues.take(now_ns, begun.append)
    assert begun == ([batch] if batch else [])
    return batch, left_ns


def test_a_full_batch_is_taken_before_a_head_that_must_wait(wait):
    add, queues = wait
    alone = add("a")
    full = [add("b", arrived_ns) for arrived_ns in range(4)]
    assert take(queues, 100) == (full, 0)
    assert take(queues, 100) == ([], 900)
    assert take(queues, 1000) == ([alone], 0)
    assert take(queues, 1000) == ([], 0)


def test_a_batch_is_full_when_the_next_job_of_its_shape_does_not_fit(wait):
    add, queues = wait
    add("a")
    two, three = add("b", rows=2), add("b", rows=3)
    assert take(queues, 100) == ([two], 0)
    assert take(queues, 100) == ([three], 0)  # a preferred size
    assert take(queues, 100) == ([], 900)


def test_the_batch_of_the_head_is_full_in_the_same_way(wait):
    add, queues = wait
    two, three = add("a", rows=2), add("a", rows=3)
    assert take(queues, 100) == ([two], 0)
    assert take(queues, 100) == ([three], 0)


def test_nothing_overtakes_its_own_shape(wait):
    add, queues = wait
    alone = add("a")
    first, large, small = add("b"), add("b", rows=4), add("b")
    assert [take(queues, 100) for _ in range(3)] == [([first], 0), ([large], 0), ([], 900)]
    assert [take(queues, 1000) for _ in range(2)] == [([alone], 0), ([small], 0)]


def test_of_several_batches_that_are_due_the_first_is_taken(wait):
    add, queues = wait
    add("a", arrived_ns=500)
    both = [add("b", arrived_ns=0), add("b", arrived_ns=900)]
    full = [add("c", 900) for _ in range(4)]
    assert take(queues, 1000) == (both, 0)
    assert take(queues, 1000) == (full, 0)
    assert take(queues, 1000) == ([], 500)


def test_a_full_batch_of_a_low_priority_does_not_wait_for_a_head_of_a_high_one(wait):
    add, queues = wait
    full = [add("b", level=2) for _ in range(4)]
    add("a", arrived_ns=50, level=1)
    assert take(queues, 100) == (full, 0)
    assert take(queues, 100) == ([], 950)


def test_the_time_to_wait_is_the_least_of_all_batches(wait):
    add, queues = wait
    add("b", arrived_ns=100, level=2)
    add("a", arrived_ns=600, level=1)
    add("c", arrived_ns=300, level=2)
    assert take(queues, 700) == ([], 400)


def test_jobs_whose_callers_have_left_fill_no_batch(wait):
    add, queues = wait
    add("a")
    left = [add("b") for _ in range(4)]
    left[2].future.cancel()
    assert take(queues, 100)[0] == [left[0], left[1], left[3]]  # 3 rows are a preferred size
    assert take(queues, 100) == ([], 900)


def test_a_job_that_was_put_behind_all_others_has_a_place_until_it_leaves():
    loop = asyncio.new_event_loop()
    queues = Queues(BatchPolicy())
    first, second = (Job({}, 1, ("y",), 0, 0, loop.create_future(), RunTime(0)) for _ in range(2))
    queues.add(first)
    queues.add(second)
    assert queues.expire(first, delay=True)
    assert (queues.size(0), queues.waiting) == (2, 2)
    assert not queues.expire(first, delay=True)
    assert queues.remove(first)
    assert not queues.remove(first)
    assert queues.size(0) == 1
    assert [take(queues, 0) for _ in range(2)] == [([second], 0), ([], 0)]
    loop.close()


def test_jobs_that_were_put_behind_all_others_make_place_for_another_connection():
    loop = asyncio.new_event_loop()
    queues = Queues(BatchPolicy())
    first, second = (Job({}, 1, ("y",), 0, 0, loop.create_future(), RunTime(0), connection="a") for _ in range(2))
    for job in (first, second):
        queues.add(job)
        assert queues.expire(job, delay=True)
    assert queues.displaced(0, "a") is None
    assert queues.displaced(0, "b") is second
    assert queues.displaced(0, "b") is None
    assert take(queues, 0) == ([first], 0)
    loop.close()


def test_without_batching_no_request_waits_for_others():
    loop = asyncio.new_event_loop()
    queues = Queues(BatchPolicy(max_rows=1, max_delay_us=1))
    jobs = [Job({}, rows, ("y",), 0, 0, loop.create_future(), RunTime(0)) for rows in (0, 1)]
    for job in jobs:
        queues.add(job)
    assert [take(queues, 100) for _ in range(3)] == [([jobs[0]], 0), ([jobs[1]], 0), ([], 0)]
    loop.close()

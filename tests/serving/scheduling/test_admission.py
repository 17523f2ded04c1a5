"""Which requests may wait: by time, deadline, number and bytes, for a connection, a model and the server."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from normfold.serving.errors import Overloaded, Status
from normfold.serving.scheduling.admission import (
    FEW,
    LONGEST_RETRY,
    SHORTEST_RETRY,
    TELLING,
    Admission,
    ModelLoad,
    QueueLimits,
)
from normfold.serving.scheduling.fair_queue import FairQueue

MIB = 1 << 20


class Waiting(NamedTuple):
    """What waits in a queue."""

    connection: str
    number: int


def check(admission: Admission, *request: Any) -> None:
    """Raise the reason why a request may not wait."""
    if (error := admission.refusal(*request)) is not None:
        raise error


def admitted(admission: Admission, load: ModelLoad | None, connection: str, size: int = 1, most: int = 10_000) -> int:
    """How many requests of a connection are admitted one after the other; they stay under way."""
    for number in range(most):
        try:
            check(admission, load, connection, size, None)
        except Overloaded:
            return number
        admission.enter(load, connection, size)
    return most


def test_one_connection_leaves_places_and_every_further_one_gets_some():
    admission = Admission(QueueLimits(requests=1000))
    assert [admitted(admission, None, name) for name in "abcd"] == [800, 160, 32, 7]
    admission = Admission(QueueLimits(bytes=1000 * MIB))
    assert [admitted(admission, None, name, MIB) for name in "abcde"] == [800, 160, 32, 6, 1]


@pytest.mark.parametrize(("places", "passed"), [(8192, 6242), (20_000, 10_000)])
def test_a_client_with_one_request_is_not_starved_by_one_with_ten_thousand(places, passed):
    admission, load, queue = Admission(QueueLimits(requests=places)), ModelLoad(), FairQueue()
    assert admitted(admission, load, "greedy", most=10_000) == passed
    for number in range(passed):
        queue.append(Waiting("greedy", number))
    assert admitted(admission, load, "modest", most=1) == 1
    queue.append(Waiting("modest", 0))
    order = list(queue)
    assert [each.connection for each in order[:3]] == ["greedy", "modest", "greedy"]
    assert len(order) == passed + 1


def test_every_further_connection_to_one_model_gets_some_of_its_places():
    admission, load = Admission(QueueLimits(requests=1000)), ModelLoad()
    assert [admitted(admission, load, name) for name in "abc"] == [762, 37, 1]
    admission.leave(load, "a", 1)
    assert [admitted(admission, load, name, most=1) for name in "ad"] == [0, 1]  # the place goes to the new one
    admission, load = Admission(QueueLimits(bytes=1000 * MIB)), ModelLoad()
    assert [admitted(admission, load, name, MIB) for name in "abc"] == [762, 36, 2]


def test_as_requests_end_the_larger_share_is_refused_and_the_smaller_one_admitted():
    admission = Admission(QueueLimits(requests=100))
    admitted(admission, None, "a")
    admitted(admission, None, "b")
    for _ in range(10):
        admission.leave(None, "a", 1)
    with pytest.raises(Overloaded):
        check(admission, None, "a", 1, None)
    assert admitted(admission, None, "c") > 5


def test_a_connection_that_has_nothing_under_way_is_admitted_when_another_is_refused():
    admission = Admission(QueueLimits(requests=100))
    admitted(admission, None, "a")
    with pytest.raises(Overloaded, match="too many requests are under way in this server"):
        check(admission, None, "a", 1, None)
    check(admission, None, "b", 1, None)


def test_a_model_leaves_places_for_the_others():
    admission = Admission(QueueLimits(requests=100))
    busy, idle = ModelLoad(), ModelLoad()
    for name in "abcdefghij":
        admitted(admission, busy, name)
    assert busy.under_way.requests == 80
    with pytest.raises(Overloaded, match="for this model"):
        check(admission, busy, "z", 1, None)
    check(admission, idle, "z", 1, None)


def test_bytes_are_bounded_but_the_first_request_may_have_any_size():
    admission = Admission(QueueLimits(bytes=10 * MIB))
    load = ModelLoad()
    assert admitted(admission, load, "a", 100 * MIB) == 1
    with pytest.raises(Overloaded, match="requests of too many bytes are under way in this server"):
        check(admission, load, "b", 1, None)
    admission.leave(load, "a", 100 * MIB)
    assert admitted(admission, load, "a", MIB) == 7  # the 8th: 7 > 4 x (4 x (10 - 7 - 1) - 7)
    assert admitted(admission, load, "b", MIB) == 1  # then 8 MiB of this model > 4 x (10 - 8 - 1)
    assert admitted(admission, ModelLoad(), "b", MIB) == 1
    assert admission.under_way.bytes == 9 * MIB


@pytest.mark.parametrize("size", [5, 0])
def test_the_end_of_a_request_frees_its_place(size):
    admission = Admission(QueueLimits(requests=10))
    load = ModelLoad()
    count = admitted(admission, load, "a", size)
    with admission.more(load, "a", 3):
        pass
    for _ in range(count):
        admission.leave(load, "a", size)
    assert (admission.under_way.requests, admission.under_way.bytes, admission.under_way.of) == (0, 0, {})
    assert load.under_way.of == {}
    assert admitted(admission, load, "a", size) == count
    assert admission.work() == (2 * count, count)


def test_the_queue_of_a_model_is_as_long_as_its_measured_runs_allow():
    load = ModelLoad(instances=2)
    load.ran(0.002, 1)  # 2 ms on each of two instances: 1 ms for each request
    assert load.seconds_each == pytest.approx(0.001)
    admission = Admission(QueueLimits(seconds=0.5))
    assert sum(admitted(admission, load, str(number)) for number in range(400)) == 500
    assert load.wait_seconds == pytest.approx(0.5)
    with pytest.raises(Overloaded, match="too many requests are under way for this model") as caught:
        check(admission, load, "new", 1, None)
    assert caught.value.status is Status.RESOURCE_EXHAUSTED
    assert caught.value.retry_seconds == pytest.approx(0.5)


def test_the_time_for_each_request_follows_the_runs_and_not_a_single_one_of_them():
    load = ModelLoad(instances=2)
    load.ran(0.08, 4)  # one run of four requests: 10 ms for each of them on two instances
    assert load.seconds_each == pytest.approx(0.01)
    load.ran(8.0, 4)
    assert 0.1 < load.seconds_each < 0.2
    for _ in range(100):
        load.ran(0.16, 4, runs=4)
    assert load.seconds_each == pytest.approx(0.02, rel=0.01)


def test_a_slow_model_has_a_short_queue_nevertheless():
    load = ModelLoad(instances=1, batch_rows=1)
    load.ran(10.0, 1)
    admission = Admission()
    assert sum(admitted(admission, load, str(number)) for number in range(200)) == FEW
    batched = ModelLoad(instances=2, batch_rows=64)
    batched.ran(10.0, 1)
    assert sum(admitted(Admission(), batched, str(number), most=300) for number in range(400)) >= 2 * 2 * 64
    batched.alone()
    assert batched.few == FEW
    batched.ran(10.0, 1)
    assert batched.few == FEW
    batched.ran(10.0, 2)
    assert batched.few == 2 * 2 * 64
    many = ModelLoad(instances=FEW)
    many.alone()
    assert many.few == 2 * FEW  # requests that run alone still fill all instances twice


@pytest.mark.parametrize(("each", "retry"), [(0.0, SHORTEST_RETRY), (0.01, 0.64), (10.0, LONGEST_RETRY)])
def test_a_refused_caller_comes_back_when_the_queue_is_empty_but_neither_at_once_nor_much_later(each, retry):
    load, admission = ModelLoad(), Admission(QueueLimits(requests=80))
    load.ran(each, 1)
    for name in "abcdefgh":
        admitted(admission, load, name)
    assert load.under_way.requests == 64
    refused = admission.refusal(load, "new", 1, None)
    assert refused is not None
    assert refused.retry_seconds == pytest.approx(retry)


def test_what_cannot_be_answered_before_its_deadline_is_refused_at_once():
    load, admission = ModelLoad(), Admission()
    load.ran(0.1, 1)
    for _ in range(10):
        admission.enter(load, "a", 1)
    check(admission, load, "a", 1, None)
    check(admission, load, "a", 1, 2.1)
    with pytest.raises(Overloaded, match="after the deadline"):
        check(admission, load, "a", 1, 1.9)


def test_without_a_measurement_only_number_and_bytes_count():
    load = ModelLoad()
    assert admitted(Admission(QueueLimits(requests=5000)), load, "a") == 3810


def test_waits_behind_many_requests_count_and_are_forgotten():
    load = ModelLoad()
    load.ran(0.001, 1)
    for _ in range(100):
        load.waited(1.0, 100)  # 10 ms for each: the event loop takes most of it
    assert load.seconds_each == pytest.approx(0.01, rel=0.01)
    for _ in range(100):
        load.waited(1.0, TELLING - 1)
    assert load.seconds_each == pytest.approx(0.001)


def test_the_bytes_that_a_request_turns_out_to_name_count_until_it_has_ended():
    admission, load = Admission(QueueLimits(bytes=10 * MIB)), ModelLoad()
    admission.enter(load, "a", 100)
    admission.enter(load, "b", 100)
    with admission.more(load, "a", 4 * MIB):
        assert (admission.under_way.bytes, load.under_way.bytes) == (4 * MIB + 200, 4 * MIB + 200)
        with pytest.raises(Overloaded, match="too many bytes"), admission.more(load, "b", 7 * MIB):
            pass
        with admission.more(load, "b", 3 * MIB):
            assert admission.under_way.own("b").bytes == 3 * MIB + 100
    admission.leave(load, "a", 100)
    admission.leave(load, "b", 100)
    for place in (admission.under_way, load.under_way):
        assert (place.bytes, place.requests, place.of) == (0, 0, {})


@pytest.mark.parametrize("size", [9 * MIB, 1000 * MIB])
def test_one_request_with_much_shared_memory_passes_beside_small_ones_which_go_on(size):
    admission, load = Admission(QueueLimits(bytes=10 * MIB)), ModelLoad()
    for connection in "ab":
        admission.enter(load, connection, 100)
    with admission.more(load, "a", size):
        assert admission.under_way.bytes == load.under_way.bytes == 5 * MIB
        for connection in "abc":
            check(admission, load, connection, 100, None)
        with pytest.raises(Overloaded, match="way in this server"), admission.more(load, "b", size):
            pass
    assert admission.under_way.bytes == load.under_way.bytes == 200
    with admission.more(load, "b", size):
        assert admission.under_way.own("a").bytes == 100


def test_shared_memory_beside_much_that_came_in_messages_counts_for_nothing_while_it_is_alone():
    admission, load = Admission(QueueLimits(bytes=10 * MIB)), ModelLoad()
    admission.enter(load, "a", 6 * MIB)
    admission.enter(load, "b", 100)
    with admission.more(load, "b", 3 * MIB):
        assert admission.under_way.bytes == 6 * MIB + 100
        with pytest.raises(Overloaded, match="too many bytes"), admission.more(load, "a", 5 * MIB):
            pass


def test_bytes_count_for_a_model_that_was_not_known_when_its_request_came():
    admission, load = Admission(), ModelLoad()
    admission.enter(None, "a", 100)
    with admission.more(load, "a", MIB):
        admission.enter(load, "a", 100)
        admission.leave(load, "a", 100)
        assert load.under_way.own("a").bytes == MIB
    assert not load.under_way.of


def test_one_model_leaves_bytes_for_the_others():
    admission, busy, idle = Admission(QueueLimits(bytes=100 * MIB)), ModelLoad(), ModelLoad()
    admission.enter(busy, "a", MIB)
    admission.enter(busy, "b", 80 * MIB)
    admission.enter(idle, "d", 1)
    with admission.more(idle, "d", MIB):
        with pytest.raises(Overloaded, match="way for this model"), admission.more(busy, "a", MIB):
            pass
        with admission.more(idle, "d", MIB):
            pass


def test_a_long_line_of_one_connection_waits_for_all_others():
    """Connections take turns, so the last of a long line waits longer than all that is under way takes."""
    admission, load = Admission(QueueLimits(seconds=100.0, requests=10_000)), ModelLoad()
    load.ran(0.01, 1)
    for name in "abcdefghij":
        admission.enter(load, name, 1)
    for _ in range(20):
        admission.enter(load, "a", 1)
    check(admission, load, "b", 1, 0.6)  # 20 requests of 10 ms each, twice
    with pytest.raises(Overloaded, match="after the deadline"):
        check(admission, load, "a", 1, 2.0)  # 21 times 10 connections
    check(admission, load, "a", 1, 2.2)
    check(admission, load, "a", 1, None)


def test_a_short_line_is_not_refused_because_of_a_long_one():
    """It waits for one request of each other connection."""
    admission, load = Admission(QueueLimits(seconds=100.0, requests=10_000)), ModelLoad()
    load.ran(0.05, 1)
    for _ in range(9):
        admission.enter(load, "a", 1)
    check(admission, load, "a", 1, 1.0)
    admission.enter(load, "a", 1)
    admission.enter(load, "a", 1)
    with pytest.raises(Overloaded, match="after the deadline"):
        check(admission, load, "a", 1, 1.0)
    check(admission, load, "b", 1, 1.0)
    admission.enter(load, "b", 1)
    check(admission, load, "c", 1, 0.2)  # twice two requests of 50 ms
    with pytest.raises(Overloaded, match="after the deadline"):
        check(admission, load, "c", 1, 0.19)


@pytest.mark.parametrize(("waited", "refused"), [(0.0, False), (0.25, False), (0.26, True), (60.0, True)])
def test_a_request_that_waited_long_in_its_connection_does_not_run_at_once_either(waited, refused):
    late = Admission(QueueLimits(seconds=0.5)).late(waited)
    assert (late is not None) == refused
    if late is not None:
        assert late.status is Status.RESOURCE_EXHAUSTED
        assert late.retry_seconds == min(waited, LONGEST_RETRY)

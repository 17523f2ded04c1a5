"""What is kept of streams that are over."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from normfold.serving.frontends.http2.limits import RECENT_STREAMS, Fault
from normfold.serving.frontends.http2.past_streams import PastStreams
from normfold.serving.wire import http2_frames as h2


def test_recent_streams_are_known_in_any_order():
    past, chance = PastStreams(), random.Random(0)
    numbers = list(range(1, 2 * RECENT_STREAMS, 2))
    reset = chance.sample(numbers, 500)
    for number in reset:
        past.remember(number)
    assert [number for number in numbers if past.was_reset(number)] == sorted(reset)


def test_only_the_last_streams_are_known():
    past = PastStreams()
    past.remember(5)
    past.remember(5 + 2 * (RECENT_STREAMS - 1))
    assert past.was_reset(5)
    past.remember(7 + 2 * (RECENT_STREAMS - 1))
    assert not past.was_reset(5)
    past.remember(5)
    assert not past.was_reset(5)
    past.remember((1 << 31) - 1)
    assert [past.was_reset(number) for number in (7, (1 << 31) - 3, (1 << 31) - 1)] == [False, False, True]


def test_a_stream_that_was_not_reset_cannot_be_opened_any_more():
    past = PastStreams()
    past.passed_over.append(range(3, 9))
    past.remember(11)
    past.check_reset(11)
    for number, code in ((5, h2.PROTOCOL_ERROR), (9, h2.STREAM_CLOSED)):
        with pytest.raises(Fault) as caught:
            past.check_reset(number)
        assert caught.value.code == code


def test_a_connection_with_thousands_of_resets_takes_no_memory_for_them():
    """4,096 of them were 280 kB for each connection, for as long as the client stayed."""
    past = PastStreams()
    tracemalloc.start()
    try:
        for number in range(1, 60_000, 2):
            past.remember(number)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()

"""The end of a server, step by step."""

from __future__ import annotations

import asyncio
import time

import pytest

from normfold.serving.errors import Unavailable
from normfold.serving.rpc.in_order import in_order
from normfold.serving.rpc.traffic import Traffic


def test_calls_on_their_way_end_and_new_ones_are_refused():
    async def scenario():
        traffic = Traffic()
        release = asyncio.Event()

        async def call():
            with traffic.call():
                await release.wait()
            return "answered"

        working = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(traffic.close(10))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Server exiting"), traffic.call():
            pass
        assert not closing.done()
        release.set()
        return await working, await closing

    assert asyncio.run(scenario()) == ("answered", True)


def test_a_call_that_takes_longer_than_the_grace_is_told():
    async def scenario():
        traffic = Traffic()
        with traffic.call():
            return await traffic.close(0.01)

    assert asyncio.run(scenario()) is False


def test_a_call_that_fails_is_no_longer_on_its_way():
    async def scenario():
        traffic = Traffic()
        with pytest.raises(ValueError, match="x"), traffic.call():
            raise ValueError("x")
        return traffic.in_flight, await traffic.close(0)

    assert asyncio.run(scenario()) == (0, True)


def test_an_idle_server_does_not_wait():
    async def scenario():
        traffic = Traffic()
        await traffic.quieten(60, 60)

    started = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - started < 30


def test_a_stream_is_read_until_it_ends_or_the_server_does():
    async def scenario(end_server: bool):
        traffic = Traffic()
        forever = asyncio.Event()

        async def sent():
            yield 1
            yield 2
            if end_server:
                await forever.wait()

        got = []
        try:
            async for item in traffic.requests(sent()):
                got.append(item)
                if end_server and item == 2:
                    await traffic.close(0)
        except Unavailable:
            got.append("exiting")
        return got

    assert asyncio.run(scenario(False)) == [1, 2]
    assert asyncio.run(scenario(True)) == [1, 2, "exiting"]


def test_a_streams_answers_keep_their_order_and_its_bound():
    async def scenario():
        working, most = 0, 0

        async def requests():
            for number in range(40):
                yield number

        async def answer(number: int) -> int:
            nonlocal working, most
            working += 1
            most = max(most, working)
            await asyncio.sleep(0.001 * (number % 3))
            working -= 1
            return number

        answers = [answer async for answer in in_order(requests(), answer, 4)]
        return answers, most

    answers, most = asyncio.run(scenario())
    assert answers == list(range(40))
    assert 1 < most <= 6  # four wait, one is being yielded, one is being read


def test_what_ends_a_stream_badly_comes_after_the_answers():
    async def scenario():
        async def requests():
            yield 1
            raise Unavailable("gone")

        async def answer(number: int) -> int:
            await asyncio.sleep(0.01)
            return number

        answers = in_order(requests(), answer, 4)
        assert await anext(answers) == 1
        with pytest.raises(Unavailable, match="gone"):
            await anext(answers)

    asyncio.run(scenario())


def test_a_listener_that_leaves_cancels_what_is_on_its_way():
    async def scenario():
        cancelled = 0

        async def requests():
            for number in range(3):
                yield number

        async def answer(number: int) -> int:
            nonlocal cancelled
            try:
                await asyncio.sleep(0 if number == 0 else 30)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            return number

        stream = in_order(requests(), answer, 4)
        assert await anext(stream) == 0
        await stream.aclose()
        await asyncio.sleep(0.01)
        return cancelled

    assert asyncio.run(scenario()) == 2


def test_a_call_that_enters_late_is_waited_for():
    async def scenario():
        traffic = Traffic()
        traffic.enter()
        closing = asyncio.create_task(traffic.close(10.0))
        await asyncio.sleep(0)
        traffic.leave()
        traffic.enter(admitted=True)  # before the task that waits for the first one has run
        asyncio.get_running_loop().call_later(0.01, traffic.leave)
        assert await closing

    asyncio.run(scenario())


def test_without_any_grace_a_stream_that_waits_for_requests_still_ends():
    async def scenario():
        traffic = Traffic()

        async def never():
            await asyncio.sleep(30)
            yield 1

        async def stream():
            with traffic.call(), pytest.raises(Unavailable):
                async for _ in traffic.requests(never()):
                    pass

        streaming = asyncio.create_task(stream())
        await asyncio.sleep(0.01)
        assert traffic.in_flight == 1
        ended = await traffic.close(0.0)
        await streaming
        return ended

    assert asyncio.run(scenario())

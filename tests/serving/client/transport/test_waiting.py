"""Calls on an event loop that wait for a place, because the server takes no more at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.transport import pooling
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.pooling import LoopConnections
from normfold.serving.errors import Status
from normfold.serving.wire import http2_frames as h2

from .peer import Peer, serving

LIVE, STREAM = "/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(autouse=True)
def one_connection(monkeypatch):
    monkeypatch.setattr(pooling, "MOST_CONNECTIONS", 1)


def one_at_a_time(peer: Peer) -> None:
    peer.greet(MAX_CONCURRENT_STREAMS=1)
    while True:
        peer.answer(peer.until(h2.DATA)[2])


async def stream(calls: LoopConnections) -> Status:
    async def messages() -> AsyncIterator[bytes]:
        yield b"request"
        await asyncio.Event().wait()

    async with contextlib.aclosing(calls.stream(STREAM, messages())) as items:
        async for item in items:
            if isinstance(item, Reply):
                return item.status
    raise AssertionError("a stream without an end")


async def unary(calls: LoopConnections) -> Status:
    return (await calls.call(LIVE, b"", 30)).status


def run(peer: Callable[[Peer], None], asking: Callable[[LoopConnections], Coroutine[Any, Any, list[Status]]]) -> None:
    """Every call of ``asking`` ends well, long before anything else would wake it."""

    async def within(address: str) -> list[Status]:
        async with AsyncClient(address) as client, asyncio.timeout(20):
            calls: Any = client._loops.here().calls
            assert await unary(calls) is Status.OK  # the connection is there, and the server's settings
            return await asking(calls)

    with serving(peer) as address:
        assert set(asyncio.run(within(address))) == {Status.OK}


@pytest.mark.parametrize("after", [stream, unary])
def test_the_end_of_a_stream_leaves_its_place_to_the_next_call(after):
    async def asking(calls: LoopConnections) -> list[Status]:
        return await asyncio.gather(stream(calls), after(calls), stream(calls))

    run(one_at_a_time, asking)


def test_a_stream_that_is_closed_leaves_its_place_to_the_next_call():
    def half(peer: Peer) -> None:
        """Answers calls; a stream gets a message and no end."""
        peer.greet(MAX_CONCURRENT_STREAMS=1)
        while True:
            _, flags, number, _ = peer.until(h2.DATA)
            if flags & h2.END_STREAM:
                peer.answer(number)
            else:
                peer.headers(number, [(":status", "200"), ("content-type", "application/grpc")])
                peer.data(number, bytes(5))

    async def asking(calls: LoopConnections) -> list[Status]:
        async def messages() -> AsyncIterator[bytes]:
            yield b"request"
            await asyncio.Event().wait()

        async with contextlib.aclosing(calls.stream(STREAM, messages())) as items:
            await anext(items)
            waiting = asyncio.create_task(unary(calls))
            await asyncio.sleep(0)
            assert len(calls._waiting) == 1
        return [await waiting]

    run(half, asking)


def test_a_call_that_is_cancelled_when_it_has_a_place_leaves_it_to_the_next_one():
    async def asking(calls: LoopConnections) -> list[Status]:
        first, second, third = [asyncio.create_task(unary(calls)) for _ in range(3)]
        wake = calls._wake

        def cancelling() -> None:
            wake()
            calls._wake = wake  # type: ignore[method-assign]
            second.cancel()

        calls._wake = cancelling  # type: ignore[method-assign]
        ended = [await first, await third]
        assert second.cancelled()
        return ended

    run(one_at_a_time, asking)


def test_calls_that_wait_no_more_leave_nothing_behind():
    go_on = threading.Event()

    def slow(peer: Peer) -> None:
        peer.greet(MAX_CONCURRENT_STREAMS=1)
        peer.answer(peer.request())
        number = peer.request()
        go_on.wait(20)
        peer.answer(number)
        peer.wait_for_end()

    async def asking(calls: LoopConnections) -> list[Status]:
        first = asyncio.create_task(unary(calls))
        await asyncio.sleep(0)
        others = [asyncio.create_task(unary(calls)) for _ in range(5)]
        await asyncio.sleep(0)
        assert len(calls._waiting) == 5
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        assert not calls._waiting
        go_on.set()
        return [await first]

    run(slow, asking)


def test_all_that_wait_begin_once_the_server_takes_more_calls():
    more = threading.Event()

    def growing(peer: Peer) -> None:
        peer.greet(MAX_CONCURRENT_STREAMS=1)
        peer.answer(peer.request())
        numbers = [peer.request()]
        more.wait(20)
        peer.send(h2.settings({h2.MAX_CONCURRENT_STREAMS: 4}))
        numbers += [peer.request() for _ in range(3)]
        for number in numbers:
            peer.answer(number)
        peer.wait_for_end()

    async def asking(calls: LoopConnections) -> list[Status]:
        tasks = [asyncio.create_task(unary(calls)) for _ in range(4)]
        while len(calls._waiting) < 3:
            await asyncio.sleep(0)
        more.set()
        return await asyncio.gather(*tasks)

    run(growing, asking)

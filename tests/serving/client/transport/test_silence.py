"""A connection on which nothing comes any more is replaced; one that answers a ping is kept."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.client.errors import ClientError
from normfold.serving.wire import http2_frames as h2

from .peer import LIVE, OK, Peer, framed, serving

#: The time of a call that is not answered, in seconds.
SHORT = 0.3


@pytest.fixture(params=["blocking", "loop"])
def asking(request):
    """Gives a context of an address: a function that asks whether the server is live, within some seconds."""

    @contextlib.contextmanager
    def blocking(address: str):
        with Client(address) as client:
            yield client.is_live

    @contextlib.contextmanager
    def loop(address: str):
        client = AsyncClient(address)
        with asyncio.Runner() as runner:

            def ask(seconds: float) -> bool:
                async def wait() -> bool:
                    answer = asyncio.create_task(client.is_live(seconds))
                    await asyncio.sleep(0)
                    return await answer

                return runner.run(wait())

            yield ask
            runner.run(client.close())

    return blocking if request.param == "blocking" else loop


def expires(ask) -> None:
    with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
        ask(SHORT)


class Slow:
    """Answers pings and, at first, calls; counts connections."""

    def __init__(self, answered: int, pings: bool = True) -> None:
        self.answered, self.pings = answered, pings
        self.peers: list[Peer] = []
        self.ponged = threading.Semaphore(0)

    def __call__(self, peer: Peer) -> None:
        self.peers.append(peer)
        peer.greet()
        while True:
            kind, flags, number, payload = peer.frame()
            if kind == h2.PING and not flags & h2.ACK and self.pings:
                peer.send(h2.frame(h2.PING, h2.ACK, 0, payload))
                self.ponged.release()
            elif kind == h2.DATA and flags & h2.END_STREAM and self.answered > 0:
                self.answered -= 1
                peer.answer(number)


def answers(peer: Peer) -> None:
    if not peer.seen:
        peer.greet()
    while True:
        peer.answer(peer.request())


def test_a_call_after_one_that_ended_in_silence_gets_a_new_connection(asking):
    with serving(Slow(answered=1, pings=False), answers) as address, asking(address) as ask:
        assert ask(20)
        expires(ask)
        assert ask(20)
        assert ask(20)


def test_a_call_after_one_that_its_caller_cancelled_in_silence_gets_a_new_connection():
    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            assert await client.is_live(20)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SHORT):
                    await client.is_live(60)
            assert await client.is_live(20)

    with serving(Slow(answered=1, pings=False), answers) as address:
        asyncio.run(ask(address))


def test_a_call_after_one_that_a_signal_interrupted_in_silence_gets_a_new_connection():
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with serving(Slow(answered=1, pings=False), answers) as address, Client(address) as client:
            assert client.is_live(20)
            signal.setitimer(signal.ITIMER_REAL, SHORT)
            with pytest.raises(KeyboardInterrupt):
                client.is_live(60)
            assert client.is_live(20)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_call_after_a_stream_that_was_left_in_silence_gets_a_new_connection():
    def first(peer: Peer) -> None:
        """Answers the first message of a stream alone."""
        peer.greet()
        number = peer.until(h2.DATA)[2]
        peer.headers(number, OK)
        peer.data(number, framed(LIVE))
        while True:
            peer.frame()

    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            came = asyncio.Event()

            async def requests():
                yield b""
                await came.wait()
                yield b""
                await asyncio.Event().wait()

            stream = client._loops.here().calls.stream("/inference.GRPCInferenceService/ModelStreamInfer", requests())
            await anext(stream)
            came.set()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SHORT):
                    await anext(stream)
            assert await client.is_live(20)

    with serving(first, answers) as address:
        asyncio.run(ask(address))


def test_a_slow_server_that_answers_pings_keeps_its_connection(asking):
    slow = Slow(answered=1)
    with serving(slow) as address, asking(address) as ask:
        for _ in range(3):  # an answer to a call makes good for the pings before it
            slow.answered = 1
            assert ask(20)
            for _ in range(2):
                expires(ask)
                assert slow.ponged.acquire(timeout=20)
                time.sleep(0.05)  # for the answer to come
        slow.answered = 1
        assert ask(20)
    assert len(slow.peers) == 1


def test_a_server_that_answers_no_call_is_not_pinged_again_and_again(asking):
    """Servers on grpcio end a connection for that, with all its calls."""
    slow = Slow(answered=1)
    with serving(slow) as address, asking(address) as ask:
        assert ask(20)
        for _ in range(2):
            expires(ask)
            assert slow.ponged.acquire(timeout=20)
            time.sleep(0.05)
        expires(ask)  # the third call in vain: the connection takes no more
        slow.answered = 1
        assert ask(20)
        assert not slow.ponged.acquire(timeout=0.1)
    assert len(slow.peers) == 2


def test_a_server_that_is_slow_even_with_its_pings_costs_one_more_connection_and_not_one_for_each_call(asking):
    held = threading.Event()

    class Later(Slow):
        def __call__(self, peer: Peer) -> None:
            self.peers.append(peer)
            peer.greet()
            while True:
                kind, flags, number, payload = peer.frame()
                if kind == h2.PING and not flags & h2.ACK:
                    time.sleep(SHORT / 2)
                    peer.send(h2.frame(h2.PING, h2.ACK, 0, payload))
                elif kind == h2.DATA and flags & h2.END_STREAM and held.is_set():
                    peer.answer(number)

    later = Later(0)
    with serving(later) as address, asking(address) as ask:
        for _ in range(6):
            expires(ask)
        held.set()
        assert ask(20)
    assert len(later.peers) <= 3


def test_a_server_that_stands_still_has_at_most_two_silent_connections(asking):
    ended = threading.Semaphore(0)

    def handle(peer: Peer) -> None:
        try:
            while True:
                peer.exactly(1)
        finally:
            ended.release()

    with serving(handle) as address, asking(address) as ask:
        for _ in range(5):
            expires(ask)
        for _ in range(3):
            assert ended.acquire(timeout=20)


def test_a_call_that_waits_on_is_answered_on_the_connection_that_was_silent_for_another():
    first, free = threading.Event(), threading.Event()

    def handle(peer: Peer) -> None:
        peer.greet()
        number = peer.request()
        peer.until(h2.SETTINGS)  # the acknowledgement of ours: after it, nothing more of this server can be heard
        first.set()
        free.wait(20)
        peer.answer(number)
        answers(peer)

    with serving(handle, answers) as address, Client(address) as client, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.is_live, 30)
        assert first.wait(20)
        expires(client.is_live)
        assert client.is_live(20)
        free.set()
        assert waiting.result(30)

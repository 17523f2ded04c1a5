"""A child process makes connections of its own, and leaves those of its parent alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client

from .counted import Counted
from .peer import Peer, serving


def test_a_child_process_makes_connections_of_its_own_and_leaves_those_of_its_parent_alone():
    counted = Counted()
    with serving(counted) as address, Client(address) as client:
        assert client.is_live()
        child = os.fork()
        if not child:  # the listener's threads are not here: the parent has them
            with contextlib.suppress(BaseException):
                os._exit(0 if client.is_live(20) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert client.is_live()
    assert len(counted.peers) == 2


@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_a_child_process_leaves_the_connection_of_its_parents_event_loop_alone(policy):
    new = asyncio.new_event_loop if policy == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    counted, loop = Counted(), new()
    with serving(counted) as address:
        client = AsyncClient(address)
        assert loop.run_until_complete(client.is_live())
        gc.collect()  # event loops that other tests have left: the child's collection of them does not end
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                answered = new().run_until_complete(client.is_live(20))
                gc.collect()
                os._exit(0 if answered else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert loop.run_until_complete(client.is_live(20))
        loop.run_until_complete(client.close())
        loop.close()
    assert len(counted.peers) == 2


def test_a_child_process_keeps_no_socket_of_its_parents_event_loop():
    ended, (reading, writing) = threading.Event(), os.pipe()

    def handle(peer: Peer) -> None:
        try:
            peer.greet()
            while True:
                peer.answer(peer.request())
        except EOFError:
            ended.set()

    with serving(handle) as address, asyncio.Runner() as runner:
        client = AsyncClient(address)
        runner.get_loop().run_until_complete(client.is_live())
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
        try:
            runner.run(client.close())
            assert ended.wait(5)
        finally:
            os.close(writing)
            os.waitpid(child, 0)
            os.close(reading)


def test_a_child_process_that_a_running_event_loop_forked_uses_the_client_on_a_loop_of_its_own():
    async def forking() -> int:
        assert await client.is_live(20)
        gc.collect()  # as above
        if child := os.fork():
            return os.waitpid(child, 0)[1]
        code = 1
        try:
            code = 0 if asyncio.run(client.is_live(20)) else 2
        finally:
            os._exit(code)

    with serving(Counted()) as address:
        client = AsyncClient(address)
        assert asyncio.run(forking()) == 0

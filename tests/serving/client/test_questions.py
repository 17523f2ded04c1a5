"""The metadata of a model is asked for once for all that wait, and each waits by its own timeout."""

from __future__ import annotations

import asyncio
import socket

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.errors import ClientError
from normfold.serving.client.metadata import ModelMetadata
from normfold.serving.client.questions import Questions
from normfold.serving.errors import Status

KEY = ("m", "")
FOUND = ModelMetadata("m", ("1",), "", (), ())


class Server:
    """Answers once ``free`` is set, unless the time of the question is over."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.asked: list[float] = []
        self.cancelled = 0

    async def __call__(self, model: str, version: str, seconds: float) -> ModelMetadata:
        self.asked.append(seconds)
        try:
            async with asyncio.timeout(seconds):
                await self.free.wait()
        except TimeoutError:
            raise ClientError(Status.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return FOUND


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.parametrize("short_first", [True, False])
def test_a_short_timeout_ends_its_own_call_and_the_others_wait_on(short_first):
    async def ask():
        server, questions = Server(), Questions()
        long = asyncio.create_task(questions.answer(KEY, 50, server)) if not short_first else None
        await asyncio.sleep(0)
        short = asyncio.create_task(questions.answer(KEY, 0.05, server))
        await asyncio.sleep(0)
        long = long or asyncio.create_task(questions.answer(KEY, 50, server))
        with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
            await short
        await until(lambda: server.asked[-1] > 1)
        server.free.set()
        assert await long is FOUND
        assert questions.known == {KEY: FOUND}
        return server

    assert run(ask()).cancelled == 0


def test_a_question_that_nobody_waits_for_is_cancelled_and_the_next_asks_again():
    async def ask():
        server, questions = Server(), Questions()
        waiting = [asyncio.create_task(questions.answer(KEY, 50, server)) for _ in range(3)]
        await until(lambda: server.asked)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert server.cancelled == 0
        for one in waiting:
            one.cancel()
        await until(lambda: server.cancelled)
        with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
            await questions.answer(KEY, 0.01, server)
        server.free.set()
        assert await questions.answer(KEY, 50, server) is FOUND
        assert questions.known == {KEY: FOUND}
        return len(server.asked)

    assert run(ask()) == 3


@pytest.mark.parametrize("fault", [ValueError("bad"), ClientError(Status.NOT_FOUND, "no"), OverflowError()], ids=repr)
def test_any_failure_is_forgotten_and_belongs_to_each_that_waited(fault):
    async def fail(*_):
        raise fault

    async def ask():
        server, questions = Server(), Questions()
        errors = await asyncio.gather(*(questions.answer(KEY, 9, fail) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [type(fault)] * 3
        assert len({id(error) for error in errors}) == (3 if isinstance(fault, ClientError) else 1)
        server.free.set()
        return await questions.answer(KEY, 50, server)

    assert run(ask()) is FOUND


def test_a_question_that_somebody_else_cancelled_is_asked_again():
    async def ask():
        server, questions = Server(), Questions()
        waiting = asyncio.create_task(questions.answer(KEY, 50, server))
        await until(lambda: server.asked)
        ours = {asyncio.current_task(), waiting}
        for task in asyncio.all_tasks() - ours:
            if task.get_coro().__name__ == "_find_out":
                task.cancel()
        await until(lambda: len(server.asked) == 2)
        server.free.set()
        return await waiting

    assert run(ask()) is FOUND


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_question_of_another_event_loop_is_asked_again(cancelled):
    questions = Questions()

    async def hang():
        await questions.answer(KEY, 50, Server())

    async def brief():
        asked = asyncio.create_task(hang())
        await asyncio.sleep(0.01)
        return asked

    async def ask():
        server = Server()
        server.free.set()
        return await questions.answer(KEY, 50, server)

    loop = asyncio.new_event_loop()
    left = loop.run_until_complete(brief())
    if cancelled:
        asyncio.run(asyncio.sleep(0))
        left.cancel()
        loop.run_until_complete(asyncio.wait([left]))
    try:
        assert run(ask()) is FOUND
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_the_timeouts_of_calls_at_once_are_their_own_against_a_server_that_is_silent(silent, transport):
    async def ask():
        async with AsyncClient(silent, transport=transport) as client:
            long = asyncio.create_task(client.infer("m", [[1]], timeout=50))
            await asyncio.sleep(0)
            with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
                await client.infer("m", [[1]], timeout=0.2)
            assert not long.done()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.infer("m", [[1]], timeout=50), 0.1)
            long.cancel()
            with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
                await client.infer("m", [[1]], timeout=0.2)

    run(ask())


@pytest.fixture
def silent():
    """The address of a server that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(9)
        yield f"127.0.0.1:{listener.getsockname()[1]}"

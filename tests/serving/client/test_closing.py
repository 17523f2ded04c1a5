"""A closed client: what waits and what comes later ends as CANCELLED, on every transport, and nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.client.errors import ClientError
from normfold.serving.client.multiplex import Multiplexer
from normfold.serving.client.transport.choice import TRANSPORTS

X = np.array([[1, 2, 3, 4]], np.float32)
CLOSED = "CANCELLED: the client was closed"


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return request.param


def run(coroutine):
    """The result; nothing may be left that nobody looked at, and nothing may take long."""
    unseen = []

    def seen(loop, context):
        # grpc.aio has one queue for the process: events for a loop that an earlier test has closed fail on this one.
        if "PollerCompletionQueue" not in context["message"]:
            unseen.append(context["message"])

    async def watched():
        asyncio.get_running_loop().set_exception_handler(seen)
        try:
            return await asyncio.wait_for(coroutine, 30)
        finally:
            gc.collect()

    found = asyncio.run(watched())
    gc.collect()
    assert unseen == []
    return found


class Holding:
    """A server that holds every inference, and has no metadata."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.over = threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(16))

        def hold(request, context):
            self.asked.release()
            self.over.wait(60)

        def hold_all(requests, context):
            for _ in requests:
                self.asked.release()
            self.over.wait(60)
            yield pb.ModelStreamInferResponse()

        handlers = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(hold),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(hold_all),
        }
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        self.server.add_generic_rpc_handlers((service,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()


@pytest.fixture
def holding():
    server = Holding()
    yield server
    server.over.set()
    server.server.stop(None).wait(20)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_a_call_of_a_closed_async_client_is_cancelled(server, transport, stream, used):
    async def ask():
        client = AsyncClient(server.server.address, transport=transport, stream=stream)
        if used:
            await client.infer("m", {"x": X})
        await client.close()
        calls = (client.infer("m", {"x": X}), client.infer("m", X), client.is_live(), client.models())
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [str(error) for error in run(ask())] == [CLOSED] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_closing_an_async_client_cancels_the_calls_that_run_and_those_that_wait(holding, transport, stream):
    async def ask():
        client = AsyncClient(holding.address, transport=transport, stream=stream, in_flight=3)
        calls = [asyncio.create_task(client.infer("m", {"x": X}, timeout=50)) for _ in range(9)]
        for _ in range(3):
            await asyncio.to_thread(holding.asked.acquire, timeout=20)
        await client.close()
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [str(error) for error in run(ask())] == [CLOSED] * 9


@pytest.mark.parametrize("stream", [False, True])
def test_a_task_that_is_cancelled_while_its_client_closes_is_cancelled(holding, transport, stream):
    async def ask():
        client = AsyncClient(holding.address, transport=transport, stream=stream)
        call = asyncio.create_task(client.infer("m", {"x": X}, timeout=50))
        await asyncio.to_thread(holding.asked.acquire, timeout=20)
        call.cancel()
        await client.close()
        return (await asyncio.gather(call, return_exceptions=True))[0]

    assert type(run(ask())) is asyncio.CancelledError


def test_closing_a_client_cancels_its_calls(holding, transport):
    client = Client(holding.address, transport=transport)
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(client.infer, "m", {"x": X}, timeout=50) for _ in range(3)]
        for _ in calls:
            assert holding.asked.acquire(timeout=20)
        client.close()
        errors = [call.exception(20) for call in calls]
    with pytest.raises(ClientError) as caught:
        client.is_live()
    assert [str(error) for error in [*errors, caught.value]] == [CLOSED] * 4


def test_a_stream_that_ends_in_an_unknown_way_ends_what_waits_for_it():
    class Broken:
        async def stream(self, path, messages):
            await anext(messages)
            raise OSError("of a kind that nobody expects")
            yield b""

    async def ask():
        multiplexer = Multiplexer(Broken(), "there")
        calls = [multiplexer.infer(pb.ModelInferRequest(), 50) for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    said = "INTERNAL: the stream to the server at there ended: OSError: of a kind that nobody expects"
    assert [str(error) for error in run(ask())] == [said] * 3

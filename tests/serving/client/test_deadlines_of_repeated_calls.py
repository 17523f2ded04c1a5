"""A call that is sent again tells the server the time that is left, and not its whole timeout once more."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.client.transport.retries import ATTEMPTS
from normfold.serving.wire.pushback import PUSHBACK

#: In seconds. grpcio sends the timeout before once more if the next one differs by less than 3 %.
TIMEOUT, PAUSE = 10.0, 0.3
#: More refusals than the attempts that grpcio makes by itself.
REFUSALS = 4


class Full(grpc.GenericRpcHandler):
    """Refuses the first calls, says when to call again, and keeps the time that each call has left."""

    def __init__(self) -> None:
        self.left: list[float] = []

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.left.append(context.time_remaining())
        if len(self.left) <= REFUSALS:
            context.set_trailing_metadata(((PUSHBACK, str(int(1000 * PAUSE))),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return b"\x08\x01"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_deadline_of_a_call_that_is_sent_again_does_not_move(each_transport, kind):
    handler = Full()
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    async def ask() -> bool:
        async with AsyncClient(address) as client:
            return await client.is_live(TIMEOUT)

    try:
        if kind is Client:
            with Client(address) as client:
                assert client.is_live(TIMEOUT)
        else:
            assert asyncio.run(asyncio.wait_for(ask(), 60))
    finally:
        server.stop(0)
    assert len(handler.left) == REFUSALS + 1
    for pauses, left in enumerate(handler.left):
        if each_transport == "grpcio":  # it sends the same timeout with all attempts of its own
            pauses -= pauses % ATTEMPTS
        assert left <= TIMEOUT - pauses * PAUSE + PAUSE / 4  # a slow machine leaves less

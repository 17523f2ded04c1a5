"""Loads with files, which count until their work has ended."""

from __future__ import annotations

import asyncio

import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.errors import InvalidRequest
from normfold.serving.rpc.methods import LOOP_BYTES, Method
from normfold.serving.scheduling.admission import Admission, UnderWay
from normfold.serving.service.under_way import admitted


def test_a_client_that_leaves_need_not_wait_but_its_request_counts_until_its_work_has_ended():
    """A server with grpcio that stopped waited for the load of a client that had left, and ended with an error."""

    async def scenario() -> None:
        begun, goes_on = asyncio.Event(), asyncio.Event()

        async def load(data: bytes) -> bytes:
            begun.set()
            try:
                await goes_on.wait()
            except asyncio.CancelledError:  # as a load on a thread, which cannot be interrupted
                await goes_on.wait()
                raise
            return data

        admission = Admission()
        method = admitted(Method("/t.T/Load", pb.RepositoryModelLoadRequest, wire_unary=load, large=True), admission)
        asked = asyncio.ensure_future(method.answer(bytes(LOOP_BYTES + 1)))
        await begun.wait()
        asked.cancel()
        await asyncio.wait([asked], timeout=20)
        assert asked.cancelled()
        assert admission.under_way.bytes == LOOP_BYTES + 1
        goes_on.set()
        while admission.under_way.requests:
            await asyncio.sleep(0)
        assert admission.under_way == UnderWay()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_load_that_fails_gives_its_bytes_back():
    async def fail(_: bytes) -> bytes:
        raise InvalidRequest("no")

    async def scenario() -> None:
        admission = Admission()
        method = admitted(Method("/t.T/Load", pb.RepositoryModelLoadRequest, wire_unary=fail, large=True), admission)
        answered = method.answer(bytes(LOOP_BYTES + 1))
        assert not isinstance(answered, bytes)
        assert admission.under_way.requests == 1
        with pytest.raises(InvalidRequest, match="no"):
            await answered
        await asyncio.sleep(0)
        assert admission.under_way == UnderWay()

    asyncio.run(scenario())

"""How long both clients remember the metadata of a model, or that a server gives none."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client

X = np.array([[1, 2]], np.float32)

pytestmark = pytest.mark.usefixtures("each_transport")


class Changing(grpc.GenericRpcHandler):
    """A server whose model takes ``datatype`` now. Questions for its metadata are counted, and fail with ``code``."""

    def __init__(self) -> None:
        self.datatype, self.code = "FP32", grpc.StatusCode.OK
        self.questions = 0
        self.taken: list[str] = []
        #: Set when a question has come; set to let it be answered.
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()

    def service(self, details):
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(getattr(self, method, lambda data, context: b""))

    def ModelMetadata(self, data: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: N802
        self.questions += 1
        self.asked.set()
        assert self.may_answer.wait(60)
        if self.code is not grpc.StatusCode.OK:
            context.abort(self.code, "no")
        response = pb.ModelMetadataResponse(name="m", versions=["1"])
        response.inputs.add(name="x", datatype=self.datatype, shape=[-1, 2])
        return response.SerializeToString()

    def ModelInfer(self, data: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: N802
        self.taken.append(pb.ModelInferRequest.FromString(data).inputs[0].datatype)
        return b""


@pytest.fixture
def changing():
    handler = Changing()
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield handler
    server.stop(0)


def taking_turns(kind: type, address: str, *steps) -> None:
    """Call each of ``steps`` with one client; what a call gives is awaited."""

    async def ask() -> None:
        async with AsyncClient(address) as client:
            for step in steps:
                if (found := step(client)) is not None:
                    await found

    if kind is AsyncClient:
        asyncio.run(asyncio.wait_for(ask(), 60))
        return
    with Client(address) as client:
        for step in steps:
            step(client)


@pytest.mark.parametrize("change", ["load", "unload"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_after_a_load_or_an_unload_a_list_gets_the_datatype_of_the_model_that_is_served_now(changing, kind, change):
    def other_model(client) -> None:
        changing.datatype = "INT64"

    taking_turns(
        kind,
        changing.address,
        lambda client: client.infer("m", [[1, 2]]),
        lambda client: client.infer("m", [[1, 2]]),
        other_model,
        lambda client: getattr(client, change)("m"),
        lambda client: client.infer("m", [[1, 2]]),
    )
    assert changing.taken == ["FP32", "FP32", "INT64"]
    assert changing.questions == 2


@pytest.mark.parametrize(
    ("code", "questions"),
    [("UNIMPLEMENTED", 1), ("PERMISSION_DENIED", 1), ("INTERNAL", 3), ("NOT_FOUND", 3)],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_server_that_never_gives_metadata_is_asked_once_and_one_that_failed_each_time(
    changing, kind, code, questions
):
    changing.code = grpc.StatusCode[code]
    taking_turns(kind, changing.address, *3 * [lambda client: client.infer("m", {"x": X})])
    assert changing.questions == questions
    assert changing.taken == ["FP32"] * 3


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_after_a_load_a_server_that_gave_no_metadata_is_asked_again(changing, kind):
    changing.code = grpc.StatusCode.PERMISSION_DENIED
    taking_turns(
        kind,
        changing.address,
        lambda client: client.infer("m", {"x": X}),
        lambda client: client.load("m"),
        lambda client: client.infer("m", {"x": X}),
    )
    assert changing.questions == 2


@pytest.mark.parametrize("code", ["OK", "PERMISSION_DENIED"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_was_asked_before_a_load_is_not_remembered_after_it(changing, kind, code):
    changing.code = grpc.StatusCode[code]
    changing.may_answer.clear()

    async def ask() -> None:
        async with AsyncClient(changing.address) as client:
            first = asyncio.create_task(client.infer("m", {"x": X}))
            assert await asyncio.to_thread(changing.asked.wait, 60)
            await client.load("m")
            changing.may_answer.set()
            await first
            await client.infer("m", {"x": X})

    if kind is AsyncClient:
        asyncio.run(asyncio.wait_for(ask(), 60))
    else:
        with Client(changing.address) as client, ThreadPoolExecutor(1) as other:
            first = other.submit(client.infer, "m", {"x": X})
            assert changing.asked.wait(60)
            client.load("m")
            changing.may_answer.set()
            first.result(60)
            client.infer("m", {"x": X})
    assert changing.questions == 2

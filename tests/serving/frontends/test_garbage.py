"""A call that has ended leaves nothing for the garbage collector: what only it can free stays for thousands of calls.

A call and its task once kept each other, and with them each request and answer of megabytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from tests.serving.frontends.raw import Raw, message, request_headers
from tests.waiting import wait_until

from normfold import AsyncClient, Client, ClientError
from normfold.protos import grpc_service as pb
from normfold.serving.process import memory
from normfold.serving.wire import http2_frames as h2

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
#: Each batch waits a little, so that every request has a task.
CONFIG = 'max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 3000 } input { name: "x" dims: 4 }'
TIMES = 8
#: Bytes of a request that is large.
LARGE = 8 << 20
#: grpcio ends a refused call by an exception that is in a cycle of gRPC's own; these two, which are small, hang on it.
OF_GRPC = {"_Caller", "InvalidRequest"}
X = np.ones((1, 4), np.float32)


@pytest.fixture
def one(serve, models, tmp_path, frontend) -> Iterator[Any]:
    models.write(tmp_path / "m", models.scale(), config=CONFIG)
    with serve(tmp_path, frontend=frontend) as running:
        yield running


def _request(rows: int = 1) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[X.tobytes() * rows])
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    return request


def _right(one: Any) -> None:
    one.infer(_request())


def _wrong(one: Any) -> None:
    request = _request()
    request.raw_input_contents[0] = b"1"
    with pytest.raises(grpc.RpcError):
        one.infer(request)


def _too_late(one: Any) -> None:
    with contextlib.suppress(grpc.RpcError):  # now and then the answer comes in time
        one.infer(_request(), timeout=0.001)


def _given_up(one: Any) -> None:
    rpc = one.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda m: m.SerializeToString()
    )
    call = rpc.future(_request())
    time.sleep(0.001)
    call.cancel()


def _compressed(one: Any) -> None:
    one.infer(_request(), compression=grpc.Compression.Gzip)


def _stream(one: Any) -> None:
    rpc = one.channel.stream_stream(STREAM, request_serializer=lambda m: m.SerializeToString())
    assert len(list(rpc(iter([_request()] * 3), timeout=30))) == 3
    given_up = rpc(iter([_request()] * 3), timeout=30)
    next(given_up)
    given_up.cancel()


def _wrong_in_stream(one: Any) -> None:
    rpc = one.channel.stream_stream(STREAM, request_serializer=lambda m: m.SerializeToString())
    request = _request()
    request.raw_input_contents[0] = b"1"
    assert len(list(rpc(iter([request] * 3), timeout=30))) == 3


def _not_compressed(one: Any) -> None:
    """A message that says it is compressed, and is not, ends its stream."""
    raw = Raw(one.server.address)
    headers = raw.encoder.encode([*request_headers(grpc_encoding="gzip", **{":path": STREAM})])
    raw.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, headers))
    raw.send(h2.frame(h2.DATA, h2.END_STREAM, 1, message(b"no", compressed=1)))
    assert raw.answer(1)[1]["grpc-status"] == "13"
    raw.socket.close()


KINDS = (_right, _wrong, _too_late, _given_up, _compressed, _stream, _wrong_in_stream, _not_compressed)


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if the block leaves objects of ours that only the garbage collector finds."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(name for thing in gc.garbage if (name := _ours(thing)))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    # what one call leaves may wait for the next one; what each leaves is as many as there were calls
    assert {name: many for name, many in found.items() if many >= TIMES // 2} == {}


def _ours(thing: object) -> str:
    """The name of a type or coroutine of this package; "" for anything else."""
    if asyncio.iscoroutine(thing):
        code = thing.cr_code
        if thing.cr_frame is None:  # it has ended, and holds nothing
            return ""
        return code.co_qualname if "normfold" in code.co_filename or "/serving/" in code.co_filename else ""
    kind = type(thing)
    ours = (kind.__module__ or "").startswith("normfold.") and kind.__qualname__ not in OF_GRPC
    return kind.__qualname__ if ours else ""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.lstrip("_"))
def test_no_call_is_left_to_the_garbage_collector(one: Any, kind: Callable[[Any], None]) -> None:
    kind(one)
    with nothing_left():
        for _ in range(TIMES):
            kind(one)
        wait_until(lambda: not one.server._traffic.in_flight)
        one.infer(_request())


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_no_call_of_a_client_is_left_either(one: Any, transport: str) -> None:
    address = one.server.address

    async def ask(client: AsyncClient) -> None:
        await asyncio.gather(*[client.infer("m", {"x": X}) for _ in range(4)])
        with contextlib.suppress(ClientError):
            await client.infer("m", {"x": X}, timeout=0.0005)

    async def ask_often() -> None:
        async with AsyncClient(address, transport=transport) as client:
            await ask(client)
            with nothing_left():
                for _ in range(TIMES):
                    await ask(client)
                await asyncio.sleep(0.05)
                await client.infer("m", {"x": X})

    asyncio.run(ask_often())
    with Client(address, transport=transport) as client:
        client.infer("m", {"x": X})
        with nothing_left():
            for _ in range(TIMES):
                client.infer("m", {"x": X})
                with contextlib.suppress(ClientError):
                    client.infer("m", {"x": X}, timeout=0.0005)


def test_large_requests_and_answers_are_freed_with_their_calls(serve, models, tmp_path, frontend) -> None:
    models.write(tmp_path / "m", models.identity(onnx.TensorProto.FLOAT, ["N"]))
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(LARGE)])
    request.inputs.add(name="x", datatype="FP32", shape=[LARGE // 4])
    with serve(tmp_path, frontend=frontend) as one:
        one.infer(request)
        gc.collect()
        gc.disable()
        try:
            before = memory.allocated_bytes()
            for _ in range(10):
                one.infer(request)
            after = memory.allocated_bytes()
        finally:
            gc.enable()
    if before is None:
        pytest.skip("this C library does not count")
    assert after - before < 4 * LARGE

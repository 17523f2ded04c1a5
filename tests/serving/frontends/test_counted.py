"""At the end of a server calls of counted methods are refused; the others are answered as long as it listens."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from normfold.protos import health as pb
from normfold.serving.frontends import FRONTENDS, frontend
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.traffic import Traffic

METHODS = ("Unary", "Stream", "Server")


async def echo_once(request):
    yield request


async def echo_each(requests):
    async for data in requests:
        yield data


def table(service: str, counted: bool) -> list[Method]:
    kind = pb.HealthCheckRequest
    return [
        Method(f"/{service}/Unary", kind, wire_unary=lambda data: data, counted=counted),
        Method(f"/{service}/Stream", kind, wire_stream=echo_each, counted=counted),
        Method(f"/{service}/Server", kind, server_stream=echo_once, counted=counted),
    ]


def asked(channel: grpc.Channel, path: str) -> bytes | grpc.StatusCode:
    """The answer of a method, or the status that refuses the call."""
    message = pb.HealthCheckRequest(service="x").SerializeToString()
    try:
        if path.endswith("Unary"):
            return channel.unary_unary(path)(message, timeout=20)
        if path.endswith("Server"):
            return b"".join(channel.unary_stream(path)(message, timeout=20))
        return b"".join(channel.stream_stream(path)(iter([message]), timeout=20))
    except grpc.RpcError as error:
        return error.code()


@pytest.mark.parametrize("name", FRONTENDS)
def test_only_counted_methods_are_refused_at_the_end(name):
    async def run():
        traffic = Traffic()
        server = frontend(name)([*table("a.Yes", True), *table("a.No", False)], traffic, 1 << 20)
        await server.start("127.0.0.1:0")
        with grpc.insecure_channel(server.address) as channel:
            paths = [f"/a.{service}/{method}" for service in ("Yes", "No") for method in METHODS]
            before = [await asyncio.to_thread(asked, channel, path) for path in paths]
            assert await traffic.close(1.0)
            after = [await asyncio.to_thread(asked, channel, path) for path in paths]
        await server.stop(0.1)
        return before, after

    before, after = asyncio.run(run())
    message = pb.HealthCheckRequest(service="x").SerializeToString()
    assert before == [message] * 6
    assert after == [grpc.StatusCode.UNAVAILABLE] * 3 + [message] * 3

"""The end of a whole server: it reports NOT_SERVING first, and a call is over when its last byte has left."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tests.serving.frontends.raw import Raw, message, request_headers
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.frontends.grpcio_server import calls_under_way
from normfold.serving.frontends.http2.lifetime import FAREWELL
from normfold.serving.frontends.http2.limits import LINGER_SECONDS
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig
from normfold.serving.wire import http2_frames as h2

NOT_SERVING = health.HealthCheckResponse.NOT_SERVING


def check(server) -> int:
    rpc = server.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=health.HealthCheckResponse.FromString,
    )
    return rpc(health.HealthCheckRequest(), timeout=10).status


async def under_way(server) -> bool:
    """Whether the server knows of a call; called on its event loop."""
    return server._traffic.in_flight > 0 or bool(calls_under_way())


def test_a_server_that_drains_answers_and_reports_not_serving(serve, repository, ask, frontend):
    with serve(repository, frontend=frontend, load_models=("m",), drain_delay_seconds=1.5) as server:
        server.infer(ask())
        begun = time.monotonic()
        ends: list[float] = []

        def end():
            server.on_loop(server.server.shut_down())
            ends.append(time.monotonic())

        thread = threading.Thread(target=end)
        thread.start()
        while check(server) != NOT_SERVING:
            assert time.monotonic() < begun + 1
        while time.monotonic() < begun + 1.2:
            server.infer(ask())
        thread.join(20)
        assert 1.5 < ends[0] - begun < 10
        with pytest.raises(grpc.RpcError) as caught:
            server.infer(ask(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("taken", [True, False])
def test_an_answer_on_the_wire_has_until_the_end_of_the_grace(serve, repository, ask, frontend, taken):
    with serve(repository, frontend=frontend, load_models=("nb",), grace_seconds=8.0 if taken else 1.0) as server:
        client = Raw(server.server.address, {h2.INITIAL_WINDOW_SIZE: 1000})
        headers = [
            (n, v if n != ":path" else "/inference.GRPCInferenceService/ModelInfer") for n, v in request_headers()
        ]
        request = message(ask("nb", x=[[1, 2, 3, 4]] * 2500).SerializeToString())
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, client.encoder.encode(headers)))
        parts = [request[at : at + 16_000] for at in range(0, len(request), 16_000)]
        client.send(*(h2.frame(h2.DATA, part is parts[-1], 1, part) for part in parts))
        client.until(h2.DATA)
        begun = time.monotonic()
        answered: list[bool] = []
        thread = threading.Thread(target=lambda: answered.append(server.on_loop(server.server.shut_down())))
        thread.start()
        time.sleep(0.6)
        if taken:
            wider = (1 << 20).to_bytes(4, "big")
            client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, wider), h2.frame(h2.WINDOW_UPDATE, 0, 1, wider))
            data, found = client.answer(1)
            assert found["grpc-status"] == "0"
            assert len(data) > 80_000 - 1000
            client.socket.close()
        thread.join(20)
        assert answered == [taken]
        assert (time.monotonic() - begun < 7) if taken else (0.9 < time.monotonic() - begun < 7)


@pytest.mark.parametrize("taken", [True, False])
def test_an_answer_that_the_system_has_still_to_send_is_on_the_wire(serve, repository, ask, taken):
    """A client behind a slow line: its own system has taken a part of the answer, and ours holds the rest."""
    with serve(repository, frontend="http2", load_models=("nb",), grace_seconds=20.0 if taken else 1.0) as server:
        wide = (1 << 29).to_bytes(4, "big")
        client = Raw(server.server.address, {h2.INITIAL_WINDOW_SIZE: 1 << 29})
        path = (":path", "/inference.GRPCInferenceService/ModelInfer")
        headers = [path if name == ":path" else (name, value) for name, value in request_headers()]
        request = message(ask("nb", x=[[1, 2, 3, 4]] * 15_000).SerializeToString())
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, wide))
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, client.encoder.encode(headers)))
        parts = [request[at : at + 16_000] for at in range(0, len(request), 16_000)]
        client.send(*(h2.frame(h2.DATA, part is parts[-1], 1, part) for part in parts))
        client.until(h2.DATA)
        wait_until(lambda: not server.on_loop(under_way(server.server)))
        answered: list[bool] = []
        thread = threading.Thread(target=lambda: answered.append(server.on_loop(server.server.shut_down())))
        thread.start()
        if taken:
            for _ in range(20):
                client.send(h2.frame(h2.PING, h2.ACK, 0, FAREWELL))
                time.sleep(LINGER_SECONDS / 5)
            data, found = client.answer(1)
            assert found["grpc-status"] == "0"
            assert len(data) > 400_000
            client.socket.close()
        thread.join(30)
        assert answered == [taken]


@pytest.mark.parametrize("ends", [True, False])
def test_an_upload_on_the_wire_has_until_the_end_of_the_grace(serve, repository, ask, frontend, ends):
    with serve(repository, frontend=frontend, load_models=("nb",), grace_seconds=20.0 if ends else 1.0) as server:
        client = Raw(server.server.address)
        headers = [
            (n, v if n != ":path" else "/inference.GRPCInferenceService/ModelInfer") for n, v in request_headers()
        ]
        request = message(ask("nb").SerializeToString())
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, client.encoder.encode(headers)))
        client.send(h2.frame(h2.DATA, 0, 1, request[:20]))
        wait_until(lambda: server.on_loop(under_way(server.server)))
        answered: list[bool] = []
        thread = threading.Thread(target=lambda: answered.append(server.on_loop(server.server.shut_down())))
        thread.start()
        time.sleep(0.6)
        if ends:
            client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, request[20:]))
            data, found = client.answer(1)
            assert found["grpc-status"] == "0"
            assert pb.ModelInferResponse.FromString(data[5:]).model_name == "nb"
            client.socket.close()
        thread.join(30)
        assert answered == [ends]


def test_a_connection_without_a_call_is_not_waited_for(serve, repository, frontend):
    """The client answers no ping, as one that has vanished."""
    with serve(repository, frontend=frontend, load_models=("nb",), grace_seconds=60.0) as server:
        client = Raw(server.server.address)
        client.send(h2.frame(h2.PING, 0, 0, bytes(8)))
        client.until(h2.PING)
        begun = time.monotonic()
        assert server.on_loop(server.server.shut_down())
        assert time.monotonic() - begun < 15
        client.socket.close()


def test_a_client_is_asked_to_leave_before_a_call_is_refused(serve, repository, ask):
    """A client that calls again and again finds the port closed in the end; none of its calls is refused before."""
    with serve(repository, frontend="http2", load_models=("m",), grace_seconds=8.0) as server:
        server.infer(ask())
        ended: list[grpc.RpcError] = []

        def calls():
            while not ended:
                try:
                    server.infer(ask(), timeout=20)
                except grpc.RpcError as error:
                    ended.append(error)

        thread = threading.Thread(target=calls)
        thread.start()
        assert server.on_loop(server.server.shut_down())
        thread.join(30)
    assert ended[0].code() is grpc.StatusCode.UNAVAILABLE
    assert "Server exiting" not in ended[0].details()


def test_a_server_that_stops_begins_no_look_at_its_repository(repository):
    async def run():
        server = Server(ServerConfig(repository, listen="127.0.0.1:0", metrics_listen="off"))
        before = asyncio.all_tasks()
        server.catalog.leave()
        server.look()
        assert asyncio.all_tasks() == before
        await server.shut_down()

    asyncio.run(run())


def test_the_end_needs_none_of_the_threads_that_all_share(repository):
    """They may all be at work for callers who have left."""
    leave = threading.Event()

    async def run():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        server = Server(ServerConfig(repository, listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"))
        server.open_http()
        work = asyncio.create_task(asyncio.to_thread(leave.wait, 60))
        try:
            await asyncio.wait_for(server.shut_down(), 30)
        finally:
            leave.set()
            await work

    asyncio.run(run())

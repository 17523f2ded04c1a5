"""One client for many threads and tasks: they share connections, and wait where these are full."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.wire import http2_frames as h2

from .counted import Counted
from .peer import LIVE, OK, Peer, framed, serving


def both(address, calls, **options):
    """``calls`` at once with each of the two clients: threads, then tasks."""
    with Client(address, **options) as client, ThreadPoolExecutor(calls) as threads:
        assert all(threads.map(lambda _: client.is_live(60), range(calls)))

    async def run() -> None:
        async with AsyncClient(address, **options) as client:
            assert all(await asyncio.gather(*(client.is_live(60) for _ in range(calls))))

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_hundred_calls_at_once_share_one_connection_and_are_answered_in_any_order():
    counted = Counted(held=100, MAX_CONCURRENT_STREAMS=100)
    with serving(counted) as address:
        both(address, 100)
    assert counted.at_once == [100, 100]
    assert len(counted.peers) == 2


def test_a_thousand_threads_and_tasks_are_answered():
    counted = Counted(MAX_CONCURRENT_STREAMS=1000)
    with serving(counted) as address:
        both(address, 1000)
    assert sum(counted.at_once) == 2000


def test_a_full_connection_gets_a_second_beside_it_and_all_connections_full_make_calls_wait(monkeypatch):
    for module in ("sharing", "pooling"):
        monkeypatch.setattr(f"normfold.serving.client.transport.{module}.MOST_CONNECTIONS", 3)
    counted = Counted(MAX_CONCURRENT_STREAMS=1)
    with serving(counted) as address:
        with Client(address) as client:
            assert client.is_live()  # the server has said how many calls it takes
            with ThreadPoolExecutor(20) as threads:
                assert all(threads.map(lambda _: client.is_live(60), range(60)))
        assert 2 <= len(counted.peers) <= 3

        async def run() -> None:
            async with AsyncClient(address) as client:
                assert await client.is_live()
                assert all(await asyncio.gather(*(client.is_live(60) for _ in range(60))))

        counted.peers.clear()
        asyncio.run(asyncio.wait_for(run(), 60))
        assert len(counted.peers) == 3


def test_large_messages_pass_both_ways_beside_small_ones():
    answered = threading.Event()

    def echo(peer: Peer) -> None:
        peer.greet(INITIAL_WINDOW_SIZE=1 << 20, MAX_FRAME_SIZE=1 << 20)
        sizes = {}
        while True:
            kind, flags, number, payload = peer.frame()
            if kind == h2.HEADERS:
                sizes[number] = 0
            if kind != h2.DATA:
                continue
            sizes[number] += len(payload)
            if payload:
                peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, len(payload).to_bytes(4, "big")))
                peer.send(h2.frame(h2.WINDOW_UPDATE, 0, number, len(payload).to_bytes(4, "big")))
            if flags & h2.END_STREAM:
                message = pb.ServerMetadataResponse(name="x" * (10 * sizes[number])).SerializeToString()
                peer.headers(number, OK)
                data = framed(message)
                for at in range(0, len(data), 1 << 20):
                    peer.data(number, data[at : at + (1 << 20)])
                peer.end(number, ("grpc-status", "0"))
                answered.set()

    large, small = pb.ServerMetadataResponse(name="y" * 2_000_000), pb.ServerMetadataResponse(name="y")
    with serving(echo) as address:
        with Client(address) as client, ThreadPoolExecutor(4) as threads:
            asked = [large, small, small, large]
            got = list(threads.map(lambda m: client.call("ServerMetadata", m, pb.ServerMetadataResponse), asked))
        assert [len(one.name) for one in got] == [10 * (len(m.SerializeToString()) + 5) for m in asked]

        async def run() -> list[pb.ServerMetadataResponse]:
            async with AsyncClient(address) as client:
                return await asyncio.gather(
                    *(client.call("ServerMetadata", m, pb.ServerMetadataResponse) for m in asked)
                )

        got = asyncio.run(asyncio.wait_for(run(), 60))
        assert [len(one.name) for one in got] == [10 * (len(m.SerializeToString()) + 5) for m in asked]


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 3_000_000])
def test_the_first_data_of_a_request_say_which_model_it_asks(size):
    """However large it is: a server that is full for the model refuses it then, before it reads the rest."""
    first: list[bytes] = []

    def reads(peer: Peer) -> None:
        peer.greet(INITIAL_WINDOW_SIZE=1 << 24, MAX_FRAME_SIZE=1 << 20)
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 24).to_bytes(4, "big")))
        came = b""
        while True:
            kind, flags, number, payload = peer.frame()
            if kind != h2.DATA:
                continue
            if not came:
                first.append(payload)
            came += payload
            if flags & h2.END_STREAM:
                whole.append(came)
                peer.answer(number)
                came = b""

    whole: list[bytes] = []
    request = pb.ModelMetadataRequest(name="m" * size)
    data = framed(request.SerializeToString())
    with serving(reads) as address, Client(address) as client:
        client.call("ModelMetadata", request, pb.ServerLiveResponse)
        client.call("ModelMetadata", request, pb.ServerLiveResponse)
    assert whole == [data, data]
    assert all(each == data[: len(each)] and len(each) >= min(len(data), 1029) for each in first)


def test_threads_that_wait_for_the_socket_to_take_their_requests_wait_beside_one_another():
    """Python lets only one thread wait with a poll object."""

    def slow(peer: Peer) -> None:
        peer.greet(INITIAL_WINDOW_SIZE=1 << 30, MAX_FRAME_SIZE=1 << 20)
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")))
        time.sleep(0.5)  # the sockets are full meanwhile
        while True:
            kind, flags, number, _ = peer.frame()
            if kind == h2.DATA and flags & h2.END_STREAM:
                peer.answer(number)

    large = pb.ServerMetadataResponse(name="y" * 8_000_000)
    with serving(slow) as address, Client(address) as client, ThreadPoolExecutor(6) as threads:
        assert client.is_live(30)
        got = list(threads.map(lambda _: client.call("ServerLive", large, pb.ServerLiveResponse), range(6)))
    assert [one.live for one in got] == [True] * 6


def test_a_connection_that_the_server_left_while_it_was_idle_is_replaced_without_a_failed_call():
    gone = threading.Event()

    def leaves(peer: Peer) -> None:
        peer.greet()
        peer.answer(peer.request())
        peer.goaway(1)
        peer.sock.close()
        gone.set()

    with serving(leaves) as address, Client(address) as client:
        for _ in range(3):
            assert client.call("/a.Service/NotRetried", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
            assert gone.wait(20)
            gone.clear()


def test_a_cancelled_task_resets_its_call_and_leaves_the_others():
    reset = []

    def handle(peer: Peer) -> None:
        peer.greet()
        first, second = peer.request(), peer.request()
        reset.append(peer.until(h2.RST_STREAM))
        peer.answer(first + second - reset[0][2])
        peer.wait_for_end()

    async def run() -> None:
        async with AsyncClient(address) as client:
            one, other = (asyncio.create_task(client.is_live()) for _ in range(2))
            await asyncio.sleep(0.1)
            one.cancel()
            assert await other
            with pytest.raises(asyncio.CancelledError):
                await one

    with serving(handle) as address:
        asyncio.run(asyncio.wait_for(run(), 60))
    assert reset[0][3] == h2.CANCEL.to_bytes(4, "big")


INTERRUPTED = """
import sys, threading
from normfold.serving.client.client import Client
from normfold.serving.client.transport.blocking import BlockingConnection

def leads(*arguments):
    print("waits", flush=True)
    lead(*arguments)

client = Client(sys.argv[1])
client.is_live()  # now nothing more comes of the server by itself
lead, BlockingConnection._lead = BlockingConnection._lead, leads
try:
    client.is_live()
except KeyboardInterrupt:
    print("interrupted", client.is_live(), threading.active_count())
"""


def test_ctrl_c_ends_the_call_at_once_and_the_client_can_be_used_again():
    asked, resets = [], []

    def handle(peer: Peer) -> None:
        peer.greet()
        while True:
            asked.append(number := peer.request())
            if len(asked) == 2:
                assert "waits\n" in iter(process.stdout.readline, "")
                process.send_signal(signal.SIGINT)
                resets.append(peer.until(h2.RST_STREAM)[3])
            else:
                peer.answer(number)

    with serving(handle) as address:
        arguments = [sys.executable, "-c", INTERRUPTED, address]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.wait(60) == 0
                assert process.stdout.read().split()[-3:] == ["interrupted", "True", "1"]
            finally:
                process.kill()
        wait_until(lambda: resets)
    assert resets == [h2.CANCEL.to_bytes(4, "big")]


def test_the_lead_passes_on_when_the_leaders_deadline_ends():
    def handle(peer: Peer) -> None:
        peer.greet()
        numbers = [peer.request(), peer.request()]
        left = peer.until(h2.RST_STREAM)[2]
        numbers.remove(left)
        peer.answer(numbers[0])
        peer.wait_for_end()

    with serving(handle) as address, Client(address) as client, ThreadPoolExecutor(2) as threads:
        leader = threads.submit(client.is_live, 0.5)
        time.sleep(0.1)
        assert threads.submit(client.is_live, 30).result(30)
        assert leader.exception().code.name == "DEADLINE_EXCEEDED"


def test_a_unix_socket_is_reached(tmp_path):
    counted = Counted()
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def handle(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, EOFError):
            counted(Peer(sock))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    both(f"unix:{path}", 1)
    both(f"unix://{path}", 1)
    assert [peer.headers_of[1][":authority"] for peer in counted.peers] == ["localhost"] * len(counted.peers)
    listener.close()


def test_a_stream_of_messages_passes_both_ways_and_ends_with_its_status():
    from normfold.serving.client.transport.answers import Reply
    from normfold.serving.client.transport.choice import loop_calls

    def handle(peer: Peer) -> None:
        peer.greet()
        _, _, number, _ = peer.until(h2.HEADERS)
        peer.headers(number, OK)
        got = b""
        while got.count(LIVE) < 3:
            kind, _, _, payload = peer.frame()
            got += payload if kind == h2.DATA else b""
        data = framed(b"a") + framed(b"bc") + framed(b"")
        peer.data(number, data[:8])
        peer.data(number, data[8:])
        peer.end(number, ("grpc-status", "7"), ("grpc-message", "enough"))
        peer.wait_for_end()

    async def messages():
        for _ in range(3):
            yield LIVE
        await asyncio.sleep(60)

    async def run() -> list[bytes | Reply]:
        calls = loop_calls(address, None, (), "http2", None, 0.0)()
        try:
            return [item async for item in calls.stream("/a.B/C", messages())]
        finally:
            await calls.close()

    with serving(handle) as address:
        *items, last = asyncio.run(asyncio.wait_for(run(), 60))
    assert items == [b"a", b"bc", b""]
    assert (last.status.name, last.details) == ("PERMISSION_DENIED", "enough")


@pytest.mark.parametrize("asking", ["blocking", "loop"])
def test_a_server_that_takes_no_calls_for_a_while_is_asked_when_it_takes_them_again(monkeypatch, asking):
    monkeypatch.setattr("normfold.serving.client.transport.sharing.MOST_CONNECTIONS", 1)
    monkeypatch.setattr("normfold.serving.client.transport.pooling.MOST_CONNECTIONS", 1)

    def later(peer: Peer) -> None:
        peer.greet(MAX_CONCURRENT_STREAMS=0)
        more = threading.Timer(0.2, lambda: peer.send(h2.settings({h2.MAX_CONCURRENT_STREAMS: 5})))
        more.start()
        while True:
            number = peer.request()
            if more.is_alive():  # it was sent before these SETTINGS came
                peer.send(h2.frame(h2.RST_STREAM, 0, number, h2.REFUSED_STREAM.to_bytes(4, "big")))
            else:
                peer.answer(number)

    async def loop(address: str) -> bool:
        async with AsyncClient(address) as client:
            return await client.is_live(timeout=10)

    with serving(later) as address:
        if asking == "loop":
            assert asyncio.run(loop(address))
        else:
            with Client(address) as client:
                assert client.is_live(timeout=10)

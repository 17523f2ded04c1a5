"""Streams with one answer to each message: their order, their errors, what a slow client and an ending server do."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
import time

import grpc
import pytest
from tests.serving.frontends.raw import Raw, message
from tests.waiting import wait_until

from normfold.serving.frontends.http2 import messages
from normfold.serving.frontends.http2.each_call import UNSEEN
from normfold.serving.frontends.http2.limits import ROUND_MESSAGES
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.rpc.methods import EACH_IN_FLIGHT
from normfold.serving.wire import http2_frames as h2

FRONTENDS = ["http2", "grpcio"]


def told(answers) -> tuple[list[bytes], grpc.StatusCode, str]:
    """The answers up to the end of a stream, and how it ended."""
    found = []
    with contextlib.suppress(grpc.RpcError):
        found += answers
    return found, answers.code(), answers.details()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_answers_keep_the_order_of_their_messages_whatever_each_takes(start, frontend):
    seconds = [b"0.05", b"", b"0.001", b"0.02", b"", b"", b"0.01"] * 30
    with start(name=frontend) as served, grpc.insecure_channel(served.address) as channel:
        answers = channel.stream_stream("/t.T/Each")(iter(seconds), timeout=30)
        assert list(answers) == seconds


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("bad", "words"), [(b"fail", "no"), (b"fail later", "not now")])
def test_an_error_ends_the_stream_behind_the_answers_before_it(start, frontend, bad, words):
    with start(name=frontend) as served, grpc.insecure_channel(served.address) as channel:
        answers = channel.stream_stream("/t.T/Each")(iter([b"", b"", bad, b""]), timeout=30)
        found, code, details = told(answers)
        assert (found[:2], code, details) == ([b"", b""][: len(found)], grpc.StatusCode.INVALID_ARGUMENT, words)
        wait_until(lambda: not served.traffic.in_flight)


def test_at_most_so_many_messages_are_under_way(raw, served):
    raw.ask(1, None, "Each")
    raw.send(h2.frame(h2.DATA, 0, 1, message(b"") + message(b"wait") * (EACH_IN_FLIGHT + 50)))
    wait_until(lambda: served.methods.waiting == EACH_IN_FLIGHT)
    raw.ask(3, message(b"hello"))
    assert raw.answer(3)[0] == message(b"hello")
    assert served.methods.waiting == EACH_IN_FLIGHT
    raw.send(h2.frame(h2.RST_STREAM, 0, 1, h2.CANCEL.to_bytes(4, "big")))
    wait_until(lambda: served.methods.cancelled == EACH_IN_FLIGHT)
    assert raw.still_answers()
    wait_until(lambda: not served.frontend._service.holding.bytes)


@pytest.mark.parametrize("empty", [True, False])
def test_few_messages_are_under_way_before_the_first_answer_shows_how_large_they_are(raw, served, empty):
    raw.ask(1, None, "Each")
    raw.send(h2.frame(h2.DATA, 0, 1, message(b"0.2") + message(b"wait") * EACH_IN_FLIGHT))
    wait_until(lambda: served.methods.waiting == UNSEEN - 1)
    assert served.methods.begun == 1
    if empty:  # an empty one is an answer, too
        raw.ask(3, None, "Each")
        raw.send(h2.frame(h2.DATA, 0, 3, message(b"") + message(b"wait") * UNSEEN))
        wait_until(lambda: served.methods.waiting >= UNSEEN - 1 + UNSEEN)
    wait_until(lambda: served.methods.waiting == EACH_IN_FLIGHT + UNSEEN * empty)


def test_many_messages_in_one_frame_do_not_keep_others_waiting(raw, served):
    count = 40 * ROUND_MESSAGES
    raw.ask(1, message(b"") * count, "Each")
    found = b""
    while len(found) < 5 * count:
        found += raw.until(h2.DATA).payload
    assert found == message(b"") * count


def test_a_client_that_takes_nothing_gets_the_rest_when_it_does(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 0})
    client.ask(1, message(b"0.001") * 20 + message(b"") * 20, "Each")
    time.sleep(0.1)
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, (1 << 16).to_bytes(4, "big")))
    assert client.answer(1)[0] == message(b"0.001") * 20 + message(b"") * 20


def test_compressed_messages_keep_their_place_among_the_others(raw):
    zipped = message(gzip.compress(b"0.02"), 1)
    raw.ask(1, zipped + message(b"") + zipped + message(b"0.001"), "Each", grpc_encoding="gzip")
    assert raw.answer(1)[0] == message(b"0.02") + message(b"") + message(b"0.02") + message(b"0.001")


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_server_that_ends_answers_what_has_begun_and_tells_the_client_to_go_elsewhere(start, frontend):
    with start(name=frontend) as served, grpc.insecure_channel(served.address) as channel:
        more = threading.Event()

        def messages():
            yield b""
            yield b"0.3"
            more.wait(20)

        answers = channel.stream_stream("/t.T/Each")(messages(), timeout=30)
        assert next(answers) == b""
        wait_until(lambda: served.methods.begun)
        closing = threading.Thread(target=served.on_loop, args=(served.traffic.close(20),))
        closing.start()
        found, code, details = told(answers)
        closing.join()
        more.set()
        assert (found, code, details) == ([b"0.3"], grpc.StatusCode.UNAVAILABLE, "Server exiting")


def test_what_comes_after_the_end_has_begun_is_not_answered_in_place_of_what_was_dropped(raw, served):
    numbers = [b"0.%03d" % (500 + n) for n in range(EACH_IN_FLIGHT + 10)]
    raw.ask(1, None, "Each")
    raw.send(h2.frame(h2.DATA, 0, 1, b"".join(map(message, [b"", *numbers]))))
    wait_until(lambda: served.methods.begun == EACH_IN_FLIGHT)
    closing = threading.Thread(target=served.on_loop, args=(served.traffic.close(20),))
    closing.start()
    wait_until(lambda: served.traffic.closing)
    raw.send(h2.frame(h2.DATA, 0, 1, message(b"") * 5), h2.frame(h2.PING, 0, 0, bytes(8)))
    assert raw.answer(1)[0] == b"".join(map(message, [b"", *numbers[:EACH_IN_FLIGHT]]))
    closing.join()
    assert served.methods.begun == EACH_IN_FLIGHT
    wait_until(lambda: not served.frontend._service.holding.bytes)


def test_a_message_that_is_being_joined_when_the_server_ends_is_counted_once(served, monkeypatch):
    begun, goes_on, held = threading.Event(), threading.Event(), []

    class Slow(messages.Joining):
        async def rest(self, _):
            begun.set()
            while not goes_on.is_set():
                await asyncio.sleep(0.01)
            held.append(served.frontend._service.holding.bytes)
            return b""

    monkeypatch.setattr(messages, "INLINE_BYTES", 100_000)
    monkeypatch.setattr(messages, "Joining", Slow)
    client = Raw(served.address)
    client.ask(1, None, "Each")
    whole = message(bytes(200_000))
    for at in range(0, len(whole), 10_000):
        client.send(h2.frame(h2.DATA, 0, 1, whole[at : at + 10_000]))
    assert begun.wait(30)
    closing = threading.Thread(target=served.on_loop, args=(served.traffic.close(20),))
    closing.start()
    wait_until(lambda: served.traffic.closing)
    client.send(h2.frame(h2.PING, 0, 0, bytes(8)))
    client.until(h2.PING)
    goes_on.set()
    assert client.answer(1)[0] == message(b"")
    closing.join()
    assert held[0] >= 200_000
    wait_until(lambda: not served.frontend._service.holding.bytes)


def test_a_message_that_does_not_end_is_given_up(start):
    with start(limits=ClientLimits(stall_seconds=0.4)) as served:
        client = Raw(served.address)
        client.ask(1, None, "Each")
        client.send(h2.frame(h2.DATA, 0, 1, message(b"0.001")[:3]))
        assert client.answer(1)[1]["grpc-status"] == "4"

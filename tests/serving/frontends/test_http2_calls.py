"""gRPC over the http2 frontend: deadlines, compression, sizes, statuses; with grpcio and frame by frame."""

from __future__ import annotations

import gzip
import zlib

import grpc
import pytest
from tests.serving.frontends.conftest import MOST_BYTES
from tests.serving.frontends.raw import Raw, message
from tests.waiting import wait_until

from normfold.protos import health as pb
from normfold.serving.frontends.http2 import messages
from normfold.serving.wire import http2_frames as h2

S = grpc.StatusCode
HELLO = message(b"hello")


@pytest.fixture
def channel(served):
    options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    with grpc.insecure_channel(served.address, options=options) as one:
        yield one


def unary(channel, name, data, **options):
    return channel.unary_unary(f"/t.T/{name}")(data, **{"timeout": 20, **options})


@pytest.mark.parametrize("name", ["Echo", "Soon"])
@pytest.mark.parametrize("size", [0, 1, 5000, 16_379, 16_380, 70_000, 1 << 20, 3 << 20])
def test_messages_of_every_size_come_back(channel, name, size):
    data = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    assert unary(channel, name, data[:size]) == data[:size]


def test_many_calls_at_once_get_their_own_answers(channel):
    calls = [channel.unary_unary("/t.T/Soon").future(b"%d" % i, timeout=20) for i in range(300)]
    assert [call.result() for call in calls] == [b"%d" % i for i in range(300)]


@pytest.mark.parametrize("name", ["Stream", "Iterate"])
def test_a_stream_gives_each_message_back_in_order(channel, name):
    sizes = [0, 10, 200_000, 1, 1 << 21, 3]
    answers = channel.stream_stream(f"/t.T/{name}")((bytes(size) for size in sizes), timeout=20)
    assert [len(answer) for answer in answers] == sizes


def test_a_stream_of_answers_to_one_request(channel):
    numbers = channel.unary_stream(
        "/t.T/Numbers",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=pb.HealthCheckRequest.FromString,
    )
    assert [m.service for m in numbers(pb.HealthCheckRequest(service="500"), timeout=20)] == [
        str(i) for i in range(500)
    ]
    assert list(numbers(pb.HealthCheckRequest(service="0"), timeout=20)) == []


@pytest.mark.parametrize("name", ["Wait", "Slow"])
def test_a_deadline_of_the_client_cancels_the_method(channel, served, name):
    call = channel.stream_stream(f"/t.T/{name}")(iter([b""] if name == "Wait" else [b"", b""]), timeout=0.2)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is S.DEADLINE_EXCEEDED
    wait_until(lambda: not served.traffic.in_flight)


@pytest.mark.parametrize("timeout", ["50m", "50000u", "50000000n"])
@pytest.mark.parametrize("data", [HELLO, None, b""])
def test_the_server_keeps_the_deadline_itself(raw, served, timeout, data):
    raw.ask(1, data if data else None, "Wait", grpc_timeout=timeout)
    if data == b"":
        raw.send(h2.frame(h2.DATA, 0, 1, HELLO[:3]))  # and never the rest
    got, headers = raw.answer(1)
    assert (got, headers["grpc-status"], headers["grpc-message"]) == (b"", "4", "Deadline Exceeded")
    wait_until(lambda: not served.traffic.in_flight)
    assert raw.still_answers()


@pytest.mark.parametrize(
    "timeout", ["1H", "1M", "20S", "99999999m", "99999999H", "123456789S", "000000020S", "20 S", "9" * 99 + "H"]
)
def test_a_deadline_that_is_far_away_changes_nothing(raw, timeout):
    raw.ask(1, HELLO, "Soon", grpc_timeout=timeout)
    assert raw.answer(1)[0] == HELLO


@pytest.mark.parametrize("timeout", ["1", "S", "1s", "-1S", "1.5S", ""])
def test_a_deadline_that_cannot_be_read_is_told(raw, timeout):
    raw.ask(1, HELLO, grpc_timeout=timeout)
    assert raw.answer(1)[1]["grpc-status"] == "13"


@pytest.mark.parametrize("timeout", ["0S", "00000000m", "0n"])
def test_a_deadline_of_zero_is_over_before_the_method_runs(raw, served, timeout):
    raw.ask(1, HELLO, "Soon", grpc_timeout=timeout)
    assert raw.answer(1)[1]["grpc-status"] == "4"
    raw.ask(3, HELLO, "Echo", grpc_timeout=timeout)
    assert raw.answer(3)[1]["grpc-status"] == "4"
    assert raw.still_answers()


def test_a_cancelled_call_is_cancelled_in_the_server(channel, served):
    call = channel.unary_unary("/t.T/Wait").future(b"", timeout=20)
    wait_until(lambda: served.methods.waiting)
    call.cancel()
    wait_until(lambda: served.methods.cancelled == 1)


def test_an_error_has_status_and_words(channel):
    for words in ("no such thing", "100 % größer\n再试", "x" * 3000):
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel, "Fail", words.encode())
        assert (caught.value.code(), caught.value.details()) == (S.INVALID_ARGUMENT, words)


def test_words_that_are_too_long_for_headers_are_cut_at_a_character(channel):
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Fail", ("再" * 3000).encode())
    assert set(caught.value.details()) == {"再"}
    assert 500 < len(caught.value.details()) < 3000


def test_what_is_not_a_method_is_unimplemented(channel):
    with pytest.raises(grpc.RpcError, match="Method not found!") as caught:
        unary(channel, "Nope", b"")
    assert caught.value.code() is S.UNIMPLEMENTED


def test_what_is_not_grpc_gets_a_status_of_http(raw):
    raw.ask(1, HELLO, content_type="application/json")
    assert raw.answer(1)[1][":status"] == "415"
    raw.ask(3, HELLO, content_type="application/grpc-web")
    assert raw.answer(3)[1][":status"] == "415"
    raw.ask(5, HELLO, content_type="application/grpc+proto")
    assert raw.answer(5)[0] == HELLO
    raw.send(h2.frame(h2.HEADERS, 5, 7, raw.encoder.encode([(":method", "GET"), (":scheme", "http"), (":path", "/")])))
    assert raw.answer(7)[1] == {":status": "405", "allow": "POST"}


@pytest.mark.parametrize("name", ["Stream", "Iterate"])
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_understood(channel, compression, name):
    data = b"abc" * 10_000
    assert unary(channel, "Echo", data, compression=compression) == data
    stream = channel.stream_stream(f"/t.T/{name}")(iter([data, b"x" * 5000]), compression=compression, timeout=20)
    assert list(stream) == [data, b"x" * 5000]


def test_an_unknown_compression_is_refused_with_those_that_are_known(raw):
    raw.ask(1, message(b"?", 1), grpc_encoding="snappy")
    _, headers = raw.answer(1)
    assert headers["grpc-status"] == "12"
    assert headers["grpc-accept-encoding"] == "identity,deflate,gzip"


BAD_DATA = {
    "compressed without saying how": ({}, message(b"x", 1), "13"),
    "a first byte of 2": ({"grpc_encoding": "gzip"}, message(b"x", 2), "13"),
    "not gzip": ({"grpc_encoding": "gzip"}, message(b"x", 1), "13"),
    "gzip that is cut": ({"grpc_encoding": "gzip"}, message(gzip.compress(b"x" * 99)[:-9], 1), "13"),
    "gzip for deflate": ({"grpc_encoding": "deflate"}, message(gzip.compress(b"x"), 1), "13"),
    "gzip of too much": ({"grpc_encoding": "gzip"}, message(gzip.compress(bytes(MOST_BYTES + 1)), 1), "8"),
    "deflate of too much": ({"grpc_encoding": "deflate"}, message(zlib.compress(bytes(99 << 20)), 1), "8"),
    "the end within a prefix": ({}, HELLO[:3], "13"),
    "the end within a message": ({}, HELLO[:7], "13"),
    "a byte behind gzip": ({"grpc_encoding": "gzip"}, message(gzip.compress(b"x") + b"x", 1), "13"),
    "two members of gzip": ({"grpc_encoding": "gzip"}, message(gzip.compress(b"x") * 2, 1), "13"),
    "bytes behind large gzip": ({"grpc_encoding": "gzip"}, message(gzip.compress(bytes(1 << 21)) + b"x", 1), "13"),
    "large gzip that is cut": ({"grpc_encoding": "gzip"}, message(gzip.compress(bytes(1 << 21))[:-9], 1), "13"),
    "no message": ({}, b"", "13"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_are_not_one_message_are_told(raw, name):
    headers, data, status = BAD_DATA[name]
    raw.ask(1, data, **headers)
    assert raw.answer(1)[1]["grpc-status"] == status
    assert raw.still_answers()


def test_a_message_that_is_too_large_is_refused_by_its_first_bytes(raw):
    raw.ask(1, None)
    raw.send(h2.frame(h2.DATA, 0, 1, b"\x00" + (MOST_BYTES + 1).to_bytes(4, "big") + b"begin"))
    _, headers = raw.answer(1)
    words = f"Received message larger than max ({MOST_BYTES + 1} vs. {MOST_BYTES})"
    assert (headers["grpc-status"], headers["grpc-message"]) == ("8", words)
    reset = raw.until(h2.RST_STREAM)
    assert int.from_bytes(reset.payload, "big") == h2.NO_ERROR
    raw.send(h2.frame(h2.DATA, h2.END_STREAM, 1, b"what was on its way"))
    assert raw.still_answers()


@pytest.mark.parametrize("method", ["Echo", "Stream", "Iterate"])
def test_a_large_message_in_parts_is_joined_on_a_thread_and_the_next_begins_behind_it(served, monkeypatch, method):
    monkeypatch.setattr(messages, "INLINE_BYTES", 100_000)
    joined = []

    class Watched(messages.Joining):
        async def rest(self, held):
            joined.append(len(self))
            return await super().rest(held)

    monkeypatch.setattr(messages, "Joining", Watched)
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 22})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 22).to_bytes(4, "big")))
    sent = [b"first", bytes(range(256)) * 1000, b"", b"last" * 50_000] if method != "Echo" else [b"abc" * 70_000]
    whole = b"".join(map(message, sent))
    client.ask(1, None, method)
    for at in range(0, len(whole), 10_000):
        client.send(h2.frame(h2.DATA, 0, 1, whole[at : at + 10_000]))
    client.send(h2.frame(h2.DATA, h2.END_STREAM, 1))
    assert client.answer(1)[0] == whole
    assert joined == [len(each) for each in sent if len(each) > 100_000]
    wait_until(lambda: not served.frontend._service.holding.bytes)


@pytest.mark.parametrize("method", ["Echo", "Stream", "Iterate"])
def test_a_large_message_that_no_thread_joins_ends_its_call(served, monkeypatch, method):
    async def no_thread(self, held):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(messages, "INLINE_BYTES", 100_000)
    monkeypatch.setattr(messages.Joining, "rest", no_thread)
    client = Raw(served.address)
    client.ask(1, None, method)
    whole = message(bytes(200_000))
    for at in range(0, len(whole), 10_000):
        client.send(h2.frame(h2.DATA, 0, 1, whole[at : at + 10_000]))
    client.send(h2.frame(h2.DATA, h2.END_STREAM, 1))
    assert client.answer(1)[1]["grpc-status"] == "13"
    wait_until(lambda: not served.traffic.in_flight and not served.frontend._service.holding.bytes)


def test_a_large_message_gets_its_window_at_once(raw):
    raw.ask(1, None)
    data = message(bytes(3 << 20))
    raw.send(h2.frame(h2.DATA, 0, 1, data[:5]))
    while (found := raw.until(h2.WINDOW_UPDATE)).stream != 1:
        pass
    assert int.from_bytes(found.payload, "big") + (1 << 20) - 5 >= len(data) - 5


def test_a_stream_that_is_not_read_stops_its_client(raw, served):
    raw.ask(1, None, "Slow")
    part = message(bytes(100_000))
    credit = 1 << 20
    sent = 0
    while credit >= len(part):
        raw.send(*(h2.frame(h2.DATA, 0, 1, part[at : at + 16_384]) for at in range(0, len(part), 16_384)))
        credit -= len(part)
        sent += 1
    raw.send(h2.frame(h2.PING, 0, 0, bytes(8)))
    granted = 0
    while (found := raw.frame()).kind != h2.PING:
        if found.kind == h2.WINDOW_UPDATE and found.stream == 1:
            granted += int.from_bytes(found.payload, "big")
    assert granted <= 2 * len(part)  # for the parts that were read
    assert served.methods.read == 1
    served.methods.go_on.set()
    raw.send(h2.frame(h2.DATA, h2.END_STREAM, 1))
    assert raw.answer(1)[0] == message(b"all")
    assert served.methods.read == sent


def test_answers_to_a_client_that_does_not_read_are_not_made_ahead(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 100})
    client.ask(1, message(pb.HealthCheckRequest(service="100000").SerializeToString()), "Numbers")
    client.send(h2.frame(h2.PING, 0, 0, bytes(8)))
    client.until(h2.PING)
    sender = next(iter(served.frontend._connections)).sender
    wait_until(lambda: 1 in sender._waiting)
    assert sum(map(len, sender._waiting[1].data)) < 100
    client.socket.close()
    wait_until(lambda: not served.frontend._connections)

"""No request goes beyond what the server takes: the windows of a stream and of the connection, and the size of a frame.

A server ends the connection of a client that sends more.
"""

from __future__ import annotations

from normfold.serving.client.transport.connection import ClientEnd
from normfold.serving.client.transport.outgoing import GREETING
from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import written

HEADERS, PREFIX = b"headers", bytes(5)


def greeted(**settings: int) -> ClientEnd:
    """A connection on which the server has said its settings."""
    end = ClientEnd()
    end.receive(h2.settings({getattr(h2, name): value for name, value in settings.items()}))
    return end


def widen(end: ClientEnd, number: int, by: int) -> None:
    end.receive(h2.frame(h2.WINDOW_UPDATE, 0, number, by.to_bytes(4, "big")))


def opened(end: ClientEnd, size: int) -> int:
    """The stream of a new call whose request has ``size`` bytes with its prefix."""
    call = RemoteCall()
    end.open(call, HEADERS, PREFIX, bytes(size - len(PREFIX)))
    return call.number


def sent(end: ClientEnd) -> dict[int, tuple[int, bool]]:
    """What was sent since the last look: for each stream the bytes of data, and whether the request ended there."""
    data = b"".join(end.out).removeprefix(GREETING)
    end.out = []
    found: dict[int, tuple[int, bool]] = {}
    while data:
        word, flags, number = h2.HEAD.unpack_from(data)
        size = word >> 8
        assert size <= end.largest
        if word & 0xFF == h2.DATA:
            found[number] = found.get(number, (0, False))[0] + size, bool(flags & h2.END_STREAM)
        data = data[h2.HEAD.size + size :]
    return found


def test_no_frame_is_larger_than_the_server_takes():
    end = greeted(INITIAL_WINDOW_SIZE=1 << 24)
    widen(end, 0, 1 << 24)
    assert end.largest == h2.DEFAULT_FRAME
    assert sent(end) == {}
    number = opened(end, 40_000)
    assert sent(end) == {number: (40_000, True)}


def test_a_request_waits_for_the_window_of_its_stream():
    end = greeted(INITIAL_WINDOW_SIZE=1000)
    number = opened(end, 5000)
    assert sent(end) == {number: (1000, False)}
    widen(end, number, 500)
    assert sent(end) == {number: (500, False)}
    end.receive(h2.settings({h2.INITIAL_WINDOW_SIZE: 2000}))
    assert sent(end) == {number: (1000, False)}
    end.receive(h2.settings({h2.INITIAL_WINDOW_SIZE: 0}))  # the window is -2000 now
    widen(end, number, 1500)
    assert sent(end) == {}
    widen(end, number, 1000)
    assert sent(end) == {number: (500, False)}
    widen(end, number, 5000)
    assert sent(end) == {number: (2000, True)}


def test_the_requests_of_a_connection_wait_for_its_window_together():
    end = greeted(INITIAL_WINDOW_SIZE=1 << 24, MAX_FRAME_SIZE=1 << 20)
    first, second = opened(end, 50_000), opened(end, 50_000)
    assert sent(end) == {first: (50_000, True), second: (h2.DEFAULT_WINDOW - 50_000, False)}
    third = opened(end, 10)
    assert sent(end) == {}
    widen(end, 0, 100_000)
    assert sent(end) == {second: (100_000 - h2.DEFAULT_WINDOW, True), third: (10, True)}


def test_the_server_gets_the_window_of_the_connection_back_also_for_calls_that_were_cancelled():
    end = greeted()
    block = written((b":status", b"200"), (b"content-type", b"application/grpc"))
    came = back = 0
    for _ in range(40):
        call = RemoteCall()
        end.open(call, HEADERS, PREFIX, b"")
        end.receive(h2.frame(h2.HEADERS, h2.END_HEADERS, call.number, block))
        if call.number % 4 == 1:
            end.cancel(call)
        end.receive(h2.frame(h2.DATA, 0, call.number, bytes(1 << 20)))
        came += 1 << 20
        for part in end.out:
            if (data := bytes(part))[3:4] == bytes([h2.WINDOW_UPDATE]) and data[5:9] == bytes(4):
                back += int.from_bytes(data[9:], "big")
        end.out = []
        assert 0 <= came - back < 1 << 24  # else a connection would stop for ever after 2 GiB
    assert call.reply is None


def test_a_connection_whose_numbers_of_streams_have_run_out_takes_no_more_calls():
    end = greeted()
    end._next = h2.LARGEST_WINDOW - 2
    assert end.room > 0
    assert opened(end, 10) == h2.LARGEST_WINDOW - 2
    assert end.room == 0

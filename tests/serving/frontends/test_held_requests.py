"""What clients may hold of the server with requests, whole messages and parts of frames."""

from __future__ import annotations

import gzip
import os
import threading
import weakref

import pytest
from tests.serving.frontends.held import HELLO, PART, UNFINISHED, begun, connections, goaway, held, upload
from tests.serving.frontends.raw import Raw, message, request_headers
from tests.waiting import wait_until

from normfold.serving.frontends.http2 import inflation, messages
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import FEW_CALLS
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.wire import http2_frames as h2


@pytest.mark.parametrize("limits", [ClientLimits(max_connection_bytes=1 << 20), ClientLimits(max_held_bytes=1 << 20)])
def test_uploads_that_stop_are_refused_beyond_the_limit(start, limits):
    with start(limits=limits) as served:
        client = Raw(served.address)
        whole = message(bytes(900_000))
        upload(client, 1, whole[:600_000])
        wait_until(lambda: held(served) >= 600_000)
        upload(client, 3, whole[:600_000])
        assert client.answer(3)[1]["grpc-status"] == "8"
        client.send(*(h2.frame(h2.DATA, 0, 1, whole[at : at + PART]) for at in range(600_000, 900_005, PART)))
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1))
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\0\x10\0\0"), h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\x10\0\0"))
        assert client.answer(1)[0] == whole
        wait_until(lambda: held(served) == 0)


def test_what_clients_held_and_hold_no_more_is_counted(served):
    """The server gives its memory back then, although there was no request."""
    client = Raw(served.address)
    before = served.frontend.freed_bytes
    upload(client, 1, b"\0" + (2 << 20).to_bytes(4, "big") + bytes(1 << 19))
    wait_until(lambda: held(served) > 1 << 19)
    assert served.frontend.freed_bytes - before < 1 << 16
    client.socket.close()
    wait_until(lambda: served.frontend.freed_bytes - before > 1 << 19)


@pytest.mark.parametrize("silent_calls", [0, 3 * FEW_CALLS])
def test_one_request_alone_may_exceed_the_limit_of_its_connection(start, silent_calls):
    with start(limits=ClientLimits(max_connection_bytes=1 << 20)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 24})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x01\0\0\0"))
        for stream in range(1, 2 * silent_calls, 2):
            client.ask(stream, message(b"wait"), "Wait")
        last = 2 * silent_calls + 1
        whole = message(bytes(3 << 20))
        upload(client, last, whole[:PART])
        client.until(h2.WINDOW_UPDATE)
        client.send(*(h2.frame(h2.DATA, 0, last, whole[at : at + PART]) for at in range(PART, len(whole), PART)))
        client.send(h2.frame(h2.DATA, h2.END_STREAM, last))
        assert client.answer(last)[0] == whole


def test_one_server_bounds_what_all_connections_hold(start):
    with start(limits=ClientLimits(max_held_bytes=1 << 20)) as served:
        first, second = Raw(served.address), Raw(served.address)
        upload(first, 1, message(bytes(900_000))[:600_000])
        wait_until(lambda: held(served) >= 600_000)
        upload(second, 1, message(bytes(900_000))[:600_000])
        assert second.answer(1)[1]["grpc-status"] == "8"
        first.socket.close()
        wait_until(lambda: held(served) == 0)
        assert second.still_answers()


def test_a_request_is_alone_beside_what_is_no_request_and_all_counts():
    of_all = Holding(1 << 30)
    holding = Holding(1 << 20, of_all)
    holding.add_beside(200_000)
    assert holding.fits(50 << 20)
    holding.add(50 << 20)
    assert holding.fits(1000, 50 << 20)
    assert not holding.fits(1000)
    assert holding.bytes == of_all.bytes == 200_000 + (50 << 20)
    assert not holding.has_room(0)
    holding.add(-50 << 20)
    holding.add_beside(-200_000)
    assert (holding.bytes, holding.beside, of_all.bytes) == (0, 0, 0)


def test_data_in_tiny_pieces_count_with_the_memory_that_they_take(start):
    with start() as served:
        client = Raw(served.address)
        client.ask(1, None)
        client.send(*(h2.frame(h2.DATA, 0, 1, byte) for byte in [b"\0", b"\0", b"\x10", b"\0", b"\0"] + [b"x"] * 1000))
        wait_until(lambda: held(served) > 50_000)


def test_messages_that_wait_in_a_stream_stay_compressed(served):
    client = Raw(served.address)
    bomb = message(gzip.compress(bytes(100_000)), 1)
    upload(client, 1, bomb * 2000, "Slow", grpc_encoding="gzip")
    wait_until(lambda: held(served) > 2000 * len(bomb) * 0.9)
    assert held(served) < 2000 * (len(bomb) + 200)
    served.methods.go_on.set()
    client.send(h2.frame(h2.DATA, h2.END_STREAM, 1))
    assert client.answer(1)[0] == message(b"all")
    wait_until(lambda: held(served) == 0)


def test_empty_messages_that_are_not_read_stop_their_client(served):
    client = Raw(served.address)
    upload(client, 1, message(b"") * 200_000, "Slow")
    client.send(h2.frame(h2.PING, 0, 0, bytes(8)))
    granted = 0
    while (found := client.frame()).kind != h2.PING:
        granted += int.from_bytes(found.payload, "big") if found.kind == h2.WINDOW_UPDATE and found.stream == 1 else 0
    assert granted == 0


def test_a_long_inflation_runs_on_a_thread_in_steps(served, monkeypatch):
    steps = []
    step = inflation.Inflation._step

    def watched(self, most):
        steps.append((threading.current_thread().name.partition("_")[0], most))
        return step(self, most)

    monkeypatch.setattr(inflation.Inflation, "_step", watched)
    client = Raw(served.address)
    client.ask(1, message(gzip.compress(bytes(1 << 17)), 1), grpc_encoding="gzip")
    client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 24}), h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x01\0\0\0"))
    assert client.answer(1)[0] == message(bytes(1 << 17))
    assert [most for _, most in steps] in ([inflation.INLINE_BYTES], [inflation.INLINE_BYTES, inflation.STEP_BYTES])
    steps.clear()
    data = os.urandom(3_000_000)
    for method, stream in (("Echo", 3), ("Stream", 5), ("Iterate", 7)):
        upload(client, stream, message(gzip.compress(data, 1), 1), method, grpc_encoding="gzip")
        client.send(h2.frame(h2.DATA, h2.END_STREAM, stream))
        assert client.answer(stream)[0] == message(data)
    inline, threaded = steps[::2], steps[1::2]
    assert {most for _, most in inline} == {inflation.INLINE_BYTES}
    assert threaded == [("normfold-inflate", inflation.STEP_BYTES)] * 3
    wait_until(lambda: held(served) == 0)


@pytest.fixture
def gated(monkeypatch):
    """Inflation on a thread stops once a message has 2 MB, until the event is set."""
    monkeypatch.setattr(inflation, "STEP_BYTES", 1 << 19)
    gate, step = threading.Event(), inflation.Inflation._step

    def waiting(self, most):
        if self.size > 2_000_000:
            gate.wait(60)
        return step(self, most)

    monkeypatch.setattr(inflation.Inflation, "_step", waiting)
    yield gate
    gate.set()


def test_the_messages_of_one_stream_are_inflated_one_after_the_other_and_count(start, gated):
    with start() as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 26})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\4\0\0\0"))
        bomb = message(gzip.compress(bytes(3_000_000)), 1)
        upload(client, 1, bomb * 5, "Each", grpc_encoding="gzip")
        wait_until(lambda: held(served) > 2_000_000)
        call = connections(served)[0].calls[1]
        assert (len(call._pending), len(call._queue)) == (1, 4)
        client.send(h2.frame(h2.DATA, 0, 1, message(b"")), h2.frame(h2.PING, 0, 0, bytes(8)))
        client.until(h2.PING)
        assert held(served) > 2_000_000
        gated.set()
        client.send(h2.frame(h2.RST_STREAM, 0, 1, h2.CANCEL.to_bytes(4, "big")))
        wait_until(lambda: held(served) == 0)


@pytest.mark.parametrize("method", ["Echo", "Stream", "Iterate"])
def test_what_several_calls_inflate_at_once_counts_together(start, gated, method):
    with start(limits=ClientLimits(max_held_bytes=3_500_000)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 26})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\4\0\0\0"))
        bomb = message(gzip.compress(bytes(3_000_000)), 1)
        for stream in (1, 3):
            client.ask(stream, bomb, method, grpc_encoding="gzip")
            wait_until(lambda: held(served) > 2_000_000)
        assert client.answer(3)[1]["grpc-status"] == "8"
        gated.set()
        assert client.answer(1)[0] == message(bytes(3_000_000))
        wait_until(lambda: held(served) == 0)


def test_what_was_inflated_is_not_kept_twice_while_it_is_answered(served, monkeypatch):
    made = []

    class Noted(inflation.Inflation):
        def __init__(self, *args):
            made.append(weakref.ref(self))
            super().__init__(*args)

    monkeypatch.setattr(messages, "Inflation", Noted)
    client = Raw(served.address)
    client.ask(1, message(gzip.compress(bytes(3_000_000)), 1), "EachWait", grpc_encoding="gzip")
    wait_until(lambda: served.methods.waiting == 1)
    assert [each() for each in made] == [None]


def test_what_grows_out_of_proportion_is_refused(served, monkeypatch):
    monkeypatch.setattr(inflation, "LARGE_BYTES", 1 << 20)
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 24})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x01\0\0\0"))
    for stream, method in ((1, "Echo"), (3, "Stream"), (7, "Iterate")):
        client.ask(stream, message(gzip.compress(bytes(3_000_000)), 1), method, grpc_encoding="gzip")
        _, headers = client.answer(stream)
        assert headers["grpc-status"] == "8"
        assert headers["grpc-message"] == "a message is more than 100 times its compressed size"
    client.ask(9, message(gzip.compress(bytes(1_000_000)), 1), grpc_encoding="gzip")
    assert client.answer(9)[0] == message(bytes(1_000_000))


@pytest.mark.parametrize("unfinished", UNFINISHED.values(), ids=UNFINISHED)
def test_frames_and_headers_that_are_not_complete_count_and_end_their_connection_beyond_the_limit(start, unfinished):
    with start(limits=ClientLimits(max_held_bytes=1 << 20)) as served:
        first, second = Raw(served.address), Raw(served.address)
        first.send(unfinished)
        wait_until(lambda: 600_000 <= held(served) < 700_000)
        second.send(unfinished)
        code, why = goaway(second)
        assert code == h2.ENHANCE_YOUR_CALM
        assert "bytes of frames or headers that have not come whole" in why
        assert 600_000 <= held(served) < 700_000
        first.socket.close()
        wait_until(lambda: held(served) == 0)
        assert Raw(served.address).still_answers()


def test_one_connection_has_no_more_unfinished_frames_and_headers_than_its_limit(start):
    with start(limits=ClientLimits(max_connection_bytes=1 << 20)) as served:
        client = Raw(served.address)
        client.send(UNFINISHED["block"])
        wait_until(lambda: held(served) >= 600_000)
        client.send(begun(600_000, h2.CONTINUATION))
        assert goaway(client)[0] == h2.ENHANCE_YOUR_CALM
        wait_until(lambda: held(served) == 0)


def test_a_frame_in_tiny_pieces_counts_with_the_memory_that_they_take():
    class Receiver:
        """Nothing reaches it."""

    holding = Holding(1 << 20)
    reader = FrameReader(holding)
    reader.settled = True
    reader.feed(h2.PREFACE + begun(0), Receiver(), 1.0)
    for _ in range(1000):
        reader.feed(b"x", Receiver(), 1.0)
    assert holding.bytes > 50_000
    reader.forget()
    assert holding.bytes == 0


def test_what_ends_is_counted_no_more_and_whole_frames_that_wait_for_their_turn_are_not():
    class Receiver:
        def __init__(self):
            self.held = []

        def headers(self, number, flags, block):
            self.held.append(holding.bytes)

    holding, receiver = Holding(1 << 20), Receiver()
    reader = FrameReader(holding)
    reader.settled = True
    whole = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, bytes(1000))
    assert not reader.feed(h2.PREFACE + whole[:700], receiver, 1.0)
    assert holding.bytes > 700
    assert not reader.feed(whole[700:], receiver, 1.0)
    assert receiver.held == [0]
    assert reader.feed(whole * 3, receiver, 0.0)
    assert holding.bytes == 0
    assert reader.mark() is None


def test_a_small_frame_that_came_in_part_does_not_end_its_connection_however_much_others_hold(start):
    with start(limits=ClientLimits(max_held_bytes=1 << 20)) as served:
        first, second = Raw(served.address), Raw(served.address)
        first.send(begun(1_000_000))
        wait_until(lambda: held(served) >= 1_000_000)
        block = second.encoder.encode(request_headers(x="y" * 9000))
        frame = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)
        before = held(served)
        second.send(frame[:5000])
        wait_until(lambda: held(served) >= before + 5000)
        second.send(frame[5000:], h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO))
        assert second.answer(1)[0] == HELLO


def test_a_large_request_is_alone_beside_the_beginning_of_its_next_frame(start):
    with start(limits=ClientLimits(max_connection_bytes=1 << 20)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 24})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x01\0\0\0"))
        whole = message(bytes(2 << 20))
        upload(client, 1, whole[:PART])
        client.until(h2.WINDOW_UPDATE)
        frames = [h2.frame(h2.DATA, 0, 1, whole[at : at + PART]) for at in range(PART, len(whole), PART)]
        last = h2.frame(h2.DATA, h2.END_STREAM, 1)
        client.send(frames[0], frames[1][:5])
        for frame, following in zip(frames[1:], [*frames[2:], last], strict=True):
            before = connections(served)[0].reads
            client.send(frame[5:], following[:5])
            wait_until(lambda before=before: connections(served)[0].reads > before)
        client.send(last[5:])
        assert client.answer(1)[0] == whole

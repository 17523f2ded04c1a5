"""What clients may hold of the server: bytes, connections, and time without progress."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import threading
import time
import weakref

import pytest
from tests.serving.frontends.raw import Raw, message, request_headers
from tests.waiting import wait_until

from normfold.serving.errors import Status
from normfold.serving.frontends.http2 import frontend, inflation, messages
from normfold.serving.frontends.http2.call_places import CallPlaces
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.each_call import UNSEEN, EachCall
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import CALL_BYTES, FEW_CALLS, ORDINARY_CALLS, PORTION_BYTES, UNSENT_BYTES
from normfold.serving.frontends.http2.progress import Progress
from normfold.serving.frontends.http2.sending import Sender
from normfold.serving.frontends.http2.socket_side import SocketSide
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.process import loops
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2

HELLO = message(b"hello")
PART = 16_384


def upload(client: Raw, stream: int, data: bytes, method: str = "Echo", **headers: str) -> None:
    """Begin a request and send this part of its data."""
    client.ask(stream, None, method, **headers)
    client.send(*(h2.frame(h2.DATA, 0, stream, data[at : at + PART]) for at in range(0, len(data), PART)))


def connections(served) -> list:
    return list(served.frontend._connections)


def held(served) -> int:
    return served.frontend._service.holding.bytes


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


@pytest.mark.parametrize("limits", [ClientLimits(max_connection_bytes=1 << 20), ClientLimits(max_held_bytes=1 << 20)])
@pytest.mark.parametrize("method", ["Large", "Stream", "Iterate"])
def test_answers_that_nobody_takes_are_refused_beyond_the_limit(start, limits, method):
    with start(limits=limits) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 0})
        data = message(b"600000") if method == "Large" else message(bytes(600_000))
        for stream in (1, 3):
            upload(client, stream, data, method)
            client.send(h2.frame(h2.DATA, h2.END_STREAM, stream))
            wait_until(lambda: held(served) >= 600_000)
        headers: dict[str, str] = {}
        while "grpc-status" not in headers:
            found = client.until(h2.HEADERS)
            headers |= dict(client.decoder.decode(found.payload))
        assert (found.stream, headers["grpc-status"]) == (3, "8")
        client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 20}))
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\x10\0\0"))
        assert client.answer(1)[0] == message(bytes(600_000))
        wait_until(lambda: held(served) == 0)


def test_an_answer_counts_whole_until_its_last_byte_is_taken(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1_000_004})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\4\0\0\0"))
    client.ask(1, message(b"1000000"), "Large")
    got = 0
    while got < 1_000_004:
        got += len(client.until(h2.DATA).payload)
    assert held(served) >= 1_000_000
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\0\0\0\1"))
    assert client.answer(1)[1]["grpc-status"] == "0"
    wait_until(lambda: held(served) == 0)


@pytest.mark.parametrize("limits", [ClientLimits(max_connection_bytes=4 << 20), ClientLimits(max_held_bytes=4 << 20)])
def test_answers_behind_one_that_is_not_taken_are_refused_beyond_the_limit(start, limits):
    with start(limits=limits) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 0})
        for stream in (1, 3):
            client.ask(stream, message(b"1000000") * 32, "EachLarge")
        wait_until(lambda: sum(served.traffic.failed.values()) == 2)
        assert held(served) < 4 << 20
        assert not any(call._pending for call in connections(served)[0].calls.values())
        client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 26}), h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\4\0\0\0"))
        data, headers = client.answer(1)
        assert data == message(bytes(1_000_000))
        assert (headers["grpc-status"], headers["grpc-retry-pushback-ms"] != "-1") == ("8", True)
        wait_until(lambda: held(served) == 0)


def test_answers_behind_one_that_is_not_taken_count_until_they_are(start):
    with start(limits=ClientLimits(max_connection_bytes=4 << 20)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 0})
        client.ask(1, message(b"1000000") * 4, "EachLarge")
        wait_until(lambda: held(served) == 4 * 1_000_005)
        client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 5}), h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\4\0\0\0"))
        client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 26}))
        data, headers = client.answer(1)
        assert data == message(bytes(1_000_000)) * 4
        assert headers["grpc-status"] == "0"
        wait_until(lambda: held(served) == 0)


@pytest.mark.parametrize("limits", [ClientLimits(max_connection_bytes=8 << 20), ClientLimits(max_held_bytes=8 << 20)])
def test_a_stream_asks_no_more_while_the_answers_could_not_be_held_and_goes_on_when_they_can(start, limits):
    with start(limits=limits) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
        upload(client, 1, message(b"gate") + message(b"1000000"), "EachLarge")
        wait_until(lambda: held(served) >= 1_000_000)
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, message(b"1000000") * 20))
        wait_until(lambda: served.methods.large_answers > 4)
        served.on_loop(asyncio.sleep(0.2))
        assert (served.methods.large_answers, sum(served.traffic.failed.values())) == (5, 0)
        served.methods.go_on.set()
        data, headers = client.answer(1)
        assert (len(data), headers["grpc-status"]) == (9 + 21 * 1_000_005, "0")
        assert served.methods.large_answers == 21
        client.socket.close()
        wait_until(lambda: held(served) == 0)


def test_a_burst_of_messages_with_large_answers_does_not_end_its_stream(start):
    """How large they are shows with the first answer; 64 of them would not have room."""
    with start(limits=ClientLimits(max_connection_bytes=16 << 20)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
        client.ask(1, message(b"gate") + message(b"1000000") * 63, "EachLarge")
        wait_until(lambda: served.methods.large_answers >= UNSEEN - 1)
        served.methods.go_on.set()
        data, headers = client.answer(1)
        assert (len(data), headers["grpc-status"]) == (9 + 63 * 1_000_005, "0")


@pytest.mark.parametrize("window", [0, 1 << 30])
def test_answers_that_were_counted_are_not_refused_later_because_more_is_held_than_may_be(start, window):
    with start(limits=ClientLimits(max_connection_bytes=4 << 20)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: window})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
        client.ask(1, message(b"gate") + message(b"1000000") * 3, "EachLarge")
        wait_until(lambda: held(served) == 3 * 1_000_005)
        held_beside = connections(served)[0].holding.add
        served.loop.call_soon_threadsafe(held_beside, 4 << 20)
        served.methods.go_on.set()
        if not window:
            assert client.until(h2.HEADERS)
            client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 30}))
        data, headers = client.answer(1)
        assert (len(data), headers["grpc-status"]) == (9 + 3 * 1_000_005, "0")
        served.loop.call_soon_threadsafe(held_beside, -(4 << 20))
        wait_until(lambda: held(served) == 0)


@pytest.mark.parametrize("method", ["EachLarge", "Iterate"])
def test_a_stream_that_ended_while_an_answer_waits_holds_nothing_of_what_still_comes(start, method):
    with start(limits=ClientLimits(max_connection_bytes=8 << 20)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 0})
        one = message(b"1000000") if method == "EachLarge" else message(bytes(1_000_000))
        count = 3 if method == "EachLarge" else 1
        upload(client, 1, one * count, method)
        wait_until(lambda: held(served) == count * 1_000_005 and connections(served)[0].sender.waiting)
        served.loop.call_soon_threadsafe(connections(served)[0].calls[1].end, Status.ABORTED)
        wait_until(lambda: sum(served.traffic.failed.values()) == 1)
        before = held(served)
        for data in (message(bytes(100_000)), message(bytes(100_000))[:60_000]):
            client.send(*(h2.frame(h2.DATA, 0, 1, data[at : at + PART]) for at in range(0, len(data), PART)))
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, b"\2"), h2.frame(h2.PING, 0, 0, bytes(8)))
        client.until(h2.PING)
        assert (held(served), sum(served.traffic.failed.values())) == (before, 1)
        client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 26}), h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\4\0\0\0"))
        data, headers = client.answer(1)
        assert (data, headers["grpc-status"]) == (message(bytes(1_000_000)), "10")


def test_answers_that_wait_are_counted_once_however_many_frames_come(served, monkeypatch):
    counted, count = [], EachCall._count_untaken
    monkeypatch.setattr(EachCall, "_count_untaken", lambda call: (counted.append(call), count(call)))
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 0})
    upload(client, 1, message(b"1000000") * 4, "EachLarge")
    wait_until(lambda: held(served) == 4 * 1_000_005)
    before, reads = len(counted), connections(served)[0].reads
    for _ in range(50):
        client.send(h2.frame(h2.DATA, 0, 1, message(b"wait")[:1]), h2.frame(h2.PING, 0, 0, bytes(8)))
        client.until(h2.PING)
        client.send(h2.frame(h2.DATA, 0, 1, message(b"wait")[1:]), h2.frame(h2.PING, 0, 0, bytes(8)))
        client.until(h2.PING)
    assert connections(served)[0].reads >= reads + 100
    assert len(counted) == before


def test_answers_behind_one_that_is_not_there_yet_count(served):
    client = Raw(served.address)
    client.ask(1, message(b"wait") + message(b"1000000") * 3, "EachLarge")
    wait_until(lambda: held(served) == 3 * 1_000_005)
    client.send(h2.frame(h2.RST_STREAM, 0, 1, h2.CANCEL.to_bytes(4, "big")))
    wait_until(lambda: held(served) == 0)
    assert client.still_answers()


def test_answers_to_a_client_that_does_not_read_do_not_fill_the_socket(start):
    with start(limits=ClientLimits(max_connection_bytes=20 << 20)) as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
        for stream in range(1, 121, 2):
            client.ask(stream, message(b"1000000"), "Large")
        wait_until(lambda: connections(served) and connections(served)[0].choked)
        wait_until(lambda: served.methods.large_answers == 60)
        assert connections(served)[0].unsent() < UNSENT_BYTES + 3_000_000
        assert 1 << 20 < held(served) <= 20 << 20
        answers: dict[int, int] = {}
        statuses = []
        while len(statuses) < 60:
            found = client.frame()
            if found.kind == h2.DATA:
                answers[found.stream] = answers.get(found.stream, 0) + len(found.payload)
            elif found.kind == h2.HEADERS and found.flags & h2.END_STREAM:
                statuses.append(dict(client.decoder.decode(found.payload))["grpc-status"])
        assert set(statuses) == {"0", "8"}
        assert list(answers.values()) == [1_000_005] * statuses.count("0")
        wait_until(lambda: held(served) == 0)


def test_a_large_answer_goes_to_the_socket_in_portions_and_all_of_it_counts(start):
    with start() as served:
        client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30, h2.MAX_FRAME_SIZE: h2.LARGEST_FRAME})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
        size = 30_000_000
        client.ask(1, message(str(size).encode()), "Large")
        wait_until(lambda: connections(served) and connections(served)[0].choked)
        unsent = connections(served)[0].unsent()
        assert UNSENT_BYTES < unsent <= UNSENT_BYTES + PORTION_BYTES
        assert size <= held(served) <= size + 5 + unsent
        got = 0
        while got < size + 5:
            found = client.until(h2.DATA)
            got += len(found.payload)
        assert client.answer(1)[1]["grpc-status"] == "0"
        wait_until(lambda: held(served) == 0)


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


def begun(size: int, kind: int = h2.HEADERS, flags: int = 0, whole: int = 1 << 20, stream: int = 1) -> bytes:
    """A frame of ``whole`` bytes of which ``size`` have come."""
    return (whole << 8 | kind).to_bytes(4, "big") + bytes([flags]) + stream.to_bytes(4, "big") + bytes(size)


def goaway(client: Raw) -> tuple[int, str]:
    """The code and the reason with which the server ends the connection."""
    payload = client.until(h2.GOAWAY).payload
    return int.from_bytes(payload[4:8], "big"), payload[8:].decode()


#: A header block that waits for CONTINUATION, one whose CONTINUATION is not complete either, a frame of HEADERS, and
#: one of data, which is taken only whole where it is padded: each of about 600 kB.
UNFINISHED = {
    "block": h2.frame(h2.HEADERS, 0, 1, bytes(600_000)),
    "block and frame": h2.frame(h2.HEADERS, 0, 1, bytes(300_000)) + begun(300_000, h2.CONTINUATION),
    "headers": begun(600_000),
    "padded data": begun(600_000, h2.DATA, h2.PADDED),
}


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


@pytest.fixture
def impatient(start):
    with start(limits=ClientLimits(stall_seconds=0.4)) as served:
        yield served


@pytest.mark.parametrize("method", ["Echo", "Stream", "Iterate"])
def test_an_upload_without_progress_is_given_up(impatient, method):
    client = Raw(impatient.address)
    upload(client, 1, HELLO[:7], method)
    _, headers = client.answer(1)
    assert (headers["grpc-status"], headers["grpc-message"]) == ("4", "nothing of the request came for 0.4 s")
    assert client.still_answers()


def test_a_slow_upload_and_a_silent_stream_are_not_given_up(impatient):
    client = Raw(impatient.address)
    client.ask(1, None)
    client.ask(3, None, "Stream")
    client.send(h2.frame(h2.DATA, 0, 3, HELLO))
    for at in range(len(HELLO)):
        client.send(h2.frame(h2.DATA, 0, 1, HELLO[at : at + 1]))
        time.sleep(0.15)
    client.send(h2.frame(h2.DATA, h2.END_STREAM, 1))
    assert client.answer(1)[0] == HELLO
    client.send(h2.frame(h2.DATA, h2.END_STREAM, 3, HELLO))
    assert client.answer(3) == (HELLO, {"grpc-status": "0"})


@pytest.mark.parametrize("unfinished", UNFINISHED.values(), ids=UNFINISHED)
def test_frames_and_headers_that_do_not_come_whole_are_given_up(impatient, unfinished):
    client = Raw(impatient.address)
    client.ask(1, HELLO, "Wait")
    client.send(unfinished.replace(b"\0\0\0\1", b"\0\0\0\3", 1))
    why = "a frame or a block of headers did not come whole within 0.4 s"
    assert goaway(client) == (h2.ENHANCE_YOUR_CALM, why)
    wait_until(lambda: not connections(impatient))
    wait_until(lambda: held(impatient) == 0)


class _Watched:
    """A connection of which ``Progress`` sees the frames, and nothing else."""

    def __init__(self) -> None:
        self.frames, self.calls, self.choked, self.ended = FrameReader(Holding(1 << 20)), {}, False, []
        self.sender = Sender(Holding(1 << 20))
        self.frames.settled = True
        #: The bytes in its socket, as they are seen, and how often the client took some.
        self.unsent, self.taken = 0, 0
        self.of_all = Holding(1 << 20)
        self.holding = Holding(1 << 20, self.of_all)

    def come(self, data: bytes) -> None:
        self.frames.feed(data, self, 1.0)

    def headers(self, number: int, flags: int, block: bytes) -> None:
        """Nothing comes of it."""

    def fruitless(self) -> None:
        """Not counted."""

    def flush(self) -> None:
        """Nothing is written."""

    def count_unsent(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.ended.append("closed")

    def give_up(self, error: Exception) -> None:
        self.ended.append(str(error))


@pytest.mark.parametrize("drip", [b"x", h2.frame(h2.CONTINUATION, 0, 1, b"x")], ids=["frame", "block"])
def test_a_byte_now_and_then_is_no_progress_of_a_frame_or_of_a_block(drip):
    watched, progress = _Watched(), Progress(60.0)
    watched.come(h2.PREFACE + (begun(10) if drip == b"x" else h2.frame(h2.HEADERS, 0, 1, b"x")))
    for now in range(0, 61, 10):
        progress.look(watched, float(now))
        assert not watched.ended
        watched.come(drip)
    progress.look(watched, 61.0)
    assert watched.ended == ["a frame or a block of headers did not come whole within 60 s"]


@pytest.mark.parametrize(("held_bytes", "seconds"), [(1 << 20, 60), ((1 << 20) + 1, 5)], ids=["room", "crowded"])
def test_what_waits_in_the_socket_has_less_time_while_more_is_held_than_may_be(held_bytes, seconds):
    watched, progress = _Watched(), Progress(60.0)
    watched.unsent = 1000
    watched.holding.add(held_bytes)
    progress.look(watched, 0.0)
    progress.look(watched, 5.0)
    watched.taken += 1
    progress.look(watched, 6.0)
    watched.unsent += 17  # an answer to a PING
    progress.look(watched, 6.0 + seconds)
    assert not watched.ended
    progress.look(watched, 6.5 + seconds)
    assert watched.ended == ["closed"]


@pytest.mark.parametrize("reads", [(5, 34), (5, 29)], ids=["within the next frame", "where a frame ends"])
def test_a_client_whose_frames_are_cut_in_two_at_every_look_makes_progress(reads):
    watched, progress = _Watched(), Progress(60.0)
    frames = [h2.frame(h2.HEADERS, h2.END_HEADERS, number, bytes(20)) for number in range(1, 21, 2)]
    watched.come(h2.PREFACE)
    cut, end = reads
    come = 0
    data = b"".join(frames)
    for now, at in enumerate(range(0, len(data), len(frames[0]))):
        for until in (at + cut, at + end):
            watched.come(data[come:until])
            come = max(come, until)
            if until == at + cut:
                assert watched.frames.mark() is not None
                progress.look(watched, now * 50.0)
    assert not watched.ended


def test_an_answer_that_is_not_taken_is_given_up(impatient):
    client = Raw(impatient.address, {h2.INITIAL_WINDOW_SIZE: 3})
    client.ask(1, HELLO)
    reset = client.until(h2.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload, "big")) == (1, h2.ENHANCE_YOUR_CALM)
    wait_until(lambda: held(impatient) == 0)


def test_a_client_that_does_not_read_is_cut_off(impatient):
    client = Raw(impatient.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
    for stream in range(1, 61, 2):
        client.ask(stream, message(b"1000000"), "Large")
    wait_until(lambda: connections(impatient))
    wait_until(lambda: not connections(impatient))
    wait_until(lambda: held(impatient) == 0)


def test_a_new_connection_takes_the_place_of_one_without_calls(start):
    with start(limits=ClientLimits(max_connections=2)) as served:
        busy, idle = Raw(served.address), Raw(served.address)
        busy.ask(1, HELLO, "Wait")
        wait_until(lambda: served.methods.waiting == 1)
        assert idle.still_answers()
        third = Raw(served.address)
        assert third.still_answers()
        assert idle.ended_with() == h2.NO_ERROR
        third.ask(101, HELLO, "Wait")
        wait_until(lambda: served.methods.waiting == 2)
        assert Raw(served.address, greet=False).frame() is None
        assert len(connections(served)) == 2


@pytest.mark.parametrize("loop", [None, loops.factory()], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("busy", [False, True])
def test_connections_that_come_at_once_are_no_more_than_allowed(start, monkeypatch, loop, busy):
    # one wake-up of the loop accepts all of them, before it tells any connection that it is made
    monkeypatch.setattr(loops, "factory", lambda: loop)
    with start(limits=ClientLimits(max_connections=10)) as served:
        if busy:
            others = [Raw(served.address) for _ in range(10)]
            for other in others:
                other.ask(1, HELLO, "Wait")
            wait_until(lambda: served.methods.waiting == 10)
        most = []
        take = ConnectionPlaces.take
        monkeypatch.setattr(
            ConnectionPlaces, "take", lambda places, one: (take(places, one), most.append(len(places)))[0]
        )
        held, go_on = threading.Event(), threading.Event()
        served.loop.call_soon_threadsafe(lambda: (held.set(), go_on.wait(20)))
        assert held.wait(20)
        clients = [Raw(served.address, greet=False) for _ in range(100)]
        go_on.set()
        wait_until(lambda: len(most) == 100)
        assert max(most) == 10
        assert served.methods.waiting == (10 if busy else 0)
        for client in clients[: 100 if busy else 90]:
            assert client.ended_with() == -1
        if not busy:
            clients[-1].send(h2.PREFACE, h2.settings({}))
            assert clients[-1].still_answers()


def unread(served, answer_bytes: int = 500_000) -> Raw:
    """A client of the newest connection, which has whole answers in its socket and reads none of them."""
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
    assert client.until(h2.SETTINGS)
    connection, stream = connections(served)[-1], 1
    while not connection.unsent():
        before = served.methods.large_answers
        client.ask(stream, message(b"%d" % answer_bytes), "Large")
        stream += 2
        wait_until(lambda: served.methods.large_answers > before and not connection.calls)  # noqa: B023
        served.on_loop(asyncio.sleep(0.01))  # the event loop may write at its next turn only
    assert not connection.choked
    return client


def test_a_small_answer_that_waits_in_the_socket_counts_until_it_is_read(served):
    client = unread(served)
    unsent = connections(served)[0].unsent()
    wait_until(lambda: held(served) == unsent)
    client.send(h2.frame(h2.PING, 0, 0, bytes(8)))
    wait_until(lambda: held(served) == unsent + 17)
    client.until(h2.PING)
    wait_until(lambda: held(served) == 0)


def test_a_client_that_reads_no_small_answer_is_cut_off_whatever_it_sends(start):
    with start(limits=ClientLimits(stall_seconds=1.0)) as served:
        client = unread(served)
        sent = 0
        with contextlib.suppress(OSError):
            while connections(served):
                client.send(h2.frame(h2.PING, 0, 0, bytes(8)), h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))
                sent += 1
                assert sent < 1000
                time.sleep(0.1)
        wait_until(lambda: not connections(served))
        assert sent > 1
        wait_until(lambda: held(served) == 0)


@pytest.mark.parametrize("method", ["Each", "Iterate", "Echo"])
def test_calls_that_send_nothing_count_with_their_memory(served, method):
    client = Raw(served.address)
    streams = range(1, 200, 2)
    for stream in streams:
        client.ask(stream, None, method)
    wait_until(lambda: held(served) >= (len(streams) - FEW_CALLS) * CALL_BYTES)
    assert held(served) <= len(streams) * CALL_BYTES
    for stream in streams[10:]:
        client.send(h2.frame(h2.RST_STREAM, 0, stream, h2.CANCEL.to_bytes(4, "big")))
    wait_until(lambda: held(served) == FEW_CALLS * CALL_BYTES)
    assert len(connections(served)[0].calls) == 10
    client.socket.close()
    wait_until(lambda: held(served) == 0)


@pytest.mark.parametrize("limits", [ClientLimits(max_connection_bytes=1 << 20), ClientLimits(max_held_bytes=1 << 20)])
def test_calls_that_send_nothing_are_refused_for_another_try_beyond_the_limit(start, limits):
    with start(limits=limits) as served:
        client, most = Raw(served.address), (1 << 20) // CALL_BYTES + FEW_CALLS
        for stream in range(1, 2 * most + 100, 2):
            client.ask(stream, None, "Each")
        for refused in range(2 * most + 1, 2 * most + 100, 2):
            reset = client.until(h2.RST_STREAM)
            assert (reset.stream, int.from_bytes(reset.payload, "big")) == (refused, h2.REFUSED_STREAM)
        assert len(connections(served)[0].calls) == most
        assert held(served) == 1 << 20
        assert Raw(served.address).still_answers()
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO), h2.frame(h2.RST_STREAM, 0, 3, bytes(4)))
        assert client.still_answers(1001)


def test_ordinary_clients_have_places_for_their_calls_however_much_others_hold():
    of_all = Holding(1 << 20)
    of_all.add(1 << 20)
    holding = Holding(1 << 20, of_all)
    places = CallPlaces(holding)
    while places.more():
        assert places.most <= ORDINARY_CALLS
    assert places.most == ORDINARY_CALLS
    assert holding.bytes == (ORDINARY_CALLS - FEW_CALLS) * CALL_BYTES
    places.keep(0)
    assert (places.most, holding.bytes) == (FEW_CALLS, 0)


def test_a_long_trace_of_the_caller_is_not_kept(raw, served):
    raw.ask(1, None, "Each", traceparent="00-1-2-3", tracestate="s" * 512)
    raw.ask(3, None, "Each", traceparent="00-1-2-3", tracestate="s" * 513)
    raw.ask(5, None, "Each", traceparent="0" * 513, tracestate="s")
    raw.ask(7, None, "Each", traceparent="00-1-2-3", tracestate="a=" + "1" * 505 + ",b=2,c=3")
    wait_until(lambda: connections(served) and len(connections(served)[0].calls) == 4)
    traces = [call.trace_headers() for call in connections(served)[0].calls.values()]
    cut = {"traceparent": "00-1-2-3", "tracestate": "a=" + "1" * 505 + ",b=2"}
    assert traces == [{"traceparent": "00-1-2-3", "tracestate": "s" * 512}, {"traceparent": "00-1-2-3"}, {}, cut]


def test_the_look_at_many_connections_lets_everything_else_have_its_turn(monkeypatch):
    clock, seen = [0.0], []

    class Looked:
        """A connection whose calls take half of a turn to look at."""

        def __init__(self) -> None:
            self.calls, self.call_places, self.progress, self.lifetime = {}, self, self, self

        def keep(self, calls: int) -> None:
            """It has no places."""

        def look(self, connection: Looked, now: float) -> None:
            if self not in seen:
                seen.append(self)
                clock[0] += frontend.LOOK_SECONDS / 2

    async def looked() -> None:
        server = frontend.Http2Frontend([], Traffic(), 1 << 20)
        server._connections = dict.fromkeys(Looked() for _ in range(7))
        server._look()
        assert len(seen) == 2
        server._connections.pop(seen[0])
        gone = list(server._connections)[-1]
        server._connections.pop(gone)
        while len(seen) < 6:
            await asyncio.sleep(0.001)
        server._looking.cancel()
        assert gone not in seen

    monkeypatch.setattr(frontend, "monotonic", lambda: clock[0])
    asyncio.run(asyncio.wait_for(looked(), 60))


class _Full:
    """A socket that takes nothing by itself."""

    def __init__(self) -> None:
        self.unsent = 1000

    def write(self, data: bytes) -> None:
        self.unsent += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return False


def test_a_client_that_takes_less_than_it_is_answered_makes_progress_and_one_that_is_only_answered_does_not():
    holding = Holding(1 << 20)
    side, full = SocketSide(holding), _Full()
    side._transport = full
    assert (side.count_unsent(), side.taken) == (1000, 0)
    side.sender.out.append(bytes(17))
    side.flush()
    assert (holding.bytes, side.taken) == (1017, 0)
    full.unsent -= 10
    side.sender.out.append(bytes(500))
    side.flush()
    assert (holding.bytes, side.taken) == (1507, 1)


def test_a_connection_with_unsent_bytes_keeps_its_place_until_it_makes_no_progress(start):
    with start(limits=ClientLimits(max_connections=2)) as served:
        slow = unread(served)
        first = connections(served)[0]
        others = []
        for _ in range(3):
            others.append(Raw(served.address))
            assert others[-1].still_answers()
            assert first in connections(served)
            assert len(connections(served)) == 2
        served.loop.call_soon_threadsafe(setattr, first.progress, "_longest", 0.1)
        wait_until(lambda: first not in connections(served))
        assert others[-1].still_answers(101)
        others.append(Raw(served.address))
        assert others[-1].still_answers()
        assert others[-2].still_answers(103)
        slow.socket.close()


def test_a_look_that_fails_closes_its_own_connection_alone(impatient, monkeypatch, caplog):
    looked = []

    def look(progress, connection, now):
        looked.append(connection)
        if connection is looked[0]:
            raise RuntimeError("a fault of ours")

    first, second = Raw(impatient.address), Raw(impatient.address)
    assert first.still_answers()
    assert second.still_answers()
    monkeypatch.setattr(Progress, "look", look)
    wait_until(lambda: len(connections(impatient)) == 1)
    seen = len(looked)
    wait_until(lambda: len(looked) > seen + 2)
    monkeypatch.undo()
    assert second.still_answers(101)
    assert "a look at a connection failed; it is closed" in caplog.text

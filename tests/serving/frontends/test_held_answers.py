"""What clients may hold of the server with answers that they do not take."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from tests.serving.frontends.held import PART, connections, held, unread, upload
from tests.serving.frontends.raw import Raw, message
from tests.waiting import wait_until

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.each_call import UNSEEN, EachCall
from normfold.serving.frontends.http2.limits import PORTION_BYTES, UNSENT_BYTES
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.wire import http2_frames as h2


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

"""How long clients may make no progress, and who looks at it."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.serving.frontends.held import HELLO, UNFINISHED, begun, connections, goaway, held, unread, upload
from tests.serving.frontends.raw import Raw, message
from tests.waiting import wait_until

from normfold.serving.errors import Status
from normfold.serving.frontends.http2 import frontend
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.progress import Progress
from normfold.serving.frontends.http2.sending import Sender
from normfold.serving.frontends.http2.socket_side import SocketSide
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2


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


@pytest.mark.parametrize(
    ("held_bytes", "longest", "seconds"),
    [(1 << 20, 60.0, 60), ((1 << 20) + 1, 60.0, 5), ((1 << 20) + 1, 3.0, 3)],
    ids=["room", "crowded", "crowded, and less time is set"],
)
def test_what_waits_in_the_socket_has_less_time_while_more_is_held_than_may_be(held_bytes, longest, seconds):
    watched, progress = _Watched(), Progress(longest)
    watched.unsent = 1000
    watched.holding.add(held_bytes)
    progress.look(watched, 0.0)
    progress.look(watched, 3.0)
    watched.taken += 1
    progress.look(watched, 6.0)
    watched.unsent += 17  # an answer to a PING
    progress.look(watched, 6.0 + seconds)
    assert not watched.ended
    progress.look(watched, 6.5 + seconds)
    assert watched.ended == ["closed"]


def test_a_client_that_owes_nothing_is_not_given_up_when_a_window_happens_to_be_used_up():
    watched, progress = _Watched(), Progress(60.0)
    watched.come(h2.PREFACE)
    watched.sender.window = 0
    for now in (0.0, 1000.0):
        progress.look(watched, now)
    assert not watched.ended


class _Unfinished:
    """A call whose request does not go on."""

    window, number = 1, 1

    def __init__(self) -> None:
        self.ended: list[Status] = []

    def body_mark(self) -> tuple[int, ...]:
        return (1,)

    def end(self, status: Status, details: str) -> None:
        self.ended.append(status)


@pytest.mark.parametrize(("window", "waits"), [(0, False), (100, True)], ids=["it is sent", "others go first"])
def test_a_call_that_waits_for_no_window_of_its_own_is_not_given_up(window, waits, monkeypatch):
    watched, progress, call = _Watched(), Progress(60.0), _Unfinished()
    watched.come(h2.PREFACE)
    watched.calls[1], call.window = call, window
    monkeypatch.setattr(call, "body_mark", lambda: None)
    if waits:
        watched.sender.window = 0
        watched.sender.message(call, b"answer")
        assert watched.sender.waits(call)
    for now in range(0, 600, 50):
        progress.look(watched, float(now))
        watched.sender.widen(1, None)
    assert not watched.ended


@pytest.mark.parametrize("choked", [True, False])
def test_what_we_do_not_read_is_not_missed(choked):
    """The client cannot send the rest while we do not read from it."""
    watched, progress, call = _Watched(), Progress(60.0), _Unfinished()
    watched.come(h2.PREFACE + begun(10))
    watched.calls[1], watched.choked = call, choked
    for now in (0.0, 60.0):
        progress.look(watched, now)
        assert not watched.ended
        assert not call.ended
    progress.look(watched, 61.0)
    assert len(watched.ended) == (not choked)
    watched.frames.forget()
    watched.choked = False
    progress.look(watched, 62.0)
    progress.look(watched, 122.0)
    assert not call.ended or not choked
    progress.look(watched, 123.0)
    assert call.ended[0] is Status.DEADLINE_EXCEEDED


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


def test_a_client_that_never_widens_the_window_of_its_connection_is_cut_off(impatient):
    client = Raw(impatient.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
    client.ask(1, message(b"1000000"), "Large")
    assert client.until(h2.DATA)
    wait_until(lambda: not connections(impatient))
    wait_until(lambda: held(impatient) == 0)


def test_a_client_that_does_not_read_is_cut_off(impatient):
    client = Raw(impatient.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
    for stream in range(1, 61, 2):
        client.ask(stream, message(b"1000000"), "Large")
    wait_until(lambda: connections(impatient))
    wait_until(lambda: not connections(impatient))
    wait_until(lambda: held(impatient) == 0)


def test_the_look_at_many_connections_lets_everything_else_have_its_turn(monkeypatch):
    clock, seen = [0.0], []

    class Looked:
        """A connection whose calls take half of a turn to look at."""

        def __init__(self) -> None:
            self.calls, self.call_places, self.progress, self.lifetime = {}, self, self, self
            self.opening, self.begun = self, {}

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

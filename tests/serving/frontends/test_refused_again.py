"""Requests like one that was refused in the same turn: refused without asking anybody, counted and answered alike."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import grpc
import hpack
import numpy as np
import pytest
from tests.serving.frontends.raw import NoSocket, Raw, message, request_headers

from normfold.protos import grpc_service as pb
from normfold.serving.errors import Overloaded, Status
from normfold.serving.frontends.http2 import frame_reader
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.opening import CallOpening
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.infer.inference import Inference
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.rpc import methods
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import DOOR_BYTES, Method
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.scheduling.admission import Admission
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import written

PATH, OTHER = "/t.T/Infer", "/t.T/Other"
PAUSE_MS = 1000


class Full:
    """A method that refuses everything; it is decided by the first two bytes."""

    def __init__(self, alike: int = 2) -> None:
        self.asked: list[bytes] = []
        #: The requests that were refused by their first bytes: these, and their sizes.
        self.begun: list[tuple[bytes, int]] = []
        self.again = 0
        self._alike = alike

    def answer(self, data: bytes) -> bytes:
        self.asked.append(data)
        self._refuse()
        return b""

    def door(self, head: bytes, size: int) -> None:
        self.begun.append((head, size))
        self._refuse()

    def _refuse(self) -> None:
        error = Overloaded("full", PAUSE_MS / 1e3)
        error.alike, error.again = self._alike, self._count
        raise error

    def _count(self, more: int) -> None:
        self.again += more


def block(**more: str) -> bytes:
    headers = request_headers("Infer", **more)
    return written(*[(name.encode(), value.encode()) for name, value in headers])


def headers(stream: int, **more: str) -> bytes:
    return h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block(**more))


def headers_of_another_method(stream: int) -> bytes:
    return headers(stream, grpc_timeout="2S").replace(PATH.encode(), OTHER.encode())


def body(stream: int, data: bytes) -> bytes:
    return h2.frame(h2.DATA, h2.END_STREAM, stream, message(data))


@pytest.fixture
def turns(monkeypatch) -> Callable[..., tuple[Traffic, dict[int, dict[str, str]]]]:
    """Gives a server each of some data in a turn of its own; its traffic, and the trailers of each stream."""
    monkeypatch.setattr(frame_reader, "monotonic", lambda: 0.0)

    def run(full: Full, *datas: bytes, door: bool = False) -> tuple[Traffic, dict[int, dict[str, str]]]:
        async def serve() -> tuple[Traffic, dict[int, dict[str, str]]]:
            method = Method(PATH, pb.ModelInferRequest, wire_unary=full.answer, door=full.door if door else None)
            requests = Requests([method, replace(method, path=OTHER)], tokens=True)
            service = Service(requests, Traffic(), 1 << 20, DEFAULT_LIMITS, Holding(1 << 30))
            connection, socket = ServerConnection(service, ConnectionPlaces(1)), NoSocket()
            connection.connection_made(socket)
            connection.data_received(h2.PREFACE + h2.settings({}))
            for data in datas:
                connection.data_received(data)
                assert not connection.calls
            await asyncio.sleep(0)
            decoder = hpack.Decoder()
            ends = [frame for frame in socket.frames() if frame.kind == h2.HEADERS]
            assert all(frame.flags & h2.END_STREAM for frame in ends)
            return service.traffic, {frame.stream: dict(decoder.decode(frame.payload)) for frame in ends}

        return asyncio.run(serve())

    return run


STREAMS = range(1, 101, 2)
ORDERS = {
    "one after the other": b"".join(headers(n) + body(n, b"m1 and what else") for n in STREAMS),
    "headers first": b"".join(map(headers, STREAMS)) + b"".join(body(n, b"m1 and what else") for n in STREAMS),
}


@pytest.mark.parametrize("order", ORDERS)
def test_one_is_asked_and_all_are_refused_and_counted(turns, order, monkeypatch):
    noted = Counter[str]()
    note = methods._Refusals.note
    monkeypatch.setattr(
        methods._Refusals, "note", lambda s, w, t, d, n=1: (noted.update({w: n}), note(s, w, t, d, n))[1]
    )
    monkeypatch.setattr("normfold.serving.frontends.http2.refused_again.note_refusals", methods._REFUSALS.note)
    full = Full()
    traffic, answers = turns(full, ORDERS[order])
    assert len(full.asked) == 1
    assert full.again == len(STREAMS) - 1
    assert traffic.failed == {(PATH, Status.RESOURCE_EXHAUSTED): len(STREAMS)}
    assert noted == {PATH: len(STREAMS)}
    assert traffic.in_flight == 0
    assert sorted(answers) == list(STREAMS)
    assert {(a["grpc-status"], a["grpc-message"]) for a in answers.values()} == {("8", "full")}
    waits = {int(a["grpc-retry-pushback-ms"]) for a in answers.values()}
    assert len(waits) > 5  # the refused do not all come back in one moment
    assert min(waits) >= PAUSE_MS
    assert {len(a["grpc-status-details-bin"]) > 40 for a in answers.values()} == {True}


@pytest.mark.parametrize(
    "other",
    [
        headers(3) + body(3, b"m2 and what else"),
        headers(3) + body(3, b"m1 and what else, and more"),
        headers(3, grpc_timeout="3S") + body(3, b"m1 and what else"),
        headers(5) + body(5, b"m1 and what else"),
        headers(5, grpc_timeout="2S", authorization="Bearer b") + body(5, b"m1 and what else"),
        headers_of_another_method(5) + body(5, b"m1 and what else"),
        headers(3) + h2.frame(h2.DATA, 0, 3, message(b"m1 and")[:3]) + h2.frame(h2.DATA, 1, 3, message(b"m1 and")[3:]),
    ],
    ids=["model", "size", "a later deadline", "no deadline", "another token", "method", "data in two frames"],
)
def test_what_is_not_like_it_is_asked(turns, other):
    full = Full()
    first = headers(1, grpc_timeout="2S") + body(1, b"m1 and what else")
    other = other.replace(headers(3), headers(3, grpc_timeout="2S"))
    traffic, answers = turns(full, first + other)
    assert (len(full.asked), full.again) == (2, 0)
    assert traffic.failed.total() == len(answers) == 2


def test_a_large_request_is_refused_before_its_data_have_come(turns):
    """The rest of them may come still; it is passed over."""
    whole = message(b"m1 and what else")
    parts = [h2.frame(h2.DATA, 0, 3, whole[:12]), h2.frame(h2.DATA, h2.END_STREAM, 3, whole[12:])]
    full = Full()
    traffic, answers = turns(full, headers(1) + body(1, b"m1 and what else") + headers(3) + parts[0], parts[1])
    assert (len(full.asked), full.again) == (1, 1)
    assert traffic.failed.total() == len(answers) == 2


LARGE = b"m1" + bytes(20_000)


def begun(stream: int, size: int) -> bytes:
    """The first frame of data of a large request: the prefix, and the first ``size`` bytes of the message."""
    return h2.frame(h2.DATA, 0, stream, message(LARGE)[: 5 + size])


def test_a_request_is_refused_before_all_of_it_has_come_and_the_next_ones_with_it(turns):
    full = Full()
    calls = [headers(n) + begun(n, 16_000) for n in (1, 3)]
    rest = b"".join(h2.frame(h2.DATA, h2.END_STREAM, n, message(LARGE)[16_005:]) for n in (1, 3))
    traffic, answers = turns(full, b"".join(calls), rest, door=True)
    assert full.begun == [(LARGE[:DOOR_BYTES], len(LARGE))]
    assert (full.asked, full.again) == ([], 1)
    assert traffic.failed == {(PATH, Status.RESOURCE_EXHAUSTED): 2}
    assert sorted(answers) == [1, 3]


def test_large_requests_like_it_need_no_call_and_their_clients_may_stop_sending(monkeypatch):
    opened: list[int] = []
    open_call = CallOpening.open
    monkeypatch.setattr(
        CallOpening, "open", lambda self, c, number, *a: (opened.append(number), open_call(self, c, number, *a))[1]
    )
    monkeypatch.setattr(frame_reader, "monotonic", lambda: 0.0)
    full, size = Full(), str(5 + len(LARGE))

    async def serve() -> list[tuple[int, int]]:
        method = Method(PATH, pb.ModelInferRequest, wire_unary=full.answer, door=full.door)
        service = Service(Requests([method]), Traffic(), 1 << 20, DEFAULT_LIMITS, Holding(1 << 30))
        connection, socket = ServerConnection(service, ConnectionPlaces(1)), NoSocket()
        connection.connection_made(socket)
        calls = [headers(n, content_length=size if n < 7 else "9") + begun(n, 16_000) for n in (1, 3, 5, 7)]
        connection.data_received(h2.PREFACE + h2.settings({}) + b"".join(calls))
        assert service.traffic.failed == {(PATH, Status.RESOURCE_EXHAUSTED): 3}
        return [(f.stream, int.from_bytes(f.payload, "big")) for f in socket.frames() if f.kind == h2.RST_STREAM]

    resets = asyncio.run(serve())
    assert opened == [1, 7]  # more came on stream 7 than its content-length says
    assert sorted(resets) == [(1, h2.NO_ERROR), (3, h2.NO_ERROR), (5, h2.NO_ERROR), (7, h2.PROTOCOL_ERROR)]


def test_what_is_too_large_or_cut_is_not_told_to_try_again(turns):
    full = Full()
    large = b"\0" + (1 << 21).to_bytes(4, "big") + bytes(1000)
    cut = message(LARGE)[:1000]
    calls = [headers(1) + h2.frame(h2.DATA, 0, 1, large), headers(3) + h2.frame(h2.DATA, h2.END_STREAM, 3, cut)]
    _, answers = turns(full, *calls, door=True)
    assert (full.begun, full.asked) == ([], [])
    assert [(answers[n]["grpc-status"], answers[n].get("grpc-retry-pushback-ms", "")) for n in (1, 3)] == [
        ("8", "-1"),
        ("13", ""),
    ]


def test_the_door_leaves_no_call_in_the_context_of_the_connection():
    """The context would keep it, and the bytes of its request, which count no more when it is reset."""
    let_in: list[object] = []

    async def serve() -> None:
        def door(head: bytes, size: int) -> None:
            let_in.append(CALLER.get())

        method = Method(PATH, pb.ModelInferRequest, wire_unary=lambda data: data, door=door)
        service = Service(Requests([method]), Traffic(), 1 << 20, DEFAULT_LIMITS, Holding(1 << 30))
        connection = ServerConnection(service, ConnectionPlaces(1))
        connection.connection_made(NoSocket())
        connection.data_received(h2.PREFACE + h2.settings({}) + headers(1) + begun(1, 10_000))
        assert let_in == [connection.calls[1]]
        assert CALLER.get() is None

    asyncio.run(serve())


@pytest.mark.parametrize("size", [0, 1, DOOR_BYTES - 1])
def test_too_few_first_bytes_do_not_say_which_model_is_asked(turns, size):
    full = Full()
    data = headers(1) + begun(1, size) + h2.frame(h2.DATA, h2.END_STREAM, 1, message(LARGE)[5 + size :])
    traffic, _ = turns(full, data, door=True)
    assert (full.begun, full.asked) == ([], [LARGE])
    assert traffic.failed.total() == 1


def test_a_small_request_and_a_compressed_one_are_refused_when_they_are_whole(turns):
    full = Full()
    packed = message(zlib.compress(random.Random(0).randbytes(3000), wbits=31), 1)
    turns(full, headers(1) + body(1, b"m1" * 300), door=True)
    turns(
        full,
        headers(1, grpc_encoding="gzip")
        + h2.frame(h2.DATA, 0, 1, packed[:2000])
        + h2.frame(h2.RST_STREAM, 0, 1, bytes(4)),
        door=True,
    )
    assert (full.begun, full.asked) == ([], [b"m1" * 300])


def test_an_earlier_deadline_is_no_reason_to_ask_again_and_a_new_reason_loses_no_count(turns):
    limits = ("2S", "1S", "3S", "2S", "3S")
    calls = [headers(n, grpc_timeout=limit) + body(n, b"m1") for n, limit in zip(range(1, 10, 2), limits, strict=True)]
    full = Full()
    traffic, answers = turns(full, b"".join(calls))
    assert (len(full.asked), full.again) == (2, 3)
    assert traffic.failed.total() == len(answers) == 5


def test_each_turn_asks_again_and_a_reason_that_is_not_decided_by_the_first_bytes_is_asked_each_time(turns):
    one = [headers(n) + body(n, b"m1") for n in (1, 3, 5)]
    full = Full()
    turns(full, *one)
    assert (len(full.asked), full.again) == (3, 0)
    full = Full(alike=0)
    turns(full, b"".join(one))
    assert (len(full.asked), full.again) == (3, 0)


def test_a_call_whose_clock_runs_is_refused_once():
    """Its headers came a turn before its data: its deadline must not end it a second time."""
    full = Full()
    timed = {"grpc_timeout": "50m"}
    first, second = headers(1, **timed) + headers(3, **timed), headers(5, **timed)

    async def late() -> Counter[tuple[str, Status]]:
        requests = Requests([Method(PATH, pb.ModelInferRequest, wire_unary=full.answer)])
        service = Service(requests, Traffic(), 1 << 20, DEFAULT_LIMITS, Holding(1 << 30))
        connection = ServerConnection(service, ConnectionPlaces(1))
        connection.connection_made(NoSocket())
        connection.data_received(h2.PREFACE + h2.settings({}) + first)
        connection.data_received(second + body(5, b"m1") + body(3, b"m1") + body(1, b"m1"))
        await asyncio.sleep(0.1)
        return service.traffic.failed

    assert asyncio.run(late()) == {(PATH, Status.RESOURCE_EXHAUSTED): 3}
    assert full.asked == [b"m1"]


def test_a_refusal_outside_a_turn_says_nothing_of_the_next_one():
    """A large compressed request is inflated on a thread, and refused when no frames are read."""
    full = Full()

    async def serve() -> None:
        requests = Requests([Method(PATH, pb.ModelInferRequest, wire_unary=full.answer)])
        service = Service(requests, Traffic(), 1 << 20, DEFAULT_LIMITS, Holding(1 << 30))
        connection = ServerConnection(service, ConnectionPlaces(1))
        connection.connection_made(NoSocket())
        large = b"m1" + random.Random(0).randbytes(1 << 19)
        packed = h2.frame(h2.DATA, h2.END_STREAM, 1, message(zlib.compress(large, wbits=31), 1))
        connection.data_received(h2.PREFACE + h2.settings({}) + headers(1, grpc_encoding="gzip") + packed)
        while connection.calls:
            await asyncio.sleep(0.01)
        connection.data_received(headers(3) + h2.frame(h2.DATA, h2.END_STREAM, 3, message(large)))
        assert service.traffic.failed.total() == 2

    asyncio.run(asyncio.wait_for(serve(), 30))
    assert len(full.asked) == 2


def test_a_full_server_refuses_a_burst_after_one_look_and_the_model_counts_all(
    serve, models, tmp_path, ask, monkeypatch
):
    models.write(tmp_path / "one", models.scale(), config="max_batch_size: 8")
    looks: list[int] = []
    refusal = Admission.refusal
    with serve(tmp_path, frontend="http2", max_queue_requests=1) as served:
        infer = served.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", lambda m: m.SerializeToString()
        )
        infer(ask("one"), timeout=30)
        model = served.server.catalog.find("one", "")
        monkeypatch.setattr(model.scheduler, "may_run_now", lambda run_time: False)
        monkeypatch.setattr(Admission, "refusal", lambda *a: (looks.append(1), refusal(*a))[1])
        served.server._admission.enter(None, "another", 1)
        calls = [infer.future(ask("one"), timeout=30) for _ in range(200)]
        assert {call.code() for call in calls} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(looks) < 200  # how many come together is chance
        assert model.statistics.fail.count == 200
        assert model.statistics.failures == {Status.RESOURCE_EXHAUSTED: 200}
        assert served.server._traffic.failed.total() == 200
        served.server._admission.leave(None, "another", 1)
        infer(ask("one"), timeout=30)


def test_an_upload_to_a_full_server_is_refused_with_its_first_bytes(serve, models, tmp_path, ask, monkeypatch):
    models.write(tmp_path / "one", models.scale(), config="max_batch_size: 60000")
    with serve(tmp_path, frontend="http2", max_queue_requests=1) as served:
        model = served.server.catalog.find("one", "")
        data = message(ask("one", x=np.zeros((50_000, 4))).SerializeToString())
        client = Raw(served.server.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")))
        named = dict(request_headers()) | {":path": "/inference.GRPCInferenceService/ModelInfer"}
        block = written(*[(name.encode(), value.encode()) for name, value in named.items()])
        served.server._admission.enter(None, "another", 1)
        free, model.scheduler._free = model.scheduler._free, 0
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block), h2.frame(h2.DATA, 0, 1, data[:10_000]))
        assert client.answer(1)[1]["grpc-status"] == "8"
        assert model.statistics.failures == {Status.RESOURCE_EXHAUSTED: 1}
        model.scheduler._free = free  # it may be answered at once now
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 3, block), h2.frame(h2.DATA, 0, 3, data[:10_000]))
        client.send(h2.frame(h2.PING, 0, 0, bytes(8)))
        assert client.until(h2.PING)
        assert model.statistics.failures == {Status.RESOURCE_EXHAUSTED: 1}
        served.server._admission.leave(None, "another", 1)
        client.send(*(h2.frame(h2.DATA, 0, 3, data[at : at + 10_000]) for at in range(10_000, len(data), 10_000)))
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 3))
        assert client.answer(3)[1]["grpc-status"] == "0"


def test_a_refusal_can_be_looked_at_again_without_a_request(serve, models, tmp_path, ask):
    models.write(tmp_path / "one", models.scale(), config="max_batch_size: 8")
    with serve(tmp_path, frontend="http2", max_queue_requests=1) as served:
        server = served.server
        inference = Inference(server.catalog, SharedMemory(False), TraceSettings(), server._admission)
        scheduler, failures = (model := server.catalog.find("one", "")).scheduler, model.statistics.failures
        server._admission.enter(None, "another", 1)
        scheduler._free = 0
        with pytest.raises(Overloaded) as refused:
            inference.answer(ask("one").SerializeToString())
        still = refused.value.still
        assert still is not None
        assert failures == {Status.RESOURCE_EXHAUSTED: 1}
        again = still("b")
        assert (str(again), again.alike, again.still is None) == (str(refused.value), refused.value.alike, False)
        assert failures == {Status.RESOURCE_EXHAUSTED: 1}  # none was refused by looking
        scheduler._free = 1
        assert still("b") is None
        scheduler._free = 0
        server._admission.leave(None, "another", 1)
        assert still("b") is None
        server._admission.enter(None, "another", 1)
        assert still("b") is not None
        served.channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload", bytes)(
            pb.RepositoryModelUnloadRequest(model_name="one").SerializeToString()
        )
        assert still("b") is None
        server._admission.leave(None, "another", 1)


def test_requests_that_are_refused_without_a_call_in_later_turns_are_arrivals_and_answers():
    """A server that ends waits until no call comes; a client's other frames are no flood as long as it is answered."""

    def refusal() -> Overloaded:
        error = Overloaded("full", 1.0)
        error.alike, error.still = 2, lambda _: refusal()
        return error

    asked: list[bytes] = []

    def answer(data: bytes) -> bytes:
        asked.append(data)
        raise refusal()

    async def refused() -> None:
        traffic = Traffic()
        requests = Requests([Method(PATH, pb.ModelInferRequest, wire_unary=answer)])
        connection = ServerConnection(
            Service(requests, traffic, 1 << 20, DEFAULT_LIMITS, Holding(1 << 30)), ConnectionPlaces(1)
        )
        connection.connection_made(NoSocket())
        connection.data_received(h2.PREFACE + h2.settings({}))
        connection.data_received(headers(1) + body(1, b"m1"))
        connection.fruitless(100)
        traffic._last_arrival = 0.0
        connection.data_received(headers(3) + body(3, b"m1"))
        assert asked == [b"m1"]
        assert traffic._last_arrival > 0.0
        assert connection._patience._spent == 0
        connection.connection_lost(None)

    asyncio.run(refused())

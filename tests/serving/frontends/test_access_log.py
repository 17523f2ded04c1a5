"""The access log of both frontends: one line for each call, however it ends, and nothing while it is off."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import hpack
import pytest
from tests.serving.frontends.conftest import Methods, serving
from tests.serving.frontends.raw import NoSocket, Raw, message, request_headers

from normfold.protos import grpc_service as pb
from normfold.serving.access.access import Access
from normfold.serving.access.scopes import NO_MODEL, RIGHTS, Right, Scope
from normfold.serving.access.tokens import Holder, digest
from normfold.serving.errors import Overloaded, Status
from normfold.serving.frontends import FRONTENDS
from normfold.serving.frontends.access_log import AccessLog, left_early
from normfold.serving.frontends.grpcio_logged import _peer
from normfold.serving.frontends.http2 import kinds, logged_calls
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.process.log_lines import ACCESS, JsonLines, Lines
from normfold.serving.process.logs import LogSettings
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.pieces import Pieces
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.request_bytes import decisive_bytes

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Kept(logging.Handler):
    """Keeps the fields of each line, and lets a test wait for them: a call's line may come after its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.came = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.came:
            self.lines.append(vars(record)["fields"])
            self.came.notify_all()

    def next(self) -> dict[str, Any]:
        with self.came:
            assert self.came.wait_for(lambda: self.lines, 30)
            return self.lines.pop(0)


@contextlib.contextmanager
def kept() -> Iterator[Kept]:
    handler = Kept()
    ACCESS.addHandler(handler)
    try:
        yield handler
    finally:
        ACCESS.removeHandler(handler)


@pytest.fixture(params=FRONTENDS)
def name(request):
    return request.param


def statuses(channel: grpc.Channel, *calls: tuple[str, bytes, float]) -> None:
    for method, data, timeout in calls:
        with contextlib.suppress(grpc.RpcError):
            channel.unary_unary(method)(data, timeout=timeout)


def test_every_unary_call_has_one_line_however_it_ends(name):
    with kept() as log, serving(name=name, log=AccessLog.of("all")) as served:
        with grpc.insecure_channel(served.address) as channel:
            metadata = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)
            channel.unary_unary("/t.T/Soon")(b"abc", timeout=30, metadata=metadata)
            line = log.next()
            host, _, port = line.pop("peer").rpartition(":")
            assert (host, port.isdigit()) == ("127.0.0.1", True)
            assert line.pop("duration_ms") >= 10
            assert list(line.items()) == [
                ("method", "/t.T/Soon"),
                ("status", "OK"),
                ("trace_id", TRACE),
                ("request_bytes", 3),
                ("response_bytes", 3),
            ]
            calls = [
                ("/t.T/Echo", b"1", "OK"),
                ("/t.T/First", b"1", "OK"),
                ("/t.T/Fail", b"x", "INVALID_ARGUMENT"),
                ("/t.T/Fail", b"\xff", "INTERNAL"),
                ("/t.T/None", b"", "UNIMPLEMENTED"),
            ]
            for path, data, status in calls:
                statuses(channel, (path, data, 30))
                line = log.next()
                assert (line["method"], line["status"]) == (path, status)
            statuses(channel, ("/t.T/Wait", b"", 0.05))
            assert log.next()["status"] in ("DEADLINE_EXCEEDED", "CANCELLED")  # whichever side notices first
            waiting = channel.unary_unary("/t.T/Wait").future(b"", timeout=30)
            while not served.methods.waiting:
                pass
            waiting.cancel()
            assert log.next()["status"] == "CANCELLED"
        assert log.lines == []


def test_a_stream_has_one_line_with_the_number_of_its_messages(name):
    with kept() as log, serving(name=name, log=AccessLog.of("all")) as served:
        with grpc.insecure_channel(served.address) as channel:
            for path in ("/t.T/Each", "/t.T/Iterate"):
                data = [b"", b"0", b"0.0"] if path == "/t.T/Each" else [b"ab", b"", b"c"]
                assert list(channel.stream_stream(path)(iter(data), timeout=30)) == data
                line = log.next()
                assert (line["method"], line["status"], line["messages"]) == (path, "OK", 3)
                assert line["request_bytes"] == line["response_bytes"] == sum(map(len, data))
            assert len(list(channel.unary_stream("/t.T/Numbers")(b"\n\x013", timeout=30))) == 3
            line = log.next()
            assert (line["messages"], line["request_bytes"], line["response_bytes"]) == (1, 3, 9)
            with pytest.raises(grpc.RpcError):
                list(channel.stream_stream("/t.T/Each")(iter([b"", b"fail"]), timeout=30))
            line = log.next()
            assert (line["status"], line["messages"]) == ("INVALID_ARGUMENT", 2)
        assert log.lines == []


def test_a_line_has_the_name_of_the_token_and_never_the_token(name, monkeypatch):
    for path in ("/t.T/Echo", "/t.T/Each"):
        monkeypatch.setitem(RIGHTS, path, Right(Scope.INFER, NO_MODEL))
    hospital = Holder("hospital", frozenset({Scope.INFER}), None)
    reader = Holder("reader", frozenset({Scope.READ}), None)
    access = Access({digest("open sesame"): hospital, digest("a word"): reader})
    guarded = serving(name=name, log=AccessLog.of("all"), access=access)
    with kept() as log, guarded as served, grpc.insecure_channel(served.address) as channel:
        for token, known in (("open sesame", "hospital"), ("a word", "reader"), ("a guess", None)):
            metadata = (("authorization", f"Bearer {token}"),)
            for path in ("/t.T/Echo", "/t.T/Each"):
                with contextlib.suppress(grpc.RpcError):
                    list(channel.stream_stream(path)(iter([b""]), timeout=30, metadata=metadata))
                line = log.next()
                assert (line["method"], line.get("token")) == (path, known)
                assert token not in str(line)
                status = {"hospital": "OK", "reader": "PERMISSION_DENIED", None: "UNAUTHENTICATED"}[known]
                assert line["status"] == status


def test_calls_without_a_token_and_at_the_end_of_the_server_have_lines_too(name):
    open_to_nobody = serving(name=name, log=AccessLog.of("errors"), access=Access({}))
    with kept() as log, open_to_nobody as served, grpc.insecure_channel(served.address) as channel:
        statuses(channel, ("/t.T/Echo", b"", 30))
        line = log.next()
        assert (line["method"], line["status"]) == ("/t.T/Echo", "UNAUTHENTICATED")
    with kept() as log, serving(name=name, log=AccessLog.of("errors")) as served:
        with grpc.insecure_channel(served.address) as channel:
            statuses(channel, ("/t.T/Echo", b"", 30))  # well answered: without a line
            assert served.on_loop(served.traffic.close(1))
            statuses(channel, ("/t.T/Echo", b"", 30))
            line = log.next()
            assert (line["method"], line["status"]) == ("/t.T/Echo", "UNAVAILABLE")
        assert log.lines == []


@pytest.mark.parametrize(
    ("left", "status"), [(None, Status.CANCELLED), (0.1, Status.CANCELLED), (0.0, Status.DEADLINE_EXCEEDED)]
)
def test_a_call_that_nobody_waits_for_was_cancelled_or_has_passed_its_deadline(left, status):
    assert left_early(left) is status


def test_http2_says_when_a_deadline_has_passed():
    with kept() as log, serving(log=AccessLog.of("all")) as served:
        client = Raw(served.address)
        with client.socket:
            client.ask(1, b"\0\0\0\0\0", "Wait", grpc_timeout="30m")
            assert log.next()["status"] == "DEADLINE_EXCEEDED"


def test_requests_that_are_not_grpc_and_too_many_calls_have_lines(monkeypatch):
    monkeypatch.setattr("normfold.serving.frontends.http2.call_places.FEW_CALLS", 1)
    monkeypatch.setattr("normfold.serving.frontends.http2.call_places.MOST_CALLS", 1)
    with kept() as log, serving(log=AccessLog.of("all")) as served:
        client = Raw(served.address)
        with client.socket:
            client.ask(1, None, "x\ufffdy", content_type="text/html")
            line = log.next()
            assert (line["method"], line["status"]) == ("/t.T/x\ufffdy", "UNKNOWN")
            client.ask(3, None, te="gzip")
            assert log.next()["status"] == "INTERNAL"
            client.ask(5, None)
            client.ask(7, None)
            assert log.next()["status"] == "UNAVAILABLE"
        assert log.next()["status"] == "CANCELLED"  # the client of the first went away


@pytest.mark.parametrize("whole", [True, False])
def test_a_request_that_is_refused_by_its_first_bytes_names_its_model_too(whole):
    request = pb.ModelInferRequest(model_name="m", model_version="2", raw_input_contents=[bytes(1000)])
    data = request.SerializeToString()

    def refuse(head: bytes, size: int = 0) -> bytes:
        error = Overloaded("full", 1.0)
        error.alike = decisive_bytes(head)
        raise error

    async def serve() -> None:
        method = Method("/t.T/ModelInfer", pb.ModelInferRequest, wire_unary=refuse, door=refuse)
        limits, log = ClientLimits(), AccessLog.of("all")
        service = Service(Requests([method]), Traffic(), 1 << 20, limits, Holding(1 << 30), log=log)
        connection = ServerConnection(service, ConnectionPlaces(1))
        connection.connection_made(NoSocket())
        block = hpack.Encoder().encode(request_headers("ModelInfer"))
        frames = [h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)]
        if whole:
            frames.append(h2.frame(h2.DATA, h2.END_STREAM, 1, message(data)))
        else:
            frames.append(h2.frame(h2.DATA, 0, 1, message(data)[:600]))
        connection.data_received(h2.PREFACE + h2.settings({}) + b"".join(frames))

    with kept() as log:
        asyncio.run(serve())
        line = log.next()
        assert not log.lines
    assert (line["status"], line["model"], line["version"]) == ("RESOURCE_EXHAUSTED", "m", "2")


def test_without_an_access_log_calls_are_the_ordinary_ones(name):
    with kept() as log, serving(name=name) as served, grpc.insecure_channel(served.address) as channel:
        statuses(channel, ("/t.T/Echo", b"", 30), ("/t.T/None", b"", 30))
        assert log.lines == []
    assert AccessLog.of("off") is None
    for method in Methods().table():
        assert not issubclass(kinds.kind_of(method), logged_calls._Logged)
        assert issubclass(kinds.logged_kind_of(method), kinds.kind_of(method))


def line_of(form: logging.Formatter, method: Method, request: bytes, response: bytes = b"", **more: Any) -> str:
    """The line of one call of ``method`` in a log of ``form``."""
    stream = io.StringIO()
    logs = LogSettings("error")  # which does not switch the access log off
    handler = logs.install(stream)
    handler.setFormatter(form)
    try:
        call = AccessLog.of("all").begin(method.path, "1.2.3.4:5", more.get("trace_id", ""), "", method)
        call.request(request)
        call.response(response)
        call.end(Status.OK)
        call.end(Status.CANCELLED)  # only the first end counts
    finally:
        logging.getLogger("normfold").removeHandler(handler)
        logging.getLogger("normfold").propagate = True
    return stream.getvalue()


INFER = Method("/inference.GRPCInferenceService/ModelInfer", pb.ModelInferRequest, wire_unary=lambda data: data)


def test_a_line_names_model_version_and_request():
    request = pb.ModelInferRequest(model_name="ecg", id="seven").SerializeToString()
    response = pb.ModelInferResponse(model_name="ecg", model_version="2").SerializeToString()
    text = line_of(Lines({"log_format": "default"}), INFER, request, response)
    assert " access method=/inference.GRPCInferenceService/ModelInfer status=OK duration_ms=" in text
    assert text.endswith(
        f"peer=1.2.3.4:5 model=ecg id=seven version=2 request_bytes={len(request)} response_bytes={len(response)}\n"
    )
    pieces = Pieces((response, memoryview(b"numbers")))
    assert f"version=2 request_bytes={len(request)} response_bytes={len(response) + 7}\n" in line_of(
        Lines({"log_format": "default"}), INFER, request, pieces
    )
    found = json.loads(line_of(JsonLines(3, lambda: "another call's"), INFER, request, response, trace_id=TRACE))
    assert found.pop("time")
    assert found.pop("duration_ms") >= 0
    assert found == {
        "level": "info",
        "logger": "normfold.access",
        "method": INFER.path,
        "status": "OK",
        "trace_id": TRACE,
        "peer": "1.2.3.4:5",
        "model": "ecg",
        "id": "seven",
        "version": "2",
        "request_bytes": len(request),
        "response_bytes": len(response),
        "worker": 3,
    }


@pytest.mark.parametrize(
    ("request_", "model", "version"),
    [
        (pb.ModelReadyRequest(name="a", version="4"), "a", "4"),
        (pb.RepositoryModelLoadRequest(repository_name="r", model_name="b"), "b", None),
        (pb.SystemSharedMemoryStatusRequest(name="region"), None, None),
        (pb.ModelInferRequest(model_name="c", model_version="9"), "c", "9"),
    ],
)
def test_other_calls_name_their_model_too(request_, model, version):
    method = Method("/a.B/C", type(request_), unary=None, wire_unary=lambda data: data)
    found = json.loads(line_of(JsonLines(), method, request_.SerializeToString()))
    assert (found.get("model"), found.get("version")) == (model, version)


def test_bytes_that_are_no_request_name_nothing():
    assert "model" not in json.loads(line_of(JsonLines(), INFER, b"\xff\xff", b"\xff"))


def test_a_name_cannot_forge_a_line_or_a_field():
    forged = 'x\nI0101 00:00:00.000000 access method=/a/b status=OK\u2028" peer=9.9.9.9'
    request = pb.ModelInferRequest(model_name=forged, id="a b").SerializeToString()
    text = line_of(Lines({"log_format": "default"}), INFER, request)
    assert len(text.splitlines()) == 1
    assert r'model="x\nI0101 00:00:00.000000 access method=/a/b status=OK\u2028\" peer=9.9.9.9" id="a b" ' in text
    assert len(line_of(JsonLines(), INFER, request).split("\n")) == 2
    long = pb.ModelInferRequest(model_name="m" * 5000).SerializeToString()
    assert len(line_of(JsonLines(), INFER, long)) < 600


@pytest.mark.parametrize(
    ("said", "peer"),
    [("ipv4:127.0.0.1:5", "127.0.0.1:5"), ("ipv6:%5B::1%5D:5", "[::1]:5"), ("unix:", "unix:"), ("unix:/a", "unix:")],
)
def test_the_peer_reads_the_same_with_grpcio(said, peer):
    assert _peer(said) == peer


def test_the_peer_of_http2_is_an_address(tmp_path):
    for address, peer in ((f"unix:{tmp_path}/s", "unix:"), ("[::1]:0", "[::1]:")):
        with kept() as log, contextlib.suppress(OSError), serving(address, log=AccessLog.of("all")) as served:
            with grpc.insecure_channel(served.address) as channel:
                channel.unary_unary("/t.T/Echo")(b"", timeout=30)
            assert log.next()["peer"].startswith(peer)


def test_a_server_writes_the_lines_that_its_config_asks_for(serve, tmp_path, models, ask, frontend):
    models.write(tmp_path / "m", models.scale())
    with kept() as log, serve(tmp_path, frontend=frontend, access_log="all") as server:
        for number in range(3):  # the later ones by a plan
            server.infer(ask("m", x=[[1, 2, 3, 4]]), timeout=30)
            line = log.next()
            assert (line["model"], line["version"], line["status"]) == ("m", "1", "OK"), number
        with pytest.raises(grpc.RpcError):
            server.infer(ask("n", x=[[1]]))
        line = log.next()
        assert (line["model"], line["status"]) == ("n", "NOT_FOUND")
        assert "version" not in line

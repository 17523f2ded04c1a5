"""The gRPC metadata that a caller gives: what arrives at a server, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.process.log_lines import ACCESS

X = np.array([[1, 2, 3, 4]], np.float32)
KINDS = ("blocking", "async", "stream")
TRACE, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"

pytestmark = pytest.mark.usefixtures("each_transport")


def asked(kind: str, address: str, *steps, **options) -> None:
    """Call each of ``steps`` with a client, and await what it gives."""
    if kind == "blocking":
        with Client(address, **options) as client:
            for step in steps:
                step(client)
        return

    async def ask() -> None:
        async with AsyncClient(address, stream=kind == "stream", **options) as client:
            for step in steps:
                await step(client)

    asyncio.run(asyncio.wait_for(ask(), 60))


class Recording(grpc.GenericRpcHandler):
    """Notes the method and the metadata of each call, and answers; the first ``busy`` calls are refused."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str | bytes]]] = []
        self.busy = 0

    def service(self, details):
        pairs = [(key, value) for key, value in details.invocation_metadata if key != "user-agent"]
        assert len({key for key, _ in pairs}) == len(pairs)
        self.calls.append((details.method.rpartition("/")[2], dict(pairs)))
        return grpc.unary_unary_rpc_method_handler(self.inference if details.method.endswith("Infer") else self.answer)

    def answer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        if self.busy:
            self.busy -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        return b""

    def inference(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        response = pb.ModelInferResponse(model_name="m")
        response.outputs.add(name="y", datatype="BYTES", shape=[1, 1])
        response.raw_output_contents.append(b"\x03\0\0\x001:0")
        return response.SerializeToString()

    def of(self, method: str) -> list[dict[str, str | bytes]]:
        return [metadata for name, metadata in self.calls if name == method]


@pytest.fixture
def recording():
    """A server that notes what comes, and its address."""
    handler = Recording()
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(0)


@contextlib.contextmanager
def access_lines(count: int) -> Iterator[list[tuple[str, str]]]:
    """The methods and trace ids of the first ``count`` inferences in the access log, complete at the end."""
    found: list[tuple[str, str]] = []
    all_there = threading.Event()

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fields = vars(record)["fields"]
            if fields["method"].endswith("Infer"):
                found.append((fields["method"].rpartition("/")[2], fields.get("trace_id", "")))
            if len(found) == count:
                all_there.set()

    handler = Kept()
    ACCESS.addHandler(handler)
    try:
        yield found
        assert all_there.wait(30), found
    finally:
        ACCESS.removeHandler(handler)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_every_call_has_the_clients_metadata_and_one_call_its_own(recording, kind):
    handler, address = recording
    given = {"x-tenant": "a b,c", "x-id-bin": b"\x00\xff\x7f", "x-empty-bin": b""}
    own = {"x-tenant": "other", "traceparent": "00-1", "own-bin": b"~"}
    texts = np.array([["text"]], object)
    asked(
        kind,
        address,
        lambda client: client.infer("m", {"x": X}, metadata=own),
        lambda client: client.infer("m", {"x": X}),
        lambda client: client.infer("m", {"x": texts}, metadata=own),
        lambda client: client.infer("m", {"x": texts}, metadata={}),
        lambda client: client.classify("m", {"x": X}, 1, "y", metadata=own),
        lambda client: client.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, metadata=own),
        lambda client: client.models(),
        metadata=given,
    )
    changed = {**given, **own}
    assert handler.of("ModelInfer") == [changed, given, changed, given, changed]
    assert handler.of("ServerReady") == [changed]
    assert handler.of("RepositoryIndex") == [given]
    assert handler.of("ModelMetadata") == [given]  # the client's own question, for all its inferences


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_call_that_is_sent_again_has_its_metadata_and_the_token_each_time(recording, kind):
    handler, address = recording
    handler.busy = 2
    asked(
        kind,
        address,
        lambda client: client.call(
            "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, metadata={"traceparent": "00-1"}
        ),
        token="t",
    )
    metadata = handler.of("ServerReady")
    assert len(metadata) == 3
    assert [(one["authorization"], one["traceparent"]) for one in metadata] == [("Bearer t", "00-1")] * 3


@pytest.mark.parametrize("kind", KINDS[:2])
def test_without_a_token_the_authorization_is_the_callers(recording, kind):
    handler, address = recording
    asked(kind, address, lambda client: client.is_live(), metadata={"authorization": "Basic abc"})
    assert handler.of("ServerLive") == [{"authorization": "Basic abc"}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_of_normfold_logs_the_trace_that_the_metadata_names(serve, tmp_path, models, frontend, kind):
    models.write(tmp_path / "m", models.scale())
    own = None if kind == "stream" else {"traceparent": f"00-{OTHER}-00f067aa0ba902b7-01"}
    calls = 1 if kind == "stream" else 2
    with (
        access_lines(calls) as lines,
        serve(tmp_path, frontend=frontend, access_log="all") as one,
    ):
        asked(
            kind,
            one.server.address,
            lambda client: client.infer("m", X),
            lambda client: client.infer("m", X, metadata=own),
            metadata={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
        )
    if kind == "stream":
        assert lines == [("ModelStreamInfer", TRACE)]
    else:
        assert lines == [("ModelInfer", TRACE), ("ModelInfer", OTHER)]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([("a", "b")], "metadata is a list, not a dict of names and values: give a dict"),
        ({"X-Tenant": "a"}, "'X-Tenant' is not a name of lower-case .*: write 'x-tenant'"),
        ({"a b": "a"}, "'a b' is not a name .*: such as 'traceparent'"),
        ({"": "a"}, "'' is not a name"),
        ({"a\n": "a"}, r"'a\\n' is not a name"),
        ({"é": "a"}, "'é' is not a name"),
        ({":path": "/x"}, "':path' is not a name"),
        ({7: "a"}, "metadata: 7 is not a name"),
        ({"grpc-timeout": "1S"}, "'grpc-timeout' is reserved"),
        ({"te": "x"}, "'te' is reserved"),
        ({"content-length": "0"}, "'content-length' is reserved"),
        ({"a": "secret\n"}, r"value of 'a' holds a newline, .*; send that as bytes: 'a-bin': value.encode\(\)"),
        ({"a": "secreté"}, "value of 'a' holds a newline, or what is not printable ASCII"),
        ({"a": ""}, "value of 'a' is empty: leave it out"),
        ({"a": "secret "}, r"value of 'a' begins or ends with a space, .*: give value.strip\(\)"),
        ({"a": b"secret"}, "value of 'a' is not a text, but bytes: decode it, or name it 'a-bin'"),
        ({"a": 7}, r"value of 'a' is not a text, but int: give str\(value\)"),
        ({"a": None}, "value of 'a' is not a text, but NoneType: leave it out"),
        ({"a": ["secret"]}, "value of 'a' is not a text, but list: give one text"),
        ({"a-bin": "secret"}, r"'a-bin' ends in -bin, so its value must be bytes, not str: give value.encode\(\)"),
        ({"a-bin": None}, "must be bytes, not NoneType: leave it out"),
        ({"a-bin": 7}, "must be bytes, not int: give bytes"),
        ({"good": "a", "authorization": "secret"}, "'authorization' carries the token of this client"),
    ],
)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_what_cannot_be_sent_is_refused_before_anything_is_sent_and_no_value_is_shown(recording, kind, metadata, words):
    handler, address = recording
    with pytest.raises(ValueError, match=words) as caught:
        asked(kind, address, token="t", metadata=metadata)
    assert "secret" not in str(caught.value)
    for step in (
        lambda client: client.infer("m", {"x": X}, metadata=metadata),
        lambda client: client.classify("m", {"x": X}, 1, metadata=metadata),
        lambda client: client.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse, metadata=metadata),
    ):
        with pytest.raises(ValueError, match=words):
            asked(kind, address, step, token="t")
    assert handler.calls == []


def test_one_inference_of_a_stream_has_no_metadata_of_its_own(recording):
    handler, address = recording
    for step in (
        lambda client: client.infer("m", {"x": X}, metadata={"a": "b"}),
        lambda client: client.classify("m", {"x": X}, 1, metadata={"a": "b"}),
    ):
        with pytest.raises(ValueError, match=r"sent once for a whole stream.*: give it to AsyncClient\(metadata=…\)"):
            asked("stream", address, step)
    assert handler.calls == []

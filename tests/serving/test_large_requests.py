"""No request is parsed on the event loop at any size: of most methods a large one is refused, of the others a thread
parses it.
"""

from __future__ import annotations

import asyncio
import threading
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_name
from normfold.serving.access import access
from normfold.serving.access.scopes import RIGHTS, Scope
from normfold.serving.access.tokens import Holder
from normfold.serving.errors import NotFound, Overloaded, PermissionDenied
from normfold.serving.infer import inference
from normfold.serving.rpc import methods
from normfold.serving.rpc.methods import LOOP_BYTES, Method
from normfold.serving.service import administration, service
from normfold.serving.wire.tensors import to_raw
from normfold.serving.workers.messages import AllAnswered, WorkerAnswer
from normfold.serving.workers.worker_link import WorkerLink

INFERENCE = "/inference.GRPCInferenceService/"
LOAD = f"{INFERENCE}RepositoryModelLoad"
LARGE = (f"{INFERENCE}ModelInfer", f"{INFERENCE}ModelStreamInfer", LOAD)


@pytest.fixture
def parsed(monkeypatch):
    """The sizes of the messages that were parsed, and the threads that did it."""
    found: list[tuple[int, str]] = []
    parse = methods.parse

    def noted(message, data):
        found.append((len(data), threading.current_thread().name))
        return parse(message, data)

    monkeypatch.setattr(methods, "parse", noted)
    return found


def named(name: str, file: str = "1/model.onnx") -> pb.RepositoryModelLoadRequest:
    """A load request with a file of 1 MiB."""
    request = pb.RepositoryModelLoadRequest(model_name=name)
    request.parameters["config"].string_param = "{}"
    request.parameters[f"file:{file}"].bytes_param = bytes(1 << 20)
    return request


def test_a_large_request_of_any_other_method_is_refused_unread(server, parsed):
    data = b"\x7a\x80\x80\x04" + bytes(LOOP_BYTES)  # a field that no request has
    for path in RIGHTS.keys() - set(LARGE):
        call = server.channel.stream_stream(path)(iter([data]), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, path
        words = f"a request of {path.rpartition('/')[2]} has at most 65536 bytes, this one has 65540"
        assert caught.value.details() == words
    assert not parsed


def test_the_files_of_a_load_are_read_on_a_thread(server, parsed, monkeypatch):
    names: list[str] = []
    read = administration._sent

    def noted(request):
        names.append(threading.current_thread().name)
        return read(request)

    monkeypatch.setattr(administration, "_sent", noted)
    with pytest.raises(grpc.RpcError, match="is not a path inside"):
        server.channel.unary_unary(LOAD)(named("sent", "../x").SerializeToString(), timeout=60)

    async def loop_thread() -> str:
        return threading.current_thread().name

    ((size, name),) = parsed
    assert size > 1 << 20
    assert server.on_loop(loop_thread()) not in (name, *names)
    assert len(names) == 1


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({f"file:{n}": pb.ModelRepositoryParameter(bytes_param=b"") for n in range(4097)}, "at most 4096 fields"),
        (
            {"config": pb.ModelRepositoryParameter(string_param=" " * (1 << 20) + "{}")},
            "string_param has at most 1048576",
        ),
    ],
)
def test_a_load_brings_no_more_than_can_be_read_soon(server, request_, words):
    request = pb.RepositoryModelLoadRequest(model_name="sent", parameters=request_)
    with pytest.raises(grpc.RpcError, match=words) as caught:
        server.channel.unary_unary(LOAD)(request.SerializeToString(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"id": "i" * (1 << 21)}, "id has at most 1048576 bytes, this one has 2097152"),
        ({"model_version": "1" * (1 << 21)}, "model_version has at most 1048576 bytes"),
        ({"inputs": [{}] * (1 << 16)}, "at most 4096 fields, this ModelInferRequest has more"),
    ],
)
def test_an_inference_is_large_by_its_tensors_alone(server, ask, more, words):
    request = ask("m")
    request.MergeFrom(pb.ModelInferRequest(**more))
    with pytest.raises(grpc.RpcError, match=words) as caught:
        server.infer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_worker_reads_a_load_on_a_thread_and_passes_it_on_as_it_came(parsed):
    async def load(request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        return pb.RepositoryModelLoadResponse()

    sent = []
    link = WorkerLink(1, SimpleNamespace(send=sent.append))
    link.listen.set()
    (shared,) = link.share([Method(LOAD, pb.RepositoryModelLoadRequest, unary=load, large=True)])
    data = named("m").SerializeToString()

    async def ask() -> bytes:
        asking = asyncio.ensure_future(shared.answer(data))
        while not sent:
            await asyncio.sleep(0.01)
        link._asked[sent[0].number].set_result(AllAnswered(sent[0].number, (WorkerAnswer(1, "", "", b""),), ()))
        return await asking

    assert asyncio.run(ask()) == b""
    ((_, name),) = parsed
    assert name != threading.current_thread().name
    assert sent[0].remember[0].request is sent[0].request is data


def test_the_model_of_a_large_request_is_found_without_parsing_it(monkeypatch):
    monkeypatch.setattr(access, "parse", None)
    holder = Holder("h", frozenset(Scope), frozenset("m"))
    method = Method(LOAD, pb.RepositoryModelLoadRequest, wire_unary=lambda data: b"", large=True)
    admitted = access.Access({b"c": holder}).admit(method, b"c")
    assert admitted.answer(named("m").SerializeToString()) == b""
    by_other_field = pb.RepositoryModelLoadRequest(repository_name="m", parameters=named("").parameters)
    assert admitted.answer(by_other_field.SerializeToString()) == b""
    for name in ("n", "m" * (1 << 20)):
        with pytest.raises(PermissionDenied, match="does not allow the model"):
            admitted.answer(named(name).SerializeToString())


def sizes_read(monkeypatch, module: ModuleType) -> list[int]:
    """The bytes of each ModelInferRequest that protobuf reads for ``module``; grows while it works."""
    sizes: list[int] = []

    def noted(data: bytes) -> pb.ModelInferRequest:
        sizes.append(len(data))
        return pb.ModelInferRequest.FromString(data)

    kind = Mock(FromString=noted, DESCRIPTOR=pb.ModelInferRequest.DESCRIPTOR)
    monkeypatch.setattr(module, "pb", SimpleNamespace(**{**vars(pb), "ModelInferRequest": kind}))
    return sizes


@pytest.mark.parametrize("error", [NotFound("no such model"), Overloaded("busy", 1.0)])
def test_an_error_in_a_stream_reads_the_id_and_parameters_of_a_large_message_alone(monkeypatch, error):
    request = pb.ModelInferRequest(model_name="nope", id="seven")
    request.parameters["grpc_status"].bool_param = True
    data = request.SerializeToString()
    sizes = sizes_read(monkeypatch, service)
    for more in (b"\x2a\x00" * (1 << 20), b"\x3a\x80\x80\x80\x01" + bytes(1 << 21)):
        answer = pb.ModelStreamInferResponse.FromString(service._stream_error(data + more, error))
        assert answer.infer_response.id == "seven"
        assert answer.infer_response.parameters["grpc_status"].string_param == error.status.name
    assert len(sizes) == 2
    assert max(sizes) < len(data)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(("kind", "datatype"), [(7, "INT64"), (1, "FP32"), (9, "BOOL"), (8, "BYTES")])
def test_protobuf_reads_no_large_contents(serve, tmp_path, models, monkeypatch, kind, datatype, typed):
    """It would keep the interpreter for as long as it takes, and the event loop with it."""
    models.write(tmp_path / "same", models.identity(kind, ["N"]))
    values = [number % 7 > 2 if datatype == "BOOL" else number * 11 for number in range(300_000)]
    array = np.array(values, by_name(datatype).dtype)
    if datatype == "BYTES":
        array = np.array([b"%d" % value for value in values], object)
    request = pb.ModelInferRequest(model_name="same")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if typed:
        getattr(tensor.contents, by_name(datatype).contents_field).extend(array.tolist())
    else:
        request.raw_input_contents.append(to_raw(array, by_name(datatype)))
    sizes = sizes_read(monkeypatch, inference)
    with serve(tmp_path) as served:
        response = served.infer(request)
    assert response.raw_output_contents[0] == to_raw(array, by_name(datatype))
    assert sizes
    assert max(sizes) < 100

"""The commands with servers of other make, whose answers may be wrong: a sentence and exit code 1, no traceback."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from normfold.cli.main import main
from normfold.protos import grpc_service as pb
from normfold.serving.client.client import Client, ClientError
from normfold.serving.errors import Status

TWO = struct.pack("<2f", 1, 2)


def answer(*outputs: tuple[str, str, list[int]], raw: tuple[bytes, ...] = (TWO,)) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="m", raw_output_contents=raw)
    for name, datatype, shape in outputs:
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response


def text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


#: What the server answers by model name.
ANSWERS = {
    "right": answer(("y", "FP32", [1, 2])),
    "negative": answer(("y", "FP32", [-1, 2])),
    "twice": answer(("y", "FP32", [1, 2]), ("y", "FP32", [1, 2]), raw=(TWO, TWO)),
    "further": answer(("y", "FP32", [1, 2]), raw=(TWO, TWO)),
    "nothing": answer(raw=()),
    "unknown datatype": answer(("y", "FP32", [1, 2])),
    "no classes": answer(("y", "BYTES", [1, 1]), raw=(text(b"best"),)),
    "empty": answer(("y", "BYTES", [2, 0]), raw=(b"",)),
    "other output": answer(("z", "BYTES", [1, 1]), raw=(text(b"0.5:0"),)),
    "no outputs": answer(("y", "BYTES", [1, 1]), raw=(text(b"0.5:0"),)),
    "colour": answer(("y\x1b[31m", "FP32", [1, 2])),
}

#: The gRPC metadata of the inferences.
ARRIVED: list[dict[str, str | bytes]] = []


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    def metadata(request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        response = pb.ModelMetadataResponse(name=request.name, versions=["1"], platform="other")
        datatype = "FP99" if request.name == "unknown datatype" else "FP32"
        response.inputs.add(name="x", datatype=datatype, shape=[-1, 2])
        if request.name != "no outputs":
            response.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
        return response

    def index(request: pb.RepositoryIndexRequest, context: Any) -> pb.RepositoryIndexResponse:
        response = pb.RepositoryIndexResponse()
        response.models.add(name="a", version="v0.1.0", state="READY")
        response.models.add(name="b", version="2", state="READY")
        response.models.add(name="c", state="UNAVAILABLE", reason="no version of it is a number")
        return response

    def infer(request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        ARRIVED.append(dict(context.invocation_metadata()))
        return ANSWERS[request.model_name]

    def ready(request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=request.name == "a")

    methods = {
        "ModelReady": (ready, pb.ModelReadyRequest),
        "ModelMetadata": (metadata, pb.ModelMetadataRequest),
        "RepositoryIndex": (index, pb.RepositoryIndexRequest),
        "ModelInfer": (infer, pb.ModelInferRequest),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method, request_deserializer=request.FromString, response_serializer=lambda m: m.SerializeToString()
        )
        for name, (method, request) in methods.items()
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, color=True)


def test_a_right_answer_is_printed(address: str) -> None:
    result = run("infer", "right", "--input", "x=[[1, 2]]", "--address", address)
    assert result.exit_code == 0
    assert "[[1. 2.]]" in result.stdout


def test_metadata_is_sent_with_the_inference(address: str) -> None:
    given = ("--metadata", "traceparent=00-1", "--metadata", "x-tenant=a=b", "--metadata", "x-id-bin=AP9+fw")
    assert run("infer", "right", "--input", "x=[[1, 2]]", "--address", address, *given).exit_code == 0
    assert ARRIVED[-1].items() >= {"traceparent": "00-1", "x-tenant": "a=b", "x-id-bin": b"\x00\xff~\x7f"}.items()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("negative", "the server's output 'y' FP32[-1, 2] cannot be read: it has a negative size"),
        ("twice", "the server's answer has 2 outputs of 1 names, and 2 raw contents"),
        ("further", "the server's answer has 1 outputs of 1 names, and 2 raw contents"),
        ("nothing", "the server's answer holds no output"),
    ],
)
def test_a_wrong_answer_is_an_error(address: str, model: str, says: str) -> None:
    result = run("infer", model, "--input", "x=[[1, 2]]", "--address", address)
    assert result.exit_code == 1
    assert says in result.stderr


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("no classes", "the server's answer holds b'best', which is no class: score:index:label"),
        ("other output", "the server's answer has no output 'y'"),
        ("no outputs", "the server names no output of model 'no outputs'; give its name"),
        ("right", "it does not classify"),
    ],
)
def test_an_answer_without_classes_is_an_error(address: str, model: str, says: str) -> None:
    result = run("infer", model, "--input", "x=[[1, 2]]", "--address", address, "--top", "1")
    assert result.exit_code == 1
    assert says in result.stderr


def test_rows_without_classes_are_printed(address: str) -> None:
    result = run("infer", "empty", "--input", "x=[[1, 2]]", "--address", address, "--top", "1")
    assert (result.exit_code, result.stdout) == (0, "row 0\nrow 1\n")


def test_a_datatype_that_the_protocol_has_not_leaves_the_numbers_as_they_are(address: str) -> None:
    result = run("infer", "unknown datatype", "--input", "x=[[1, 2]]", "--address", address)
    assert result.exit_code == 0
    bench = run("bench", address, "--model", "unknown datatype", "--seconds", "0.2", "--rounds", "1")
    assert bench.exit_code == 2
    assert "input 'x' has the datatype 'FP99', not of the protocol" in bench.stderr


def test_the_name_of_an_output_is_printable(address: str) -> None:
    result = run("infer", "colour", "--input", "x=[[1, 2]]", "--address", address)
    assert "y\\x1b[31m FP32[1, 2]" in result.stdout


def test_models_with_versions_that_are_no_numbers_are_listed(address: str) -> None:
    result = run("models", "--address", address)
    assert result.exit_code == 0
    assert "v0.1.0" in result.stdout
    assert "b 2: x FP32[-1,2]" in result.stdout
    assert "\nc: no version of it is a number" in result.stdout


def test_a_model_that_the_server_lacks_is_told_from_one_that_is_not_ready(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = run("healthcheck", "--address", address, "--model", "nope")
    assert (unknown.exit_code, unknown.stderr) == (1, "Error: the server has no model 'nope'; it has a, b, c\n")
    there = run("healthcheck", "--address", address, "--model", "c")
    assert (there.exit_code, "model c is not ready; for the reason" in there.stdout) == (1, True)

    def no_index(client: Client, timeout: float | None = None) -> None:
        raise ClientError(Status.UNIMPLEMENTED, "no")

    monkeypatch.setattr(Client, "models", no_index)
    assert "model nope is not ready" in run("healthcheck", "--address", address, "--model", "nope").stdout


def test_ctrl_c_is_the_end_of_watching_and_else_no_success(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(client: Client, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "models", pressed)
    assert run("models", "--address", address).exit_code == 130
    assert run("models", "--address", address, "--watch").exit_code == 0


def test_a_server_that_does_not_say_which_models_it_has_is_not_asked_to_unload_one(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(client: Client, timeout: float | None = None) -> None:
        raise ClientError(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    monkeypatch.setattr(Client, "models", hangs)
    monkeypatch.setattr(Client, "unload", lambda client, model: pytest.fail("it was asked, and waited for, again"))
    done = run("unload", "a", "--address", address)
    assert (done.exit_code, "DEADLINE_EXCEEDED" in done.stderr) == (1, True), done.output

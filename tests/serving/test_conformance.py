"""The status and the words that a request gets: one row for each row of Triton's behaviour that clients rely on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb

S = grpc.StatusCode
X = np.array([[1, 2, 3, 4]], np.float32)
Change = Callable[[pb.ModelInferRequest], Any]


def changed(*changes: Change, model: str = "m", **inputs: Any) -> Callable[[Any], pb.ModelInferRequest]:
    def build(ask: Any) -> pb.ModelInferRequest:
        message = ask(model, **inputs)
        for change in changes:
            change(message)
        return message

    return build


def shape(*sizes: int) -> Change:
    return lambda r: r.inputs[0].shape.__setitem__(slice(None), sizes)


def set_to(**fields: str) -> Change:
    return lambda r: [setattr(r.inputs[0], name, value) for name, value in fields.items()]


def parameter(key: str, **choice: Any) -> Change:
    return lambda r: r.parameters[key].CopyFrom(pb.InferParameter(**choice))


def raw(*contents: bytes) -> Change:
    return lambda r: r.raw_input_contents.__setitem__(slice(None), contents)


def typed(**contents: Any) -> Change:
    def change(r: pb.ModelInferRequest) -> None:
        r.raw_input_contents[:] = []
        r.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))

    return change


def output(name: str, **parameters: pb.InferParameter) -> Change:
    def change(r: pb.ModelInferRequest) -> None:
        made = r.outputs.add(name=name)
        for key, value in parameters.items():
            made.parameters[key].CopyFrom(value)

    return change


def text(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def text_request(*changes: Change) -> Callable[[Any], pb.ModelInferRequest]:
    return changed(set_to(datatype="BYTES"), shape(1, 2), *changes, model="text")


P = "[request id: <id_unknown>] "
INT = pb.InferParameter(int64_param=1)

REFUSED: dict[str, tuple[Callable[[Any], pb.ModelInferRequest], grpc.StatusCode, str]] = {
    # names and versions
    "unknown model": (changed(model="nope"), S.NOT_FOUND, "Request for unknown model: 'nope' is not found"),
    "empty model name": (changed(model=""), S.NOT_FOUND, "Request for unknown model: '' is not found"),
    "near miss": (changed(model="queeu"), S.NOT_FOUND, "did you mean 'queue'?"),
    "unknown version": (
        changed(lambda r: setattr(r, "model_version", "7")),
        S.NOT_FOUND,
        "Request for unknown model: 'm' version 7 is not found",
    ),
    "version 0": (changed(lambda r: setattr(r, "model_version", "0")), S.NOT_FOUND, "version 0 is not found"),
    "version is no number": (
        changed(lambda r: setattr(r, "model_version", "abc")),
        S.INVALID_ARGUMENT,
        "failed to get model version from specified version string 'abc' (details: stol), "
        "version should be an integral value > 0",
    ),
    "version beyond 64 bits": (
        changed(lambda r: setattr(r, "model_version", "9" * 40)),
        S.INVALID_ARGUMENT,
        "(details: stol)",
    ),
    "negative version": (
        changed(lambda r: setattr(r, "model_version", "-1")),
        S.INVALID_ARGUMENT,
        "invalid model version specified '-1' , version should be an integral value > 0",
    ),
    "no ready version": (
        changed(model="bad"),
        S.NOT_FOUND,
        "Request for unknown model: 'bad' has no available versions",
    ),
    "version that failed": (
        changed(lambda r: setattr(r, "model_version", "1"), model="bad"),
        S.UNAVAILABLE,
        "Request for unknown model: 'bad' version 1 is not at ready state",
    ),
    # inputs by name and number
    "too many inputs": (
        changed(x=X, y=X),
        S.INVALID_ARGUMENT,
        P + "expected 1 inputs but got 2 inputs for model 'm'. Got input(s) ['x','y']",
    ),
    "too few inputs": (
        changed(model="two", a=X),
        S.INVALID_ARGUMENT,
        P
        + "expected 2 inputs but got 1 inputs for model 'two'. Got input(s) ['a'], but missing required input(s) ['b']",
    ),
    "no inputs": (
        changed(lambda r: r.ClearField("inputs"), raw()),
        S.INVALID_ARGUMENT,
        P + "expected 1 inputs but got 0 inputs",
    ),
    "wrong input name": (changed(foo=X), S.INVALID_ARGUMENT, "unexpected inference input 'foo' for model 'm'"),
    "input twice": (
        changed(lambda r: r.inputs.append(r.inputs[0]), raw(b"", b"")),
        S.INVALID_ARGUMENT,
        P + "input 'x' already exists in request",
    ),
    "unknown output": (changed(output("foo")), S.INVALID_ARGUMENT, "unexpected inference output 'foo' for model 'm'"),
    "the id is told": (
        changed(lambda r: setattr(r, "id", "q7"), shape(1, 5)),
        S.INVALID_ARGUMENT,
        "[request id: q7] unexpected shape",
    ),
    # datatypes and shapes
    "wrong datatype": (
        changed(set_to(datatype="FP64")),
        S.INVALID_ARGUMENT,
        P + "inference input 'x' data-type is 'FP64', but model 'm' expects 'FP32'",
    ),
    "unknown datatype": (
        changed(set_to(datatype="fp32")),
        S.INVALID_ARGUMENT,
        "data-type is 'fp32', which the protocol does not have: names are in capitals, but model 'm' expects 'FP32'",
    ),
    "no datatype": (changed(set_to(datatype="")), S.INVALID_ARGUMENT, "data-type is '', which the protocol does not"),
    "wrong shape": (
        changed(shape(1, 5)),
        S.INVALID_ARGUMENT,
        P + "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [1,5]. ",
    ),
    "wrong shape, the note": (
        changed(shape(1, 5)),
        S.INVALID_ARGUMENT,
        "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension",
    ),
    "wrong rank": (changed(shape(4)), S.INVALID_ARGUMENT, "It has 1 dimension, the model takes 2."),
    "thousands of dimensions": (changed(shape(*[1] * 5000)), S.INVALID_ARGUMENT, "unexpected shape for input 'x'"),
    "open dimension": (
        changed(shape(-1, 4)),
        S.INVALID_ARGUMENT,
        P + "All input dimensions should be specified for input 'x' for model 'm', got [-1,4]",
    ),
    "negative dimension without batching": (
        changed(shape(-3, 4), model="nb"),
        S.INVALID_ARGUMENT,
        "All input dimensions should be specified",
    ),
    "batch too large": (
        changed(x=np.zeros((9, 4))),
        S.INVALID_ARGUMENT,
        P + "inference request batch-size must be <= 8 for 'm'",
    ),
    "batch differs": (
        changed(model="two", a=X, b=np.zeros((2, 4))),
        S.INVALID_ARGUMENT,
        P + "input 'b' batch size does not match other inputs for 'two'",
    ),
    "rank 0 with batching": (
        changed(shape()),
        S.INVALID_ARGUMENT,
        P + "input 'x' has no shape but model requires batch dimension for 'm'",
    ),
    "sizes that overflow 64 bits": (
        changed(shape(1 << 62, 4), model="nb"),
        S.INVALID_ARGUMENT,
        f"input byte size mismatch for input 'x' for model 'nb'. Expected {(1 << 62) * 16}, got 16",
    ),
    # bytes
    "too many bytes": (
        changed(raw(bytes(20))),
        S.INVALID_ARGUMENT,
        P + "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 20",
    ),
    "no bytes": (changed(raw(b"")), S.INVALID_ARGUMENT, "Expected 16, got 0"),
    "raw and contents": (
        changed(lambda r: r.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])),
        S.INVALID_ARGUMENT,
        "contents field must not be specified when using raw_input_contents for 'x' for model 'm'",
    ),
    "raw and empty contents": (
        changed(lambda r: r.inputs[0].contents.SetInParent()),
        S.INVALID_ARGUMENT,
        "contents field must not be specified when using raw_input_contents for 'x' for model 'm'",
    ),
    "raw for one input, typed for the other": (
        changed(lambda r: r.inputs[1].contents.fp32_contents.extend([1, 2, 3, 4]), model="two", a=X, b=X),
        S.INVALID_ARGUMENT,
        "contents field must not be specified when using raw_input_contents for 'b' for model 'two'",
    ),
    "neither raw nor contents": (
        changed(raw()),
        S.INVALID_ARGUMENT,
        "unable to find data for input tensor 'x' for model 'm' in request.",
    ),
    "fewer raw than inputs": (
        changed(raw(bytes(16)), model="two", a=X, b=X),
        S.INVALID_ARGUMENT,
        "unable to find data for input tensor 'b' for model 'two' in request.",
    ),
    "more raw than inputs": (
        changed(raw(bytes(16), bytes(16))),
        S.INVALID_ARGUMENT,
        "raw_input_contents has 2 entries, but only 1 of the 1 inputs",
    ),
    "only empty contents": (changed(typed()), S.INVALID_ARGUMENT, "Expected 16, got 0"),
    "typed field of another type": (
        changed(typed(int_contents=[1, 2, 3, 4])),
        S.INVALID_ARGUMENT,
        "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'INT32', expected datatype 'FP32'",
    ),
    "two typed fields": (
        changed(typed(fp32_contents=[1, 2, 3, 4], fp64_contents=[1])),
        S.INVALID_ARGUMENT,
        "unexpected explicit tensor data for input tensor 'x' for model 'm'",
    ),
    "typed count": (changed(typed(fp32_contents=[1, 2])), S.INVALID_ARGUMENT, "Expected 16, got 8"),
    "typed number out of range": (
        changed(set_to(datatype="INT8"), shape(1, 2), typed(int_contents=[1, 300]), model="i8"),
        S.INVALID_ARGUMENT,
        "300 at element 1 does not fit 'INT8' (-128 to 127)",
    ),
    "typed FP16": (
        changed(set_to(datatype="FP16"), shape(1, 2), typed(fp32_contents=[1, 2]), model="f16"),
        S.INVALID_ARGUMENT,
        "expected datatype 'FP16', which only travels raw",
    ),
    "BOOL that is neither 0 nor 1": (
        changed(set_to(datatype="BOOL"), shape(1, 2), raw(b"\1\2"), model="b"),
        S.INVALID_ARGUMENT,
        "BOOL elements are bytes of 0 or 1",
    ),
    "too few BYTES elements": (
        text_request(raw(text(b"a"))),
        S.INVALID_ARGUMENT,
        P + "expected 2 string elements for inference input 'x' for model 'text', got 1",
    ),
    "too many BYTES elements": (
        text_request(raw(text(b"a", b"b", b"c"))),
        S.INVALID_ARGUMENT,
        P + "unexpected number of string elements 3 for inference input 'x' for model 'text', expecting 2",
    ),
    "BYTES length cut": (
        text_request(raw(text(b"a") + b"\1\0")),
        S.INVALID_ARGUMENT,
        P + "incomplete string length indicator for inference input 'x'",
    ),
    "BYTES length past the end": (
        text_request(raw(text(b"a") + struct.pack("<I", 5) + b"ab")),
        S.INVALID_ARGUMENT,
        "expecting string of length 5 but only 2 bytes available",
    ),
    "typed BYTES count": (
        text_request(typed(bytes_contents=[b"a"])),
        S.INVALID_ARGUMENT,
        "expected 2 string elements for inference input 'x' for model 'text', got 1",
    ),
    # parameters
    "timeout of another type": (
        changed(parameter("timeout", uint64_param=1)),
        S.INVALID_ARGUMENT,
        "invalid value type for 'timeout' parameter, expected int64_param.",
    ),
    "priority of another type": (
        changed(parameter("priority", string_param="1")),
        S.INVALID_ARGUMENT,
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
    ),
    "negative priority": (
        changed(parameter("priority", int64_param=-1)),
        S.INVALID_ARGUMENT,
        "invalid value for 'priority', expected value >= 0.",
    ),
    "reserved key": (
        changed(parameter("triton_x", int64_param=1)),
        S.INVALID_ARGUMENT,
        "parameter keys starting with 'triton_' are reserved for Triton usage. "
        "Only the following keys starting with 'triton_' are allowed: ",
    ),
    "custom uint64": (
        changed(parameter("foo", uint64_param=1)),
        S.INVALID_ARGUMENT,
        "invalid value type for 'foo' parameter, expected int64_param, bool_param, or string_param.",
    ),
    "sequence flag of another type": (
        changed(parameter("sequence_start", int64_param=1)),
        S.INVALID_ARGUMENT,
        "invalid value type for 'sequence_start' parameter, expected bool_param.",
    ),
    "classification of another type": (
        changed(output("y", classification=pb.InferParameter(string_param="2"))),
        S.INVALID_ARGUMENT,
        "invalid value type for 'classification' parameter, expected int64_param",
    ),
    "negative classification": (
        changed(output("y", classification=pb.InferParameter(int64_param=-1))),
        S.INVALID_ARGUMENT,
        "invalid value for 'classification' parameter, expected >= 0",
    ),
    "classification of text": (
        text_request(raw(text(b"a", b"b")), output("y", classification=INT)),
        S.INVALID_ARGUMENT,
        "is BYTES and cannot be classified",
    ),
    "binary_data of another type": (
        changed(output("y", binary_data=INT)),
        S.INVALID_ARGUMENT,
        "invalid value type for 'binary_data' parameter, expected bool_param",
    ),
    "typed answer without a typed form": (
        changed(
            set_to(datatype="FP16"),
            shape(1, 2),
            raw(bytes(4)),
            parameter("binary_data_output", bool_param=False),
            model="f16",
        ),
        S.INVALID_ARGUMENT,
        "'FP16' has no typed form",
    ),
    # shared memory
    "unknown region": (
        changed(
            raw(),
            lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(pb.InferParameter(string_param="nope")),
            lambda r: r.inputs[0].parameters["shared_memory_byte_size"].CopyFrom(pb.InferParameter(int64_param=16)),
        ),
        S.NOT_FOUND,
        "Unable to find shared memory region: 'nope'",
    ),
    "unknown region for an output": (
        changed(
            output(
                "y",
                shared_memory_region=pb.InferParameter(string_param="nope"),
                shared_memory_byte_size=pb.InferParameter(int64_param=16),
            )
        ),
        S.NOT_FOUND,
        "Unable to find shared memory region: 'nope'",
    ),
    "region without a size": (
        changed(
            raw(),
            lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(pb.InferParameter(string_param="nope")),
        ),
        S.INVALID_ARGUMENT,
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'x'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_is_refused(server, ask, case):
    build, status, words = REFUSED[case]
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(build(ask))
    assert caught.value.code() is status, caught.value.details()
    assert words in caught.value.details()


def answer(response: pb.ModelInferResponse, name: str = "y", dtype: Any = np.float32) -> Any:
    index = [o.name for o in response.outputs].index(name)
    return np.frombuffer(response.raw_output_contents[index], dtype).reshape(tuple(response.outputs[index].shape))


ACCEPTED: dict[str, Callable[[Any], pb.ModelInferRequest]] = {
    "raw": changed(),
    "typed": changed(typed(fp32_contents=[1, 2, 3, 4])),
    "version with a space": changed(lambda r: setattr(r, "model_version", " 2")),
    "version with a fraction": changed(lambda r: setattr(r, "model_version", "2.5")),
    "custom parameters": changed(
        parameter("a", string_param="1"),
        parameter("b", bool_param=True),
        parameter("c", double_param=1.5),
        parameter("binary_data_size", int64_param=16),
    ),
    "sequence parameters": changed(
        parameter("sequence_id", int64_param=3), parameter("sequence_start", bool_param=True)
    ),
    "priority without levels": changed(parameter("priority", uint64_param=9)),
    "timeout without override": changed(parameter("timeout", int64_param=1)),
    "the allowed reserved key": changed(parameter("triton_enable_empty_final_response", bool_param=True)),
    "input parameters": changed(
        lambda r: r.inputs[0].parameters["binary_data_size"].CopyFrom(pb.InferParameter(int64_param=16))
    ),
    "output twice": changed(output("y"), output("y")),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_right_request_is_answered_raw(server, ask, case):
    response = server.infer(ACCEPTED[case](ask))
    np.testing.assert_array_equal(answer(response), 3 * X)
    assert response.model_version == "2"
    assert len(response.raw_output_contents) == len(response.outputs)


def test_the_response_names_model_version_and_id(server, ask):
    response = server.infer(changed(lambda r: setattr(r, "id", "42"))(ask))
    assert (response.model_name, response.model_version, response.id) == ("m", "2", "42")
    assert server.infer(ask("m", version="1")).model_version == "1"
    assert server.infer(ask("m")).id == ""


def test_outputs_come_in_the_models_order_and_only_those_asked_for(server, ask):
    assert [o.name for o in server.infer(ask()).outputs] == ["y", "z"]
    assert [o.name for o in server.infer(changed(output("z"), output("y"))(ask)).outputs] == ["y", "z"]
    assert [o.name for o in server.infer(changed(output("z"))(ask)).outputs] == ["z"]


@pytest.mark.parametrize("model", ["m", "nb"])
def test_a_batch_of_no_rows_is_answered_with_no_rows(server, ask, model):
    response = server.infer(ask(model, x=np.zeros((0, 4))))
    assert answer(response).shape == (0, 4)


def test_a_model_without_batching_takes_any_number_of_rows(server, ask):
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    np.testing.assert_array_equal(answer(server.infer(ask("nb", x=x))), 2 * x)


def test_a_reshape_is_undone_in_the_answer(server, ask):
    x = np.arange(3, dtype=np.float32).reshape(3, 1)
    np.testing.assert_array_equal(answer(server.infer(ask("reshaped", x=x))), x)


def test_classification_gives_value_index_and_label(server, ask):
    build = changed(output("y", classification=pb.InferParameter(int64_param=9)), output("z", classification=INT))
    response = server.infer(build(ask))
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("y", "BYTES", [1, 4]),
        ("z", "BYTES", [1, 1]),
    ]
    assert response.raw_output_contents[0] == text(b"12.000000:3:d", b"9.000000:2:c", b"6.000000:1:b", b"3.000000:0:a")
    assert response.raw_output_contents[1] == text(b"-1.000000:0")


def test_classification_without_batching_ranks_all_elements(server, ask):
    response = server.infer(changed(output("y", classification=INT), model="nb", x=[[1, 2, 3, 9], [1, 8, 1, 1]])(ask))
    assert (list(response.outputs[0].shape), response.raw_output_contents[0]) == ([1], text(b"18.000000:3"))


def test_answers_are_typed_on_request(server, ask):
    response = server.infer(changed(parameter("binary_data_output", bool_param=False))(ask))
    assert list(response.outputs[0].contents.fp32_contents) == [3, 6, 9, 12]
    assert len(response.raw_output_contents) == 0
    mixed = server.infer(changed(output("y", binary_data=pb.InferParameter(bool_param=False)), output("z"))(ask))
    assert list(mixed.outputs[0].contents.fp32_contents) == [3, 6, 9, 12]
    assert list(mixed.raw_output_contents) == [b"", (-X).tobytes()]


def test_text_comes_back_byte_for_byte(server, ask):
    data = text(b"\xff\x00", "é".encode())
    assert server.infer(text_request(raw(data))(ask)).raw_output_contents[0] == data
    typed_text = text_request(typed(bytes_contents=[b"\xff\x00", "é".encode()]))(ask)
    assert server.infer(typed_text).raw_output_contents[0] == data


def test_bytes_that_are_no_message_are_an_invalid_argument(server):
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff", timeout=10)
    assert caught.value.code() is S.INVALID_ARGUMENT
    assert "not a inference.ModelInferRequest message" in caught.value.details()


def test_an_unknown_method_is_unimplemented(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary("/inference.GRPCInferenceService/Nope")(b"", timeout=10)
    assert caught.value.code() is S.UNIMPLEMENTED


def test_names_from_a_request_are_shown_short_and_printable(server, ask):
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(ask("m\n\x1b[31m" + "x" * 5000))
    assert caught.value.details().isprintable()
    assert len(caught.value.details()) < 400


def test_an_unexpected_exception_tells_only_an_id(server, ask, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise RuntimeError("secret-7f3a /home/someone")

    monkeypatch.setattr("normfold.serving.infer.plans.find_id", broken)
    monkeypatch.setattr("normfold.serving.process.logs.LOGGER.propagate", True)
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(ask())
    assert caught.value.code() is S.INTERNAL
    identifier = caught.value.details().removeprefix("internal error, id ")
    assert len(identifier) == 12
    assert "secret" not in str(caught.value)
    assert identifier in caplog.text
    assert "secret-7f3a" in caplog.text

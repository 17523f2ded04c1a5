"""Requests like one seen before are answered without a message; their answers must be those of the message."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.protos import grpc_service as pb
from normfold.serving.plans import parts

S = grpc.StatusCode


def _y(answer: pb.ModelInferResponse) -> list[float]:
    return np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()


def test_a_request_seen_before_gets_the_answer_of_its_own_numbers(server, ask):
    for factor in (1, 2, -3):
        answer = server.infer(ask(x=[[factor, 2, 3, 4]]))
        assert _y(answer) == [3 * factor, 6, 9, 12]
        assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "")
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
            ("y", "FP32", [1, 4]),
            ("z", "FP32", [1, 4]),
        ]


@pytest.mark.parametrize("identifier", ["", "a", "b" * 200, "ä"])
def test_every_request_gets_its_own_id_back(server, ask, identifier):
    request = ask()
    request.id = identifier
    for _ in range(2):
        answer = server.infer(request)
        assert answer.id == identifier
        assert _y(answer) == [3, 6, 9, 12]


def test_heads_of_every_length_give_the_same_numbers(server, ask):
    # The raw contents begin at every alignment, and each request is asked twice: by message, then by plan.
    for length in range(9):
        request = ask()
        request.parameters["p" * (length + 1)].bool_param = True
        assert _y(server.infer(request)) == _y(server.infer(request)) == [3, 6, 9, 12]


def test_wrong_sizes_are_refused_after_a_right_request_too(server, ask):
    server.infer(ask())
    for change, said in ((lambda r: r.raw_input_contents.append(b""), "entries"), (_shorten, "byte size mismatch")):
        request = ask()
        change(request)
        with pytest.raises(grpc.RpcError) as caught:
            server.infer(request)
        assert caught.value.code() is S.INVALID_ARGUMENT
        assert said in caught.value.details()


def _shorten(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def test_a_new_version_answers_requests_seen_before(serve, models, ask, tmp_path):
    models.write(tmp_path / "m", models.scale(2.0))
    with serve(tmp_path) as one:
        assert _y(one.infer(ask())) == _y(one.infer(ask())) == [2, 4, 6, 8]
        models.write(tmp_path / "m", models.scale(5.0), 2)
        one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        assert _y(one.infer(ask())) == _y(one.infer(ask())) == [5, 10, 15, 20]
        one.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"))
        with pytest.raises(grpc.RpcError) as caught:
            one.infer(ask())
        assert caught.value.code() is S.NOT_FOUND


def test_requests_with_and_without_a_plan_are_counted_alike(serve, models, ask, tmp_path):
    models.write(tmp_path / "m", models.scale(2.0))
    with serve(tmp_path) as one:
        for _ in range(3):
            one.infer(ask(x=[[1, 2, 3, 4], [1, 2, 3, 4]]))
        (stats,) = one.call("ModelStatistics", pb.ModelStatisticsRequest(name="m")).model_stats
    counted = stats.inference_stats
    assert stats.execution_count == 3
    assert counted.success.count == counted.queue.count == counted.compute_input.count == 3
    assert counted.compute_infer.count == counted.compute_output.count == 3
    assert 0 < counted.compute_infer.ns < counted.success.ns


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_apart_or_refused(data):
    parts(data)


@given(
    st.text(max_size=5),
    st.text(max_size=200),
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(st.binary(max_size=300), max_size=3),
)
def test_the_parts_of_a_message_are_those_that_protobuf_reads(model, identifier, inputs, raw):
    message = pb.ModelInferRequest(model_name=model, id=identifier, raw_input_contents=raw)
    for name in inputs:
        message.inputs.add(name=name, datatype="FP32", shape=[1, 300])
    data = message.SerializeToString()
    found = parts(data)
    if not raw or not identifier.isascii():
        assert found is None
        return
    assert found is not None
    assert found.id.decode() == identifier
    assert [data[start:end] for start, end in found.spans] == raw
    message.ClearField("id")
    message.ClearField("raw_input_contents")
    assert pb.ModelInferRequest.FromString(found.head) == message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a field behind the raw contents", b"\x3a\x01r\x0a\x01m"),
        ("an unknown field", b"\x0a\x01m\x42\x00\x3a\x01r"),
        ("two ids", b"\x1a\x01a\x1a\x01b\x3a\x01r"),
        ("a length beyond the end", b"\x0a\x01m\x3a\x05r"),
        ("a length without an end", b"\x0a\x01m\x3a" + b"\x80" * 1000),
        ("a cut tag", b"\x0a\x01m\x3a\x01r\x3a"),
    ],
)
def test_an_unusual_form_is_left_to_protobuf(name, data):
    assert parts(data) is None

"""A large message is large by its tensors and files alone."""

from __future__ import annotations

import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.errors import InvalidRequest
from normfold.serving.wire.bounded import MOST_BYTES, MOST_BYTES_IN_ALL, MOST_FIELDS_IN_ALL, check_fields

LONG = "x" * (MOST_BYTES + 1)
REQUEST, TENSOR, VALUE = pb.ModelInferRequest, pb.ModelInferRequest.InferInputTensor, pb.InferParameter


def check(message) -> None:
    check_fields(message.SerializeToString(), message.DESCRIPTOR)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (REQUEST(model_name=LONG), "model_name"),
        (REQUEST(id=LONG), "id"),
        (REQUEST(parameters={LONG: VALUE(bool_param=True)}), "key"),
        (REQUEST(parameters={"a": VALUE(string_param=LONG)}), "string_param"),
        (REQUEST(inputs=[TENSOR(name=LONG)]), "name"),
        (REQUEST(inputs=[TENSOR(shape=[1] * (MOST_BYTES + 1))]), "shape"),
        (REQUEST(inputs=[TENSOR(parameters={LONG: VALUE()})]), "key"),
        (REQUEST(outputs=[{"name": LONG}]), "name"),
        (pb.RepositoryModelLoadRequest(parameters={"config": {"string_param": LONG}}), "string_param"),
    ],
)
def test_a_long_text_or_shape_is_refused_wherever_it_is(message, field):
    with pytest.raises(InvalidRequest, match=f"^{field} has at most 1048576 bytes, this one has 1048577$"):
        check(message)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (REQUEST(inputs=[TENSOR()] * 4097), "ModelInferRequest"),
        (REQUEST(raw_input_contents=[b""] * 4097), "ModelInferRequest"),
        (REQUEST(inputs=[TENSOR(parameters={str(n): VALUE() for n in range(4097)})]), "InferInputTensor"),
    ],
)
def test_many_fields_are_refused_wherever_they_are(message, kind):
    with pytest.raises(InvalidRequest, match=f"^a large message has at most 4096 fields, this {kind} has more$"):
        check(message)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (TENSOR(parameters={str(n): VALUE() for n in range(4000)}), f"at most {MOST_FIELDS_IN_ALL} fields in all"),
        (TENSOR(shape=[1] * MOST_BYTES), f"at most {MOST_BYTES_IN_ALL} bytes together"),
    ],
)
def test_what_each_tensor_may_have_is_bounded_for_all_together(tensor, words):
    """Each of 4096 tensors may be within its own bounds; a thread would be busy for minutes, or protobuf take GBs."""
    check(REQUEST(inputs=[tensor] * 3))
    with pytest.raises(InvalidRequest, match=words):
        check(REQUEST(inputs=[tensor] * 20))


def test_tensors_and_files_may_be_of_any_size():
    large = bytes(2 * MOST_BYTES)
    check(REQUEST(raw_input_contents=[large] * 3))
    check(REQUEST(inputs=[TENSOR(contents={"fp32_contents": [1.0] * MOST_BYTES})]))
    check(REQUEST(inputs=[TENSOR(contents={"bytes_contents": [b"x"] * 10_000})]))
    check(pb.RepositoryModelLoadRequest(parameters={"file:1/model.onnx": {"bytes_param": large}}))


def test_bytes_that_are_no_message_are_no_message():
    for data in (b"\x0a", b"\x0b\x0c", b"\x2a\x02\x0a\x05"):
        with pytest.raises(ValueError, match=r"."):
            check_fields(data, REQUEST.DESCRIPTOR)

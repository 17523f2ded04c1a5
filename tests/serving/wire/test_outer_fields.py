"""The model's name is found without protobuf, and is always the one that protobuf finds."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from normfold.protos import grpc_service as pb
from normfold.serving.wire.outer_fields import MOST_FIELDS, small_fields, text_field
from normfold.serving.wire.varint import varint

WHOLE = pb.ModelInferRequest(
    model_name="m", model_version="1", id="i" * 200, raw_input_contents=[bytes(300)], inputs=[{"name": "x"}]
).SerializeToString()


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", ""),
        (WHOLE, "m"),
        (WHOLE + field(1, b"other"), "other"),
        (field(1, b"a") + field(1, b"b"), "b"),
        (b"\x8a\x00\x01m", "m"),  # a tag in two bytes where one is enough
        (b"\x08\x05" + field(1, b"m"), "m"),  # field 1 as a number means nothing
        (b"\x09" + bytes(8) + b"\x0d" + bytes(4) + field(1, b"m"), "m"),
        (field(99, field(1, b"inner")) + field(1, b"m"), "m"),
    ],
)
def test_the_name_is_the_one_that_protobuf_reads(data, name):
    assert text_field(data, 1) == name == pb.ModelInferRequest.FromString(data).model_name


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05m",
        b"\x08",
        b"\x08\x80",
        b"\x0b\x0c",
        b"\x0a\xff\xff\xff\xff\xff\x01m",
        b"\xff" * 4 + b"\x7f",
        b"\x0a\x01\xff",
        b"\x0a\x00" * (MOST_FIELDS + 1),  # a message for protobuf; to look at each field would take too long here
        b"\x08" + b"\x80" * 20 + b"\x01",
    ],
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(ValueError, match=r"."):
        text_field(data, 1)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(field, st.integers(1, 8), st.binary(max_size=200)),
            st.binary(max_size=6),
            st.just(WHOLE),
            st.builds(lambda n, v: varint(n << 3) + varint(v), st.integers(1, 8), st.integers(0, 1 << 63)),
        ),
        max_size=5,
    ),
    st.integers(0, 400),
)
def test_whatever_protobuf_accepts_has_the_same_name_or_is_refused(parts, cut):
    data = b"".join(parts)
    data = data[: len(data) - cut] if cut < len(data) // 2 else data
    try:
        name = pb.ModelInferRequest.FromString(data).model_name
    except DecodeError:
        return
    try:
        found = text_field(data, 1)
    except ValueError:
        return
    assert found == name


def test_a_long_text_is_cut_before_it_is_decoded():
    assert text_field(field(1, b"n" * 10_000), 1) == "n" * 4096
    assert text_field(field(1, b"n" + "é".encode() * 10_000), 1) == "n" + "é" * 2047


def test_some_fields_make_a_message_of_their_own():
    request = pb.ModelInferRequest(model_name="m", id="seven", raw_input_contents=[bytes(1 << 20)])
    request.parameters["a"].bool_param = True
    found = small_fields(request.SerializeToString(), (3, 4), 100)
    assert pb.ModelInferRequest.FromString(found) == pb.ModelInferRequest(id="seven", parameters=request.parameters)


def test_a_field_that_would_make_it_too_long_is_left_out():
    data = field(3, b"a" * 90) + field(3, b"b" * 90) + field(4, b"")
    assert small_fields(data, (3, 4), 100) == field(3, b"a" * 90) + field(4, b"")
    assert small_fields(b"\x2a\x00" * MOST_FIELDS + field(3, b"behind"), (3, 4), 100) == b""


@pytest.mark.parametrize("data", [b"\x0a", b"\x08", b"\x0b\x0c", b"\x1a\x05m"])
def test_some_fields_of_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(ValueError, match=r"."):
        small_fields(data, (3, 4), 100)

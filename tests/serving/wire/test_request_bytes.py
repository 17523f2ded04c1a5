"""A request is taken apart without protobuf: what is found must be what protobuf reads, or nothing."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from normfold.protos import grpc_service as pb
from normfold.serving.wire.request_bytes import MOST_FIELDS, decisive_bytes, find_id, id_text, model_named, parts
from normfold.serving.wire.varint import varint


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


INPUT = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 300]).SerializeToString()
#: Fields in any order, most of them such that protobuf reads them; field 8 is none of ModelInferRequest.
FIELDS = st.builds(
    field,
    st.integers(1, 8),
    st.one_of(st.just(b""), st.just(INPUT), st.binary(max_size=6), st.text(max_size=50).map(str.encode)),
)
#: One field of raw contents, so that most examples can be taken apart.
RAW = st.builds(field, st.just(7), st.binary(max_size=300))
ANY = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda head, raw: b"".join([*head, *raw]), st.lists(FIELDS, max_size=5), st.lists(RAW, max_size=2)),
    st.builds(lambda head, raw, cut: b"".join([*head, raw])[:-cut], st.lists(FIELDS), RAW, st.integers(1, 20)),
)


def read(data: bytes) -> pb.ModelInferRequest | None:
    """The message that protobuf reads, if it reads one."""
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return None


@given(ANY)
def test_any_bytes_are_taken_apart_as_protobuf_reads_them_or_refused(data):
    found, message = parts(data), read(data)
    if found is None or message is None:  # plans are only made of messages that protobuf read
        return
    assert [data[start:end] for start, end in found.spans] == list(message.raw_input_contents)
    start, end = found.id
    assert id_text(data[start:end]) == message.id
    message.ClearField("id")
    assert pb.ModelInferRequest.FromString(data[:start] + data[end:]) == message


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
    if not raw:
        assert found is None
        return
    assert found is not None
    assert [data[start:end] for start, end in found.spans] == raw
    start, end = found.id
    assert pb.ModelInferRequest.FromString(data[start:end]).id == id_text(data[start:end]) == identifier
    message.ClearField("id")
    assert data[:start] + data[end:] == message.SerializeToString()
    if model and len(identifier.encode()) < 128:
        assert [find_id(data)[0] - find_id(data)[1], data[slice(*find_id(data))]] == [start - end, data[start:end]]


@pytest.mark.parametrize("size", [0, 127, 128, (1 << 14) - 1, 1 << 14, (1 << 21) - 1, 1 << 21])
def test_lengths_of_any_number_of_bytes_are_read(size):
    data = pb.ModelInferRequest(model_name="m" * size, raw_input_contents=[bytes(size)]).SerializeToString()
    (span,) = parts(data).spans
    assert span == (len(data) - size, len(data))


@given(st.binary(max_size=60))
def test_the_id_of_any_bytes_begins_before_it_ends_or_is_refused(data):
    start, end = find_id(data)
    assert 0 <= start <= end


@pytest.mark.parametrize(("name", "version"), [("m" * 127, ""), ("m", "1" * 127), ("m" * 127, "1" * 127)])
def test_the_id_is_found_behind_a_name_and_a_version_of_one_byte_of_length(name, version):
    data = pb.ModelInferRequest(model_name=name, model_version=version, id="a").SerializeToString()
    assert data[slice(*find_id(data))] == b"\x1a\x01a"


@pytest.mark.parametrize(("name", "version"), [("m" * 128, ""), ("m" * 127 + "\x1a", ""), ("m", "1" * 127 + "\x1a")])
def test_no_id_is_seen_where_a_longer_name_or_version_ends(name, version):
    for identifier in ("", "a"):
        data = pb.ModelInferRequest(model_name=name, model_version=version, id=identifier).SerializeToString()
        start, end = find_id(data + b"\x3a\x01r")
        assert start == end


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a field behind the raw contents", b"\x3a\x01r\x0a\x01m"),
        ("an unknown field", b"\x0a\x01m\x42\x00\x3a\x01r"),
        ("two ids", b"\x1a\x01a\x1a\x01b\x3a\x01r"),
        ("a length beyond the end", b"\x0a\x01m\x3a\x05r"),
        ("a length without an end", b"\x0a\x01m\x3a" + b"\x80" * 1000),
        ("a cut tag", b"\x0a\x01m\x3a\x01r\x3a"),
        ("too many fields", b"\x0a\x01m" * MOST_FIELDS + b"\x3a\x01r"),
    ],
)
def test_an_unusual_form_is_left_to_protobuf(name, data):
    assert parts(data) is None


def test_the_decisive_bytes_hold_the_whole_name_and_version_or_there_are_none():
    for version in ("", "2"):
        for request_id in ("", "seven"):
            request = pb.ModelInferRequest(model_name="m", model_version=version, id=request_id)
            request.inputs.add(name="x")
            data = request.SerializeToString()
            first = data[: decisive_bytes(data)]
            assert first.startswith(pb.ModelInferRequest(model_name="m", model_version=version).SerializeToString())
            assert len(first) < len(data)
    turned = b"\x22\x03\x0a\x01p\x0a\x01m"  # parameters before the name, which protobuf does not write
    assert pb.ModelInferRequest.FromString(turned).model_name == "m"
    assert decisive_bytes(turned) == 0


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\n\1m\x12\0012", ("m", "2")),
        (b"\n\1m\x1a\0012", ("m", "")),  # an id
        (b"\n\1m\x12", ("m", "")),
        (b"\n\1m\x12\x80\1" + b"2" * 128, ("m", "")),
        (b"\n\x7f" + b"m" * 127, ("m" * 127, "")),
        (b"\n\x80\1" + b"m" * 128, None),
        (b"\n\1\xff", None),
        (b"\x12\1m", None),
        (b"\n", None),
        (b"", None),
    ],
)
def test_a_short_name_and_version_at_the_usual_place_are_read(data, found):
    assert model_named(data) == found

"""Large contents of a request are read without protobuf, and mean the same."""

from __future__ import annotations

import os
import random
from unittest.mock import Mock

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.grammar import Grammar

from normfold.protos import grpc_service as pb
from normfold.serving.errors import InvalidRequest, NotFound
from normfold.serving.infer import inference
from normfold.serving.infer.inputs import gather
from normfold.serving.wire import lifted
from normfold.serving.wire.fields import sized
from normfold.serving.wire.lifted import SMALL_BYTES, SMALL_COPY_BYTES, Packed, Strings, aligned, lift, unpacked
from normfold.serving.wire.outer_fields import MOST_FIELDS
from normfold.serving.wire.typed import Typed
from normfold.serving.wire.varint import varint

COUNT = SMALL_BYTES // 8 * 9
#: The elements of each field: with numbers of every length, the least and the largest.
LARGE = {
    "bool_contents": [True, False, True] * COUNT,
    "int_contents": [0, -1, 1, 300, -(1 << 31), (1 << 31) - 1] * COUNT,
    "int64_contents": [0, -1, 127, 128, -(1 << 63), (1 << 63) - 1] * COUNT,
    "uint_contents": [0, 1, 300, (1 << 32) - 1] * COUNT,
    "uint64_contents": [0, 1 << 35, (1 << 64) - 1] * COUNT,
    "fp32_contents": [0.5, -2.0] * COUNT,
    "fp64_contents": [0.1, -2.0] * COUNT,
    "bytes_contents": [b"", b"one", b"\xff" * 200] * (COUNT // 16),
}


def asked(**contents: object) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", id="seven")
    request.inputs.add(name="before", datatype="INT8", shape=[1]).contents.int_contents.append(5)
    request.inputs.add(name="x", datatype="T", shape=[2, 3], contents=pb.InferTensorContents(**contents))
    request.inputs[1].parameters["p"].int64_param = 7
    request.outputs.add(name="y")
    return request


@pytest.mark.parametrize("field", LARGE)
def test_large_typed_contents_are_those_that_protobuf_reads(field):
    request = asked(**{field: LARGE[field]})
    data = request.SerializeToString()
    rest, found = lift(data)
    assert not found.raw
    assert list(found.typed) == [1]
    numbers = found.typed[1]
    if isinstance(numbers, Strings):
        assert len(numbers) == len(LARGE[field])
        assert found.unread_strings[0] == len(LARGE[field])
        numbers = numbers.elements()
    elif isinstance(numbers, Packed):
        assert found.unread_bytes == numbers.nbytes
        numbers = numbers.numbers()
        assert found.unread_bytes == numbers.nbytes
    assert list(numbers) == LARGE[field]
    left = pb.ModelInferRequest.FromString(rest)
    assert len(getattr(left.inputs[1].contents, field)) == 1
    left.inputs[1].contents.CopyFrom(request.inputs[1].contents)
    assert left == request


def test_large_raw_contents_are_not_copied():
    request = asked(int_contents=[1])
    request.raw_input_contents.extend([b"a", bytes(SMALL_BYTES + 1), b"", b"b" * (SMALL_BYTES + 2)])
    data = request.SerializeToString()
    rest, found = lift(data)
    assert list(pb.ModelInferRequest.FromString(rest).raw_input_contents) == [b"a", b"", b"", b""]
    assert {at: view.tobytes() for at, view in found.raw.items()} == {
        at: request.raw_input_contents[at] for at in (1, 3)
    }
    assert all(view.obj is data for view in found.raw.values())


def test_packed_numbers_are_counted_and_not_read_until_they_are_wanted(monkeypatch):
    """One byte each, they would take eight times the memory of the request."""
    monkeypatch.setattr(lifted, "unpacked", Mock(side_effect=AssertionError))
    _, found = lift(asked(int64_contents=[1] * (SMALL_BYTES + 1)).SerializeToString())
    assert found.unread_bytes == 8 * (SMALL_BYTES + 1)


@pytest.mark.parametrize(("field", "value"), [("int64_contents", 1), ("bytes_contents", b"")])
def test_many_small_contents_are_not_read_either(field, value):
    """protobuf would make eight times as much of them, and the request may be refused for its first input."""
    request = asked(**{field: [value] * (SMALL_BYTES // 4)})
    request.inputs.extend([request.inputs[1]] * 20)
    data = request.SerializeToString()
    rest, found = lift(data)
    assert len(data) > 5 * SMALL_BYTES
    assert len(rest) <= SMALL_BYTES + 100 * len(request.inputs)
    assert not any(isinstance(one, np.ndarray | list) for one in found.typed.values())


def test_small_contents_are_left_as_they_are():
    data = asked(int_contents=[1, 2, 3]).SerializeToString()
    rest, found = lift(data)
    assert rest is data
    assert not found.typed
    assert not found.raw


def test_a_tag_of_more_bytes_than_it_needs_counts_like_any_other():
    """protobuf writes none, and reads them: the inputs behind it must keep their numbers."""
    small = pb.ModelInferRequest.InferInputTensor(name="a").SerializeToString()
    large = asked(int_contents=LARGE["int_contents"]).inputs[1].SerializeToString()
    data = b"\xaa\x00" + varint(len(small)) + small + b"\x28\x05" + sized(5, large)  # the second one is no message
    rest, found = lift(data)
    assert list(found.typed) == [1]
    assert [tensor.name for tensor in pb.ModelInferRequest.FromString(rest).inputs] == ["a", "x"]


@pytest.mark.parametrize(
    "contents",
    [
        b"\x18\x01" * SMALL_BYTES,  # numbers that are not packed
        sized(3, bytes(SMALL_BYTES)) + sized(3, b"\1"),
        sized(3, bytes(SMALL_BYTES)) + sized(8, b"one"),
        sized(8, bytes(SMALL_BYTES)) + sized(3, b"\1"),
        sized(9, bytes(SMALL_BYTES)),
    ],
)
def test_large_contents_that_protobuf_would_read_slowly_are_refused(contents):
    with pytest.raises(InvalidRequest, match="send raw_input_contents"):
        lift(sized(5, sized(1, b"x") + sized(5, contents)))


def test_two_large_contents_of_one_tensor_are_refused():
    contents = sized(5, sized(3, bytes(SMALL_BYTES)))
    with pytest.raises(InvalidRequest, match="more than one contents field"):
        lift(sized(5, contents + contents))


@pytest.mark.parametrize(
    "contents", [sized(3, b"\xff" * SMALL_BYTES), sized(6, bytes(SMALL_BYTES + 1)), b"\x1a" + b"\xff" * SMALL_BYTES]
)
def test_what_is_no_message_is_refused_before_protobuf_reads_it(contents):
    data = sized(5, sized(5, contents))
    with pytest.raises(ValueError, match=r"."):
        lift(data)
    with pytest.raises(InvalidRequest, match=f"^{len(data)} bytes that are not"):
        inference._parsed(data, True)


def test_a_request_that_is_cut_short_is_no_request_however_many_fields_it_has():
    name = sized(1, b"m")
    for count in (MOST_FIELDS - 2, MOST_FIELDS - 1, MOST_FIELDS):
        cut = name * count + b"\x3a" + varint(2 * SMALL_BYTES) + bytes(SMALL_BYTES + 1)
        with pytest.raises(InvalidRequest, match=f"{len(cut)} bytes that are not|at most {MOST_FIELDS} fields"):
            inference._parsed(cut, True)


def test_the_size_of_what_is_no_request_is_that_which_was_sent():
    data = sized(7, bytes(SMALL_BYTES + 1)) + b"\x0a\x01\xff"
    with pytest.raises(InvalidRequest, match=f"^{len(data)} bytes that are not"):
        inference._parsed(data, True)


@given(st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 300), max_size=40), st.integers(10, 30))
def test_numbers_are_read_in_pieces_wherever_these_end(values, piece_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifted, "_PIECE_BYTES", piece_bytes)
        found = unpacked(memoryview(b"".join(map(varint, values))), np.dtype(np.uint64), len(values))
    assert found.dtype == np.uint64
    assert found.tolist() == values


NO_REGIONS = Mock(check=Mock(side_effect=NotFound("no such region")))
#: Refusals of forms that protobuf would read and does not write.
PLAIN = ("send raw_input_contents", "a tensor has more than one contents field")


def contents_of(data: bytes, small_bytes: int) -> dict[str, list]:
    """The elements of every input, as the server gathers them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifted, "SMALL_BYTES", small_bytes)
        rest, found = lift(data)
    request = pb.ModelInferRequest.FromString(rest)
    gathered = gather(request, "m", NO_REGIONS, found)
    return {
        name: one.values.elements()
        if isinstance(one, Typed) and isinstance(one.values, Strings)
        else [getattr(value, "item", lambda value=value: value)() for value in one.values]
        if isinstance(one, Typed)
        else list(memoryview(one))
        for name, one in gathered.items()
    }


@settings(max_examples=int(os.environ.get("NORMFOLD_EXAMPLES", "400")), deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 12), st.booleans())
def test_whatever_is_lifted_means_what_protobuf_reads(seed, small_bytes, broken):
    """Requests of any form, with bytes changed: the same elements or refusal, or a refusal that says what to send."""
    chance = random.Random(seed)
    grammar = Grammar(chance, ("m",))
    request = asked(**{field: LARGE[field][: chance.randrange(12)] for field in chance.sample(list(LARGE), 1)})
    if chance.random() < 0.3:
        for tensor in request.inputs:
            tensor.ClearField("contents")
        request.raw_input_contents.extend([b"a" * chance.randrange(20), b"b" * chance.randrange(20)])
    message = grammar.changed(request) if chance.random() < 0.5 else request
    data = message.SerializeToString(deterministic=True)
    data = grammar.broken(data) if broken else data
    try:
        whole: object = contents_of(data, 1 << 30)
    except (DecodeError, ValueError):
        whole = "no message"
    except (InvalidRequest, NotFound) as error:
        whole = type(error), str(error)
    try:
        found: object = contents_of(data, small_bytes)
    except (DecodeError, ValueError):
        found = "no message"
    except (InvalidRequest, NotFound) as error:
        if str(error).endswith(PLAIN):
            return
        found = type(error), str(error)
    assert repr(found) == repr(whole)


@pytest.mark.parametrize("size", [4, SMALL_COPY_BYTES, SMALL_COPY_BYTES + 4])
def test_numbers_are_copied_only_where_they_are_not_aligned_and_few_of_them_without_a_pause(size):
    data = np.random.default_rng(0).bytes(size + 1)
    whole = np.frombuffer(data, "<f4", size // 4)
    assert np.shares_memory(aligned(memoryview(data)[:size], np.dtype("<f4")), whole)
    moved = aligned(memoryview(data)[1:], np.dtype("<f4"))
    assert moved.flags.aligned
    assert moved.tobytes() == data[1:]
    # NumPy gives the interpreter away while it copies, and Python does not
    assert isinstance(moved.base, bytes) == (size <= SMALL_COPY_BYTES)

"""Arrays to bytes and back, strings without losing a byte, typed contents by their wire form, classes as text."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import DATATYPES, by_name
from normfold.serving.errors import InvalidRequest
from normfold.serving.wire.classification import classify, read_labels
from normfold.serving.wire.strings import to_bytes, to_text
from normfold.serving.wire.tensors import split_elements, to_array, to_raw
from normfold.serving.wire.typed import Typed, fill_typed, read_typed

AWKWARD = [
    b"",
    b"\0",
    b"abc\0",
    "é\U0010ffff\U0010ff80".encode(),
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf4\x8f\xbe\x80\xff",
]


@given(st.binary())
def test_any_bytes_become_a_string_and_the_same_bytes_again(data):
    text = to_text(data)
    text.encode()  # onnxruntime takes no surrogates
    assert to_bytes(text) == data


@given(st.text(st.characters(exclude_categories=["Cs", "Co"])))
def test_text_goes_through_as_itself(text):
    assert to_text(text.encode()) == text


@given(st.lists(st.sampled_from(AWKWARD) | st.binary(max_size=6), min_size=2, max_size=2))
def test_different_bytes_are_different_strings(pair):
    assert (to_text(pair[0]) == to_text(pair[1])) == (pair[0] == pair[1])


@pytest.mark.parametrize("data", AWKWARD)
def test_awkward_bytes_come_back(data):
    assert to_bytes(to_text(data)) == data


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_bytes_elements_survive_their_length_prefixes(elements):
    array = np.empty(len(elements), object)
    array[:] = elements
    raw = to_raw(array, by_name("BYTES"))
    assert raw == b"".join(struct.pack("<I", len(e)) + e for e in elements)
    assert split_elements(raw, len(elements), "input 'x'") == elements


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_as_bytes_elements_are_read_or_refused(data, count):
    with contextlib.suppress(InvalidRequest):
        assert len(split_elements(data, count, "input 'x'")) == count


def test_big_endian_arrays_are_written_little_endian():
    assert to_raw(np.array([1], ">i4"), by_name("INT32")) == b"\1\0\0\0"


def test_no_memory_is_taken_for_a_shape_before_its_bytes_are_there():
    with pytest.raises(InvalidRequest, match="Expected 340282366920938463463374607431768211456, got 8"):
        to_array(bytes(8), (1 << 62, 1 << 63), by_name("FP64"), "input 'x'", "")


@pytest.mark.parametrize(("datatype", "data"), [("FP32", b""), ("BYTES", b""), ("BYTES", Typed(()))])
def test_sizes_beside_one_of_zero_that_no_array_can_have_are_refused(datatype, data):
    assert to_array(data, (0, 1 << 40), by_name(datatype), "'x'", "").shape == (0, 1 << 40)
    with pytest.raises(InvalidRequest, match=r"^no array has the sizes \[0,4611686018427387904\] of input 'x'$"):
        to_array(data, (0, 1 << 62), by_name(datatype), "'x'", "")


NUMERIC = [d for d in DATATYPES if d.contents_field and d.name != "BYTES"]


@pytest.mark.parametrize("datatype", NUMERIC, ids=lambda d: d.name)
def test_typed_contents_are_what_protobuf_says(datatype):
    if datatype.dtype.kind in "iu":
        bounds = np.iinfo(datatype.dtype)
        array = np.array([bounds.min, 0, 1, bounds.max], datatype.dtype)
    elif datatype.name == "BOOL":
        array = np.array([True, False, True])
    else:
        array = np.array([0.0, -0.0, 1.5, np.inf, np.nan, np.finfo(datatype.dtype).tiny], datatype.dtype)
    contents = pb.InferTensorContents()
    fill_typed(contents, array, datatype)
    np.testing.assert_array_equal(np.array(getattr(contents, datatype.contents_field), datatype.dtype), array)
    by_hand = pb.InferTensorContents()
    getattr(by_hand, datatype.contents_field).extend(array.tolist())
    read = read_typed(by_hand, datatype.name, "'x'").values
    assert np.asarray(read, datatype.dtype).tobytes() == array.tobytes()


@pytest.mark.parametrize("datatype", NUMERIC, ids=lambda d: d.name)
def test_typed_contents_may_be_empty_and_long(datatype):
    for count in (0, 1, 127, 128, 20_000):
        array = np.ones(count, datatype.dtype)
        contents = pb.InferTensorContents()
        fill_typed(contents, array, datatype)
        assert len(getattr(contents, datatype.contents_field)) == count
        assert len(read_typed(contents, datatype.name, "'x'").values) == count


def test_unknown_fields_beside_typed_contents_are_passed_over():
    wire = pb.InferTensorContents(fp32_contents=[1, 2]).SerializeToString()
    for contents in (b"\x7a\x03abc" + wire, wire + b"\x7a\x03abc"):
        values = read_typed(pb.InferTensorContents.FromString(contents), "FP32", "'x'").values
        np.testing.assert_array_equal(values, np.array([1, 2], np.float32))


def test_elements_sent_one_by_one_are_read_as_packed_ones():
    wire = b"".join(b"\x35" + struct.pack("<f", v) for v in (1.0, 2.0))  # field 6, one 32-bit value each
    values = read_typed(pb.InferTensorContents.FromString(wire), "FP32", "'x'").values
    np.testing.assert_array_equal(values, np.array([1, 2], np.float32))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("INT8", "int_contents", 128), ("INT16", "int_contents", -32769), ("UINT8", "uint_contents", 256)],
)
def test_a_number_that_does_not_fit_is_refused_and_not_wrapped(name, field, value):
    with pytest.raises(InvalidRequest, match=f"{value} at element 1 does not fit '{name}'"):
        read_typed(pb.InferTensorContents(**{field: [0, value]}), name, "'x'")


def test_classes_are_ranked_per_row_best_first():
    scores = np.array([[0.1, 0.7, 0.2], [3.0, 1.0, 2.0]], np.float32)
    assert classify(scores, 2, ["a", "b", "c"], batched=True).tolist() == [
        [b"0.700000:1:b", b"0.200000:2:c"],
        [b"3.000000:0:a", b"2.000000:2:c"],
    ]
    assert classify(scores, 1, [], batched=False).tolist() == [b"3.000000:3"]


def test_classes_of_every_numeric_type_ties_and_nan():
    assert classify(np.array([[1, 3, 3]], np.int64), 9, ["a"], True).tolist() == [[b"3:1", b"3:2", b"1:0:a"]]
    assert classify(np.array([[0, 2**64 - 1]], np.uint64), 1, [], True).tolist() == [[b"18446744073709551615:1"]]
    assert classify(np.array([[np.nan, -np.inf, 1]], np.float64), 3, [], True).tolist() == [
        [b"1.000000:2", b"-inf:1", b"nan:0"]
    ]
    assert classify(np.array([[0.5, 2]], np.float16), 1, [], True).tolist() == [[b"2.000000:1"]]
    bits = (np.array([[0.5, 2]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert classify(bits, 1, [], True, "BF16").tolist() == [[b"2.000000:1"]]
    assert classify(np.array([[False, True]]), 1, [], True).tolist() == [[b"1.000000:1"]]
    assert classify(np.zeros((0, 3), np.float32), 2, [], True).shape == (0, 2)


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (b"a\nb\n", ("a", "b")),
        (b"a\r\nb", ("a", "b")),
        (b"", ()),
        (b"a\n\nb\n", ("a", "", "b")),
        ("é".encode(), ("é",)),
        (b"\xef\xbb\xbfa\nb\n", ("a", "b")),
    ],
)
def test_labels_are_one_a_line(data, labels):
    assert read_labels(data) == labels

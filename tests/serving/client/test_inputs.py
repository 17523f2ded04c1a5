"""Numbers without a dtype of their own become the model's datatype, or an error that names the number that cannot."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from normfold.serving.client.inputs import as_declared, as_given, by_input_name
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata


@pytest.mark.parametrize(
    ("value", "datatype", "dtype"),
    [
        ([1, 2.5], "FP32", "float32"),
        ([1.0, 2.0], "INT64", "int64"),
        ([0, 1], "BOOL", "bool"),
        ([True, False], "INT8", "int8"),
        ([[1e-9]], "FP16", "float16"),
        ([float("inf"), float("nan")], "FP32", "float32"),
        (7, "UINT8", "uint8"),
    ],
)
def test_numbers_get_the_models_datatype(value, datatype, dtype):
    array, declared = as_declared("x", value, datatype)
    assert (array.dtype.name, declared.name) == (dtype, datatype)
    np.testing.assert_array_equal(array, np.asarray(value).astype(dtype))


@pytest.mark.parametrize("value", [[2**63 + 5, 7], [[2**64 - 1], [0]], [np.uint64(2**63 + 5), 7], [True, 2**63 + 1]])
def test_integers_on_both_sides_of_2_to_the_63_are_sent_as_they_are(value):
    """NumPy makes floats of them."""
    assert as_declared("x", value, "UINT64")[0].tolist() == np.asarray(value, object).tolist()


@pytest.mark.parametrize(
    ("value", "datatype", "sent"),
    [
        ([1.0, 2**53 + 1], "INT64", [1, 2**53 + 1]),
        ([[np.float32(2)], [2**64 - 1]], "UINT64", [[2], [2**64 - 1]]),
        (2.0, "INT8", 2),
        ([], "INT8", []),
        ([np.True_, -1.0, 2**62 + 1], "INT64", [1, -1, 2**62 + 1]),
    ],
)
def test_an_integer_beside_floats_is_sent_as_it_is(value, datatype, sent):
    assert as_declared("x", value, datatype)[0].tolist() == sent


@pytest.mark.parametrize("value", [2**64, [2**64, 7], [[0.5], [-(2**70)]], [np.float32(0.5), True, 2**65]])
@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", np.float32), ("FP64", np.float64)])
def test_integers_of_more_than_64_bits_are_sent_as_floats(value, datatype, dtype):
    """NumPy keeps them as objects."""
    array, _ = as_declared("x", value, datatype)
    assert array.dtype == dtype
    assert array.tolist() == np.asarray(value, object).astype(float).tolist()


@pytest.mark.parametrize(
    ("value", "datatype", "said"),
    [
        ([1.5, 2], "INT64", "is not INT64: it holds 1.5"),
        ([1, 300], "INT8", "is not INT8: it holds 300"),
        ([1, -1], "UINT8", "is not UINT8: it holds -1"),
        ([0, 2], "BOOL", "is not BOOL: it holds 2"),
        ([1e300], "INT64", r"is not INT64: it holds 1e\+300"),
        ([1, 1e6], "FP16", "is not FP16: it holds 1000000.0"),
        ([float("nan")], "INT64", "is not INT64: it holds nan"),
        ([1, 2**64], "UINT64", f"is not UINT64: it holds {2**64}"),
        ([[-1], [2**63]], "UINT64", "is not UINT64: it holds -1"),
        ([-1, 2**63], "INT64", f"is not INT64: it holds {2**63}"),
        ([1.5, 2**63], "UINT64", "is not UINT64: it holds 1.5"),
        ([1.0, -(2**63) - 1], "INT64", f"is not INT64: it holds {-(2**63) - 1}"),
        ([0.5, 2**64], "UINT64", "is not UINT64: it holds 0.5"),
        ([1, 10**5000], "INT64", "is not INT64: it holds an integer of 16610 bits"),
        ([1, -(10**5000)], "FP64", "is not FP64: it holds an integer of 16610 bits"),
        ([1, 2**128], "FP32", "is not FP32: it holds 3.4"),
        ([1j], "FP32", "is not FP32: it holds complex numbers"),
        (["1"], "FP32", "is not FP32: it holds text"),
        ([np.ma.masked_equal([1.0, 2.0], 2), [3.0, 4.0]], "FP32", r"masked array.*x\.filled\(0\)"),
        ([[1.0], (np.ma.masked,)], "FP32", r"masked array.*x\.filled\(0\)"),
        ([[[np.ma.masked_equal([1, 2], 2)]]], "INT32", r"masked array.*x\.filled\(0\)"),
        ([np.datetime64("2026-01-01")], "INT64", r"is not INT64: it holds datetime64\[D\]"),
        ([np.timedelta64(3, "s")], "INT64", r"is not INT64: it holds timedelta64\[s\]"),
        ([None, 1], "FP32", r"holds None \(null\)"),
        ([1, 2], "BYTES", "is text"),
        ([1], "BF16", "ml_dtypes.bfloat16"),
    ],
)
def test_a_number_that_would_change_is_refused(value, datatype, said):
    with pytest.raises(ValueError, match=said):
        as_declared("x", value, datatype)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ([["a\0", "b"]], [[b"a\0", b"b"]]),
        ([[b"a\0", "b"]], [[b"a\0", b"b"]]),
        ((("é\0",), ("\0",)), [["é\0".encode()], [b"\0"]]),
        ([b"\xff", "é\0"], [b"\xff", "é\0".encode()]),
        ([np.str_("a\0"), np.bytes_(b"b\0")], [b"a\0", b"b\0"]),
        ([np.array(["a", "b"])], [[b"a", b"b"]]),
        (np.array([["a\0", b"b\0"]], object), [[b"a\0", b"b\0"]]),
        (deque(["a\0", "b"]), [b"a\0", b"b"]),
        (["", ""], [b"", b""]),
        ("a\0", b"a\0"),
        (b"a\0", b"a\0"),
        (np.str_("a\0"), b"a\0"),
    ],
)
def test_text_keeps_every_nul(value, sent):
    for array, datatype in (as_given("x", value), as_declared("x", value, "BYTES")):
        assert (array.tolist(), array.dtype, datatype.name) == (sent, object, "BYTES")


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 1 has no such type")
def test_numpys_own_type_of_text_is_sent_as_text():
    array = np.array([["é", "b\0c"], ["", "d"]], np.dtypes.StringDType())
    sent = [["é".encode(), b"b\0c"], [b"", b"d"]]
    for read, datatype in (as_given("x", array), as_declared("x", array, "BYTES"), as_declared("x", [*array], "BYTES")):
        assert (read.tolist(), read.dtype, datatype.name) == (sent, object, "BYTES")


@pytest.mark.parametrize("part", [np.s_[:], np.s_[::-1, ::2], np.s_[1, 0], np.s_[:0]])
def test_bfloat16_is_sent_as_its_bits(part):
    numbers = np.array([[1.0, -2.5, 0.0], [3.0, np.inf, 1e-30]], pytest.importorskip("ml_dtypes").bfloat16)[part]
    sent, datatype = as_given("x", numbers)
    assert (datatype.name, sent.dtype) == ("BF16", np.uint16)
    np.testing.assert_array_equal(sent.astype(np.uint32) << 16, np.array(numbers, np.float32).view(np.uint32))


def test_bfloat16_from_a_file_of_numpy_is_sent_as_its_bits(tmp_path):
    numbers = np.array([[1.0, -2.5], [3.0, 0.0]], pytest.importorskip("ml_dtypes").bfloat16)
    np.save(tmp_path / "x.npy", numbers)
    loaded = np.load(tmp_path / "x.npy")
    for given, wanted in ((loaded, numbers), (loaded.T, numbers.T), (loaded[0, 1], numbers[0, 1])):
        sent, datatype = as_given("x", given)
        assert (datatype.name, sent.tolist()) == ("BF16", wanted.view(np.uint16).tolist())


@pytest.mark.parametrize("value", [[], [[], []]])
def test_an_empty_list_is_text_where_the_model_takes_text(value):
    array, declared = as_declared("x", value, "BYTES")
    assert (declared.name, array.dtype, array.shape) == ("BYTES", object, np.shape(value))


@pytest.mark.parametrize("value", [["a", 1], [["a", 1.5]], [True, "a"], [b"\xff", "a", 1]])
def test_a_number_beside_text_does_not_become_text(value):
    for read in (lambda: as_given("x", value), lambda: as_declared("x", value, "BYTES")):
        with pytest.raises(ValueError, match="only text can be sent as objects"):
            read()


def test_rows_of_text_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="its rows have different lengths"):
        as_given("x", [["a\0"], ["b", "c"]])


def test_a_list_for_an_input_of_an_unknown_datatype_or_name_keeps_numpys_dtype():
    metadata = ModelMetadata("m", (), "", (TensorMetadata("x", "FP4", (-1,)),), ())
    found = by_input_name({"x": [1.5], "y": [1]}, metadata)
    assert {name: datatype.name for name, (_, datatype) in found.items()} == {"x": "FP64", "y": "INT64"}


def test_an_array_without_a_name_for_a_server_that_names_no_inputs_is_refused():
    with pytest.raises(ValueError, match="the server does not say which inputs model 'm' has; give a dict"):
        by_input_name(np.zeros(3), ModelMetadata("m", (), "", (), ()))

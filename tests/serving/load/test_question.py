"""The request of a load, read back from its bytes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata
from normfold.serving.load.question import request_bytes
from normfold.serving.wire.proved_sizes import PROVED


def metadata(*inputs):
    return ModelMetadata("m", ("1",), "onnx", tuple(TensorMetadata(*one) for one in inputs), ())


def test_open_sizes_become_one_row_of_length_32():
    request = pb.ModelInferRequest.FromString(request_bytes(metadata(("x", "FP32", (-1, 42, -1))), {}, {}))
    assert request.model_name == "m"
    assert list(request.inputs[0].shape) == [1, 42, 32]
    assert len(request.raw_input_contents[0]) == 4 * 42 * 32


def test_given_shapes_and_arrays_are_taken():
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    both = metadata(("ids", "INT64", (-1, -1)), ("x", "FP16", (-1,)))
    request = pb.ModelInferRequest.FromString(request_bytes(both, {"x": (5,)}, {"ids": ids}))
    assert [list(one.shape) for one in request.inputs] == [[2, 3], [5]]
    assert request.raw_input_contents[0] == ids.tobytes()
    assert len(request.raw_input_contents[1]) == 10


@pytest.mark.parametrize(
    "datatype", ["BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16"]
)
def test_an_input_of_every_datatype_is_drawn_the_same_each_time(datatype):
    one = metadata(("x", datatype, (-1, 2)))
    assert request_bytes(one, {}, {}) == request_bytes(one, {}, {})
    assert pb.ModelInferRequest.FromString(request_bytes(one, {}, {})).inputs[0].datatype == datatype


def test_drawn_bfloat16_is_the_upper_half_of_normal_float32():
    request = pb.ModelInferRequest.FromString(request_bytes(metadata(("x", "BF16", (1000,))), {}, {}))
    bits = np.frombuffer(request.raw_input_contents[0], "<u2").astype("<u4") << 16
    assert abs(bits.view("<f4").mean()) < 0.2
    assert 0.8 < bits.view("<f4").std() < 1.2


@pytest.mark.parametrize(
    ("shapes", "given", "said"),
    [
        ({"z": (1,)}, {}, "has no input 'z'; it has x"),
        ({}, {"z": np.zeros(1)}, "has no input 'z'; it has x"),
        ({"x": (1, 3)}, {}, "shape 1,3 does not fit any,4"),
        ({"x": (4,)}, {}, "shape 4 does not fit any,4"),
    ],
)
def test_what_the_model_does_not_take_is_refused(shapes, given, said):
    with pytest.raises(ValueError, match=said):
        request_bytes(metadata(("x", "FP32", (-1, 4))), shapes, given)


PROVED_FOR = {
    "schema": 1,
    "dimensions": {
        "N": {"low": 2, "high": 8, "step": 2, "tried": [2, 4]},
        "L": {"low": 40, "high": None, "step": 5, "tried": [40, 100]},
    },
    "inputs": {"x": ["N", 3, "L"], "mask": ["N", "L"]},
}


def proved():
    one = metadata(("x", "FP32", (-1, 3, -1)), ("mask", "FP32", (-1, -1)))
    return dataclasses.replace(one, properties={PROVED: json.dumps(PROVED_FOR)})


@pytest.mark.parametrize(
    ("shapes", "given", "drawn"),
    [
        ({}, {}, [[2, 3, 40], [2, 40]]),
        ({"mask": (4, 55)}, {}, [[4, 3, 55], [4, 55]]),
        ({}, {"x": np.zeros((6, 3, 45), np.float32)}, [[6, 3, 45], [6, 45]]),
    ],
)
def test_open_sizes_are_sizes_that_the_model_was_proved_for(shapes, given, drawn):
    request = pb.ModelInferRequest.FromString(request_bytes(proved(), shapes, given))
    assert [list(one.shape) for one in request.inputs] == drawn


@pytest.mark.parametrize(
    ("dims", "drawn"),
    [
        ({"a": ["L", "L"]}, [[32, 32]]),
        ({"a": ["L"], "b": ["N", "L"]}, [[32], [1, 32]]),
        ({"a": ["N", "L"], "b": ["L", "N"]}, [[32, 32], [32, 32]]),
        ({"a": ["N", "L"], "b": ["N"]}, [[1, 32], [1]]),
    ],
)
def test_a_dimension_has_one_size_wherever_it_is(dims, drawn):
    sizes = {name: {"low": 1, "high": None, "step": 1, "tried": [1, 40]} for name in "NL"}
    one = metadata(*((name, "FP32", (-1,) * len(axes)) for name, axes in dims.items()))
    text = json.dumps({"schema": 1, "dimensions": sizes, "inputs": dims})
    one = dataclasses.replace(one, properties={PROVED: text})
    request = pb.ModelInferRequest.FromString(request_bytes(one, {}, {}))
    assert [list(each.shape) for each in request.inputs] == drawn


def test_a_shape_that_the_model_was_not_proved_for_is_refused():
    with pytest.raises(
        ValueError, match=r"L is 41; this model takes L from 40, in steps of 5; .*; give another --shape"
    ):
        request_bytes(proved(), {"x": (2, 3, 41)}, {})

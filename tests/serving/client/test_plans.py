"""Planned requests and answers are what protobuf makes of the same arrays, and leave the rest to it."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client import calls
from normfold.serving.client.arguments import checked_outputs
from normfold.serving.client.errors import ClientError
from normfold.serving.client.plans import LIMIT, MessagePlans

GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": GRID},
        {"x": GRID.astype(bool), "y": GRID.astype("u1"), "z": GRID.astype("i8")},
        {"x": GRID.transpose(2, 0, 1), "half": GRID.astype("f2")[:, ::2]},
        {"x": np.zeros((0, 4), np.float64)},
        {"x": np.float32(3) + np.zeros((), np.float32)},
    ],
    ids=str,
)
@pytest.mark.parametrize("request_id", ["", "seven", "ü" * 200])
@pytest.mark.parametrize(("outputs", "version"), [(None, ""), (["y", "z"], 3), ("y", "2")])
def test_a_planned_request_has_the_bytes_of_protobuf(inputs, request_id, outputs, version):
    inputs = {name: np.asarray(array) for name, array in inputs.items()}
    plans = MessagePlans()
    for _ in range(2):
        plan = plans.request("m", inputs, checked_outputs(outputs), version)
        written = calls.infer_request("m", inputs, outputs, version, request_id).SerializeToString()
        assert plan is not None
        assert plan.data(inputs, request_id) == written
        assert plan.shapes == {name: array.shape for name, array in inputs.items()}


@pytest.mark.parametrize(
    "inputs",
    [
        GRID,
        {"x": GRID.tolist()},
        {"x": GRID.astype(">f4")},
        {"x": np.array(["a"])},
        {"x": np.array([b"a"], object)},
        {"x": GRID.astype(complex)},
        {"x": np.ma.masked_equal(GRID, 2)},
        {("x",): np.array(["a"])},
    ],
)
def test_other_inputs_are_left_to_protobuf(inputs):
    assert MessagePlans().request("m", inputs, (), "") is None


def test_a_wrong_argument_is_refused_as_before():
    for _ in range(2):
        with pytest.raises(ValueError, match="name"):
            MessagePlans().request("", {"x": GRID}, (), "")
    plans = MessagePlans()
    assert plans.request("m", {0: GRID}, (), 1) is None
    assert plans.request("m", {"x": GRID}, (), 1) is not None
    with pytest.raises(ValueError, match="version True"):
        plans.request("m", {"x": GRID}, (), True)


def test_long_names_are_written_as_protobuf_writes_them():
    inputs = {"x" * 300: GRID}
    plan = MessagePlans().request("m" * 200, inputs, ("é" * 99,), "")
    assert plan.data(inputs, "") == calls.infer_request("m" * 200, inputs, ["é" * 99]).SerializeToString()


def answer(**arrays):
    response = pb.ModelInferResponse(model_name="m", model_version="1")
    for name, array in arrays.items():
        datatype = {"f": "FP32", "i": "INT64", "b": "BOOL", "O": "BYTES"}[array.dtype.kind]
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        raw = array.tobytes() if datatype != "BYTES" else b"".join(b"\x01\0\0\0" + e for e in array.ravel())
        response.raw_output_contents.append(raw)
    return response


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_an_answer_is_read_the_same_the_first_time_and_later():
    plans = MessagePlans()
    for number in range(4):
        arrays = {"y": GRID + number, "z": GRID.astype(np.int64) * number, "none": np.zeros((0, 3), bool)}
        same(plans.arrays(answer(**arrays).SerializeToString()), arrays)
    assert len(plans._answers) == 1


def test_an_answer_of_the_same_size_and_another_meaning_is_not_mistaken():
    plans = MessagePlans()
    for name, shape in (("y", (2, 12)), ("z", (2, 12)), ("y", (12, 2)), ("y", (2, 12))):
        arrays = {name: GRID.reshape(shape)}
        same(plans.arrays(answer(**arrays).SerializeToString()), arrays)


def test_answers_with_text_or_an_id_or_typed_contents_are_left_to_protobuf():
    plans = MessagePlans()
    text = np.array([[b"a", b"b"]], object)
    for _ in range(2):
        same(plans.arrays(answer(y=text).SerializeToString()), {"y": text})
        named = answer(y=GRID)
        named.id = "7"
        same(plans.arrays(named.SerializeToString()), {"y": GRID})
        typed = pb.ModelInferResponse(model_name="m")
        typed.outputs.add(name="y", datatype="FP32", shape=[2]).contents.fp32_contents[:] = [1, 2]
        same(plans.arrays(typed.SerializeToString()), {"y": np.array([1, 2], np.float32)})
    assert not plans._answers


def test_an_answer_that_is_damaged_is_an_error():
    plans = MessagePlans()
    good = answer(y=GRID).SerializeToString()
    plans.arrays(good)
    for data in (b"\xff", good[:-1], good.replace(b"FP32", b"FP99")):
        with pytest.raises(ClientError):
            plans.arrays(data)


def test_plans_are_forgotten_before_they_are_too_many():
    plans = MessagePlans()
    for rows in range(LIMIT + 5):
        assert plans.request("m", {"x": np.zeros(rows, np.float32)}, (), "") is not None
        plans.arrays(answer(y=np.zeros(rows + 1, np.float32)).SerializeToString())
    assert 0 < len(plans._requests) <= LIMIT
    assert 0 < len(plans._answers) <= LIMIT

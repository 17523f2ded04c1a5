"""The table of datatypes agrees with onnx, with onnxruntime and with the protocol."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from normfold.protos import model_config
from normfold.protos.datatypes import DATATYPES, by_config, by_dtype, by_name, by_onnx, by_onnxruntime

INTEGERS = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
NAMES = [*INTEGERS, "BOOL", "FP16", "FP32", "FP64", "BYTES", "BF16"]


def test_the_table_holds_the_protocols_fourteen_datatypes_once_each():
    assert sorted(d.name for d in DATATYPES) == sorted(NAMES)


@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda d: d.name)
def test_onnx_calls_the_number_by_the_same_dtype(datatype):
    if datatype.name in ("BF16", "BYTES"):
        expected = {"BF16": TensorProto.BFLOAT16, "BYTES": TensorProto.STRING}[datatype.name]
        assert datatype.onnx == expected
    else:
        assert helper.tensor_dtype_to_np_dtype(datatype.onnx) == datatype.dtype


@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda d: d.name)
def test_onnxruntime_prints_the_type_as_the_table_says(datatype):
    value = helper.make_tensor_value_info("x", datatype.onnx, [None])
    answer = helper.make_tensor_value_info("y", datatype.onnx, [None])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == datatype.onnxruntime
    assert by_onnxruntime(session.get_inputs()[0].type) is datatype


@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda d: d.name)
def test_every_name_leads_back_to_the_same_row(datatype):
    assert by_name(datatype.name) is by_onnx(datatype.onnx) is by_config(datatype.config) is datatype
    assert model_config.DataType.Value(datatype.config_name) == datatype.config


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d.name not in ("BF16", "BYTES")], ids=lambda d: d.name)
def test_triton_client_has_the_same_numpy_dtype(datatype):
    from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

    assert np.dtype(triton_to_np_dtype(datatype.name)) == datatype.dtype
    assert np_to_triton_dtype(datatype.dtype) == datatype.name
    assert by_dtype(datatype.dtype) is datatype


def test_arrays_of_text_and_of_the_other_byte_order_have_a_datatype():
    assert by_dtype(np.dtype(">f4")).name == "FP32"
    assert by_dtype(np.array(["a"]).dtype).name == "BYTES"
    assert by_dtype(np.array([b"a"]).dtype).name == "BYTES"
    assert by_dtype(np.dtype(object)).name == "BYTES"
    with pytest.raises(KeyError):
        by_dtype(np.dtype(np.complex64))


def test_types_without_a_name_in_the_protocol_are_not_there():
    with pytest.raises(KeyError):
        by_onnx(TensorProto.COMPLEX64)
    with pytest.raises(KeyError):
        by_onnxruntime("tensor(float8e4m3fn)")

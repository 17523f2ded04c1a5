"""The float64 answer of a graph, where ONNX's reference evaluator is wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper

from normfold.export.graphs.float64 import Float64Graph


def model(op: str, opset: int, **attributes: int) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], **attributes)], "g", [x], [y])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    ).SerializeToString()
    return content


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 12, 13, 20])
@pytest.mark.parametrize("axis", [None, -1, 0, 1])
def test_softmax_is_that_of_the_files_opset(op: str, opset: int, axis: int | None) -> None:
    """Before opset 13 it runs over ``axis`` and all axes behind it (ONNX operators, Softmax-11); onnxruntime gives the
    expected value."""
    content = model(op, opset, **({} if axis is None else {"axis": axis}))
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(content).run(None, {"x": x})
    found = Float64Graph(content).run({"x": x})["y"]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_log_softmax_of_far_apart_numbers_is_finite() -> None:
    """x - max - log(sum) is: the float32 graph gives -2e4 where the logarithm of a Softmax would be -inf."""
    x = np.zeros((2, 3, 4), np.float32)
    x[..., 0] = 2e4
    found = Float64Graph(model("LogSoftmax", 13)).run({"x": x})["y"]
    assert found[0, 0].tolist() == [0.0, -2e4, -2e4, -2e4]


@pytest.mark.parametrize("opset", [9, 11, 13, 14, 18])
def test_a_batchnorm_is_that_of_inference_at_every_opset(opset: int) -> None:
    text = """(float[N, 2, L] x) => (float[N, 2, K] y)
    <float[2] g = {2, -1}, float[2] b = {1, 3}, float[2] m = {0.5, -0.5}, float[2] v = {4, 0.25}>
    { n = BatchNormalization <epsilon = 0.0> (x, g, b, m, v)  y = GlobalMaxPool (n) }"""
    model = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["" : {opset}]> g {text}')
    x = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    (y,) = Float64Graph(model.SerializeToString()).run({"x": x}).values()
    wide = x.astype(np.float64)
    want = np.stack([wide[:, 0] - 0.5 + 1, (wide[:, 1] + 0.5) * -2 + 3], axis=1).max(2, keepdims=True)
    np.testing.assert_allclose(y, want, rtol=1e-15, atol=1e-15)


def test_entries_are_gathered_along_an_axis_of_any_length() -> None:
    text = """(float[2, 100] x, int64[2, 3] i) => (float[2, 3] y) { y = GatherElements <axis = 1> (x, i) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')
    x = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)
    (y,) = Float64Graph(model.SerializeToString()).run({"x": x, "i": np.array([[0, 99, -1], [70, -100, 3]])}).values()
    np.testing.assert_array_equal(y, np.array([x[0, [0, 99, 99]], x[1, [70, 0, 3]]], np.float64))


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize(("pads", "strides"), [([0, 0], [1]), ([1, 1], [2]), ([2, 0], [3])])
def test_an_average_pool_is_that_of_onnxruntime(pads: list[int], strides: list[int], counted: int) -> None:
    options = {"kernel_shape": [3], "pads": pads, "strides": strides, "count_include_pad": counted}
    node = helper.make_node("AveragePool", ["x"], ["y"], **options)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3, None]) for n in "xy")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    ).SerializeToString()
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 11)).astype(np.float32)}
    (want,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)
    np.testing.assert_allclose(Float64Graph(model).run(inputs)["y"], want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool"])
def test_a_pool_with_a_last_window_beyond_the_input_is_that_of_onnxruntime(operator: str) -> None:
    pads = ((0, 0), (1, 1), (0, 1), (1, 0))
    for length, kernel, stride, pad, extra in itertools.product((7, 8, 10), (2, 3), (1, 2, 3), pads, (0, 1)):
        options = {"count_include_pad": extra} if operator == "AveragePool" else {"dilations": [1 + extra]}
        sizes = {"kernel_shape": [kernel], "pads": list(pad), "strides": [stride]}
        node = helper.make_node(operator, ["x"], ["y"], ceil_mode=1, **sizes, **options)
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3, None]) for n in "xy")
        model = helper.make_model(
            helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
        ).SerializeToString()
        inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, length)).astype(np.float32)}
        (want,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)
        got = Float64Graph(model).run(inputs)["y"]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=f"{length} {sizes} {options}")


@pytest.mark.parametrize(
    ("opset", "scales"),
    [(11, "one"), (13, "one"), (13, "axis 0"), (13, "axis 1"), (19, "axis 1"), (21, "axis 0"), (21, "blocks")],
)
def test_quantized_numbers_are_computed_in_every_opset(opset: int, scales: str) -> None:
    """The reference evaluator has QuantizeLinear and DequantizeLinear from opset 19 on; onnxruntime has the values."""
    shape = {"one": "", "axis 0": "[2]", "axis 1": "[4]", "blocks": "[1,4]"}[scales]
    axis = {"one": "", "axis 0": "<axis = 0>", "axis 1": "", "blocks": "<axis = 0, block_size = 2>"}[scales]
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[2, 4] x, float{shape} s, int8{shape} z) => (int8[2, 4] q, float[2, 4] y)
    {{ q = QuantizeLinear {axis} (x, s, z) y = DequantizeLinear {axis} (q, s, z) }}"""
    content = onnx.parser.parse_model(text).SerializeToString()
    rng, dims = np.random.default_rng(0), [int(d) for d in shape.strip("[]").split(",") if d]
    inputs = {
        "x": (60 * rng.standard_normal((2, 4))).astype(np.float32),
        "s": rng.uniform(0.1, 0.5, dims).astype(np.float32),
        "z": rng.integers(-9, 9, dims, np.int8),
    }
    q, y = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, inputs)
    found = Float64Graph(content).run(inputs)
    np.testing.assert_array_equal(found["q"], q)
    np.testing.assert_allclose(found["y"], y, rtol=1e-6)


def test_a_quantization_to_another_type_is_left_to_float32() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x, float s) => (int4[2] q) { q = QuantizeLinear <output_dtype = 22> (x, s) }"""
    double = Float64Graph(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(NotImplementedError, match="another type than that of its zero point"):
        double.run({"x": np.zeros(2, np.float32), "s": np.float32(1)})


@pytest.mark.parametrize(
    "op", ["Erf", "Gelu", "Softplus", "Softsign", "Mish", "Sigmoid", "Tanh", "Elu", "Selu", "Atan"]
)
def test_no_operator_rounds_to_float32(op: str) -> None:
    content = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[N] x) => (float[N] y) {{ y = {op}(x) }}'
    ).SerializeToString()
    x = np.linspace(-2, 2, 101)[1:-1:3]
    (y,) = Float64Graph(content).run({"x": x}).values()
    assert y.dtype == np.float64
    assert (y != y.astype(np.float32)).mean() > 0.9
    if op == "Erf":
        np.testing.assert_allclose(y, [math.erf(v) for v in x], rtol=1e-14)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("pads", [(0, 0, -1, 0, 0, -2), (0, 1, 2, 0, -1, 1), (0, 0, 1, 0, 0, -1)])
@pytest.mark.parametrize("opset", [13, 18])
def test_a_pad_that_cuts_off_is_that_of_onnxruntime(mode: str, pads: tuple[int, ...], opset: int) -> None:
    wide = f"int64[6] pads = {{{', '.join(map(str, pads))}}}"
    content = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,3,L] x) => (float[N,C,M] y) <{wide}, float v = {{2}}>'
        f' {{ y = Pad <mode = "{mode}"> (x, pads{", v" if mode == "constant" else ""}) }}'
    ).SerializeToString()
    x = np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (y,) = Float64Graph(content).run({"x": x}).values()
    np.testing.assert_array_equal(y, wanted)


def test_behind_the_last_product_a_transposed_convolution_gives_its_bias() -> None:
    text = """(float[1, 2, 4] x) => (float[1, 2, M] y) <float[2, 2, 1] w = {1, 2, 3, 4}, float[2] b = {5, 6}> {
        y = ConvTranspose <strides = [3], output_padding = [2]> (x, w, b) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}').SerializeToString()
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 2, 4)).astype(np.float32)}
    (want,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)
    np.testing.assert_allclose(Float64Graph(model).run(inputs)["y"], want, rtol=1e-5, atol=1e-6)

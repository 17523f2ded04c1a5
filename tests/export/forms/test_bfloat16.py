"""Graphs in bfloat16: computed by ONNX's reference evaluator, since onnxruntime's CPU provider cannot."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from normfold.export.calibration.rows import DataSet, Division, Rows
from normfold.export.errors import ExportError
from normfold.export.forms.bfloat16 import missing_kernels, to_bfloat16
from normfold.export.forms.precision import reduce_precision
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.graphs.runtime import CPU
from normfold.export.proof.verify import Case

CONVOLUTION = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 4, L] x) => (float[N, 3] y, float[N, 16, M] b) {
    a = Conv <kernel_shape = [3]> (x, W1, B1)
    b = Relu (a)
    d = GlobalAveragePool (b)
    e = Flatten (d)
    y = Gemm <transB = 1> (e, W3, B3)
}"""
SHAPES = {"W1": (16, 4, 3), "B1": (16,), "W3": (3, 16), "B3": (3,)}
#: A scale of 1.2995 would be 1.296875 in bfloat16, and Resize takes its scales in float32 only.
RESIZED = """<ir_version: 8, opset_import: ["" : 18]>
g (float[2, 3, 1000] x) => (float[2, 3, M] y) <float[3] scales = {1.0, 1.0, 1.2995}, float half = {0.5}> {
    a = Mul (x, half)
    b = Cast <to = 1> (a)
    y = Resize <mode = "nearest"> (b, , scales)
}"""
#: Only moves values, which the CPU provider can do in bfloat16.
MOVED = """<ir_version: 8, opset_import: ["" : 18]>
g (int64[N, L] tokens) => (float[N, 4, L] y) {
    a = Gather (table, tokens)
    y = Transpose <perm = [0, 2, 1]> (a)
}"""


def graph(text: str, **shapes: tuple[int, ...]) -> bytes:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        weight = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    return bytes(model.SerializeToString())


def evaluated(content: bytes, **inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    answers: list[NDArray[np.float32]] = ReferenceEvaluator(onnx.load_model_from_string(content)).run(None, inputs)
    return answers


def test_weights_and_arithmetic_are_in_bfloat16_and_the_edges_in_float32() -> None:
    content = to_bfloat16(graph(CONVOLUTION, **SHAPES))
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    edges = [*model.graph.input, *model.graph.output]
    assert {v.type.tensor_type.elem_type for v in edges} == {onnx.TensorProto.FLOAT}
    assert [v.name for v in edges] == ["x", "y", "b"]
    x = np.random.default_rng(1).standard_normal((2, 4, 20)).astype(np.float32)
    for exact, rounded in zip(evaluated(graph(CONVOLUTION, **SHAPES), x=x), evaluated(content, x=x), strict=True):
        assert rounded.dtype == np.float32
        # 2^-8 for each of five roundings on the way, and no more than three times that through sums of 12 and 16
        assert 0 < np.abs(rounded - exact).max() < 15 * 2**-8 * np.abs(exact).max()


def test_what_an_operator_takes_in_float32_only_stays_exact() -> None:
    content = to_bfloat16(graph(RESIZED))
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    x = np.random.default_rng(1).standard_normal((2, 3, 1000)).astype(ml_dtypes.bfloat16).astype(np.float32)
    (before,), (after,) = evaluated(graph(RESIZED), x=x), evaluated(content, x=x)
    np.testing.assert_array_equal(after, before)  # halves of bfloat16 values, each at the place it had
    assert after.shape == (2, 3, 1299)


def test_operators_without_kernels_are_named_once_each() -> None:
    content = to_bfloat16(graph(CONVOLUTION, **SHAPES))
    assert missing_kernels(content, (CPU,)) == ("Conv", "Relu", "GlobalAveragePool", "Gemm")
    x = np.zeros((1, 4, 20), np.float32)
    with pytest.raises(ExportError, match="no bfloat16 kernels for Conv, Relu, GlobalAveragePool, Gemm"):
        _reduced(graph(CONVOLUTION, **SHAPES), x=x)


def test_a_network_that_has_all_its_kernels_is_reduced_and_proved() -> None:
    content = graph(MOVED, table=(1000, 4))
    tokens = np.random.default_rng(1).integers(0, 1000, (2, 50))
    reduced, report = _reduced(content, tokens=tokens)
    assert report.bytes_after < 0.6 * report.bytes_before
    assert 0 < report.verification.worst.relative < 2**-8, "one rounding"
    assert len(reduced) == report.bytes_after


def _reduced(content: bytes, **inputs: NDArray[np.generic]):  # type: ignore[no-untyped-def]
    measured = Rows((Case("random", "one", inputs),), DataSet("random", 2, "one"))
    run = Float64Graph(content).run
    return reduce_precision(content, "bf16", run, Division(None, measured), inputs, even_if_slower=True)


EINSUM = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 3, 8] x) => (float[N, 4, L] y, float[N, 4, M] z) {
    y = Einsum <equation = "ol,ncl->nol"> (W, x)
    z = Relu (y)
}"""


def test_an_output_of_an_operator_that_takes_no_bfloat16_keeps_its_name_and_its_real_length() -> None:
    content = graph(EINSUM, W=(4, 1))
    reduced = to_bfloat16(content)
    model = onnx.load_model_from_string(reduced)
    onnx.checker.check_model(model, full_check=False)
    assert [o.name for o in model.graph.output] == ["y", "z"]
    assert [o.type.tensor_type.shape.dim[2].dim_value for o in model.graph.output] == [0, 0]  # 8, which is not inferred
    names = [node.name for node in model.graph.node if node.name]
    assert len(set(names)) == len(names)
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    weight = numpy_helper.to_array(onnx.load_model_from_string(content).graph.initializer[0])
    wanted = np.einsum("ol,ncl->nol", weight, x)
    for got, want in zip(evaluated(reduced, x=x), (wanted, np.maximum(wanted, 0)), strict=True):
        np.testing.assert_allclose(got, want, atol=0.05)

"""Reduced precisions, and the message of a failed proof, on a small graph."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from normfold.export.calibration.rows import Division, Rows, divide
from normfold.export.errors import ExportError, VerificationError
from normfold.export.forms import precision
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.divergence import first_divergence, unexplained
from normfold.export.proof.verify import Case

GRAPH = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 4, L] x) => (float[N, 3] y) {
    a = Conv <kernel_shape = [3]> (x, W1, B1)
    b = Relu (a)
    c = Conv <kernel_shape = [3]> (b, W2, B2)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    y = Gemm <transB = 1> (e, W3, B3)
}"""
SPECS = parse_inputs(["x=FP32[N,4,L]"])
SHAPES = {"W1": (16, 4, 3), "B1": (16,), "W2": (16, 16, 3), "B2": (16,), "W3": (3, 16), "B3": (3,)}


def graph(**changes: float) -> bytes:
    """The graph with fixed random weights, each tensor named in ``changes`` multiplied by its factor."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(GRAPH)
    for name, shape in SHAPES.items():
        weight = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) * changes.get(name, 1)
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    return bytes(model.SerializeToString())


def cases(kind: str) -> list[Case]:
    rng = np.random.default_rng(1)
    return [Case(kind, str(i), {"x": rng.standard_normal((8, 4, 20)).astype(np.float32)}) for i in range(4)]


def reduced(name: str, content: bytes | None = None, slower: bool = True, inputs: Division | None = None):  # type: ignore[no-untyped-def]
    content = content or graph()
    inputs = inputs or divide(name == "int8", cases("sample"), (), SPECS)
    run = Float64Graph(content).run
    timed = inputs.measured.cases[0].inputs
    return precision.reduce_precision(content, name, run, inputs, timed, even_if_slower=slower)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_fewer_bits_are_smaller_and_within_their_own_bound(name: str) -> None:
    content, report = reduced(name)
    assert report.verification.passed
    assert report.verification.worst.relative < precision.PRECISIONS[name]
    assert report.verification.worst.label_agreement is not None
    assert report.bytes_before == len(graph())
    assert report.bytes_after == len(content)
    model = onnx.load_model_from_string(content)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    operators = {n.op_type for n in model.graph.node}
    assert ("QuantizeLinear" in operators) is (name == "int8")


def test_int8_has_a_scale_for_each_output_channel_and_its_making_prints_nothing(capfd) -> None:  # type: ignore[no-untyped-def]
    handlers = list(logging.root.handlers)
    content, report = reduced("int8")
    model = onnx.load_model_from_string(content)
    assert capfd.readouterr() == ("", "")
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, 0)
    held = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    read = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    weights = {held[n.input[0]].shape: held[n.input[1]].shape for n in read if held[n.input[0]].dtype == np.int8}
    assert weights == {(16, 4, 3): (16,), (16, 16, 3): (16,)}
    assert len(report.kept) == 1, "the last layer has 48 of 15,792 multiply-adds"


def test_fewer_bits_come_out_the_same_on_every_run() -> None:
    assert reduced("int8")[0] == reduced("int8")[0]
    assert reduced("fp16")[0] == reduced("fp16")[0]


def test_a_precision_that_is_none_and_test_samples_without_one_are_refused() -> None:
    with pytest.raises(ExportError, match="there is no precision 'int4'"):
        precision.check_precision("int4", tests=False)
    with pytest.raises(ExportError, match=r"--test-sample.*give --quantize or --dtype too"):
        precision.check_precision(None, tests=True)
    precision.check_precision(None, tests=False)


def test_the_report_names_the_inputs_that_calibrated_and_those_that_measured() -> None:
    report = reduced("int8")[1]
    assert str(report.calibration) == "16 rows: every second row of '0', '1', '2' and 1 more files"
    assert str(report.measured) == "16 rows: the rows between them, of '0', '1', '2' and 1 more files"
    assert report.verification.worst.rows == 16
    half = reduced("fp16")[1]
    assert half.calibration is None
    assert half.measured.rows == 32


def test_the_label_of_a_single_row_is_not_reported_as_an_agreement() -> None:
    one = [Case("sample", "one.npy", {"x": cases("sample")[0].inputs["x"][:1]})]
    report = reduced("int8", inputs=divide(True, one, (), SPECS))[1]
    assert (report.measured.rows, report.verification.worst.label_agreement) == (1, None)


def test_ranges_from_other_inputs_show_in_the_error_though_they_would_not_on_their_own() -> None:
    # Calibrated on inputs that are 100 times too small: on these int8 is exact, on real ones it is not.
    x = cases("sample")[0].inputs["x"]
    small = [Case("sample", "small.npy", {"x": x / 100})]
    _, report = reduced("int8", inputs=divide(True, small, small, SPECS))
    assert report.verification.worst.relative < 0.05
    with pytest.raises(VerificationError, match="int8 loses too much"):
        reduced("int8", inputs=divide(True, small, cases("sample"), SPECS))


def test_labels_of_inputs_made_from_statistics_are_reported_but_refuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LABEL_AGREEMENT", 1.01)
    with pytest.raises(VerificationError, match=r"int8 changes the class in \d+ of 16 rows of 'y'"):
        reduced("int8")
    made = divide(True, cases("sample"), (), SPECS)
    synthetic = Rows.of(made.measured.cases, "synthetic", "drawn", SPECS)
    assert reduced("int8", inputs=Division(made.calibration, synthetic))[1].measured.kind == "synthetic"


def test_slower_than_float32_is_refused_unless_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "medians", lambda *a: ({"float32": 1.0, "fp16": 2.0}, 9))
    with pytest.raises(ExportError, match=r"slower than float32 on this machine \(2\.000 ms against 1\.000 ms\)"):
        reduced("fp16", slower=False)
    reduced("fp16", slower=True)


def test_what_was_measured_of_a_precision_is_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "medians", lambda *a: ({"float32": 2.0, "fp16": 1.0}, 9))
    first = reduced("fp16", slower=False)[1].timing
    monkeypatch.setattr(precision, "medians", lambda *a: ({"float32": 1.0, "fp16": 2.0}, 9))
    second = reduced("fp16", slower=False)[1].timing
    assert (first.remembered, second.remembered) == (False, True)
    assert replace(second, remembered=False) == first


def test_weights_beyond_the_range_of_fp16_are_refused() -> None:
    with pytest.raises(ExportError, match="fp16 holds values up to 65504"):
        reduced("fp16", content=graph(W2=1e6))


def test_an_infinite_bound_is_no_weight_beyond_the_range_of_fp16() -> None:
    # The fold writes Max and Min by channel; where a channel has one bound, the other is infinite.
    model = onnx.load_model_from_string(graph())
    bounds = np.float32([-np.inf, *[0.0] * 15]).reshape(16, 1)
    model.graph.initializer.append(numpy_helper.from_array(bounds, "least"))
    first = next(node for node in model.graph.node if node.op_type == "Relu")
    first.op_type = "Max"
    first.input.append("least")
    assert len(reduced("fp16", content=bytes(model.SerializeToString()))[0]) > 0


def test_a_precision_that_loses_too_much_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "PRECISIONS", {"int8": 1e-6, "fp16": 1e-6})
    with pytest.raises(VerificationError, match=r"int8 loses too much, so nothing was published: output 'y'.*16 rows"):
        reduced("int8")


def test_a_failed_proof_names_the_first_layer_where_the_graphs_part_ways() -> None:
    inputs = cases("random")[0].inputs
    assert first_divergence(graph(), graph(), inputs) is None
    assert first_divergence(graph(), graph(W1=2.0, B1=2.0), inputs) is None, "a scale alone is what folding may do"
    layer = first_divergence(graph(), graph(B1=3.0), inputs)
    assert layer is not None
    assert "(Relu, value 'b')" in layer, "a shift of the convolution is explained, what the ReLU makes of it is not"


def test_an_affine_for_each_channel_explains_a_value_and_nothing_else_does() -> None:
    a = np.random.default_rng(0).standard_normal((2, 3, 10))
    scale, shift = np.array([2.0, -1.0, 0.5])[None, :, None], np.array([1.0, 0.0, -3.0])[None, :, None]
    assert unexplained(a, scale * a + shift) < 1e-12
    carrier = np.concatenate([scale * a + shift, np.ones((2, 1, 10))], axis=1)
    assert unexplained(a, carrier) < 1e-12
    assert unexplained(a, np.maximum(a, 0)) > 0.1


def test_a_file_in_fp16_states_no_length_that_its_answer_does_not_have() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[N, 3, 8] x) => (float[N, 4, L] y) {
        y = Einsum <equation = "ol,ncl->nol"> (W, x) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 1), np.float32), "W"))
    (output,) = onnx.load_model_from_string(precision.in_float16(model.SerializeToString())).graph.output
    assert output.type.tensor_type.shape.dim[2].dim_value == 0  # 8; inference gives 1

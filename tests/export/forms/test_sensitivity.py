"""Operators that lose most in int8 stay in float32, and only where the whole network would lose too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from normfold.export.calibration.rows import Division, Rows
from normfold.export.errors import VerificationError
from normfold.export.forms import precision, sensitivity
from normfold.export.forms.int8 import named, quantized
from normfold.export.forms.precision import PrecisionReport, reduce_precision
from normfold.export.forms.sensitivity import Group, groups_of
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.verify import Case

Array = NDArray[np.float32]
LAYERS = 6


def network(sensitive: int, layers: int = LAYERS, *, named_nodes: bool = True) -> bytes:
    """Return a chain of convolutions; in the one of number ``sensitive`` one channel is 500 times as large as others.

    The next layer weighs that channel down again, so that int8, which has one scale for all channels of a value, gives
    the others hardly any numbers.
    """
    rng, size = np.random.default_rng(0), 8
    nodes, constants, last = [], [], "x"
    scale = np.ones(size)
    for k in range(layers):
        weight = rng.standard_normal((size, size, 1)) / np.sqrt(size) / scale[:, None]
        scale = np.where(np.arange(size) == 3, 500.0, 1.0) if k == sensitive else np.ones(size)
        constants.append(numpy_helper.from_array((weight * scale[:, None, None]).astype(np.float32), f"w{k}"))
        output = "y" if k == layers - 1 else f"c{k}"
        nodes.append(helper.make_node("Conv", [last, f"w{k}"], [output], name=f"layer{k}" if named_nodes else ""))
        last = output
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", size, "L"]) for n in "xy")
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def rows(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [Case("sample", f"{i}", {"x": rng.standard_normal((2, 8, 20)).astype(np.float32)}) for i in range(6)]


def reduced(content: bytes, monkeypatch: pytest.MonkeyPatch, allowed: float) -> tuple[bytes, PrecisionReport]:
    monkeypatch.setattr(precision, "PRECISIONS", {"int8": allowed})
    monkeypatch.setattr(precision, "medians", lambda graphs, inputs: (dict.fromkeys(graphs, 1.0), 9))
    specs = parse_inputs(["x=FP32[N,8,L]"])
    inputs = Division(Rows.of(rows(1), "sample", "a", specs), Rows.of(rows(2), "sample", "b", specs))
    return reduce_precision(content, "int8", Float64Graph(content).run, inputs, rows(3)[0].inputs)


@pytest.mark.usefixtures("cache")
def test_only_the_operators_that_lose_too_much_stay_in_float32(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    content = network(sensitive=LAYERS - 2)
    everything, report = reduced(content, monkeypatch, allowed=1e9)
    assert report.kept == ()
    lost = report.verification.worst.relative
    assert lost > 0.1, "the control: the whole network in int8 loses much"
    some, report = reduced(content, monkeypatch, allowed=lost / 10)
    assert 1 <= len(report.kept) <= LAYERS // 2
    assert set(report.kept) & {f"layer{LAYERS - 1}", f"layer{LAYERS - 2}"}, "those around the large channel"
    assert report.verification.worst.relative <= lost / 10
    assert eight_bit_tensors(some) < eight_bit_tensors(everything)


def eight_bit_tensors(content: bytes) -> int:
    tensors = onnx.load_model_from_string(content).graph.initializer
    return sum(t.data_type == onnx.TensorProto.INT8 for t in tensors)


@pytest.mark.usefixtures("cache")
def test_where_half_of_them_in_float32_is_not_enough_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerificationError) as error:
        reduced(network(sensitive=2), monkeypatch, allowed=1e-6)
    assert str(error.value).startswith("int8 loses too much, so nothing was published: output 'y' is off by ")
    assert str(error.value).endswith(
        "That is with the 2 operators in float32 that lose most. Use --dtype fp16, or leave --quantize out"
    )


def order(groups: list[Group]) -> list[str]:
    return [name for group in groups for name in group.names]


def test_the_worst_operator_comes_first_and_each_has_its_part_of_the_work() -> None:
    groups = groups_of(network(sensitive=3), [case.inputs for case in rows(1)])
    assert sorted(order(groups)) == [f"layer{k}" for k in range(LAYERS)]
    assert set(order(groups)[:2]) == {"layer3", "layer4"}
    assert [group.work for group in groups] == pytest.approx([1 / LAYERS] * LAYERS)


def test_operators_that_read_one_value_are_one_group() -> None:
    model = parser.parse_model("""<ir_version: 9, opset_import: ["": 17]> g (float[N,4] x) => (float[N,9] y) {
        a = Gemm<transA = 0>(x, w) b = MatMul(x, v) y = Concat<axis = 1>(a, b) }""")
    for name, shape in {"w": (4, 6), "v": (4, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    (group,) = groups_of(bytes(model.SerializeToString()), [{"x": np.ones((2, 4), np.float32)}])
    assert (len(group.names), group.work) == (2, 1.0)


def test_nodes_without_names_get_one() -> None:
    content = network(sensitive=3, named_nodes=False)
    names = order(groups_of(content, [case.inputs for case in rows(1)]))
    assert len(set(names)) == LAYERS
    assert set(names) == {n.name for n in named(onnx.load_model_from_string(content)).graph.node}
    kept = onnx.load_model_from_string(quantized(content, [rows(1)[0].inputs], kept=names[:1]))
    weights = {t.name for t in kept.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 3}
    assert len(weights) == 1


def test_two_nodes_of_one_name_get_two() -> None:
    model = onnx.load_model_from_string(network(sensitive=3))
    for node in model.graph.node:
        node.name = "same"
    assert len({node.name for node in named(model).graph.node}) == len(model.graph.node)


def test_of_a_long_network_both_ends_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "TRIED", 4)
    groups = groups_of(network(sensitive=0), [rows(1)[0].inputs])
    assert sorted(order(groups)) == ["layer0", "layer1", "layer4", "layer5"]


@pytest.mark.usefixtures("cache")
def test_a_single_operator_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerificationError, match=r"rows: b\. Use --dtype fp16, or leave --quantize out$"):
        reduced(network(sensitive=0, layers=1), monkeypatch, allowed=1e-6)


def test_nothing_is_logged_by_the_quantizers_sessions(capfd: pytest.CaptureFixture[str]) -> None:
    quantized(network(sensitive=3), [rows(1)[0].inputs], only=["layer0"])
    assert capfd.readouterr().err == ""


def test_an_operator_whose_int8_makes_nan_of_an_answer_loses_most() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[N, 1, L] x) => (float[N, 1, L] y) { a = Conv (x, W)  y = Div (a, a) }"""
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 1), np.float32), "W"))
    (group,) = groups_of(model.SerializeToString(), [{"x": np.float32([[[1, 1e-6]]])}])  # 1e-6 becomes 0, and 0 / 0
    assert group.moved == np.inf

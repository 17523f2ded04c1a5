"""A right fold is never refused, however badly its network is conditioned; a wrong one is, by a part in 100,000."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from normfold.export import pipeline
from normfold.export.errors import CaptureError, VerificationError
from normfold.export.fold import FoldReport, fold
from normfold.export.forms.variants import made_anew
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.unrounded import holding
from normfold.export.notebook import export_network
from normfold.export.pipeline import Folded, fold_and_prove
from normfold.export.proof import proof
from normfold.export.proof.algebra import Algebra
from normfold.export.proof.verify import Case
from normfold.export.sources.onnx_origin import open_onnx

pytestmark = pytest.mark.usefixtures("cache")

CHANNELS = 6


def network(seed: int, layers: int, **drawn: Callable[[np.random.Generator], np.ndarray]) -> onnx.ModelProto:
    """Return convolution, ReLU, BatchNorm, ``layers`` times; ``drawn`` draws gamma, beta, mean, var or x_scale."""
    rng = np.random.default_rng(seed)
    nodes, constants, last = [], [], "x"

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    if "x_scale" in drawn:
        last = "scaled"
        nodes.append(helper.make_node("Mul", ["x", constant("x_scale", drawn["x_scale"](rng))], [last]))
    usual = {
        "gamma": lambda r: r.uniform(0.5, 1.5, CHANNELS) * r.choice([-1, 1], CHANNELS),
        "beta": lambda r: r.standard_normal(CHANNELS),
        "mean": lambda r: r.uniform(0, 1, CHANNELS),
        "var": lambda r: r.uniform(0.3, 1.0, CHANNELS),
    }
    for k in range(layers):
        weight = rng.standard_normal((CHANNELS, CHANNELS, 3)) / np.sqrt(3 * CHANNELS)
        nodes.append(helper.make_node("Conv", [last, constant(f"w{k}", weight)], [f"c{k}"], pads=[1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"]))
        norm = [constant(f"{name}{k}", (drawn.get(name) or usual[name])(rng)) for name in usual]
        last = "y" if k == layers - 1 else f"n{k}"
        nodes.append(helper.make_node("BatchNormalization", [f"r{k}", *norm], [last]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, "L"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS, "L"])
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])


ILL_CONDITIONED = {
    "100 layers": lambda seed: network(seed, 100),
    "tiny variances": lambda seed: network(seed, 6, var=lambda r: 10.0 ** r.uniform(-9, -5, CHANNELS)),
    "large inputs": lambda seed: network(seed, 6, x_scale=lambda r: np.array(1e4)),
    "large means": lambda seed: network(seed, 6, mean=lambda r: r.uniform(1e3, 1e4, CHANNELS)),
    "gamma near 0": lambda seed: network(seed, 6, gamma=lambda r: 10.0 ** r.uniform(-6, 0, CHANNELS)),
}


def proved(model: onnx.ModelProto, folder: Path, variant: str = "auto") -> Folded:
    path = folder / "net.onnx"
    onnx.save(model, path)
    return fold_and_prove(open_onnx(path, (), opset=None), (), "net", 17, variant=variant)


@pytest.mark.parametrize("kind", ILL_CONDITIONED)
def test_an_ill_conditioned_network_is_not_refused(kind: str, tmp_path: Path) -> None:
    for seed in range(1 if kind == "100 layers" else 3):
        report = proved(ILL_CONDITIONED[kind](seed), tmp_path).report
        assert report.algebra is not None
        assert report.algebra.passed
        assert report.folding.batchnorms_after < report.folding.batchnorms_before


@pytest.mark.parametrize("kind", ILL_CONDITIONED)
def test_weights_moved_by_a_hundred_thousandth_in_one_channel_are_another_network(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the fold is wrong by 1e-5 in one channel of one layer. In some layers no output depends on that."""
    refused = 0
    for layer in (0, -1) if kind == "100 layers" else (0, 2, 5, -1):
        moved = moving_one_channel(layer)
        monkeypatch.setattr(pipeline, "fold", moved)
        try:
            report = proved(ILL_CONDITIONED[kind](1), tmp_path, "folded").report
        except VerificationError as error:
            refused += "the folded graph is not the same network, so nothing was published" in str(error)
        else:
            assert report.algebra is not None
            assert report.algebra.worst.relative <= 1e-12, "no output moved, in any digit that float32 can show"
    assert refused


def moving_one_channel(layer: int) -> Callable[[ir.Model], FoldReport]:
    def wrong(model: ir.Model, fold_all: bool) -> FoldReport:
        report = fold(model, fold_all=fold_all)
        weight = [node for node in model.graph if node.op_type == "Conv"][layer].inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        moved = weight.const_value.numpy().copy()
        moved[np.abs(moved).sum(axis=(1, 2)).argmax()] *= 1 + 1e-5
        weight.const_value = holding(moved, weight.const_value, weight.name)
        return report

    return wrong


def test_the_file_is_the_proved_graph_rounded_once(tmp_path: Path) -> None:
    """Folding in float32 gives the same bytes: nothing in the fold depends on the type that it works in."""
    model = network(0, 4)
    made = proved(model, tmp_path, "folded")
    plain = ir.from_proto(model)
    fold(plain)
    in_file = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(made.content).graph.initializer}
    for value in plain.graph.initializers.values():
        assert value.name is not None
        assert value.const_value is not None
        assert in_file[value.name].dtype == np.float32
        np.testing.assert_array_equal(in_file[value.name], value.const_value.numpy())


def test_where_onnxruntime_is_far_from_float64_the_network_itself_says_who_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "EVALUATOR_FACTOR", 0.0)
    monkeypatch.setattr(proof, "EVALUATOR_BOUND", 1e-9)  # no float32 result is so near
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU()).eval()
    report = export_network(network, repository=tmp_path, name="net", inputs="x=FP32[N,2,16]")
    assert report.algebra is not None
    assert report.algebra.passed
    again = proved(ILL_CONDITIONED["large inputs"](0), tmp_path).report
    assert again.algebra is None
    assert any("another output" in note for note in again.notes)


def labelled(layers: int) -> onnx.ModelProto:
    """A network that answers with labels alone, and with the same one for any noise."""
    model = network(0, layers)
    favoured = np.float32([100, 0, 0, 0, 0, 0]).reshape(1, CHANNELS, 1)
    model.graph.initializer.append(numpy_helper.from_array(favoured, "favoured"))
    model.graph.node.extend(
        [
            helper.make_node("Add", ["y", "favoured"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
            helper.make_node("Cast", ["best"], ["label"], to=TensorProto.INT32),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT32, ["N", "L"]))
    return model


def test_a_wrong_fold_of_a_network_that_answers_with_labels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On noise the label is the same throughout, whatever the weights are."""
    monkeypatch.setattr(pipeline, "fold", moving_one_channel(1))
    with pytest.raises(VerificationError, match=r"not the same network.*'scores of label'"):
        proved(labelled(3), tmp_path, "folded")


def test_every_form_of_a_network_that_answers_with_labels_has_the_same_scores() -> None:
    model = unrounded(ir.from_proto(onnx.shape_inference.infer_shapes(labelled(3))))
    assert model is not None
    unfolded = Graph.of(model)
    fold(model)
    folded = Graph.of(model)
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, 24)).astype(np.float32)
    assert unfolded.exact is not None
    algebra = Algebra(unfolded.exact, [Case("random", "one", {"x": x})])
    forms = {"folded": folded, **dict(made_anew(unfolded, folded))}
    assert "lifted" in forms
    for graph in forms.values():
        assert graph.exact is not None
        found = algebra.of(graph.exact)
        assert [d.output for d in found.differences] == ["label", "scores of label"]
        assert found.passed


class KMaxPool(nn.Module):
    """The k largest entries in their own order, as in text classifiers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.gather(2, x.topk(8, dim=2)[1].sort(dim=2)[0])


def test_a_network_that_picks_among_equal_numbers_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), KMaxPool(), nn.Conv1d(4, 2, 3))
    with pytest.raises(CaptureError, match=r"is off by .*It picks the largest numbers, by topk or sort: of equal ones"):
        export_network(network, inputs="x=FP32[N,3,16]", repository=tmp_path, name="net")

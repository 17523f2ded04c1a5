"""Constants that are read as tensors, such as a learned table of positions that is cut to the input's length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.export.fold.graphs import (
    Array,
    folded,
    folds_to,
    graph,
    net_of,
    norm,
    only,
    operators,
    same_function,
    stays,
    weight_of,
    weights,
)

from normfold.export.fold.affine import Affine
from normfold.export.fold.net import Gauges, Refused
from normfold.export.fold.ops.tables import Table

LENGTHS = ((2, 3, 12), (3, 3, 23))
CUT = "q = Shape<start=2,end=3>(x)  p = Slice(pos, front, q, last)"
ENDS = {"front": np.array([0]), "last": np.array([2])}


def text(nodes: str, behind: str = "y = Sigmoid(n)", out: str = "N,M,K") -> str:
    return f"(float[N,3,L] x) => (float[{out}] y) {{ c = Conv<pads=[1,1]>(x, w)  {nodes}  n = BN(a, n)  {behind} }}"


def network(nodes: str = f"{CUT}  a = Add(c, p)", behind: str = "y = Sigmoid(n)", **more: Array) -> onnx.ModelProto:
    arrays: dict[str, Any] = {"w": weights(4, 3, 3), "pos": weights(1, 4, 30), **ENDS, **norm("n", 4)}
    return graph(text(nodes, behind), **(arrays | more))


def by_a_node(model: onnx.ModelProto) -> onnx.ModelProto:
    """Hold 'pos' in a Constant node."""
    (held,) = (t for t in model.graph.initializer if t.name == "pos")
    model.graph.initializer.remove(held)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["pos"], value=held))
    return model


@pytest.mark.parametrize("kind", ["initializer", "node", "transposed"])
def test_a_batchnorm_folds_back_into_a_table_that_is_cut_to_the_length_of_the_input(kind: str) -> None:
    model = network()
    if kind == "node":
        model = by_a_node(model)
    elif kind == "transposed":
        turned = f"pos = Transpose<perm=[0,2,1]>(sop) {CUT}  a = Add(c, p)"
        model = graph(text(turned), w=weights(4, 3, 3), sop=weights(1, 30, 4), **ENDS, **norm("n", 4))
    _, report = folds_to(model, "Conv Shape Slice Add Sigmoid", *LENGTHS)
    assert only(report).how == "back into 'pos', 'Conv_0'" or kind != "initializer"


@pytest.mark.parametrize("gamma", ["negative", "mixed", [0.0, 1.5, 0.0, -2.0]])
def test_a_table_takes_a_scale_of_any_sign_and_channels_of_gamma_0(gamma: Any) -> None:
    folds_to(network(**norm("n", 4, gamma=gamma)), "Conv Shape Slice Add Sigmoid", *LENGTHS)


def test_a_table_gets_a_channel_for_a_carrier() -> None:
    nodes = f"{CUT}  s = Add(c, p)  a = Elu(s)"
    model = network(nodes, "y = Conv<pads=[1,1]>(n, v)", v=weights(5, 4, 3))
    after, report = folds_to(model, "Conv Shape Slice Add Elu Conv", *LENGTHS)
    assert report.carriers == 1
    assert weight_of(after, 0, 0, "Slice").shape == (1, 5, 30)


def test_a_table_loses_the_channels_that_are_constant() -> None:
    nodes = f"{CUT}  s = Add(c, p)  a = Elu(s)"
    model = network(nodes, "e = Elu(n)  y = Conv(e, v)", v=weights(5, 4, 3), **norm("n", 4, gamma=[0.0, 1.5, 0.0, 2.0]))
    after, report = folded(model)
    assert report.channels_removed == 2
    assert weight_of(after, 0, 0, "Slice").shape == (1, 2, 30)
    same_function(model, after, *LENGTHS)


READS = {
    "differences": f"{CUT}  r = Slice(pos, one, far, last)  t = Slice(r, front, q, last)  d = Sub(p, t)  a = Add(c, d)",
    "mirrored": f"{CUT}  r = Slice(pos, minus1, least, last, minus1)  t = Slice(r, front, q, last)  a = Sum(c, p, t)",
    "mean": "q = Shape<start=2,end=3>(x)  p = Slice(pos, front, q, last)  m = ReduceMean<axes=[2]>(p)  a = Add(c, m)",
    "view": "q = Shape<start=2,end=3>(x)  t = Concat<axis=0>(lead, q)  r = Slice(pos, front, q, last) "
    "  p = Reshape(r, t)  a = Add(c, p)",
}
MORE = {k: np.array([v]) for k, v in {"one": 1, "far": 2**31, "minus1": -1, "least": -(2**31)}.items()}


@pytest.mark.parametrize("nodes", READS)
def test_a_table_that_is_read_in_other_ways_folds(nodes: str) -> None:
    model = network(READS[nodes], **MORE, lead=np.array([1, 4]))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, *LENGTHS)


def test_those_that_read_a_table_as_weights_keep_the_old_one() -> None:
    nodes = f"{CUT}  k = Conv<pads=[4,4]>(c, pos)  s = Add(c, p)  a = Add(s, k)"
    text = (
        f"(float[4,3,L] x) => (float[4,4,L] y) {{ c = Conv<pads=[1,1]>(x, w)  {nodes}  n = BN(a, n)  y = Sigmoid(n) }}"
    )
    model = graph(text, w=weights(4, 3, 3), pos=weights(4, 4, 9), **ENDS, **norm("n", 4))
    folds_to(model, "Conv Shape Slice Conv Add Add Sigmoid", (4, 3, 9), (4, 3, 7))


@pytest.mark.parametrize("kind", ["initializer", "node"])
def test_a_table_that_is_an_output_stays(kind: str) -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("pos", onnx.TensorProto.FLOAT, [1, 4, 30]))
    stays(by_a_node(model) if kind == "node" else model, "'pos' is an output of the network", *LENGTHS)


def test_two_readers_of_a_table_must_agree() -> None:
    nodes = f"{CUT}  s = Add(c, p)  d = Sigmoid(p)  a = Add(s, d)"
    after, report = folded(network(nodes))
    assert report.batchnorms_after == 1
    assert "'Sigmoid_" in "; ".join(only(report).reasons)
    same_function(network(nodes), after, *LENGTHS)


def test_a_table_with_one_entry_for_all_channels_takes_no_scale_by_channel() -> None:
    stays(network(pos=weights(1, 1, 30)), "broadcasts one of its branches along the channels", *LENGTHS)
    (table,) = (op for op in net_of(network(pos=weights(1, 1, 30))).ops if isinstance(op, Table))
    gauge = Affine.along(1, 3, np.arange(1.0, 5.0), np.zeros(4))
    with pytest.raises(Refused, match="the constant 'pos' has one entry where the scale or shift differs"):
        table.spread(Gauges({table.outputs[0]: gauge}))


def test_a_table_of_integers_is_no_tensor_that_may_be_scaled() -> None:
    nodes = f"{CUT}  t = Cast<to=1>(p)  a = Add(c, t)"
    model = network(nodes, pos=np.arange(120).reshape(1, 4, 30))
    after, report = folded(model)
    assert report.batchnorms_after == 1
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_table_keeps_its_type(dtype: Any) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    arrays = {"w": weights(4, 3, 3, dtype=dtype), "pos": weights(1, 4, 30, dtype=dtype), **norm("n", 4, dtype)}
    nodes = text(f"{CUT}  a = Add(c, p)").replace("float[", f"{kind}[")
    after, _ = folds_to(graph(nodes, **arrays, **ENDS), "Conv Shape Slice Add Sigmoid", *LENGTHS)
    assert weight_of(after, 0, 0, "Slice").dtype == dtype


def test_a_table_within_a_branch_is_not_changed_for_the_outer_graph() -> None:
    branch = """If(k) < then_branch = t () => (float[N,4,M] u) {
            q = Shape<start=2,end=3>(x)  p = Slice(pos, front, q, last)  a = Add(c, p)  n = BN(a, n)  u = Sigmoid(n) },
        else_branch = e () => (float[N,4,M] v) { v = Sigmoid(c) } >"""
    nodes = (
        f"(float[N,3,L] x, bool k) => (float[N,4,M] y) {{ c = Conv<pads=[1,1]>(x, w)  s = {branch}  f = Shape<start=2,end=3>(x) \
        o = Slice(pos, front, f, last)  y = Add(s, o) }}"
    )
    model = graph(nodes, w=weights(4, 3, 3), pos=weights(1, 4, 30), **ENDS, **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)
    assert "Slice" in operators(after)
    assert any(np.array_equal(numpy_helper.to_array(t), weights(1, 4, 30)) for t in after.graph.initializer)

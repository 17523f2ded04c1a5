"""What is chosen on the calibrating inputs: ranges, operators in float32, equal channels, biases."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tests.export.fold.graphs import graph, weights

from normfold.export.forms.biases import corrected
from normfold.export.forms.calibrated import WIDENINGS, Calibrated, better, error_between
from normfold.export.forms.equalised import equalised, held_by
from normfold.export.forms.int8 import quantized
from normfold.export.forms.ranges import ranges_of
from normfold.export.forms.sensitivity import Group, cheap_to_keep, keeping
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.runtime import Runtime

Array = NDArray[np.float32]
SCALE = np.where(np.arange(8) == 3, 1000.0, 1.0)


def network(scale: NDArray[np.float64] = SCALE) -> Graph:
    """Three convolutions; between the last two, the channels are ``scale`` times as large as usual."""
    text = """(float[N,4,L] x) => (float[N,5,M] y) {
        a = Conv(x, u, ub) p = Relu(a) b = Conv(p, v, vb) q = Relu(b) y = Conv(q, w, wb) }"""
    held = {
        "u": weights(8, 4, 3),
        "ub": 0.1 * weights(8),
        "v": weights(8, 8, 3) * scale[:, None, None],
        "vb": 0.1 * weights(8) * scale,
        "w": weights(5, 8, 3, seed=1) / scale[None, :, None],
        "wb": weights(5),
    }
    proto = graph(text, **{name: array.astype(np.float32) for name, array in held.items()})
    model = unrounded(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    assert model is not None
    return Graph.of(model)


def pieces(seed: int, count: int = 12, scale: float = 1.0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": (scale * rng.standard_normal((1, 4, 24))).astype(np.float32)} for _ in range(count)]


def error(content: bytes, int8: bytes, rows: list[dict[str, Array]]) -> float:
    exact, found = (Runtime(c, optimised=True).run for c in (content, int8))
    return error_between([exact(x) for x in rows], [found(x) for x in rows])


def test_channels_that_differ_a_thousand_times_are_good_only_when_equalised() -> None:
    plain, seen, unseen = network(), pieces(0), pieces(1)
    equal = equalised(plain, seen, lambda made: True)
    assert equal is not None
    assert "Conv_2" in equal.layers
    lost, kept = (
        error(plain.content, quantized(c, seen, ranges=ranges_of(c, seen).widened(2)), unseen)
        for c in (plain.content, equal.graph.content)
    )
    usual = network(np.ones(8))
    control = error(
        usual.content, quantized(usual.content, seen, ranges=ranges_of(usual.content, seen).widened(2)), unseen
    )
    assert lost > 4 * control
    assert kept < 1.5 * control
    one, other = Calibrated(plain.content, seen), Calibrated(equal.graph.content, seen)
    assert better(one, other) is better(other, one) is other
    assert better(one, None) is one


def test_graphs_are_compared_with_the_operators_in_float32_that_each_would_keep() -> None:
    """The surnames network lost 2 % of its labels by equal ranges, 0.4 % by two operators in float32 instead."""
    made = Calibrated(network().content, pieces(0))
    with_less = made.unseen_error
    assert with_less > 0.01
    made.kept = ("Conv_0", "Conv_2", "Conv_4")
    assert max(made._unseen_errors().values()) < 1e-6
    few = Calibrated(network().content, pieces(0)[:2])
    few.kept = made.kept
    assert max(few._unseen_errors().values()) < 1e-6


def test_a_graph_that_the_proof_refuses_is_not_taken() -> None:
    assert equalised(network(), pieces(0), lambda made: False) is None
    assert equalised(network(np.ones(8)), [], lambda made: True) is None


def test_what_the_channels_hold_is_measured_along_their_axis_and_endless_values_are_left_out() -> None:
    model = graph("(float[N,2] x) => (float[N,2] y) { r = Relu(x) y = Exp(r) }")
    found = held_by(bytes(model.SerializeToString()), {"r": 1, "y": 1}, [{"x": np.float32([[1, -1], [3, 800]])}])
    assert set(found) == {"r"}
    assert (found["r"].low.tolist(), found["r"].high.tolist()) == ([1, 0], [3, 800])
    np.testing.assert_allclose(found["r"].square, [5, 320000])


def test_corrected_biases_lower_the_mean_error() -> None:
    content, rows = network(np.ones(8)).content, pieces(0, 24)
    # Ranges that clip every large number behind a ReLU shift the means.
    seen = ranges_of(content, rows).widened(0)
    ranges = {name: (low, high / 3 if name in "pq" else high) for name, (low, high) in seen.items()}
    plain = quantized(content, rows, ranges=ranges)
    balanced = corrected(content, plain, rows)
    assert balanced is not None
    exact = np.concatenate([Runtime(content, optimised=True).run(x)["y"] for x in rows])
    shifts = []
    for int8 in (plain, quantized(balanced, rows, ranges=ranges)):
        run = Runtime(int8, optimised=True).run
        shifts.append(np.abs((np.concatenate([run(x)["y"] for x in rows]) - exact).mean((0, 2))).max())
    assert shifts[1] < shifts[0] / 2


def test_without_a_bias_in_int8_nothing_is_corrected() -> None:
    content, rows = network(np.ones(8)).content, pieces(0, 2)
    everything = ["Conv_0", "Conv_2", "Conv_4"]
    assert corrected(content, quantized(content, rows, kept=everything), rows) is None
    bare = bytes(
        graph("(float[N,4,L] x) => (float[N,8,M] y) { y = Conv(x, u) }", u=weights(8, 4, 3)).SerializeToString()
    )
    assert corrected(bare, quantized(bare, rows), rows) is None


def test_a_bias_of_two_layers_is_not_corrected_for_either() -> None:
    text = "(float[N,4,L] x) => (float[N,8,M] y, float[N,8,M] z) { y = Conv(x, u, b) z = Conv(x, v, b) }"
    held = {"u": weights(8, 4, 3), "v": weights(8, 4, 3, seed=1), "b": weights(8)}
    content, rows = bytes(graph(text, **held).SerializeToString()), pieces(0, 2)
    assert corrected(content, quantized(content, rows), rows) is None


def test_two_grouped_layers_that_share_a_bias_keep_it() -> None:
    nodes = "y = ConvTranspose<group=2>(x, u, b) z = ConvTranspose<group=2>(x, v, b)"
    held = {"u": weights(4, 2, 3), "v": weights(4, 2, 3, seed=1), "b": np.float32([9, 8, 7, 6])}
    model = graph(f"(float[N,4,L] x) => (float[N,4,M] y, float[N,4,M] z) {{ {nodes} }}", **held)
    content, rows = bytes(model.SerializeToString()), pieces(0, 2)
    assert error(content, quantized(content, rows), rows) < 0.05


@pytest.mark.parametrize(("loud", "widest"), [(False, False), (True, True)])
def test_ranges_are_widened_as_far_as_rows_differ(loud: bool, widest: bool) -> None:
    rng = np.random.default_rng(0)
    rows = [{"x": x["x"] * np.float32(np.exp(1.5 * rng.standard_normal()) if loud else 1)} for x in pieces(0, 16)]
    made = Calibrated(network(np.ones(8)).content, rows)
    assert made.widening in WIDENINGS
    assert (made.widening > WIDENINGS[0]) >= widest
    few = Calibrated(network(np.ones(8)).content, rows[:2])
    assert few.widening == 1.0


def test_the_written_file_is_no_worse_than_the_ranges_that_were_seen() -> None:
    graph_, seen, unseen = network(np.ones(8)), pieces(0, 16), pieces(1, 64)
    written = Calibrated(graph_.content, seen).written()
    assert error(graph_.content, written.content, unseen) < error(
        graph_.content, quantized(graph_.content, seen), unseen
    )
    everything = Calibrated(graph_.content, seen).written(["Conv_0", "Conv_2", "Conv_4"])
    assert (everything.kept, everything.corrected) == (("Conv_0", "Conv_2", "Conv_4"), False)
    assert Calibrated(graph_.content, seen).error(everything.content) < 1e-6


def test_a_tenth_of_the_work_stays_in_float32_where_it_takes_most_error_away() -> None:
    first, second = Group(("a", "b"), 0.06, 0.2), Group(("c",), 0.06, 0.15)
    large, small = Group(("d",), 0.8, 0.5), Group(("e",), 0.01, 0.001)
    assert cheap_to_keep([first, second, large, small]) == ("a", "b")
    assert cheap_to_keep([Group(("a",), 0.05, 0.5)]) == (), "a network of one group would be no int8"
    assert keeping([large, first, second, small], ("a", "b")) == [("a", "b", "d"), ("a", "b", "d", "c")]


def test_an_answer_of_nan_is_the_largest_error_not_none() -> None:
    exact, nan = ([{"y": np.float32([1, last])}, {"y": np.float32([1, 2])}] for last in (2, np.nan))
    assert error_between(exact, nan) == np.inf


@pytest.mark.parametrize("masked", [np.nan, -np.inf])
def test_places_without_a_number_in_the_exact_answer_are_left_out_of_the_error(masked: float) -> None:
    exact = [{"y": np.float32([1, 4])}, {"y": np.float32([2, masked])}]
    assert error_between(exact, exact) == 0
    assert error_between(exact, [exact[0], {"y": np.float32([6, masked])}]) == pytest.approx(np.sqrt(4**2 / 2) / 4)
    assert error_between(exact, [exact[0], {"y": np.float32([np.nan, masked])}]) == np.inf

"""Scales that make the channels of a tensor equally wide: which are chosen, and that the function stays the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from tests.export.fold.graphs import graph, weights

from normfold.export.fold.equalised import Channels, equalise
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.float64 import Float64Graph

LARGE = np.array([1.0, 1000.0, 1.0, 0.01])


def network(scale: np.ndarray, **changes: np.ndarray) -> ir.Model:
    """Two convolutions and a ReLU; the channels between them are ``scale`` times as large as usual."""
    held = {
        "w": weights(4, 3, 1) * scale[:, None, None],
        "b": scale * 0.1,
        "v": weights(4, 4, 3, seed=1) / scale[None, :, None],
    } | changes
    text = "(float[N,3,L] x) => (float[N,4,M] y) { c = Conv(x, w, b) r = Relu(c) y = Conv(r, v) }"
    proto = graph(text, **{name: array.astype(np.float32) for name, array in held.items()})
    model = unrounded(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    assert model is not None
    return model


def holding(reach: np.ndarray) -> Mapping[str, Channels]:
    return {"r": Channels(np.zeros(4), reach, reach**2 / 8)}


def weight(model: ir.Model, rank: int, last: int) -> np.ndarray:
    held = (v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None)
    return next(a for a in held if a.ndim == rank and a.shape[-1] == last)


def test_channels_that_differ_a_thousand_times_get_equal_ranges_and_the_function_stays() -> None:
    model = network(LARGE)
    before = Graph.of(model)
    asked = []
    assert equalise(model, lambda axes: asked.append(dict(axes)) or holding(LARGE)) == ("Conv_0",)  # type: ignore[func-returns-value]
    assert asked == [{"r": 1}]
    rows = np.abs(weight(model, 3, 1)).max(axis=(1, 2))
    assert rows.max() / rows.min() < 10, "each row of the first weight had its own size"
    after = Graph.of(model)
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 20))}
    assert before.exact is not None
    assert after.exact is not None
    wanted, found = (Float64Graph(exact).run(x)["y"] for exact in (before.exact, after.exact))
    assert np.abs(found - wanted).max() < 1e-12 * np.abs(wanted).max()
    assert {n.op_type for n in model.graph} == {"Conv", "Relu"}


def test_channels_that_are_equal_already_stay() -> None:
    model = network(np.ones(4), v=np.ones((4, 4, 3)))
    before = Graph.of(model).content
    assert equalise(model, lambda axes: holding(np.ones(4))) == ()
    assert Graph.of(model).content == before


def test_a_channel_that_is_always_zero_has_no_range_and_stays_finite() -> None:
    model = network(LARGE)
    assert equalise(model, lambda axes: holding(np.array([1.0, 1000.0, 1.0, 0.0])))
    assert all(np.isfinite(weight(model, 3, last)).all() for last in (1, 3))


def test_what_was_not_measured_stays() -> None:
    assert equalise(network(LARGE), lambda axes: {}) == ()


def test_scales_that_would_leave_the_range_of_the_type_are_not_taken() -> None:
    tiny = np.array([1.0, 1.0, 1.0, 1e-37])
    model = network(np.ones(4), w=weights(4, 3, 1) * tiny[:, None, None], v=weights(4, 4, 3, seed=1))
    before = Graph.of(model).content
    assert equalise(model, lambda axes: holding(np.array([1e-37, 1e3, 1e3, 1e3]))) == ()
    assert Graph.of(model).content == before

"""Inputs made from the BatchNorms' statistics have these statistics, whatever the data were."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.export.calibration.graphs import LENGTH, SPECS, book, series

from normfold.export.calibration import synthetic as drawing
from normfold.export.calibration.rows import Division, Rows
from normfold.export.calibration.scale import Norm, norms_of, with_norm_inputs
from normfold.export.calibration.synthetic import synthetic
from normfold.export.forms.int8 import quantized
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs

SIZES = {"N": 2, "L": LENGTH}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "POOL", 128)
    monkeypatch.setattr(drawing, "ROWS", 16)


def made(graph: bytes) -> Division:
    division = synthetic(graph, SPECS, SIZES)
    assert division is not None
    return division


def rows(found: Rows | None) -> NDArray[np.float32]:
    assert found is not None
    return np.concatenate([case.inputs["x"] for case in found.cases])


def distance(graph: bytes, x: NDArray[np.float32]) -> float:
    """How far the rows are from the statistics, in deviations: the mean over BatchNorms and channels."""
    norms, off = norms_of(graph), []
    values = with_norm_inputs(graph, norms).run({"x": x})
    for norm in norms:
        read = values[norm.value].astype(np.float64)
        deviation = np.sqrt(norm.var)
        off.append(np.abs(read.mean((0, 2)) - norm.mean) / deviation + np.abs(read.std((0, 2)) / deviation - 1))
    return float(np.mean(np.concatenate(off)))


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_rows_have_the_statistics_of_data_of_any_size(size: int) -> None:
    graph = book(series(256, 0, size))
    found = made(graph)
    noise = np.random.default_rng(0).standard_normal((64, 3, LENGTH)).astype(np.float32)
    for x in (rows(found.measured), rows(found.calibration)[:16]):
        assert x.shape == (16, 3, LENGTH)
        assert distance(graph, x) < 0.4, "four tenths of a deviation, in mean and deviation together"
        assert distance(graph, x) < distance(graph, noise)


def test_each_row_calibrates_at_its_scale_and_once_more_above_it_and_others_measure() -> None:
    found = made(book(series(256, 0)))
    x = rows(found.calibration)
    np.testing.assert_array_equal(x[16:], x[:16] * np.float32(drawing.MARGIN))
    taken = {row.tobytes() for row in x}
    assert len(taken) == 32, "no row is chosen twice"
    assert not taken & {row.tobytes() for row in rows(found.measured)}


def test_the_same_network_gets_the_same_rows() -> None:
    graph = book(series(256, 0))
    np.testing.assert_array_equal(rows(made(graph).calibration), rows(made(graph).calibration))


@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_int8_without_data_is_nearly_as_right_as_with_data_where_noise_is_not(gamma: float) -> None:
    graph, test = book(series(256, 0, 50.0), gamma), series(64, 1, 50.0)
    exact = Runtime(graph, optimised=True).run({"x": test})["y"]
    noise = np.random.default_rng(0).standard_normal((64, 3, LENGTH)).astype(np.float32)
    errors = {}
    for name, x in (("data", series(64, 2, 50.0)), ("made", rows(made(graph).calibration)), ("noise", noise)):
        got = Runtime(quantized(graph, [{"x": x}]), optimised=True).run({"x": test})["y"]
        errors[name] = float(np.sqrt(((got - exact) ** 2).mean()) / exact.std())
    assert errors["made"] < 3 * errors["data"] < errors["noise"], errors


def test_rows_are_chosen_for_what_they_have_together() -> None:
    norm = Norm("bn", "v", np.zeros(1), np.ones(1), first=True)
    # Mean and mean square of five rows: no row alone has mean 0 and deviation 1, the first and the fourth together do.
    moments = np.float64([[[-0.8], [1.0]], [[3.0], [9.5]], [[0.1], [0.02]], [[0.8], [1.0]], [[-5.0], [30.0]]])
    kept = drawing._nearest([moments], [norm])
    assert set(kept[:2]) == {0, 3}
    assert sorted(kept) == [0, 1, 2, 3, 4], "no more rows than there are"


def test_a_network_without_statistics_gets_no_rows() -> None:
    assert synthetic(book(), SPECS, SIZES) is None


def test_indices_are_drawn_from_what_the_network_takes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (int64[N, L] x) => (float[N, 2, L] y) {
        e = Gather <axis = 0> (T, x)
        a = Transpose <perm = [0, 2, 1]> (e)
        y = BatchNormalization (a, one, zero, mean, var)
    }"""
    model = onnx.parser.parse_model(text)
    held = {"T": [[0, 1], [1, 0], [1, 1]], "one": [1, 1], "zero": [0, 0], "mean": [0.6, 0.6], "var": [0.25, 0.25]}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(a), n) for n, a in held.items())
    division = synthetic(model.SerializeToString(), parse_inputs(["x=INT64[N,L]:0..2"]), {"N": 2, "L": 6})
    assert division is not None
    drawn = rows(division.measured)
    assert drawn.dtype == np.int64
    assert set(np.unique(drawn)) == {0, 1, 2}

"""Samples in other units than the training data are named, and others are not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.export.calibration.graphs import SPECS, book, series

from normfold.export.calibration.scale import norms_of, unlike_training
from normfold.export.capture.capture import DEFAULT_OPSET
from normfold.export.graphs.serialize import to_bytes
from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.verify import Case
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Request
from normfold.models.surnames.vectorizer import Vectorizer

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="module")
def trained() -> bytes:
    """The network with the statistics of 256 series."""
    return book(series(256, 0))


def said(graph: bytes, *files: NDArray[np.float32]) -> tuple[str, ...]:
    return unlike_training(graph, [Case("sample", f"{i}.npy", {"x": x}) for i, x in enumerate(files)], SPECS)


def test_only_the_batchnorm_that_reads_no_other_is_asked(trained: bytes) -> None:
    assert [(norm.name, norm.first) for norm in norms_of(trained)] == [("bn1", True), ("bn2", False)]


def test_a_layer_without_a_name_is_called_by_its_output(trained: bytes) -> None:
    """The sentence said "at layer ''" of files that other programs wrote."""
    model = onnx.load_from_string(trained)
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
    norms = norms_of(model.SerializeToString())
    outputs = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert [norm.name for norm in norms] == outputs


@pytest.mark.parametrize("seed", range(3))
def test_data_like_the_training_data_raise_no_alarm(trained: bytes, seed: int) -> None:
    assert said(trained, series(100, 10 + seed), series(1, 20 + seed)) == ()


@pytest.mark.parametrize(
    ("factor", "what"),
    [
        (0.01, "00 times too small"),
        (100.0, "0 times too large"),
        (1e9, ",000,000 times too large"),
        (0.0, "as if it was all zero"),
    ],
)
def test_one_row_in_other_units_is_named_with_the_factor_and_the_layer(
    trained: bytes, factor: float, what: str
) -> None:
    x = series(40, 5)
    x[35] *= factor  # in the second piece that is run at once
    (sentence,) = said(trained, series(3, 6), x)
    assert sentence.startswith("row 35 of sample '1.npy' looks ")
    assert what in sentence
    assert "at layer 'bn1'" in sentence
    (sentence,) = said(trained, x[35:36])
    assert sentence.startswith("sample '0.npy' looks ")


def test_a_file_that_is_not_standardised_is_named_once_for_all_of_its_rows(trained: bytes) -> None:
    (sentence,) = said(trained, 30 * series(9, 7) + 400)
    assert sentence.startswith("9 of 9 rows (row 0 of sample '0.npy', row 1 of sample '0.npy', ")
    assert "look about" in sentence
    assert "times too large at layer 'bn1'" in sentence


def test_data_around_another_mean_are_named_by_their_distance() -> None:
    # Trained around 400 with deviation 1: a signal four times as large is no factor of 10, but far away in deviations.
    data = series(64, 0) + 400
    graph = book(data)
    assert said(graph, series(8, 1) + 400) == ()
    (sentence,) = said(graph, 4 * data[:1])
    assert re.search(r"looks \d+ standard deviations away from the training data at layer 'bn1'", sentence)


def test_what_a_bias_adds_is_no_part_of_the_scale() -> None:
    graph = book(series(256, 0), bias=50.0)
    assert said(graph, series(100, 10)) == ()
    for factor, what in ((0.01, "too small"), (30.0, "too large")):
        (sentence,) = said(graph, np.float32(factor) * series(1, 20))
        assert re.search(rf"looks about \d+ times {what} at layer 'bn1'", sentence)


def test_an_input_of_integers_has_no_zero_to_compare_with_and_is_judged_by_its_distance() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (int64[N, L] x) => (float[N, 2, L] y) {
        e = Gather <axis = 0> (T, x)
        a = Transpose <perm = [0, 2, 1]> (e)
        y = BatchNormalization (a, one, zero, mean, var)
    }"""
    model = onnx.parser.parse_model(text)
    table = np.float32([[0, 1], [1, 0], [900, 900]])
    held = {"T": table, "one": [1, 1], "zero": [0, 0], "mean": [0.5, 0.5], "var": [0.25, 0.25]}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(a), n) for n, a in held.items())
    specs, rows = parse_inputs(["x=INT64[N,L]"]), np.int64([[0, 1, 1, 0], [0, 2, 1, 2]])
    (sentence,) = unlike_training(model.SerializeToString(), [Case("sample", "ids.npy", {"x": rows})], specs)
    assert sentence.startswith("row 1 of sample 'ids.npy' looks ")


def test_statistics_that_no_data_made_and_graphs_without_any_say_nothing() -> None:
    fresh = book()
    assert norms_of(fresh) == ()
    assert said(fresh, 1e6 * series(2, 0)) == ()


def test_the_samples_of_both_reference_networks_raise_no_alarm() -> None:
    gun = np.float32([s["series"] for s in json.loads((MODELS / "gunpoint" / "samples.json").read_text())])[:, None]
    names = [s["surname"] for s in json.loads((MODELS / "surnames" / "samples.json").read_text())]
    for source, channels, x in (
        ("normfold.models.gunpoint.network:InceptionTime", 1, gun),
        ("normfold.models.surnames.network:SurnameCNN", 42, Vectorizer.load()(names)),
    ):
        folder = source.split(".")[2]
        weights = MODELS / folder / f"{folder}.safetensors"
        origin = open_origin(Request(source=source, weights=weights, inputs=[f"x=FP32[N,{channels},L]"]), [])
        graph = to_bytes(origin.graph(origin.specs, {"N": 2, "L": x.shape[2]}, DEFAULT_OPSET))
        assert unlike_training(graph, [Case("sample", "samples", {"x": x})], origin.specs) == ()
        wrong = np.concatenate([x, x[:1] * np.float32(0.001)])
        (sentence,) = unlike_training(graph, [Case("sample", "samples", {"x": wrong})], origin.specs)
        assert sentence.startswith(f"row {len(x)} of sample 'samples' looks about 1,000 times too small at layer")

"""``normfold export`` in fewer bits: what calibrates, what measures, what is said of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.export.calibration.graphs import book, series
from tests.export.fold.graphs import graph, norm, weights

from normfold.cli.main import main
from normfold.export.errors import ExportError, InputSpecError
from normfold.export.fold import counts
from normfold.export.forms import precision
from normfold.export.forms.fewer_bits import in_fewer_bits
from normfold.export.forms.int8 import quantized
from normfold.export.forms.precision import PrecisionReport
from normfold.export.forms.remembered import Measurement
from normfold.export.forms.variants import branches_apart
from normfold.export.graphs.exact import Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.pipeline import Folded, fold_and_prove
from normfold.export.proof.verify import Case
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Request

Array = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _lenient(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Publish whatever int8 costs, and time nothing: a few channels of random weights lose more than a trained net."""
    monkeypatch.setattr(precision, "PRECISIONS", {"fp16": 0.02, "int8": 0.9})
    monkeypatch.setattr(precision, "LABEL_AGREEMENT", 0.0)
    monkeypatch.setattr(precision, "medians", lambda graphs, inputs: (dict.fromkeys(graphs, 1.0), 9))


def proved(content: bytes, folder: Path) -> Folded:
    (folder / "net.onnx").write_bytes(content)
    return fold_and_prove(open_origin(Request(source=str(folder / "net.onnx")), []), [], "net", 18, variant="folded")


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Folded:
    """The book's network with the statistics of 256 series."""
    return proved(book(series(256, 0)), tmp_path_factory.mktemp("net"))


def report(
    folded: Folded,
    name: str,
    samples: list[Array],
    tests: list[Array],
    apart: Graph | None = None,
    slower: bool = True,
) -> PrecisionReport:
    given, measured = (
        [Case("sample", f"{kind}{number}.npy", {"x": x}) for number, x in enumerate(arrays)]
        for kind, arrays in (("s", samples), ("t", tests))
    )
    timed = {"x": series(1, 9)}
    graph = Graph(folded.content, folded.exact)
    _, found = in_fewer_bits(graph, name, folded.proof, given, measured, timed, even_if_slower=slower, apart=apart)
    return found


def test_the_command_measures_int8_on_rows_that_calibration_did_not_see(directory: Path) -> None:
    (directory / "net.onnx").write_bytes(book(series(256, 0)))
    np.save("many.npy", series(80, 1))
    np.save("few.npy", np.concatenate([series(5, 5), series(1, 6) / 100]))
    options = ("net.onnx", "--repository", "r", "--name", "m", "--sample", "many.npy", "--test-sample", "few.npy")
    done = CliRunner().invoke(main, ["export", *options, "--quantize", "int8"])
    assert done.exit_code == 0, done.output
    assert "int8: published" in done.output
    assert "  calibrated on 80 rows: 'many.npy'\n  measured on 6 rows: 'few.npy'\n" in done.output
    assert "warning: int8 was measured on 6 rows only" in done.output
    assert "warning: row 5 of sample 'few.npy' looks about" in done.output
    version = directory / "r" / "m" / "1"
    fewer = json.loads((version / "export.json").read_text())["precision"]
    assert (fewer["calibration"]["rows"], fewer["measured"]["rows"], len(fewer["warnings"])) == (80, 6, 2)
    page = (version / "report.html").read_text()
    assert "<b>published in int8</b>" in page
    assert "the same function</span>" not in page
    assert len(onnx.load(version / "model.onnx").graph.node) == fewer["nodes"]
    done = CliRunner().invoke(main, ["export", *options])
    assert done.exit_code == 1
    assert "give --quantize or --dtype too" in done.stderr


def test_without_test_samples_half_of_the_rows_measure(folded: Folded) -> None:
    found = report(folded, "int8", [series(80, 1)], [])
    assert str(found.calibration) == "40 rows: every second row of 's0.npy'"
    assert str(found.measured) == "40 rows: the rows between them, of 's0.npy'"
    assert found.warnings == ()


def test_of_a_single_row_nothing_is_claimed(folded: Folded) -> None:
    found = report(folded, "int8", [series(1, 3)], [])
    (warning,) = found.warnings
    assert "int8 was calibrated and measured on the same single row, which says nothing of other inputs" in warning
    assert found.verification.worst.label_agreement is None


def test_without_samples_int8_is_calibrated_on_the_batchnorms_statistics(folded: Folded) -> None:
    found = report(folded, "int8", [], [])
    assert str(found.calibration) == "64 rows: made from the BatchNorms' statistics, the first drawing"
    assert str(found.measured) == "32 rows: made from the BatchNorms' statistics, another drawing"
    (warning,) = found.warnings
    assert "int8 was measured on synthetic inputs only, not on real ones" in warning
    found = report(folded, "int8", [], [series(80, 1)])
    assert (str(found.measured), found.warnings) == ("80 rows: 't0.npy'", ())


def test_fp16_is_measured_on_every_sample_and_else_on_random_inputs(folded: Folded) -> None:
    found = report(folded, "fp16", [series(80, 1)], [])
    assert (found.calibration, str(found.measured), found.warnings) == (None, "80 rows: 's0.npy'", ())
    found = report(folded, "fp16", [series(80, 1)], [series(40, 2)])
    assert str(found.measured) == "40 rows: 't0.npy'"
    found = report(folded, "fp16", [], [])
    assert found.measured.source == "N(0, 1)"
    assert "fp16 was measured on random inputs only, not on real ones" in found.warnings[0]


def test_rows_that_hold_nan_do_not_calibrate_and_nothing_but_such_rows_is_refused(folded: Folded) -> None:
    x = series(80, 1)
    x[4, 1, 2] = np.nan
    found = report(folded, "int8", [x], [])
    assert str(found.calibration) == "39 rows: every second row of 's0.npy'"
    with pytest.raises(InputSpecError, match="every row that would calibrate it holds NaN or infinity: give rows"):
        report(folded, "int8", [np.full_like(x, np.nan)], [])


def test_a_value_inside_that_is_infinite_ends_in_a_sentence(folded: Folded) -> None:
    with pytest.raises(ExportError, match=r"quantizer cannot write this network in int8.* NaN or infinite"):
        quantized(folded.content, [{"x": np.full((1, 3, 24), 3e38, np.float32)}])


def test_int8_without_samples_needs_statistics_that_data_have_made(tmp_path: Path) -> None:
    with pytest.raises(InputSpecError, match=r"no BatchNorm with statistics of its training data.*: give real ones"):
        report(proved(book(), tmp_path), "int8", [], [])


@pytest.mark.parametrize("gamma", [-1.0, 0.5])
def test_a_text_network_with_gamma_of_both_signs_keeps_its_answers_in_fewer_bits(tmp_path: Path, gamma: float) -> None:
    # Where gamma is negative, a ReLU becomes Max and Min by channel; the bound of the other channels is infinite.
    model = onnx.load_model_from_string(book(series(256, 0), gamma))
    nodes = {node.name: node for node in model.graph.node}
    nodes["p"].op_type = "GlobalMaxPool"
    nodes["f"].input[0], nodes["bn2"].input[0], nodes["p"].input[0] = "d", "f", "e"  # convolution, ReLU, BatchNorm
    del model.graph.node[:]
    model.graph.node.extend(nodes[name] for name in ("a", "b", "bn1", "d", "f", "bn2", "p", "q", "y"))
    origin = proved(model.SerializeToString(), tmp_path)
    half, eight = (report(origin, name, [series(80, 1)], []) for name in ("fp16", "int8"))
    assert half.verification.worst.relative < 0.005  # a dozen roundings of 2^-11
    assert eight.verification.passed


def test_fp16_takes_bounds_of_max_and_min_that_are_infinite_or_beyond_its_range(folded: Folded) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 4, L] x) => (float[N, 4, L] y) {
        a = Max (x, low)
        y = Min (a, high)
    }"""
    model = onnx.parser.parse_model(text)
    inf = np.inf
    for name, bounds in (("low", [-inf, -1e6, 0, -70000]), ("high", [inf, 1e6, 70000, 1])):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(bounds).reshape(4, 1), name))
    content, x = model.SerializeToString(), 3 * np.random.default_rng(0).standard_normal((2, 4, 50)).astype(np.float32)
    half = precision.in_float16(content)
    onnx.checker.check_model(half, full_check=True)  # each node behind those that it reads
    want, got = (Runtime(c, optimised=True).run({"x": x})["y"] for c in (content, half))
    assert np.abs(got - want).max() <= 2**-11 * np.abs(want).max()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_int8_takes_grouped_transposed_convolutions_with_a_bias(groups: int, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 8, L] x) => (float[N, M, K] y) {{
        a = Conv <kernel_shape = [3]> (x, W1, B1)
        y = ConvTranspose <kernel_shape = [4], strides = [2], group = {groups}> (a, W2, B2)
    }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"W1": (8, 8, 3), "B1": (8,), "W2": (8, 12 // groups, 4), "B2": (12,)}.items():
        array = (rng.standard_normal(shape) / 5).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    content, x = model.SerializeToString(), rng.standard_normal((8, 8, 20)).astype(np.float32)
    exact = Runtime(content, optimised=True).run({"x": x})["y"]
    got = Runtime(quantized(content, [{"x": x}]), optimised=True).run({"x": x})["y"]
    # Three roundings to 255 steps of a range of at most twice the largest value, and weights of 127 steps.
    assert np.abs(got - exact).max() < (3 / 255 + 8 / 127) * np.abs(exact).max()
    assert capfd.readouterr().err == ""


SKIP = "c{0} = Conv<pads=[1,1]>(h{0}, w{0}) a{0} = Add(c{0}, h{0}) n{0} = BN(a{0}, n{0}) h{1} = Relu(n{0})"
NORM = "c{0} = Conv<pads=[1,1]>(h{0}, w{0}) n{0} = BN(h{0}, n{0}) a{0} = Add(c{0}, n{0}) h{1} = Sigmoid(a{0})"


def skips(weak: float, gamma: str, layer: str = SKIP) -> bytes:
    """Three convolutions, each with a skip before its BatchNorm; ``weak`` scales their weights."""
    layers = " ".join(layer.format(k, k + 1) for k in range(3))
    held = {f"w{k}": weak * weights(16, 16, 3, seed=k) for k in range(3)}
    norms = {name: array for k in range(3) for name, array in norm(f"n{k}", 16, gamma=gamma).items()}
    text = f"(float[N,3,L] x) => (float[N,4,L] y) {{ c = Conv(x, u) h0 = Relu(c) {layers} y = Conv(h3, v) }}"
    model = graph(text, u=weights(16, 3, 1), v=weights(4, 16, 1), **held, **norms)
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


@pytest.mark.parametrize(("weak", "gamma", "apart"), [(0.1, "positive", True), (1.0, "mixed", False)])
def test_int8_keeps_a_skip_apart_from_a_convolution_of_small_weights(
    tmp_path: Path, weak: float, gamma: str, apart: bool
) -> None:
    """A row of weights has one scale, and the skip adds 1 to one of them."""
    origin, options = proved(skips(weak, gamma), tmp_path), ([series(24, 1)], [series(64, 2)])
    assert origin.report.folding.sums_removed == 3
    merged, chosen = (report(origin, "int8", *options, apart=other) for other in (None, branches_of(origin)))
    assert (merged.apart, chosen.apart) == (False, apart)
    if apart:
        assert chosen.verification.worst.relative < 0.8 * merged.verification.worst.relative
    else:
        assert chosen.verification == merged.verification


def test_int8_with_branches_apart_that_is_slower_than_float32_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, options = proved(skips(0.1, "positive"), tmp_path), ([series(24, 1)], [series(64, 2)])
    times = iter([2.0, 0.5])
    monkeypatch.setattr(
        precision, "measured_once", lambda *_: Measurement({"float32": 1.0, "int8": next(times)}, 9, "float32")
    )
    found = report(origin, "int8", *options, apart=branches_of(origin), slower=False)
    assert (found.apart, found.timing.after_ms) == (False, 0.5)


def test_the_report_counts_the_batchnorms_of_the_graph_that_int8_was_written_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "WORTH", 1e9)  # with branches apart, whatever the error is
    origin, options = proved(skips(0.02, "mixed", NORM), tmp_path), ([series(24, 1)], [series(64, 2)])
    apart = branches_of(origin)
    assert apart is not None
    found = report(origin, "int8", *options, apart=apart)
    assert found.apart
    batchnorms, _, parameters = counts(apart.model())
    assert (found.batchnorms, found.parameters) == (batchnorms, parameters)
    assert batchnorms > origin.report.published.batchnorms


def branches_of(folded: Folded) -> Graph | None:
    published = Graph(folded.content, folded.exact)
    return branches_apart(folded.proof.unfolded, published, folded.report.published.variant)


@pytest.mark.parametrize("fold_all", [False, True])
def test_the_command_tries_int8_with_branches_apart_unless_all_is_to_be_folded(directory: Path, fold_all: bool) -> None:
    (directory / "net.onnx").write_bytes(skips(0.1, "positive"))
    np.save("rows.npy", series(48, 1))
    options = (
        "--repository",
        "r",
        "--name",
        "m",
        "--sample",
        "rows.npy",
        "--quantize",
        "int8",
        "--form",
        "folded",
        "--even-if-slower",
    )
    done = CliRunner().invoke(main, ["export", "net.onnx", *options, *["--fold-all"] * fold_all])
    assert done.exit_code == 0, done.output
    assert ("  apart: branches" in done.output) is not fold_all

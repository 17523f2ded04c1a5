"""Files that compute in float16, between Casts or as a whole: their algebra is proved, their own rounding measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from tests.export.fold.graphs import graph, norm, weights

from normfold.export import pipeline
from normfold.export.errors import VerificationError
from normfold.export.fold import FoldReport, fold
from normfold.export.graphs.exact import narrow_types
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.unrounded import holding
from normfold.export.onnx_fold import fold_file
from normfold.export.proof import rounding
from normfold.export.proof.moving import moved_weights

HALF = np.float16
BETWEEN = """(float[N, 3, L] x) => (float[N, 4, M] y) {
    h = Cast <to = 10> (x) c = Conv (h, w) r = Relu (c) n = BN(r, n) d = Conv (n, v) m = BN(d, m) y = Cast <to = 1> (m)
}"""
WHOLE = """(float16[N, 3, L] x) => (float16[N, 4, M] y) {
    c = Conv (x, w) r = Relu (c) n = BN(r, n) d = Conv (n, v) y = BN(d, m)
}"""


def model(text: str) -> onnx.ModelProto:
    held = {"w": weights(8, 3, 3, dtype=HALF), "v": weights(4, 8, 1, dtype=HALF)}
    return graph(text, **held, **norm("n", 8, HALF, gamma="positive"), **norm("m", 4, HALF))


@pytest.mark.parametrize("text", [BETWEEN, WHOLE], ids=["between Casts", "as a whole"])
def test_a_file_in_float16_is_folded_and_its_rounding_is_measured_in_float16(text: str, tmp_path: Path) -> None:
    source, target = tmp_path / "net.onnx", tmp_path / "folded.onnx"
    source.write_bytes(model(text).SerializeToString())
    report = fold_file(source, target, variant="folded")
    assert (report.folding.batchnorms_before, report.folding.batchnorms_after) == (2, 0)
    assert report.verification.passed
    assert report.verification.reference == "ONNX reference, float64"
    for difference in report.verification.differences:
        assert difference.bound >= 4 * 2.0**-10
        assert difference.bound < 0.05  # three times what float16 costs this network, not more
    assert report.notes == ()
    assert report.algebra is not None
    assert report.algebra.passed
    for difference in report.algebra.differences:
        assert difference.relative < 1e-14  # float64 against float64, with weights that were not rounded to float16
        assert difference.bound == 1e-12
    kept = {numpy_helper.to_array(t).dtype for t in onnx.load(target).graph.initializer}
    assert kept == {np.dtype(HALF)}


@pytest.mark.parametrize("variant", ["folded", "lifted"])
@pytest.mark.parametrize("text", [BETWEEN, WHOLE], ids=["between Casts", "as a whole"])
def test_a_weight_in_float16_that_is_wrong_by_a_hundred_thousandth_is_refused(
    text: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: float16 itself rounds a hundred times coarser, so no comparison of the files' answers can see it."""

    def wrong(graph: ir.Model, fold_all: bool) -> FoldReport:
        report = fold(graph, fold_all=fold_all)
        weight = next(node for node in graph.graph if node.op_type == "Conv").inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        moved = weight.const_value.numpy().copy()
        moved[0] *= 1 + 1e-5
        weight.const_value = holding(moved, weight.const_value, weight.name)
        return report

    source = tmp_path / "net.onnx"
    source.write_bytes(model(text).SerializeToString())
    monkeypatch.setattr(pipeline, "fold", wrong)
    with pytest.raises(VerificationError, match="is not the same network, so nothing was published"):
        fold_file(source, tmp_path / "folded.onnx", variant=variant)
    assert not (tmp_path / "folded.onnx").exists()


def test_a_batchnorm_in_float32_behind_a_cast_stays_with_its_type_and_the_algebra_holds(tmp_path: Path) -> None:
    """A file of mixed precision: convolutions in float16, BatchNorms in float32."""
    text = """(float[N, 3, L] x) => (float[N, 4, M] y) {
        h = Cast <to = 10> (x) c = Conv (h, w) f = Cast <to = 1> (c) n = BN(f, n) r = Relu (n)
        g = Cast <to = 10> (r) d = Conv (g, v) y = Cast <to = 1> (d)
    }"""
    held = {"w": weights(8, 3, 3, dtype=HALF), "v": weights(4, 8, 1, dtype=HALF)}
    source, target = tmp_path / "net.onnx", tmp_path / "folded.onnx"
    source.write_bytes(graph(text, **held, **norm("n", 8, gamma="positive")).SerializeToString())
    report = fold_file(source, target, variant="folded")
    assert report.algebra is not None
    assert report.algebra.passed
    types = {numpy_helper.to_array(t).dtype for t in onnx.load(target).graph.initializer}
    assert np.dtype(HALF) in types


def test_the_floor_of_the_bound_is_that_of_the_type_with_the_fewest_digits() -> None:
    single = graph("(float[N] x) => (float[N] y) { y = Relu (x) }").SerializeToString()
    assert narrow_types(single) == ()
    assert rounding.bound_of(single)(0.0, False) == rounding.FLOOR
    half = model(BETWEEN).SerializeToString()
    assert narrow_types(half) == (ir.DataType.FLOAT16,)
    assert rounding.bound_of(half)(1e-3, False) == 3e-3 + 4 * 2.0**-10
    assert rounding.bound_of(half)(0.0, True) == rounding.INDEX_SHARE
    brain = graph("(float[N] x) => (float[N] y) { h = Cast <to = 16> (x) y = Cast <to = 1> (h) }").SerializeToString()
    assert rounding.bound_of(brain)(0.0, False) == 4 * 2.0**-7


def test_weights_in_float16_move_by_their_own_unit() -> None:
    content = model(WHOLE).SerializeToString()
    moved = onnx.load_model_from_string(moved_weights(content, 0))
    before, after = (
        next(numpy_helper.to_array(t) for t in m.graph.initializer if t.name == "w")
        for m in (onnx.load_model_from_string(content), moved)
    )
    assert after.dtype == HALF
    steps = np.abs(after.astype(float) - before.astype(float)) / np.abs(np.spacing(before)).astype(float)
    assert set(np.unique(steps.round(6))) <= {0.0, 0.5, 1.0}
    assert (steps > 0).mean() > 0.3


def test_numbers_that_sizes_are_calculated_with_do_not_move() -> None:
    """ceil(L / 2 + 1) - 1 frames, as encoders of audio count them: with the 1 moved up there is one more."""
    text = """(float[N,1,L] x) => (float[N,1,M] y) <float two = {2.0}, float one = {1.0}, int64[1] zero = {0},
            int64[1] first = {1}, int64[1] last = {2}> {
        size = Shape <start=2,end=3> (x)  length = Cast <to=1> (size)  half = Div (length, two)  more = Add (half, one)
        up = Ceil (more)  less = Sub (up, one)  count = Cast <to=7> (less)  k = Slice (x, zero, count, last)
        spread = ConstantOfShape (first)  w = Add (spread, weight)  y = Mul (k, w) }"""
    content = graph(text, weight=np.ones(1, np.float32)).SerializeToString()
    found: dict[str, set[float]] = {"one": set(), "two": set(), "weight": set()}
    for seed in range(8):
        moved = onnx.load_model_from_string(moved_weights(content, seed)).graph.initializer
        arrays = {t.name: numpy_helper.to_array(t) for t in moved}
        for name, numbers in found.items():
            numbers.add(arrays[name].item())
    assert found["one"] == {1}
    assert found["two"] == {2}
    assert len(found["weight"]) > 1


def test_numbers_that_are_only_cut_by_a_size_or_divided_by_one_move() -> None:
    """A table of positions, of which the first L rows are added, has its share in the network's own rounding."""
    text = """(float[N,8,L] x) => (float[N,8,L] y) <int64[1] zero = {0}, int64[1] last = {2}> {
        size = Shape <start=2,end=3> (x)  rows = Slice (table, zero, size, last)  all = Tanh (rows)
        length = Cast <to=1> (size)  share = Div (scale, length)  z = Mul (x, share)  y = Add (z, all) }"""
    held = {"table": np.linspace(0.1, 1, 64, dtype=np.float32).reshape(1, 8, 8), "scale": np.float32([3.1])}
    content = graph(text, **held).SerializeToString()
    moved = [onnx.load_model_from_string(moved_weights(content, seed)).graph.initializer for seed in range(8)]
    for name, before in held.items():
        assert any(np.any(numpy_helper.to_array(t) != before) for ts in moved for t in ts if t.name == name), name


def test_whole_exponents_do_not_move_because_the_square_of_a_negative_number_would_be_nan() -> None:
    text = """(float[N] x) => (float[N] y) <float two = {2.0}, float half = {0.5}> {
        square = Pow (x, two)  root = Pow (square, half)  y = Add (square, root) }"""
    content = graph(text).SerializeToString()
    found: dict[str, set[float]] = {"two": set(), "half": set()}
    for seed in range(8):
        moved = moved_weights(content, seed)
        assert np.isfinite(Runtime(moved, optimised=False).run({"x": np.float32([-3, -0.5, 2])})["y"]).all()
        for t in onnx.load_model_from_string(moved).graph.initializer:
            found[t.name].add(numpy_helper.to_array(t).item())
    assert found["two"] == {2}
    assert len(found["half"]) > 1

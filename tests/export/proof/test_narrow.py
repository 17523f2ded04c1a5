"""Files that compute in float16, between Casts or as a whole, are proved in their own precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from tests.export.fold.graphs import graph, norm, weights

from normfold.export.graphs.exact import narrow_types
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
    (note,) = report.notes
    assert "(it computes in float16 itself), so the proof compares results in its own precision alone" in note
    kept = {numpy_helper.to_array(t).dtype for t in onnx.load(target).graph.initializer}
    assert kept == {np.dtype(HALF)}


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

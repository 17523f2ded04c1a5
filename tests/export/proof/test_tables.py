"""The end of a table of positions is the largest length that is published, and the proof reads the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from normfold.export.pipeline import fold_and_prove
from normfold.export.sources.onnx_origin import open_onnx

pytestmark = pytest.mark.usefixtures("cache")

ROWS = 96
#: How the positions of the input meet the table, and the largest length.
BODIES = {
    "cut": ("h = Identity (x) e = Unsqueeze (l, first) t = Slice (table, first, e)", ROWS),
    "looked up behind a pool": (
        """h = AveragePool <kernel_shape = [2, 1], strides = [2, 1]> (x)
        half = Div (l, two) r = Range (zero, half, one) t = Gather (table, r)""",
        2 * ROWS + 1,
    ),
    "never at its end": ("h = Identity (x) last = Min (l, one) t = Gather (table, last)", None),
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_end_of_a_table_is_published_and_proved(kind: str, tmp_path: Path) -> None:
    body, most = BODIES[kind]
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,L,4] x) => (float[N,3,M,4] y)
        <int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[1] first = {{0}}> {{
        s = Shape <start = 2, end = 3> (x) l = Squeeze (s) {body} y = Add (h, t) }}""")
    table = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    onnx.save(model, tmp_path / "net.onnx")
    folded = fold_and_prove(open_onnx(tmp_path / "net.onnx", (), opset=None), (), "net", 17, variant="folded")
    (length,) = (d for d in folded.proof.sizes.specs[0].dims if str(d).startswith("L"))
    assert not isinstance(length, int)
    assert length.high == most
    note = f"L is up to {most}: the network does not run at L = {(most or 0) + 1}"
    assert (note in folded.report.notes) is (most is not None)
    assert (most in {sizes["L"] for sizes in folded.proof.sizes.proof}) is (most is not None)

"""The end of a table of positions is the largest length that is published, and the proof reads the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from normfold.export.pipeline import Folded, fold_and_prove
from normfold.export.proof import tables
from normfold.export.proof.paths_at import TOO_LARGE
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


def folded(body: str, folder: Path) -> Folded:
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,L,4] x) => (float[N,3,M,4] y)
        <int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[1] first = {{0}}> {{
        s = Shape <start = 2, end = 3> (x) l = Squeeze (s) {body} y = Add (h, t) }}""")
    table = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    onnx.save(model, folder / "net.onnx")
    return fold_and_prove(open_onnx(folder / "net.onnx", (), opset=None), (), "net", 17, variant="folded")


def end(folded: Folded) -> int | None:
    (length,) = (d for d in folded.proof.sizes.specs[0].dims if str(d).startswith("L"))
    assert not isinstance(length, int)
    return length.high


def proved(folded: Folded) -> set[int]:
    return {sizes["L"] for sizes in folded.proof.sizes.proof}


@pytest.mark.parametrize("kind", BODIES)
def test_the_end_of_a_table_is_published_and_proved(kind: str, tmp_path: Path) -> None:
    body, most = BODIES[kind]
    found = folded(body, tmp_path)
    assert end(found) == most
    note = f"L is up to {most}: the network does not run at L = {(most or 0) + 1}"
    assert (note in found.report.notes) is (most is not None)
    assert (most in proved(found)) is (most is not None)


def test_an_end_at_which_a_run_is_slow_is_published_and_not_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, attention over 2,048 positions took a minute and 8 GB."""
    monkeypatch.setattr(tables, "QUICK_SECONDS", 0.0)
    found = folded(BODIES["cut"][0], tmp_path)
    assert end(found) == ROWS
    assert ROWS not in proved(found)


def test_a_table_as_long_as_nobody_can_try_sets_no_end() -> None:
    assert tables._end(1 << 20, 64, 1, lambda size: TOO_LARGE if size > 1000 else "") is None

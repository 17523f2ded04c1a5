"""Files of every opset from 11 to 28 are read, folded, proved and written; newer ones get a true sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import defs, helper
from tests.export.fold.graphs import graph, norm, weights
from torch import nn

from normfold.export.capture.capture import OPSETS, capture
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import SourceError
from normfold.export.fold import fold
from normfold.export.fold.reading import READERS
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.graphs.onnx_file import NEWEST_OPSET, OLDEST_OPSET, read_onnx
from normfold.export.graphs.serialize import to_bytes
from normfold.export.inputs.specs import parse_inputs
from normfold.export.onnx_fold import fold_file
from normfold.export.pipeline import IR_VERSIONS

#: Operators that mean the same in every opset, and half of which have new versions in opsets 21 to 25.
TEXT = """(float[N, 3, L] x) => (float[N, 4] y) {
    a = Pad (x, pads, zero)
    c = Conv (a, w)
    r = Relu (c)
    n = BN(r, n1)
    t = Transpose <perm = [0, 2, 1]> (n)
    i = Identity (t)
    u = Transpose <perm = [0, 2, 1]> (i)
    d = Conv (u, w2)
    e = BN(d, n2)
    f = Reshape (e, shape)
    h = GlobalAveragePool (f)
    y = Flatten (h)
}"""
#: Attributes that are new since opset 23: of casts to float8, which no value between BatchNorms has.
CHANGED = {"Cast": {"round_mode"}, "CastLike": {"round_mode"}}


def ir_version(opset: int) -> int:
    """Return the IR version of the first ONNX release with an opset."""
    return next(row[1] for row in helper.VERSION_TABLE if row[2] >= opset)


def model(opset: int) -> onnx.ModelProto:
    return graph(
        TEXT,
        opset,
        ir_version(opset),
        pads=np.array([0, 0, 1, 0, 0, 1]),
        zero=np.float32(0),
        w=weights(8, 3, 3),
        w2=weights(4, 8, 1),
        shape=np.array([0, 4, -1]),
        **norm("n1", 8, gamma="positive"),
        **norm("n2", 4),
    )


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST_OPSET + 1))
def test_a_file_of_each_opset_is_read_folded_and_run(opset: int, tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(model(opset).SerializeToString())
    read = read_onnx(source)
    report = fold(read.model)
    assert (report.batchnorms_before, report.batchnorms_after) == (2, 0)
    content = to_bytes(read.model)
    assert onnx.load_model_from_string(content).opset_import[0].version == opset
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    exact = Float64Graph(read.content).run({"x": x})["y"]
    (got,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_the_newest_opset_is_folded_with_the_whole_proof(tmp_path: Path) -> None:
    source, target = tmp_path / "net.onnx", tmp_path / "folded.onnx"
    source.write_bytes(model(NEWEST_OPSET).SerializeToString())
    report = fold_file(source, target, variant="folded")
    assert report.opset == NEWEST_OPSET
    assert report.folding.batchnorms_after == 0
    assert report.algebra is not None
    assert report.algebra.passed
    assert report.notes == ()
    assert onnx.load(target).ir_version == IR_VERSIONS[NEWEST_OPSET]


@pytest.mark.parametrize("opset", [24, 25])
def test_a_network_is_captured_in_an_opset_that_newer_exporters_write(opset: int) -> None:
    network = NamedNetwork(nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Flatten()), ["x"])
    captured = capture(network, parse_inputs(["x=FP32[N,3,L]"]), {"N": 2, "L": 8}, opset)
    assert captured.opset_imports == {"": opset}
    assert fold(captured).batchnorms_after == 0
    onnxruntime.InferenceSession(to_bytes(captured), providers=["CPUExecutionProvider"])


def test_every_opset_that_can_be_written_has_its_ir_version() -> None:
    # An older onnx writes fewer opsets than the table has.
    assert {opset: ir_version(opset) for opset in OPSETS} == {opset: IR_VERSIONS[opset] for opset in OPSETS}


@pytest.mark.parametrize(("opset", "advice"), [(10, "a newer opset"), (NEWEST_OPSET + 1, "an older opset")])
def test_the_sentence_on_an_opset_that_is_not_read_says_in_which_direction_to_go(
    opset: int, advice: str, tmp_path: Path
) -> None:
    proto = model(17)
    proto.opset_import[0].version = opset
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError, match=rf"opset {opset}; expected 11 to {NEWEST_OPSET}\. Export .* with {advice}, "):
        read_onnx(tmp_path / "net.onnx")


def test_no_operator_that_the_fold_reads_has_another_meaning_in_the_newest_opset() -> None:
    """A new input or attribute would be passed over by a reader; so a new onnx fails here until someone has looked."""
    for name in READERS:
        if (old := _schema(name, 23)) is not None:
            new = _schema(name, NEWEST_OPSET)
            assert new is not None, name
            assert _inputs(new) == _inputs(old), name
            assert set(new.attributes) - set(old.attributes) == CHANGED.get(name, set()), name
            for attribute in old.attributes:
                assert new.attributes[attribute].default_value == old.attributes[attribute].default_value, name


def _schema(name: str, opset: int) -> Any:
    try:
        return defs.get_schema(name, opset)
    except defs.SchemaError:  # type: ignore[attr-defined]
        return None


def _inputs(schema: Any) -> list[tuple[str, Any]]:
    return [(i.name, i.option) for i in schema.inputs]

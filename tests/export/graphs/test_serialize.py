"""One ONNX file holds two gigabytes at most; the errors for more are tested without that many bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from normfold.export.errors import ExportError, SourceError
from normfold.export.graphs import serialize
from normfold.export.graphs.onnx_file import read_onnx
from normfold.export.graphs.serialize import to_bytes

TEXT = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> { y = Add (x, w) }"""


def graph() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def test_weights_beyond_one_file_are_refused_before_they_are_written() -> None:
    model = graph()
    model.graph.initializers["w"].const_value = ir.LazyTensor(
        lambda: pytest.fail("the weights were read"), dtype=ir.DataType.FLOAT, shape=ir.Shape([600_000_000]), name="w"
    )
    with pytest.raises(ExportError, match=r"the weights take 2\.2 GiB; one ONNX file holds 2 GiB, and weights beside"):
        to_bytes(model)


def test_a_graph_whose_text_alone_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(to_bytes(graph()))
    monkeypatch.setattr(serialize, "MAX_BYTES", size)
    assert len(to_bytes(graph())) == size
    monkeypatch.setattr(serialize, "MAX_BYTES", size - 1)
    with pytest.raises(ExportError, match="one ONNX file holds 2 GiB"):
        to_bytes(graph())


def test_a_file_beyond_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as sparse:
        sparse.truncate(1 << 31)
    with pytest.raises(SourceError, match="larger than the 2 GiB that one ONNX file can hold"):
        read_onnx(tmp_path / "m.onnx")

"""What is said of graphs that onnxruntime does not load."""

from __future__ import annotations

import onnx.parser
import pytest

from normfold.export.errors import ExportError
from normfold.export.graphs.runtime import Runtime

INPUT = """<ir_version: 9, opset_import: ["": 18]> g (double[N, 4] x) => (double[N, 4] y)
<double[4] scale = {1, 1, 1, 1}, double[4] shift = {0, 0, 0, 0}> { y = InstanceNormalization (x, scale, shift) }"""
CAST = """<ir_version: 9, opset_import: ["": 18]> g (float[N, 4, 8] x) => (double[N, 4, 8] y) {
    z = Cast <to = 11> (x)
    y = LpPool <kernel_shape = [1]> (z)
}"""


@pytest.mark.parametrize("text", [INPUT, CAST])
def test_an_operator_that_float64_lacks_is_answered_with_float(text: str) -> None:
    content = onnx.parser.parse_model(text).SerializeToString()
    with pytest.raises(ExportError, match=r"cannot load the graph: .*computes in float64.*call network.float\(\)"):
        Runtime(content, optimised=False)

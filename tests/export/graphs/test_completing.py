"""Files without shapes and with sparse weights, which onnxruntime runs, are read, folded and proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import SparseTensorProto, helper, numpy_helper
from tests.export.fold.graphs import graph, norm, weights

from normfold.export.errors import SourceError
from normfold.export.fold import fold
from normfold.export.graphs.completing import densified
from normfold.export.graphs.onnx_file import read_onnx
from normfold.export.inputs.specs import parse_inputs
from normfold.export.sources.onnx_origin import open_onnx

TEXT = "(float[N, 3, L] x) => (float[N, 4, M] y) { c = Conv (x, w) r = Relu (c) n = BN(r, n) y = Conv (n, v) }"


def model() -> onnx.ModelProto:
    return graph(TEXT, w=weights(8, 3, 3), v=weights(4, 8, 1), **norm("n", 8, gamma="positive"))


def written(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def sparse(dense: Any, name: str, flat: bool) -> SparseTensorProto:
    """Return a sparse tensor with flat indices, or one index for each axis."""
    indices = np.flatnonzero(dense) if flat else np.argwhere(dense)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(dense[dense != 0], name), numpy_helper.from_array(indices), dense.shape
    )


def test_an_input_without_a_shape_takes_that_of_input_and_an_output_the_inferred_one(tmp_path: Path) -> None:
    proto = model()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    path = written(proto, tmp_path / "net.onnx")
    with pytest.raises(SourceError, match=r"its input 'x' has no shape; describe it with --input 'x=FP32\[N,\.\.\.\]'"):
        open_onnx(path)
    origin = open_onnx(path, parse_inputs(["x=FP32[N,3,L]"]), opset=None)
    assert [str(s) for s in origin.specs] == ["x=FP32[N,3,L]"]
    captured = origin.graph(origin.specs, {"N": 2, "L": 8}, 17)
    assert str(captured.graph.outputs[0].shape) == "[N,4,unk__1]"
    assert fold(captured).batchnorms_after == 0


def test_a_single_number_without_a_shape_takes_that_of_input(tmp_path: Path) -> None:
    proto = graph("(float[N] x, float t) => (float[N] y) { y = Mul (x, t) }")
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    origin = open_onnx(written(proto, tmp_path / "net.onnx"), parse_inputs(["x=FP32[N]", "t=FP32[]"]))
    assert [str(s) for s in origin.specs] == ["x=FP32[N]", "t=FP32[]"]
    x = np.float32([1, 2])
    np.testing.assert_array_equal(origin.run({"x": x, "t": np.float32(3)})["y"], 3 * x)


def test_an_output_of_which_no_shape_follows_is_named(tmp_path: Path) -> None:
    proto = graph("(float[N] x, int64[K] s) => (float[N] y) { y = Reshape (x, s) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(SourceError, match="its output 'y' has no shape, and none follows from the graph"):
        read_onnx(written(proto, tmp_path / "net.onnx"))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_a_sparse_weight_is_written_densely_and_folds(tmp_path: Path, flat: bool, place: str) -> None:
    proto, held = model(), weights(8, 3, 3)
    held[:, 1] = 0
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "w"))
    plain = written(model_with(proto, numpy_helper.from_array(held, "w")), tmp_path / "plain.onnx")
    if place == "initializer":
        proto.graph.sparse_initializer.append(sparse(held, "w", flat))
    else:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse(held, "w", flat)))
    path = written(proto, tmp_path / "sparse.onnx")
    read = read_onnx(path)
    assert read.notes == ("1 sparse weight is written densely",)
    assert fold(read.model).batchnorms_after == 0
    folded, report = fold(proto)  # in memory, too
    assert report.batchnorms_after == 0
    assert densified(proto, "") is not proto
    assert densified(folded, "") is folded
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    expected, got = (
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for content in (plain.read_bytes(), folded.SerializeToString())
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def model_with(proto: onnx.ModelProto, tensor: onnx.TensorProto) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    copy.graph.initializer.append(tensor)
    return copy


@pytest.mark.parametrize(
    ("dims", "index", "expected"),
    [([1 << 15, 1 << 15], 0, "more than the 268435456 elements"), ([2, 2], 4, "do not fit its shape")],
)
def test_a_sparse_weight_that_is_too_large_or_wrong_is_refused_before_it_is_made(
    dims: list[int], index: int, expected: str
) -> None:
    proto = model()
    values = numpy_helper.from_array(np.float32([1]), "huge")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([index])), dims)
    )
    with pytest.raises(SourceError, match=f"sparse weight 'huge' .*{expected}"):
        densified(proto, "net.onnx")

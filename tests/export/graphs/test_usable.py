"""Weights that are no numbers are refused by name: their answers would be NaN, and so would the exact ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tests.export.fold.graphs import graph, norm, weights

from normfold.export.errors import CheckpointError
from normfold.export.graphs.usable import require_usable
from normfold.export.onnx_fold import fold_file

TEXT = """(float[N, 3, L] x) => (float[N, 8, M] y) {
    c = Conv (x, w) m = Add (c, mask) n = BN(m, n) y = Relu (n) }"""


def model(**changed: NDArray[np.floating] | np.floating) -> ir.Model:
    held = {"w": weights(8, 3, 3), "mask": np.zeros((1, 8, 1), np.float32), **norm("n", 8), **changed}
    return ir.from_proto(graph(TEXT, **held))


def with_one(shape: tuple[int, ...], value: float) -> NDArray[np.float32]:
    array = np.ones(shape, np.float32)
    array.flat[-1] = value
    return array


def test_finite_weights_infinite_masks_and_a_nan_that_fills_are_taken() -> None:
    require_usable(model())
    require_usable(model(mask=with_one((1, 8, 1), -np.inf)))
    require_usable(model(mask=np.float32(np.nan)))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"w": with_one((8, 3, 3), np.nan)}, "'w' holds NaN or infinity (1 of 72 numbers)"),
        ({"w": with_one((8, 3, 3), np.inf)}, "'w' holds NaN or infinity (1 of 72 numbers)"),
        ({"mask": with_one((1, 8, 1), np.nan)}, "'mask' holds NaN (1 of 8 numbers)"),
        (
            {"n_var": with_one((8,), -1)},
            "'n_var' is the variance of the BatchNorm 'BatchNormalization_2', and it is -1 in channel 7 (wit",
        ),
        (
            {"n_var": with_one((8,), np.nan)},
            "'n_var', the variance of the BatchNorm 'BatchNormalization_2', holds NaN or infi",
        ),
        (
            {"n_mean": with_one((8,), np.inf)},
            "'n_mean', the mean of the BatchNorm 'BatchNormalization_2', holds NaN or infi",
        ),
    ],
)
def test_what_no_training_means_is_named(changed: dict[str, NDArray[np.float32]], reason: str) -> None:
    with pytest.raises(CheckpointError) as error:
        require_usable(model(**changed))
    assert f"the weights cannot be used: {reason}" in str(error.value)
    assert "Export an earlier checkpoint" in str(error.value)


def test_a_variance_of_zero_needs_an_epsilon() -> None:
    constant = model(n_var=with_one((8,), 0))
    require_usable(constant)
    norm_node = next(node for node in constant.graph if node.op_type == "BatchNormalization")
    norm_node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    with pytest.raises(CheckpointError, match="it is 0 in channel 7"):
        require_usable(constant)


def test_a_file_with_such_weights_is_not_folded(tmp_path: Path) -> None:
    proto = graph(TEXT, w=with_one((8, 3, 3), np.nan), mask=np.zeros((1, 8, 1), np.float32), **norm("n", 8))
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match="'w' holds NaN"):
        fold_file(tmp_path / "net.onnx", tmp_path / "folded.onnx", variant="folded")


@pytest.mark.parametrize("value", ["nan", "inf", "-1.0"])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_variance_that_is_no_number_is_named_and_not_the_input(tmp_path: Path, value: str, channels: int) -> None:
    """Every answer is NaN then, at every size of the input: the input is not at fault."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]> g (float[N, {channels}, L] x) => (float[N, {channels}, L] y) {{
        one = Constant <value_floats = [{", ".join(["1.0"] * channels)}]> ()
        y = BatchNormalization (x, one, one, one, one) }}"""
    )
    array = np.full(channels, float(value), np.float32)
    proto.graph.node.insert(
        0, onnx.helper.make_node("Constant", [], ["var"], value=onnx.numpy_helper.from_array(array))
    )
    proto.graph.node[-1].input[4] = "var"
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match=r"'var'.* the variance of the BatchNorm 'y'"):
        fold_file(tmp_path / "net.onnx", tmp_path / "folded.onnx", variant="folded")

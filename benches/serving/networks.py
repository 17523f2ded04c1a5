"""The models that are served.

``tiny`` shows the cost of serving, ``wide`` batching, ``identity`` large messages, ``busy`` overload.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Largest number of rows in a batch; Triton and normfold get the same configuration.
MAX_BATCH = 64


def tiny() -> onnx.ModelProto:
    """Return one convolution, FP32[N,1,32] to FP32[N,10]: a run takes about 10 microseconds."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((10, 1, 3)).astype(np.float32),
        "b": random.standard_normal(10).astype(np.float32),
        "axis": np.array([2]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMax", ["r", "axis"], ["y"], keepdims=0),
    ]
    return _model(nodes, weights, ["N", 1, 32], ["N", 10])


def wide() -> onnx.ModelProto:
    """Return four dense layers of 1024, FP32[N,1024] to FP32[N,1024]: one row reads as many weights as 64 rows."""
    random = np.random.default_rng(0)
    weights = {f"w{i}": (random.standard_normal((1024, 1024)) / 23).astype(np.float32) for i in range(4)}
    nodes = []
    for i in range(4):
        nodes.append(helper.make_node("MatMul", [f"r{i}" if i else "x", f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i + 1}" if i < 3 else "y"]))
    return _model(nodes, weights, ["N", 1024], ["N", 1024])


def busy() -> onnx.ModelProto:
    """Return two convolutions of 64 channels, FP32[N,1,L] to FP32[N,64]: a run of 512 samples takes some 2 ms."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((64, 1, 9)).astype(np.float32),
        "v": (random.standard_normal((64, 64, 9)) / 24).astype(np.float32),
        "axis": np.array([2]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[4, 4]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], pads=[4, 4]),
        helper.make_node("ReduceMax", ["c", "axis"], ["y"], keepdims=0),
    ]
    return _model(nodes, weights, ["N", 1, "L"], ["N", 64])


def identity() -> onnx.ModelProto:
    """Return a model that gives its input FP32[N] back."""
    return _model([helper.make_node("Identity", ["x"], ["y"])], {}, ["N"], ["N"])


def publish(model: onnx.ModelProto, folder: Path, config: str = "") -> None:
    """Write a model into a folder of a repository."""
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: list[int | str], y: list[int | str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

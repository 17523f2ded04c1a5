"""A small network in the book's order as ONNX text, with the statistics of some data in its BatchNorms."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs

SPECS = parse_inputs(["x=FP32[N,3,L]"])
LENGTH = 24
#: Convolution, ReLU, BatchNorm; convolution, BatchNorm, ReLU; mean over time; a layer without a BatchNorm behind it.
BOOK = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 3, L] x) => (float[N, 4] y) {
    a = Conv <kernel_shape = [3], pads = [1, 1]> (x, W1, B1)
    b = Relu (a)
    c = BatchNormalization <epsilon = 0.00001> (b, gamma1, beta1, mean1, var1)
    d = Conv <kernel_shape = [3]> (c, W2, B2)
    e = BatchNormalization <epsilon = 0.00001> (d, gamma2, beta2, mean2, var2)
    f = Relu (e)
    p = GlobalAveragePool (f)
    q = Flatten (p)
    y = Gemm <transB = 1> (q, W3, B3)
}"""
SHAPES = {"W1": (8, 3, 3), "B1": (8,), "W2": (6, 8, 3), "B2": (6,), "W3": (4, 6), "B3": (4,)}


def book(data: NDArray[np.float32] | None = None, gamma: float = 1.0, bias: float = 0.0) -> bytes:
    """The network with the statistics of ``data``, or with those that a BatchNorm begins with.

    Every second gamma is ``gamma``, the others 1. ``bias`` is added to the biases of the first convolution.
    """
    rng = np.random.default_rng(0)
    held = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]) or 1)).astype(np.float32) for n, s in SHAPES.items()}
    held["B1"] += np.float32(bias)
    for number, channels in ((1, 8), (2, 6)):
        held[f"gamma{number}"] = np.float32([1, gamma] * (channels // 2))
        held[f"beta{number}"] = (0.3 * rng.standard_normal(channels)).astype(np.float32)
        held[f"mean{number}"], held[f"var{number}"] = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    if data is not None:
        for number, value in ((1, "b"), (2, "d")):
            x = Runtime(_written(held, value), optimised=False).run({"x": data})[value].astype(np.float64)
            held[f"mean{number}"] = x.mean((0, 2)).astype(np.float32)
            held[f"var{number}"] = x.var((0, 2)).astype(np.float32)
    return _written(held)


def _written(held: dict[str, NDArray[np.float32]], more: str = "") -> bytes:
    model = onnx.parser.parse_model(BOOK)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
    if more:
        model.graph.output.append(onnx.ValueInfoProto(name=more))
    for node in model.graph.node:
        node.name = f"bn{node.input[1][-1]}" if node.op_type == "BatchNormalization" else node.output[0]
    return bytes(model.SerializeToString())


def series(rows: int, seed: int, size: float = 1.0) -> NDArray[np.float32]:
    """Sines of random phase and loudness, each row on its own, as training data might be."""
    rng = np.random.default_rng(seed)
    t, phase, loud = np.arange(LENGTH), rng.uniform(0, 6, (rows, 3, 1)), rng.uniform(0.5, 2, (rows, 1, 1))
    x = size * (loud * np.sin(t / 3 + phase) + 0.2 * rng.standard_normal((rows, 3, LENGTH)))
    return x.astype(np.float32)

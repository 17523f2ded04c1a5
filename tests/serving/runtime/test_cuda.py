"""On a real GPU: the answers of CUDA against those of the CPU. Skipped, with the reason, where there is none."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from onnx import helper, numpy_helper

from normfold.serving.catalog import golden
from normfold.serving.errors import LoadError
from normfold.serving.runtime import pinned
from normfold.serving.runtime.cuda_options import GRAPH
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

pytestmark = pytest.mark.cuda

CHANNELS, KERNEL, LENGTH = 8, 5, 20
CPU, CUDA = Device("cpu"), Device("cuda")
EPS = float(np.finfo(np.float32).eps)
TERMS = CHANNELS * KERNEL
WEIGHT = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, KERNEL)).astype(np.float32)


def convolution(shape) -> bytes:
    """A model: one convolution over 8 channels with a kernel of 5."""
    x, y = (helper.make_tensor_value_info(name, 1, shape) for name in "xy")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[KERNEL // 2, KERNEL // 2])
    graph = helper.make_graph([node], "convolution", [x], [y], [numpy_helper.from_array(WEIGHT, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def numbers(rows, length=LENGTH):
    return np.random.default_rng(rows * length).standard_normal((rows, CHANNELS, length)).astype(np.float32)


def within(got, x):
    """Whether ``got`` is the convolution of ``x`` in float32: off by at most γ_n max Σ|w||x|, n the terms of a sum.

    The largest Σ|w||x| and not each its own: cuDNN may go through a transform, which spreads errors.
    """
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (KERNEL // 2, KERNEL // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, KERNEL, axis=2)
    exact = np.einsum("nclk,ock->nol", windows, WEIGHT.astype(np.float64))
    size = np.einsum("nclk,ock->nol", np.abs(windows), np.abs(WEIGHT.astype(np.float64)))
    bound = TERMS * EPS / (1 - TERMS * EPS) * size.max()
    return bool(np.all(np.abs(got - exact) <= bound))


def test_the_bound_itself_is_met_by_the_cpu_and_not_by_tf32():
    made, x = Session(convolution(["N", CHANNELS, "L"]), CPU, SessionSettings()), numbers(3)
    assert within(made.run({"x": x}, ["y"])[0], x)
    bits = WEIGHT.view(np.uint32) & np.uint32(0xFFFFE000)  # ten bits of mantissa, as TF32 has
    rounded = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (2, 2))), KERNEL, axis=2)
    assert not within(np.einsum("nclk,ock->nol", rounded, bits.view(np.float32)), x)


def test_convolutions_of_every_new_batch_size_and_length_are_float32_convolutions(cuda_gpus):
    made = Session(convolution(["N", CHANNELS, "L"]), CUDA, SessionSettings())
    assert made.device == "cuda:0"
    for rows, length in ((1, 20), (2, 20), (7, 20), (32, 20), (3, 1), (3, 777)):
        x = numbers(rows, length)
        for _ in range(2):  # the first run of a shape chooses its algorithm
            assert within(made.run({"x": x}, ["y"])[0], x)


def test_memory_for_the_numbers_of_requests_is_page_locked(cuda_gpus, caplog):
    made = Session(convolution(["N", CHANNELS, "L"]), CUDA, SessionSettings())
    made.run({"x": numbers(1)}, ["y"])
    assert pinned.cuda_runtime() is not None
    assert pinned.memory(4096).shape == (4096,)
    assert "cannot be page-locked" not in caplog.text


def test_a_graph_replays_with_the_numbers_of_each_request(cuda_gpus):
    made = Session(convolution([2, CHANNELS, LENGTH]), CUDA, SessionSettings(cuda_options=((GRAPH, "1"),)))
    for seed in range(5):
        x = numbers(2) * np.float32(seed + 1)
        assert within(made.run({"x": x}, ["y"])[0], x)


def test_a_golden_answer_of_the_cpu_is_given_on_cuda(cuda_gpus):
    x = numbers(1)
    data = convolution(["N", CHANNELS, LENGTH])
    (y,) = Session(data, CPU, SessionSettings()).run({"x": x}, ["y"])

    def entry(name, array):
        raw = base64.b64encode(array.tobytes()).decode()
        return {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": raw}

    def content(answer):
        golden = {"relative_tolerance": 1e-5, "inputs": [entry("x", x)], "outputs": [entry("y", answer)]}
        return json.dumps(golden).encode()

    made = Session(data, CUDA, SessionSettings())
    np.testing.assert_array_equal(golden.replay(made, content(y))["x"], x)
    with pytest.raises(LoadError, match="off the golden answer"):
        golden.replay(made, content(y * np.float32(1.001)))

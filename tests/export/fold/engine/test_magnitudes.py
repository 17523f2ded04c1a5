"""Shifts beside which what their readers read is small stay where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.export.fold.graphs import folded, graph, left, net_of, norm, same_in_onnxruntime, weights

from normfold.export.fold.affine import Affine
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.engine.magnitudes import MOST_LOST, Magnitudes
from normfold.export.fold.net import Gauges, Refused
from normfold.export.fold.ops.linear import Linear

HEAD = "(float[N,3,L] x) => (float[N,5,M] y)"
SENTENCE = "so small beside the shift that it would lose its last digits"


def reads(nodes: str, **arrays: Any) -> np.ndarray:
    """Up to which shift, in parts of MOST_LOST, the convolution at the end takes in its first channel alone."""
    net = net_of(graph(f"{HEAD} {{ {nodes} y = Conv(e, v) }}", v=np.eye(5, 3, dtype=np.float32)[..., None], **arrays))
    sizes, reader = Magnitudes(net), next(op for op in reversed(net.ops) if isinstance(op, Linear))
    return np.array([largest(sizes, reader, channel) for channel in range(3)])


def largest(sizes: Magnitudes, reader: Linear, channel: int) -> float:
    """By bisection, the largest shift of one channel that passes the check."""
    low, high = 0.0, 1e9
    for _ in range(100):
        shift = np.zeros((1, reader.reads, 1))
        shift[0, channel] = middle = (low + high) / 2
        gauges = Gauges()
        gauges[reader.inputs[0]] = Affine.of(1.0, shift)
        try:
            sizes.check(reader, gauges)
            low = middle
        except Refused:
            high = middle
    return low / MOST_LOST


def test_gamma_and_beta_give_the_range_of_a_batchnorms_output() -> None:
    given = norm("n", 3, gamma=[1, -2, 0.5], beta=[0, 4, -9], mean=[100, 0, 0], var=[1e6, 1, 1])
    np.testing.assert_allclose(reads("e = BN(x, n)", **given), [3, 10, 10.5])


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ("e = Relu(n)", [3, 10, 0]),
        ("e = Clip(n, zero, six)", [3, 6, 0]),
        ("e = LeakyRelu<alpha=0.1>(n)", [3, 10, 1.05]),
        ("r = Relu(n) e = MaxPool<kernel_shape=[2]>(r)", [3, 10, 0]),
        ("e = Sigmoid(n)", [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-10)), 1 / (1 + np.exp(7.5))]),
        ("r = Relu(n) e = Mul(r, half)", [1.5, 5, 0]),
        ("r = Relu(n) e = Add(r, r)", [3 + 1.5 * 2**0.5, 10 + 5 * 2**0.5, 0]),
        ("a, b, c = Split<axis=1>(n) e = Concat<axis=1>(c, b, a)", [3, 3, 3]),
    ],
)
def test_what_is_behind_it_follows(behind: str, expected: list[float]) -> None:
    given = norm("n", 3, gamma=[1, -2, 0.5], beta=[0, 4, -9], mean=[0] * 3, var=[1] * 3)
    held = {"zero": np.float32(0), "six": np.float32(6), "half": np.float32(0.5)}
    np.testing.assert_allclose(reads(f"n = BN(x, n) {behind}", **given, **held), expected, rtol=1e-4)


def test_magnitudes_follow_the_gauges_and_the_added_channels_that_were_carried_out() -> None:
    net = net_of(graph(f"{HEAD} {{ y = Conv(x, v) }}", v=np.eye(5, 3, dtype=np.float32)[..., None]))
    reader = next(op for op in net.ops if isinstance(op, Linear))
    sizes, gauges = Magnitudes(net), Gauges()
    gauges[reader.inputs[0]] = Affine.along(1, 3, [1.0, -4.0, 0.0], [0.0, 0.0, 0.0])
    sizes.follow(reader, gauges)
    np.testing.assert_allclose([largest(sizes, reader, c) for c in range(3)], [3, 0.75, 3])
    reader.params = reader.with_channel({reader.inputs[0]: AddedChannel(1, 1)})
    sizes.add_channel(reader, AddedChannel(1, 1))
    np.testing.assert_allclose([largest(sizes, reader, c) for c in (0, 2, 3)], [3, 0.75, 3])


def test_a_shift_hundreds_of_times_the_width_of_a_clip_stays_behind_it() -> None:
    # Clip leaves 6 of some 1,500; in the numbers before BatchNorm that is 0.004 beside a mean of 0.35.
    nodes = f"{HEAD} {{ s = Sigmoid(x) n = BN(s, n) r = Clip(n, zero, six) y = Conv(r, v) }}"
    given = norm("n", 3, gamma=[800] * 3, beta=[-400] * 3, mean=[0.0] * 3, var=[0.3] * 3)
    model = graph(nodes, v=weights(5, 3, 3), zero=np.float32(0), six=np.float32(6), **given)
    after, report = folded(model)
    assert SENTENCE in " ".join(left(report).values())
    onnx.checker.check_model(after, full_check=True)
    same_in_onnxruntime(model, after, (2, 3, 13))


def test_a_channel_that_is_off_and_amplified_keeps_its_shift() -> None:
    # Relu turns the first channel off; the factor of a million behind it meets zeros only.
    nodes = f"{HEAD} {{ s = Sigmoid(x) n = BN(s, n) r = Relu(n) m = Mul(r, k) y = Conv(m, v) }}"
    given = norm("n", 3, gamma=[1e-6, 1, 1], beta=[-0.1, 0, 0], mean=[0.5] * 3, var=[0.3] * 3)
    model = graph(nodes, v=weights(5, 3, 3), k=np.float32([1e6, 1, 1]).reshape(3, 1), **given)
    after, _ = folded(model)
    same_in_onnxruntime(model, after, (2, 3, 13))

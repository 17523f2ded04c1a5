"""Streams: which tensors are scaled together, and when none of them may be."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import graph, net_of, norm, weights

import normfold.export.fold.engine.streams as streams_module
from normfold.export.fold.affine import Affine
from normfold.export.fold.engine.streams import MOST_TOUCHED, Streams
from normfold.export.fold.net import Net, Refused, Tensor

DOUBLE = Affine.along(1, 3, np.full(4, 2.0), np.zeros(4))
SHIFT = Affine.along(1, 3, np.ones(4), np.full(4, 2.0))
SILENT = Affine.along(1, 3, np.float64([1, 0, 1, 0]), np.zeros(4))


def tensor(net: Net, name: str) -> Tensor:
    return next(t for op in net.ops for t in (*op.inputs, *op.outputs) if t.name == name)


def read(nodes: str, **arrays: np.ndarray) -> Net:
    given = {"w": weights(4, 3, 1), "v": weights(4, 4, 1)} | arrays
    return net_of(graph(f"(float[N,3,L] x) => (float[N,4,M] y) {{ {nodes} }}", **given))


@pytest.fixture(autouse=True)
def _ask_every_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "_FOLLOWED", 0)


def test_a_tensor_between_two_convolutions_may_be_scaled() -> None:
    net = read("c = Conv(x, w) r = Relu(c) y = Conv(r, v)")
    Streams(net).check(tensor(net, "r"), DOUBLE)


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ("c = Conv(x, w) r = Relu(c) y = MaxPool<kernel_shape=[2]>(r)", "'y' is an output of the network"),
        ("c = Conv(x, w) r = Relu(c) d = Conv(r, v) e = Add(r, d) y = Elu(e)", "is neither linear nor positively"),
        (
            "c = Conv(x, w) r = LeakyRelu(c) d = Softmax<axis=1>(r) y = Conv(d, v)",
            "no rule takes a per-channel scale or shift through 'Softmax_2' (Softmax)",
        ),
    ],
)
def test_what_one_tensor_of_a_stream_cannot_take_none_takes(nodes: str, sentence: str) -> None:
    net = read(nodes)
    for name in ("c", "r"):
        with pytest.raises(Refused) as refused:
            Streams(net).check(tensor(net, name), DOUBLE)
        assert sentence in str(refused.value)


@pytest.mark.parametrize("gauge", [SHIFT, SILENT])
def test_a_shift_and_a_scale_of_0_may_end_within_a_stream(gauge: Affine) -> None:
    net = read("c = Conv(x, w) r = Relu(c) d = Conv(r, v) y = Add(r, d)")
    Streams(net).check(tensor(net, "r"), gauge)


def test_a_convolution_and_a_batchnorm_part_two_streams() -> None:
    net = read("c = Conv(x, w) n = BN(c, n) r = Relu(n) d = Conv(r, v) y = Sigmoid(d)", **norm("n", 4))
    streams = Streams(net)
    for name in ("c", "n", "r"):
        streams.check(tensor(net, name), DOUBLE)
    with pytest.raises(Refused, match="neither linear"):
        streams.check(tensor(net, "d"), DOUBLE)


def test_streams_between_which_the_batchnorm_is_gone_are_one() -> None:
    net = read("c = Conv(x, w) n = BN(c, n) y = Sigmoid(n)", **norm("n", 4))
    streams = Streams(net)
    streams.check(tensor(net, "c"), DOUBLE)
    streams.join(tensor(net, "c"), tensor(net, "n"))
    with pytest.raises(Refused, match="neither linear"):
        streams.check(tensor(net, "c"), DOUBLE)


def test_a_stream_of_a_whole_network_is_not_scaled() -> None:
    count = MOST_TOUCHED + 1
    sums = " ".join(f"c{i} = Conv(u{i}, v) u{i + 1} = Add(u{i}, c{i})" for i in range(count))
    net = read(f"u0 = Conv(x, w) {sums} y = Conv(u{count}, v)")
    with pytest.raises(Refused, match=f"more than {MOST_TOUCHED} operators around it would have to change"):
        Streams(net).check(tensor(net, "u3"), DOUBLE)

"""Streams: which tensors are scaled together, and when none of them may be."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import graph, net_of, norm, weights

import normfold.export.fold.engine.streams as streams_module
from normfold.export.fold.affine import Affine
from normfold.export.fold.engine.beside import identity_beside
from normfold.export.fold.engine.driver import Folding
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


def repvgg(blocks: int) -> Net:
    block = (
        "a{n} = Conv(x{p}, v) b{n} = Conv(x{p}, u) c{n} = Add(a{n}, b{n}) d{n} = Add(c{n}, x{p}) x{n} = Sigmoid(d{n})"
    )
    nodes = " ".join(block.format(n=n, p=n - 1) for n in range(1, blocks + 1))
    norms = " ".join(f"m{n} = BN(x{n}, m)" for n in range(1, blocks + 1))  # each is tried, and so each sum may go
    return read(f"x0 = Conv(x, w) {nodes} {norms} y = Conv(x{blocks}, v)", u=weights(4, 4, 1), **norm("m", 4))


def together(streams: Streams, net: Net) -> set[frozenset[str]]:
    found: dict[Tensor, set[str]] = {}
    for tensor in {t for op in net.ops for t in (*op.inputs, *op.outputs)}:
        found.setdefault(streams._root(tensor), set()).add(tensor.name)
    return {frozenset(names) for names in found.values()}


def test_a_stream_without_a_sum_that_is_gone_is_parted_as_if_all_were_found_anew() -> None:
    net = repvgg(3)
    folding = Folding(net)
    for name in ("d1", "d3", "d2"):
        beside = identity_beside(tensor(net, name))
        assert beside is not None
        folding._take_beside(beside)
        assert together(folding.streams, net) == together(Streams(net), net)


def test_the_work_on_streams_grows_as_the_network_does(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    real = streams_module._refusal
    monkeypatch.setattr(streams_module, "_refusal", lambda tensor: (found.append(tensor), real(tensor))[1])

    def work(blocks: int) -> int:
        net = repvgg(blocks)
        folding, before = Folding(net), len(found)
        for n in range(1, blocks + 1):
            beside = identity_beside(tensor(net, f"d{n}"))
            assert beside is not None
            folding._take_beside(beside)
        return len(found) - before

    assert work(32) <= 5 * work(8)

"""Channels that always hold one constant are taken out of both sides, and readers keep the constant in their bias."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.export.fold.graphs import folded, graph, net_of, norm, same_function, weight_of, weights

from normfold.export.fold.engine.prune import prune

LENGTHS = ((2, 3, 12), (3, 3, 23))


def dead(*channels: int, seed: int = 0, shape: tuple[int, ...] = (4, 3, 3), bias: float = 0.7) -> dict[str, np.ndarray]:
    w, b = weights(*shape, seed=seed), np.full(shape[0], bias, np.float32)
    w[list(channels)] = 0
    return {"w": w, "b": b}


def text(nodes: str, out: str = "N,5,M", more: str = "") -> str:
    return f"(float[N,3,L] x) => (float[{out}] y{more}) {{ c = Conv(x, w, b) {nodes} }}"


def channels(model: onnx.ModelProto) -> list[int]:
    return [t.dims[0] for t in model.graph.initializer if len(t.dims) >= 3]


READERS = [
    "y = Conv(c, v)",
    "r = Relu(c) y = Conv<strides=[2]>(r, v)",
    "r = Sigmoid(c) p = MaxPool<kernel_shape=[2]>(r) y = Conv(p, v)",
    "r = LeakyRelu(c) p = AveragePool<kernel_shape=[2]>(r) y = Conv(p, v)",
    "r = Clip(c, zero) d = Identity(r) y = Conv(d, v)",
    'p = Pad<mode="reflect">(c, pads) y = Conv(p, v)',
]


@pytest.mark.parametrize("nodes", READERS)
def test_a_constant_channel_goes_and_its_reader_keeps_the_constant(nodes: str) -> None:
    more = {"zero": np.float32(0), "pads": np.array([0, 0, 1, 0, 0, 1])}
    model = graph(text(nodes), **dead(1, 3), v=weights(5, 4, 3), **more)
    after, report = folded(model)
    assert len(after.graph.node) == len(model.graph.node)
    if "Pad" not in nodes:
        assert report.channels_removed == 2
        assert weight_of(after, 0).shape == (2, 3, 3)
        assert weight_of(after, 1).shape == (5, 2, 3)
    same_function(model, after, *LENGTHS)


def test_the_bias_behind_is_what_the_constant_made_there_by_hand() -> None:
    w = np.float32([[[0]], [[2]]])
    model = graph(
        "(float[N,1,L] x) => (float[N,1,L] y) { c = Conv(x, w, b) y = Conv(c, v, a) }",
        w=w,
        b=np.float32([3, 0]),
        v=np.float32([[[5], [7]]]),
        a=np.float32([1]),
    )
    after, _ = folded(model)
    np.testing.assert_array_equal(weight_of(after, 1).ravel(), [7])
    np.testing.assert_array_equal(weight_of(after, 1, place=2), [16])  # 1 + 5 · 3
    same_function(model, after, (1, 1, 4))


def test_a_channel_of_zeros_goes_before_a_zero_padded_reader() -> None:
    model = graph(text("r = Relu(c) y = Conv<pads=[1,1]>(r, v)"), **dead(2, bias=0.0), v=weights(5, 4, 3))
    after, report = folded(model)
    assert report.channels_removed == 1
    same_function(model, after, *LENGTHS)


def test_a_constant_channel_stays_before_a_zero_padded_reader() -> None:
    model = graph(text("r = Relu(c) y = Conv<pads=[1,1]>(r, v)"), **dead(2), v=weights(5, 4, 3))
    after, report = folded(model)
    assert report.channels_removed == 0
    same_function(model, after, *LENGTHS)


KEPT = [
    ("y = Sigmoid(c)", "N,4,M", ""),
    ("y = Softmax<axis=1>(c)", "N,4,M", ""),
    ("y = Conv<group=4>(c, k)", "N,4,M", ""),
    ("y = Conv(c, v)", "N,5,M", ", float[N,4,M] c"),
    ("s = Softmax<axis=1>(c) y = Conv(s, v)", "N,5,M", ""),
    ("d = Conv(x, u) e = Add(c, d) y = Conv(e, v)", "N,5,M", ""),
    ("d = Transpose<perm=[0,2,1]>(c) y = Sigmoid(d)", "N,M,4", ""),
    ("d = Gather<axis=1>(c, i) y = Sigmoid(d)", "N,2,M", ""),
]


@pytest.mark.parametrize(("nodes", "out", "more"), KEPT)
def test_a_constant_channel_that_something_needs_stays(nodes: str, out: str, more: str) -> None:
    arrays = {"v": weights(5, 4, 3), "k": weights(4, 1, 3), "u": weights(4, 3, 3, seed=1), "i": np.array([0, 2])}
    model = graph(text(nodes, out, more), **dead(1), **arrays)
    after, report = folded(model)
    assert report.channels_removed == 0
    same_function(model, after, *LENGTHS)


def test_a_channel_constant_in_both_branches_goes_from_their_sum() -> None:
    both = dead(1) | {"u": dead(1, seed=1)["w"]}
    model = graph(text("d = Conv(x, u) e = Add(c, d) r = Relu(e) y = Conv(r, v)"), **both, v=weights(5, 4, 3))
    after, report = folded(model)
    assert report.channels_removed >= 1
    assert weight_of(after, 2).shape == (5, 3, 3)
    same_function(model, after, *LENGTHS)


def test_a_constant_channel_goes_from_a_concat_and_its_readers() -> None:
    nodes = "d = Conv(x, u) j = Concat<axis=1>(d, c) r = Relu(j) y = Conv(r, v)"
    model = graph(text(nodes), **dead(1, 2), u=weights(2, 3, 3), v=weights(5, 6, 3))
    after, report = folded(model)
    assert report.channels_removed == 2
    assert weight_of(after, 2).shape == (5, 4, 3)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_constant_channel_goes_from_the_part_of_a_split_that_holds_it(opset: int) -> None:
    split = "p, q = Split<axis=1,split=[1,3]>(c)" if opset < 13 else "p, q = Split<axis=1>(c, sizes)"
    nodes = f"{split} a = Conv(p, k) e = Conv(q, v) y = Add(a, e)"
    arrays = {"sizes": np.array([1, 3])} if opset >= 13 else {}
    model = graph(text(nodes), opset=opset, **dead(2), k=weights(5, 1, 1), v=weights(5, 3, 1), **arrays)
    after, report = folded(model)
    assert report.channels_removed == 1
    same_function(model, after, *LENGTHS)


def test_a_channel_that_a_concat_would_lose_twice_stays() -> None:
    model = graph(text("r = Relu(c) j = Concat<axis=1>(r, c) y = Conv(j, v)"), **dead(3), v=weights(5, 8, 3))
    after, _ = folded(model)
    onnx.checker.check_model(after, full_check=True)
    same_function(model, after, *LENGTHS)


def test_a_channel_that_both_parts_of_a_split_would_lose_stays() -> None:
    nodes = "p, q = Split<axis=1>(c, sizes) r = Relu(p) e = Add(r, q) y = Conv(e, v)"
    model = graph(text(nodes), **dead(1, 3), v=weights(5, 2, 3), sizes=np.array([2, 2]))
    after, _ = folded(model)
    onnx.checker.check_model(after, full_check=True)
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("flat", ["Flatten(p)", "Reshape(p, all)", "Reshape(p, kept)", "Squeeze(p, last)"])
def test_a_constant_channel_goes_from_what_is_flattened(flat: str) -> None:
    nodes = f"r = Relu(c) p = GlobalAveragePool(r) f = {flat} y = Gemm(f, g)"
    shapes = {"all": np.array([0, -1]), "kept": np.array([-1, 4]), "last": np.array([2])}
    model = graph(text(nodes, "N,5"), **dead(1), g=weights(4, 5), **shapes)
    after, report = folded(model)
    assert report.channels_removed == 1
    same_function(model, after, (2, 3, 12))


def test_a_constant_channel_flattened_with_its_positions_goes_with_all_of_them() -> None:
    nodes = "r = Relu(c) f = Flatten(r) y = Gemm(f, g)"
    model = graph(text(nodes, "N,5").replace("float[N,3,L]", "float[N,3,7]"), **dead(1), g=weights(20, 5))
    after, report = folded(model)
    assert report.channels_removed == 1
    assert weight_of(after, op="Gemm").shape == (15, 5)
    same_function(model, after, (2, 3, 7))


def test_a_constant_channel_goes_from_a_batchnorm_that_stays() -> None:
    nodes = "n = BN(c, n) s = Sigmoid(c) a = Sigmoid(n) e = Add(s, a) y = Conv(e, v)"
    model = graph(text(nodes), **dead(1), v=weights(5, 4, 3), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_the_last_channel_stays() -> None:
    model = graph(text("r = Relu(c) y = Conv(r, v)"), **dead(0, shape=(1, 3, 3)), v=weights(5, 1, 3))
    after, report = folded(model)
    assert report.channels_removed == 0
    same_function(model, after, *LENGTHS)


def test_dead_channels_of_a_chain_fall_one_after_the_other() -> None:
    # Channel 1 of the first feeds nothing but channel 2 of the second, which then is constant as well.
    first, second = dead(0, 2, 3), weights(4, 4, 1)
    second[2] = 0
    second[2, 0] = 1.5
    model = graph(text("r = Relu(c) d = Conv(r, k) s = Relu(d) y = Conv(s, v)"), **first, k=second, v=weights(5, 4, 3))
    after, report = folded(model)
    assert report.channels_removed == 4
    same_function(model, after, *LENGTHS)


def test_pruning_alone_counts_the_channels_that_it_takes_out() -> None:
    net = net_of(graph(text("r = Relu(c) y = Conv(r, v)"), **dead(1, 3), v=weights(5, 4, 3)))
    assert prune(net) == 2
    assert prune(net) == 0


def test_fewer_parameters_are_counted_after() -> None:
    model = graph(text("r = Relu(c) y = Conv(r, v)"), **dead(1, 3), v=weights(5, 4, 3))
    after, report = folded(model)
    assert report.parameters_after == sum(numpy_helper.to_array(t).size for t in after.graph.initializer)
    assert report.parameters_after < report.parameters_before


@pytest.mark.parametrize(
    ("size", "nodes", "constant", "left"),
    [
        (32, "r = Relu(c) j = Concat<axis=1>(r, x) y = Conv(j, v)", 17, 16),
        (32, "r = Relu(c) j = Concat<axis=1>(r, x) y = Conv(j, v)", 3, 32),
        (24, "r = Relu(c) j = Concat<axis=1>(r, x) y = Conv(j, v)", 9, 16),
        (32, "r = Relu(c) y = Conv(r, v)", 7, 28),
        (32, "r = Relu(c) y = Conv(r, v)", 3, 32),
        (6, "r = Relu(c) y = Conv(r, v)", 3, 3),
    ],
)
def test_a_2d_tensor_loses_channels_only_by_whole_blocks(size: int, nodes: str, constant: int, left: int) -> None:
    read = left + 3 if "Concat" in nodes else left
    v = weights(5, size + 3 if "Concat" in nodes else size, 1, 3)
    model = graph(
        f"(float[N,3,1,L] x) => (float[N,5,1,M] y) {{ c = Conv(x, w, b) {nodes} }}",
        **dead(*range(constant), shape=(size, 3, 1, 1)),
        v=v,
    )
    after, report = folded(model)
    assert channels(after) == [left, 5]
    assert weight_of(after, 1).shape[1] == read
    assert report.channels_removed == size - left
    same_function(model, after, (2, 3, 1, 12))
    assert folded(after)[1].channels_removed == 0


#: What reads a tensor of 4 channels and 10 positions with another axis than that of the channels.
ELSEWHERE = {
    "a product along time": ("y = MatMul(c, k)", "N,4,6"),
    "time and channels of one length": ("s = Slice(c, zero, four, two) y = MatMul(s, square)", "N,4,6"),
    "one axis": ("y = Reshape(c, all)", "M"),
    "one vector": ("f = Reshape(c, all) y = MatMul(f, long)", "6"),
    "rows": ("y = Reshape(c, rows)", "M,10"),
    "rows of channels": ("t = Transpose<perm=[0,2,1]>(c) r = Reshape(t, short) y = MatMul(r, square)", "M,6"),
    "channels as batch": ("t = Transpose<perm=[1,0,2]>(c) y = Conv(t, one)", "4,2,10"),
    "a repetition to a shape": ("m = ReduceMean<keepdims=1,axes=[2]>(c) e = Expand(m, shape) y = Conv(e, v)", "N,5,8"),
    "a resize to sizes": ("e = Resize(c, , , sizes) y = Conv(e, v)", "1,5,18"),
    "a resize to sizes beside empty scales": ("e = Resize(c, none, none, sizes) y = Conv(e, v)", "1,5,18"),
    "a sum with a matrix": ("m = ReduceMean<keepdims=0,axes=[0]>(c) y = Add(c, m)", "N,4,10"),
}


@pytest.mark.parametrize("reader", ELSEWHERE)
@pytest.mark.parametrize("channel", [1, 3])
def test_a_constant_channel_stays_where_another_axis_is_read(reader: str, channel: int) -> None:
    nodes, out = ELSEWHERE[reader]
    more = {"k": weights(10, 6), "square": weights(4, 6), "v": weights(5, 4, 3), "one": weights(2, 1, 1)}
    more["long"] = weights(40, 6)
    places = {"zero": [0], "four": [4], "two": [2], "all": [-1], "rows": [-1, 10], "short": [-1, 4]}
    places |= {"shape": [1, 4, 10], "sizes": [1, 4, 20]}
    more |= {name: np.array(place) for name, place in places.items()}
    more["none"] = np.zeros(0, np.float32)
    batch = "1" if "batch" in reader or "sizes" in reader or "vector" in reader else "N"
    model = graph(text(nodes, out).replace("float[N,3,L]", f"float[{batch},3,12]"), **dead(channel), **more)
    after, report = folded(model)
    assert report.channels_removed == 0
    same_function(model, after, (1, 3, 12))


def test_a_constant_channel_goes_through_what_takes_positions() -> None:
    nodes = "s = Slice(c, zero, four, two) p, q = Split<axis=2>(s, sizes) a = Add(p, q) y = Conv(a, v)"
    places = {"zero": [0], "four": [4], "two": [2], "sizes": [2, 2]}
    arrays = {name: np.array(place) for name, place in places.items()}
    model = graph(text(nodes).replace("float[N,3,L]", "float[N,3,12]"), **dead(1), v=weights(5, 4, 1), **arrays)
    after, report = folded(model)
    assert report.channels_removed == 1
    same_function(model, after, (2, 3, 12))

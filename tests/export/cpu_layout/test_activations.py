"""Activations are written as, and moved to, what onnxruntime has a fast kernel for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.cpu_layout.test_blocked import optimised
from tests.export.cpu_layout.test_lift import lifted
from tests.export.fold.graphs import graph, operators, same_in_onnxruntime, weights

C = 16
W = {"w": weights(C, C, 3), "b": weights(C)}
SHAPES = ((1, C, 40), (2, C, 57))
GELU = {"root": np.float32(2**0.5), "inverse": np.float32([[[2**-0.5]]]), "one": np.float32(1), "half": np.float32(0.5)}


def between(nodes: str, more: str = "", **held: object) -> onnx.ModelProto:
    """Return a convolution to u, the nodes, a convolution of v; ``more`` outputs beside its y."""
    text = f"(float[N, 16, L] x) => (float[N, 16, M] y{more}) {{ u = Conv(x, w, b) {nodes} y = Conv(v, w) }}"
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return graph(text, **{k: v for k, v in {**W, **GELU, **held}.items() if k in words})


GELUS = {
    "as torch writes it": "d = Div(u, root) e = Erf(d) a = Add(e, one) h = Mul(half, a) v = Mul(u, h)",
    "as folding leaves it": "d = Mul(u, inverse) e = Erf(d) a = Add(e, one) h = Mul(a, half) v = Mul(u, h)",
    "the other way round": "d = Mul(inverse, u) e = Erf(d) a = Add(one, e) h = Mul(half, a) v = Mul(h, u)",
}


@pytest.mark.parametrize("nodes", GELUS.values(), ids=GELUS)
def test_a_gelu_is_written_as_the_one_kernel_that_keeps_the_blocked_layout(nodes: str) -> None:
    before = between(nodes)
    assert "Erf" in optimised(before)
    after = lifted(before)
    assert [o for o in optimised(after) if "queeze" not in o] == [
        "blocked ReorderInput",
        "blocked Conv",
        "Gelu",
        "blocked Conv",
        "blocked ReorderOutput",
    ]
    same_in_onnxruntime(before, after, *SHAPES)


OTHERS = {
    "another divisor": "d = Div(u, half) e = Erf(d) a = Add(e, one) h = Mul(half, a) v = Mul(u, h)",
    "another factor": "d = Div(u, root) e = Erf(d) a = Add(e, one) h = Mul(root, a) v = Mul(u, h)",
    "another sum": "d = Div(u, root) e = Erf(d) a = Add(e, half) h = Mul(half, a) v = Mul(u, h)",
    "another function": "d = Div(u, root) e = Tanh(d) a = Add(e, one) h = Mul(half, a) v = Mul(u, h)",
    "the quotient upside down": "d = Div(root, u) e = Erf(d) a = Add(e, one) h = Mul(half, a) v = Mul(u, h)",
    "of another value": "r = Relu(u) d = Div(r, root) e = Erf(d) a = Add(e, one) h = Mul(half, a) v = Mul(u, h)",
}


@pytest.mark.parametrize("nodes", OTHERS.values(), ids=OTHERS)
def test_what_is_no_gelu_stays(nodes: str) -> None:
    before = between(nodes)
    after = lifted(before)
    assert "Gelu" not in optimised(after)
    same_in_onnxruntime(before, after, *SHAPES)


def test_a_gelu_whose_constants_give_it_axes_stays() -> None:
    nodes = "s = Squeeze(u, none) d = Div(s, high) e = Erf(d) a = Add(e, one) h = Mul(half, a) k = Mul(s, h)"
    text = f"(float[1, 16, L] x) => (float[1, 1, 16, M] y) {{ u = Conv(x, w, b) {nodes} y = Relu(k) }}"
    high = np.full((1, 1, 1, 1), 2**0.5, np.float32)
    held = {"w": W["w"], "b": W["b"], "one": GELU["one"], "half": GELU["half"], "high": high, "none": np.array([0])}
    before = graph(text, opset=18, **held)
    after = lifted(before)
    assert "Gelu" not in optimised(after)
    same_in_onnxruntime(before, after, *(s for s in SHAPES if s[0] == 1))


def test_a_gelu_of_which_a_step_is_read_elsewhere_stays() -> None:
    before = between(GELUS["as torch writes it"], ", float[N, 16, K] e")
    assert "Gelu" not in optimised(lifted(before))


RISING = {
    "Elu": "e = Elu(u)",
    "Elu of another slope": "e = Elu<alpha = 0.3>(u)",
    "Selu": "e = Selu(u)",
    "Softplus": "e = Softplus(u)",
}
POOLS = {
    "plain": "<kernel_shape = [3], strides = [3]>",
    "padded": "<kernel_shape = [3], strides = [2], pads = [1, 2]>",
    "to the ceiling": "<kernel_shape = [4], strides = [3], ceil_mode = 1>",
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("nodes", RISING.values(), ids=RISING)
def test_a_function_that_never_falls_is_taken_of_the_maxima(nodes: str, pool: str) -> None:
    before = between(f"{nodes} v = MaxPool{pool}(e)")
    after = lifted(before)
    order = [n.op_type for n in after.graph.node]
    assert order.index("MaxPool") < order.index(nodes.split()[2].split("(")[0].split("<")[0])
    same_in_onnxruntime(before, after, *SHAPES)


FALLING = {
    "a function that falls": "e = Elu<alpha = -1.0>(u) v = MaxPool<kernel_shape = [3]>(e)",
    "a bump": "t = Sin(u) e = Neg(t) v = MaxPool<kernel_shape = [3]>(e)",
    "windows between the entries": "e = Elu(u) v = MaxPool<kernel_shape = [2], dilations = [3], pads = [1, 1]>(e)",
    "windows behind the last entry": "e = Elu(u) v = MaxPool<kernel_shape = [2], strides = [3], ceil_mode = 1>(e)",
    "a second reader": "e = Elu(u) p = MaxPool<kernel_shape = [3], pads = [1, 1]>(e) v = Add(e, p)",
    "an average": "e = Elu(u) v = AveragePool<kernel_shape = [3]>(e)",
}


@pytest.mark.parametrize("nodes", FALLING.values(), ids=FALLING)
def test_elsewhere_the_activation_stays_before_the_pool(nodes: str) -> None:
    before = between(nodes)
    order = [n.op_type for n in lifted(before).graph.node]
    pool = next(o for o in order if o.endswith("Pool"))
    assert order.index(pool) > min(order.index(o) for o in ("Elu", "Neg") if o in order)


def test_a_pool_that_tells_the_places_of_its_maxima_stays() -> None:
    before = between("e = Elu(u) v, k = MaxPool<kernel_shape = [3]>(e)", ", int64[N, 16, K] k")
    order = [n.op_type for n in lifted(before).graph.node]
    assert order.index("Elu") < order.index("MaxPool")


INCEPTION = "a = Conv(u, w) b1 = Conv<pads = [1, 1]>(u, w3) {more} v = {act}"
ACTIVATIONS = [
    "Relu(j)",
    "LeakyRelu<alpha = 0.2>(j)",
    "Clip(j, zero, one)",
    "Sigmoid(j)",
    "Tanh(j)",
    "HardSigmoid<alpha = 0.3>(j)",
]


def inception(more: str, act: str, outputs: str = "", **held: np.ndarray) -> onnx.ModelProto:
    """Return two convolutions of one tensor, what is between them and an activation, and a convolution of its value."""
    nodes = INCEPTION.format(more=more, act=act)
    text = f"(float[N, 16, L] x) => (float[N, 4, M] y{outputs}) {{ u = Conv(x, w) {nodes} y = Conv(v, k) }}"
    arrays = {"w": weights(C, C, 1), "w3": weights(C, C, 3), "k": weights(4, 2 * C, 1), **GELU, **held}
    arrays |= {"zero": np.float32(0)}
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return graph(text, **{name: held for name, held in arrays.items() if name in words})


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_an_activation_of_joined_convolutions_is_computed_within_each(act: str) -> None:
    before = inception("j = Concat<axis = 1>(a, b1)", act)
    name = act.split("(")[0].split("<")[0]
    assert name in [o.removeprefix("blocked ") for o in optimised(before)]
    after = lifted(before)
    assert operators(after).count(name) == 2
    assert name not in [o.removeprefix("blocked ") for o in optimised(after)]
    same_in_onnxruntime(before, after, *SHAPES)


JOINED = {
    "a part that is no convolution's": ("p = Sigmoid(b1) j = Concat<axis = 1>(a, p)", ""),
    "a part that something else reads": ("j = Concat<axis = 1>(a, b1)", ", float[N, 16, K] b1"),
    "a whole that something else reads": ("j = Concat<axis = 1>(a, b1)", ", float[N, 32, K] j"),
    "one convolution twice": ("j = Concat<axis = 1>(a, a)", ""),
}


@pytest.mark.parametrize(("more", "outputs"), JOINED.values(), ids=JOINED)
def test_an_activation_stays_behind(more: str, outputs: str) -> None:
    before = inception(more, "Relu(j)", outputs)
    after = lifted(before)
    assert operators(after).count("Relu") == 1
    same_in_onnxruntime(before, after, *SHAPES)


def test_a_clip_whose_bound_is_computed_stays_behind() -> None:
    before = inception("j = Concat<axis = 1>(a, b1) m = ReduceMax<keepdims = 0>(u)", "Clip(j, zero, m)")
    after = lifted(before)
    assert operators(after).count("Clip") == 1
    same_in_onnxruntime(before, after, *SHAPES)

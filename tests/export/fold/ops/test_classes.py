"""The classes into which the BatchNorms of real networks fall, one small network each.

B        back into the linear operator before          B-through  back through concat, sum, transpose, pool
F        forward into an unpadded or mirrored reader   F-edge     forward into a zero-padded reader
F-max    forward through a max-pool                    S          scale back, shift forward
R        ReLU becomes Max or Min                       T          before a ReLU on a shared tensor
G        on a skip                                     N          before a smooth activation on a shared tensor
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.fold.graphs import Array, folded, folds_to, graph, left, norm, operators, same_function, weights

LENGTHS = ((2, 3, 16), (1, 3, 27))


def network(nodes: str, out: str = "float[N,4,M] y", **arrays: Array) -> onnx.ModelProto:
    """Weights: w (4, 3, 3) and w1 (4, 3, 1) read x; a, b (4, 4, 3) and a1, b1 (4, 4, 1) read four channels."""
    given = {"w": weights(4, 3, 3), "w1": weights(4, 3, 1), "u": weights(4, 3, 3, seed=1)}
    given |= {"a": weights(4, 4, 3, seed=2), "b": weights(4, 4, 3, seed=3)}
    given |= {"a1": weights(4, 4, 1, seed=4), "b1": weights(4, 4, 1, seed=5), "d": weights(4, 1, 3)}
    model = graph(f"(float[N,3,L] x) => ({out}) {{ {nodes} }}", **given, **arrays)
    read = {i for n in model.graph.node for i in n.input}
    kept = [t for t in model.graph.initializer if t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


MIXED, POSITIVE = norm("n", 4), norm("n", 4, gamma="positive")
SIGNS = pytest.mark.parametrize("gamma", ["positive", "mixed", "negative"])


# --- B ----------------------------------------------------------------------------------------------------------------


@SIGNS
@pytest.mark.parametrize(
    ("linear", "op"),
    [
        ("Conv<pads=[1,1],strides=[2]>(c, a)", "Conv"),
        ("Conv<group=4,pads=[1,1]>(c, d)", "Conv"),
        ("ConvTranspose<strides=[2]>(c, a)", "ConvTranspose"),
    ],
)
def test_b_conv_then_batchnorm(linear: str, op: str, gamma: str) -> None:
    model = network(f"c0 = Conv(x, w) c = Relu(c0) e = {linear} f = BN(e, n) y = Relu(f)", **norm("n", 4, gamma=gamma))
    folds_to(model, f"Conv Relu {op} Relu", *LENGTHS)


# --- B-through --------------------------------------------------------------------------------------------------------


@SIGNS
def test_b_through_the_concat_of_an_inception_block(gamma: str) -> None:
    nodes = """i = Conv(x, w1)  p = Conv<pads=[1,1]>(i, a)  q = Conv<pads=[1,1]>(i, b)
        m = MaxPool<kernel_shape=[3],pads=[1,1]>(x)  r = Conv(m, w1)
        j = Concat<axis=1>(p, q, r)  f = BN(j, n)  y = Relu(f)"""
    model = network(nodes, "float[N,12,M] y", **norm("n", 12, gamma=gamma))
    folds_to(model, "Conv Conv Conv MaxPool Conv Concat Relu", *LENGTHS)


@SIGNS
@pytest.mark.parametrize(
    "between",
    [
        "e = Transpose<perm=[0,2,1]>(c) f = Transpose<perm=[0,2,1]>(e)",
        "f = AveragePool<kernel_shape=[3],strides=[2]>(c)",
        "e = Unsqueeze(c, last) f = Squeeze(e, last)",
        "e = Conv(x, u) f = Add(c, e)",
        "e = Conv(x, u) g = Add(c, e) f = Identity(g)",
    ],
)
def test_b_through_what_moves_or_adds(between: str, gamma: str) -> None:
    model = network(
        f"c = Conv(x, w) {between} g9 = BN(f, n) y = Sigmoid(g9)", last=np.array([3]), **norm("n", 4, gamma=gamma)
    )
    after, report = folded(model)
    assert report.affines_after == 0
    assert len(after.graph.node) == len(model.graph.node) - 1
    same_function(model, after, *LENGTHS)


# --- F ----------------------------------------------------------------------------------------------------------------


@SIGNS
@pytest.mark.parametrize("act", ["Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "HardSwish", "Softsign"])
@pytest.mark.parametrize("reader", ["y = Conv(f, a)", "y = Conv(f, a1)", "y = Conv<group=4>(f, d)"])
def test_f_into_an_unpadded_reader_behind_any_activation(reader: str, act: str, gamma: str) -> None:
    model = network(f"c = Conv(x, w) e = {act}(c) f = BN(e, n) {reader}", **norm("n", 4, gamma=gamma))
    folds_to(model, f"Conv {act} Conv", *LENGTHS)


@SIGNS
@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_f_into_a_mirrored_reader(mode: str, gamma: str) -> None:
    nodes = f'c = Conv(x, w) e = Relu(c) f = BN(e, n) p = Pad<mode="{mode}">(f, ends) y = Conv(p, a)'
    folds_to(
        network(nodes, ends=np.array([0, 0, 1, 0, 0, 1]), **norm("n", 4, gamma=gamma)), "Conv Relu Pad Conv", *LENGTHS
    )


@SIGNS
def test_f_into_a_linear_layer_and_an_lstm(gamma: str) -> None:
    nodes = """c = Conv(x, w)  e = Relu(c)  f = BN(e, n)  t = Transpose<perm=[2,0,1]>(f)
        h = LSTM<hidden_size=3>(t, k, r)  s = Squeeze(h, one)  y = MatMul(s, v)"""
    arrays = {"k": weights(1, 12, 4), "r": weights(1, 12, 3), "one": np.array([1]), "v": weights(3, 5)}
    model = network(nodes, "float[M,N,5] y", **arrays, **norm("n", 4, gamma=gamma))
    folds_to(model, "Conv Relu Transpose LSTM Squeeze MatMul", *LENGTHS)


def test_f_the_books_example_4_22_keeps_no_batchnorm() -> None:
    nodes = """c1 = Conv(x, w)  r1 = Relu(c1)  f1 = BN(r1, n)  c2 = Conv(f1, a)  r2 = Relu(c2)  f2 = BN(r2, m)
        c3 = Conv(f2, b)  y = Relu(c3)"""
    folds_to(network(nodes, **MIXED, **norm("m", 4)), "Conv Relu Conv Relu Conv Relu", *LENGTHS)


# --- F-edge -----------------------------------------------------------------------------------------------------------


@SIGNS
@pytest.mark.parametrize(
    ("reader", "op"),
    [
        ("Conv<pads=[1,1]>(f, a)", "Conv"),
        ('Conv<auto_pad="SAME_UPPER",strides=[2]>(f, a)', "Conv"),
        ("ConvTranspose<strides=[2],pads=[1,1]>(f, a)", "ConvTranspose"),
    ],
)
@pytest.mark.parametrize("act", ["Relu", "Elu", "Tanh"])
def test_f_edge_into_a_zero_padded_reader(act: str, reader: str, op: str, gamma: str) -> None:
    model = network(f"c = Conv(x, w) e = {act}(c) f = BN(e, n) y = {reader}", **norm("n", 4, gamma=gamma))
    _, report = folds_to(model, f"Conv {act} {op}", *LENGTHS)
    assert report.carriers == 1


@SIGNS
def test_f_edge_into_a_depthwise_reader_leaves_one_add_at_most(gamma: str) -> None:
    nodes = "c = Conv(x, w) e = Sigmoid(c) f = BN(e, n) y = Conv<group=4,pads=[1,1]>(f, d)"
    model = network(nodes, **norm("n", 4, gamma=gamma))
    after, _ = folded(model)
    assert operators(after) == ["Add", "Conv", "Conv", "Sigmoid"]
    same_function(model, after, *LENGTHS)


# --- F-maxpool --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["y = Conv<pads=[1,1]>(p, a)", "y = Conv(p, a1)"])
def test_f_maxpool_with_positive_gamma(reader: str) -> None:
    nodes = f"c = Conv(x, w) e = Relu(c) f = BN(e, n) p = MaxPool<kernel_shape=[2],strides=[2]>(f) {reader}"
    folds_to(network(nodes, **POSITIVE), "Conv Relu MaxPool Conv", *LENGTHS)


@pytest.mark.parametrize("gamma", ["mixed", "negative"])
@pytest.mark.parametrize("reader", ["y = Conv<pads=[1,1]>(p, a)", "y = Conv(p, a1)"])
def test_f_maxpool_with_negative_gamma_takes_one_node_at_most(reader: str, gamma: str) -> None:
    nodes = f"c = Conv(x, w) e = Relu(c) f = BN(e, n) p = MaxPool<kernel_shape=[2],strides=[2]>(f) {reader}"
    model = network(nodes, **norm("n", 4, gamma=gamma))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    assert len(after.graph.node) <= len(model.graph.node)
    same_function(model, after, *LENGTHS)


# --- S ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["Relu", "LeakyRelu", "PRelu"])
def test_s_scale_back_and_shift_forward_through_a_res2net_chain(act: str) -> None:
    call = "PRelu({}, slope)" if act == "PRelu" else act + "({})"
    nodes = f"""c = Conv(x, w)  p, q = Split<axis=1>(c, halves)
        d9 = Conv<pads=[1,1]>(p, k)  e = {call.format("d9")}  f = BN(e, n)
        g = Add(f, q)  h = Conv<pads=[1,1]>(g, k)  i = {call.format("h")}  m9 = BN(i, m)
        j = Concat<axis=1>(f, m9)  y = Conv(j, a1)"""
    arrays = {"halves": np.array([2, 2]), "k": weights(2, 2, 3), "slope": np.float32([[0.2], [0.4]])}
    model = network(nodes, **arrays, **norm("n", 2, gamma="positive"), **norm("m", 2, gamma="positive"))
    folds_to(model, f"Conv Split Conv {act} Add Conv {act} Concat Conv", *LENGTHS)


@pytest.mark.parametrize("gamma", ["mixed", "negative"])
def test_s_negative_scales_leave_one_sign_at_most(gamma: str) -> None:
    nodes = (
        """c = Conv(x, w)  e = Relu(c)  f = BN(e, n)  g = Conv(x, u)  h = Add(f, g)  i = Sigmoid(h)  y = Conv(i, a1)"""
    )
    model = network(nodes, **norm("n", 4, gamma=gamma))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    assert len(after.graph.node) <= len(model.graph.node)
    same_function(model, after, *LENGTHS)


# --- R ----------------------------------------------------------------------------------------------------------------


BEHIND = pytest.mark.parametrize("behind", ["y = Tanh(f)", "g = Sigmoid(f) y = Mul(f, g)", "y = Identity(f)"])


@BEHIND
@pytest.mark.parametrize(("gamma", "clamp"), [("positive", "Max"), ("negative", "Min")])
def test_r_the_relu_before_what_nothing_passes_becomes_a_max_or_a_min(behind: str, gamma: str, clamp: str) -> None:
    model = network(f"c = Conv(x, w) e = Relu(c) f = BN(e, n) {behind}", **norm("n", 4, gamma=gamma))
    after, report = folded(model)
    assert report.affines_after == 0
    want = [clamp if op == "Relu" else op for op in operators(model) if op != "BatchNormalization"]
    assert operators(after) == sorted(want)
    same_function(model, after, *LENGTHS)


@BEHIND
def test_r_with_both_signs_would_take_a_max_and_a_min_and_costs_more_than_it_saves(behind: str) -> None:
    model = network(f"c = Conv(x, w) e = Relu(c) f = BN(e, n) {behind}", **MIXED)
    after, report = folded(model)
    assert len(after.graph.node) <= len(model.graph.node)
    assert all("gamma has both signs" in reason and "a Max and a Min" in reason for reason in left(report).values())
    same_function(model, after, *LENGTHS)


def test_r_at_the_output_by_hand() -> None:
    # 2 relu(z) + 3 = max(2 z + 3, 3)
    text = """(float[N,1,L] x) => (float[N,1,L] y) {
        c = Conv(x, w, b)  r = Relu(c)  y = BatchNormalization<epsilon=0.0>(r, g, t, m, v) }"""
    arrays = {"w": [[[5]]], "b": [1], "g": [2], "t": [3], "m": [0], "v": [1]}
    model = graph(text, **{k: np.float32(a) for k, a in arrays.items()})
    after, report = folded(model)
    assert report.affines_after == 0
    held = {t.name: onnx.numpy_helper.to_array(t).ravel() for t in after.graph.initializer}
    assert sorted(float(v) for a in held.values() for v in a) == [3, 5, 10]  # bias 2·1+3, weight 2·5, bound 3
    same_function(model, after, (1, 1, 6))


# --- T ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", ["positive", "negative"])
@pytest.mark.parametrize("act", ["Relu({})", "Clip({}, zero, six)"])
def test_t_pre_activation_on_a_residual_stream(act: str, gamma: str) -> None:
    nodes = f"""s0 = Conv(x, w)  f0 = BN(s0, n)  r0 = {act.format("f0")}  c0 = Conv<pads=[1,1]>(r0, a)  s1 = Add(s0, c0)
        f1 = BN(s1, m)  r1 = {act.format("f1")}  c1 = Conv<pads=[1,1]>(r1, b)  y = Add(s1, c1)"""
    held = {"zero": np.float32(0), "six": np.float32(6)}
    model = network(nodes, **held, **norm("n", 4, gamma=gamma), **norm("m", 4, gamma=gamma))
    after, report = folded(model)
    if act.startswith("Relu"):
        assert report.batchnorms_after == 0
    assert len(after.graph.node) <= len(model.graph.node)
    same_function(model, after, *LENGTHS)


@SIGNS
def test_t_the_concat_of_a_densenet(gamma: str) -> None:
    nodes = """s0 = Conv<pads=[1,1]>(x, w)  f0 = BN(s0, n)  r0 = Relu(f0)  c0 = Conv<pads=[1,1]>(r0, a)
        s1 = Concat<axis=1>(s0, c0)  f1 = BN(s1, m)  r1 = Relu(f1)  c1 = Conv<pads=[1,1]>(r1, wide)
        s2 = Concat<axis=1>(s1, c1)  f2 = BN(s2, o)  r2 = Relu(f2)  p = GlobalAveragePool(r2)  y = Conv(p, head)"""
    arrays = {"wide": weights(4, 8, 3), "head": weights(4, 12, 1), **norm("n", 4, gamma=gamma)}
    model = network(nodes, **arrays, **norm("m", 8, gamma=gamma), **norm("o", 12, gamma=gamma))
    after, report = folded(model)
    clamps = [op for op in operators(after) if op in ("Max", "Min")]
    assert report.batchnorms_after + len(clamps) <= 3
    if gamma != "mixed":
        assert report.affines_after == 0
    assert len(after.graph.node) <= len(model.graph.node)
    same_function(model, after, *LENGTHS)


def shared(act: str = "Relu(f)", **arrays: Array) -> onnx.ModelProto:
    """A pre-activation on a tensor that a sigmoid reads too, so that nothing of it can go back."""
    nodes = f"c = Conv(x, w)  f = BN(c, n)  r = {act}  e = Conv(r, a1)  s = Sigmoid(c)  y = Add(e, s)"
    return network(nodes, **arrays)


@pytest.mark.parametrize(("gamma", "clamp"), [("positive", "Max"), ("negative", "Min")])
def test_t_batchnorm_and_relu_become_one_max_or_min(gamma: str, clamp: str) -> None:
    folds_to(shared(**norm("n", 4, gamma=gamma)), f"Conv {clamp} Conv Sigmoid Add", *LENGTHS)


@pytest.mark.parametrize(
    ("act", "gamma", "why"),
    [
        ("Relu(f)", "mixed", "gamma has both signs, so 'Relu_2' (Relu) would become a Max and a Min"),
        (
            "Clip(f, zero, six)",
            "positive",
            "there are two bounds by channel, so 'Clip_2' (Clip) would become a Max and a Min",
        ),
    ],
)
def test_t_stays_where_it_would_take_a_max_and_a_min_which_are_slower(act: str, gamma: str, why: str) -> None:
    held = {"zero": np.float32(0), "six": np.float32(6)} if "six" in act else {}
    model = shared(act, **held, **norm("n", 4, gamma=gamma))
    after, report = folded(model)
    assert operators(after) == operators(model)
    (reasons,) = left(report).values()
    assert why in reasons
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(("channels", "stays"), [(8, True), (6, False)])
def test_t_between_2d_convolutions_in_blocks_of_channels_a_max_would_leave_them(channels: int, stays: bool) -> None:
    text = f"""(float[N,3,1,L] x) => (float[N,{channels},1,M] y) {{ c = Conv(x, w)  f = BN(c, n)  r = Relu(f)
        e = Conv(r, a)  s = Sigmoid(c)  y = Add(s, e) }}"""
    arrays = {"w": weights(channels, 3, 1, 3), "a": weights(channels, channels, 1, 1)}
    model = graph(text, **arrays, **norm("n", channels, gamma="positive"))
    after, report = folded(model)
    assert ("BatchNormalization" in operators(after), "Max" in operators(after)) == (stays, not stays)
    assert all("leaves the blocked layout in which the runtime is faster" in reason for reason in left(report).values())
    same_function(model, after, (2, 3, 1, 16), (1, 3, 1, 27))


# --- G ----------------------------------------------------------------------------------------------------------------


SKIPPED = "c = Conv(x, w)  u9 = Relu(c)  f = BN(u9, n)  e9 = Conv<pads=[1,1]>(u9, a)"


def test_g_a_batchnorm_on_a_skip_rescales_the_stream() -> None:
    nodes = f"{SKIPPED}  d9 = Conv<pads=[1,1]>(e9, a)  s = Add(f, d9)  y = Sigmoid(s)"
    folds_to(network(nodes, **POSITIVE), "Conv Relu Conv Conv Add Sigmoid", *LENGTHS)


@pytest.mark.parametrize("gamma", ["mixed", "negative"])
def test_g_negative_gamma_on_a_skip_keeps_the_function(gamma: str) -> None:
    nodes = f"{SKIPPED}  d9 = Conv<pads=[1,1]>(e9, a)  s = Add(f, d9)  y = Sigmoid(s)"
    model = network(nodes, **norm("n", 4, gamma=gamma))
    after, report = folded(model)
    assert report.batchnorms_after == 0
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("gamma", ["mixed", "negative", "positive"])
def test_g_a_batchnorm_on_a_skip_over_one_convolution_goes_into_it(gamma: str) -> None:
    model = network(f"{SKIPPED}  s = Add(f, e9)  y = Sigmoid(s)", **norm("n", 4, gamma=gamma))
    folds_to(model, "Conv Relu Conv Sigmoid", *LENGTHS)


# --- N ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["Elu", "Sigmoid", "Tanh", "Softplus", "HardSwish"])
def test_n_before_a_smooth_activation_on_a_shared_tensor_it_stays_and_says_why(act: str) -> None:
    nodes = f"""c = Conv(x, w)  s = Sigmoid(c)  f = BN(s, n)  r = {act}(f)  g = Conv<pads=[1,1]>(r, a)  y = Add(s, g)"""
    model = network(nodes, **MIXED)
    after, report = folded(model)
    assert operators(after).count("BatchNormalization") == 1
    same_function(model, after, *LENGTHS)
    (reasons,) = left(report).values()
    assert f"'{act}_3' ({act})" in reasons
    assert "cannot pass through it" in reasons or "passes through it" in reasons


def test_n_between_two_smooth_activations_it_stays() -> None:
    model = network("c = Conv(x, w) s = Tanh(c) f = BN(s, n) y = Elu(f)", **MIXED)
    after, report = folded(model)
    assert operators(after) == ["BatchNormalization", "Conv", "Elu", "Tanh"]
    (reasons,) = left(report).values()
    assert (
        "'Tanh_1' (Tanh) is neither linear nor positively homogeneous: a scale or shift cannot pass through it"
        in reasons
    )
    assert (
        "'Elu_3' (Elu) is neither linear nor positively homogeneous: a scale or shift cannot pass through it" in reasons
    )

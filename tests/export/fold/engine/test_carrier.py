"""The carrier: a channel of ones from which a zero-padded convolution reads a shift, exact at any length."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.fold.graphs import (
    folded,
    folds_to,
    graph,
    left,
    net_of,
    norm,
    operators,
    same_function,
    same_in_onnxruntime,
    weight_of,
    weights,
)

from normfold.export.fold import fold
from normfold.export.fold.affine import Affine
from normfold.export.fold.channels import AddedChannel
from normfold.export.fold.engine import carrier
from normfold.export.fold.engine.carrier import NewCarrier, carrier_for, new_carrier
from normfold.export.fold.engine.constant_channels import ConstantChannels
from normfold.export.fold.engine.ones import Ones, put_ones_before
from normfold.export.fold.net import Gauges, Net, Refused, Tensor
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear

LENGTHS = ((2, 3, 13), (1, 3, 24), (3, 3, 1))


def around(nodes: str, head: str = "c = Conv<pads=[1,1]>(x, w)", tail: str = "y = Conv<pads=[1,1]>(n, v)") -> str:
    return f"(float[N,3,L] x) => (float[N,5,M] y) {{ {head} {nodes} {tail} }}"


WEIGHTS = {"w": weights(4, 3, 3), "v": weights(5, 4, 3)}


def test_the_convolution_before_emits_ones_and_the_one_behind_reads_the_shift_from_them() -> None:
    model = graph(around("r = Relu(c) n = BN(r, n)"), **WEIGHTS, **norm("n", 4))
    after, report = folds_to(model, "Conv Relu Conv", *LENGTHS)
    assert report.carriers == 1
    first, bias, last = weight_of(after, 0), weight_of(after, 0, place=2), weight_of(after, 1)
    np.testing.assert_array_equal(first[4], np.zeros((3, 3)))
    assert bias[4] == 1
    gamma, beta, mean, var = (norm("n", 4)[f"n_{p}"].astype(np.float64) for p in ("gamma", "beta", "mean", "var"))
    scale = gamma / np.sqrt(var + float(np.float32(1e-5)))
    taps = np.einsum("oik,i->ok", WEIGHTS["v"].astype(np.float64), beta - mean * scale)
    np.testing.assert_allclose(last[:, 4], taps, rtol=1e-6, atol=1e-7)


PADDED = [
    "<pads=[1,1]>",
    "<pads=[2,0]>",
    "<pads=[0,1]>",
    "<pads=[2,2],strides=[2]>",
    "<pads=[2,2],dilations=[2]>",
    '<auto_pad="SAME_UPPER">',
    '<auto_pad="SAME_LOWER",strides=[3]>',
]


@pytest.mark.parametrize("act", ["Relu", "Sigmoid", "Tanh", "Elu", "LeakyRelu", "Softplus"])
@pytest.mark.parametrize("attributes", PADDED)
def test_the_shift_ends_where_the_tensor_ends_for_any_padding_stride_and_activation(attributes: str, act: str) -> None:
    model = graph(around(f"r = {act}(c) n = BN(r, n)", tail=f"y = Conv{attributes}(n, v)"), **WEIGHTS, **norm("n", 4))
    _, report = folds_to(model, f"Conv {act} Conv", (2, 3, 13), (1, 3, 24))
    assert report.carriers == 1


#: As written, with an attribute where the operator has one, and the opset that brought it.
ACTIVATIONS = [
    ("Elu<alpha=0.7>", 17),
    ("Celu<alpha=0.7>", 17),
    ("Selu<gamma=1.2>", 17),
    ("HardSwish", 17),
    ("HardSigmoid<alpha=0.3>", 17),
    ("ThresholdedRelu<alpha=0.5>", 17),
    ("Softsign", 17),
    ("Mish", 18),
    ("Gelu", 20),
    ('Gelu<approximate="tanh">', 20),
    ("Swish<alpha=1.5>", 24),
]


@pytest.mark.parametrize(("act", "opset"), ACTIVATIONS)
def test_a_carrier_holds_the_activation_of_one(act: str, opset: int) -> None:
    model = graph(around(f"r = {act}(c) n = BN(r, n)"), opset, **WEIGHTS, **norm("n", 4))
    after, report = folded(model)
    assert not left(report)
    assert report.carriers == 1
    same_in_onnxruntime(model, after, (2, 3, 13), (1, 3, 24))


@pytest.mark.parametrize("act", ["Sigmoid", "Softplus", "Exp", "Mish"])
@pytest.mark.parametrize("held", [-1e4, 1e4])
def test_a_constant_channel_far_out_stops_no_fold(act: str, held: float) -> None:
    arrays = {**WEIGHTS, **norm("n", 4, gamma=[0.0, 1.0, 1.0, 1.0], beta=[held, 0.1, 0.2, 0.3])}
    model = graph(around(f"b = BN(c, n) n = {act}(b)"), 18, **arrays)
    after, report = folded(model)
    assert not left(report)
    if act != "Exp" or held < 0:
        same_in_onnxruntime(model, after, (2, 3, 13))


def test_a_batchnorm_of_one_channel_has_an_entry_for_the_carrier_too() -> None:
    # The shift of z needs a carrier; n stays beside it, for d and n are one tensor's.
    text = """(float[N,1,L] x) => (float[N,5,M] y) {
        c = Conv(x, w)  d = Slice(c, one, end, axis)  n = BN(d, n)  s = Sub(d, n)  m = Mul(s, g)  a = BN(m, a)
        y = Conv<pads=[1,1]>(a, v) }"""
    held = {"one": np.array([1]), "end": np.array([1000]), "axis": np.array([2]), "g": np.float32([[[2]]])}
    model = graph(text, w=weights(1, 1, 1), v=weights(5, 1, 3), **held, **norm("n", 1), **norm("a", 1))
    after, _ = folded(model)
    onnx.checker.check_model(after, full_check=True)
    same_in_onnxruntime(model, after, (2, 1, 13))


def test_an_affine_of_one_constant_has_a_usual_size_for_the_carrier_too() -> None:
    # Both channels are scaled alike, from statistics that differ.
    text = "(float[N,2,L] x) => (float[N,2,L] y) { y = BN(x, n) }"
    model = graph(text, **norm("n", 2, gamma=[1, 2], beta=[0, 0], mean=[0, 0], var=[1 - 1e-5, 4 - 4e-5]))
    (op,) = net_of(model).ops
    op.is_batchnorm = False  # as a Mul
    op.params = op.params.like(Affine.of(np.full((1, 1, 1), 3.0), np.zeros((1, 1, 1))), op.params.usual)
    wide = op.with_channel({op.inputs[0]: AddedChannel(1, 2)})
    np.testing.assert_allclose(wide.usual.reshape(-1), [*op.params.usual.reshape(-1), 1.0])
    assert wide.scale is op.params.scale


@pytest.mark.parametrize("rank", [2, 3])
def test_a_carrier_serves_2d_and_3d_convolutions(rank: int) -> None:
    free = ",".join("HWD"[:rank])
    pads = [1] * 2 * rank
    nodes = f"c = Conv<pads={pads}>(x, w) r = Relu(c) n = BN(r, n) y = Conv<pads={pads}>(n, v)"
    model = graph(
        f"(float[N,2,{free}] x) => (float[N,3,{free}] y) {{ {nodes} }}",
        w=weights(3, 2, *[3] * rank),
        v=weights(3, 3, *[3] * rank),
        **norm("n", 3),
    )
    folds_to(model, "Conv Relu Conv", (1, 2, 5, 4, 3)[: 2 + rank])


@pytest.mark.parametrize(
    "pool", ["MaxPool<kernel_shape=[2],strides=[2]>", "AveragePool<kernel_shape=[3],strides=[2],pads=[1,1]>"]
)
def test_a_carrier_passes_pools(pool: str) -> None:
    nodes = f"r = Relu(c) n0 = BN(r, n) n = {pool}(n0)"
    model = graph(around(nodes), **WEIGHTS, **norm("n", 4, gamma="positive"))
    _, report = folds_to(model, f"Conv Relu {pool.partition('<')[0]} Conv", (2, 3, 13), (1, 3, 24))
    assert report.carriers == 1


def test_one_carrier_serves_all_readers_of_a_tensor() -> None:
    nodes = """r = Relu(c)  n = BN(r, n)  a = Conv<pads=[1,1]>(n, v)  b = Conv<pads=[2,2]>(n, u)  d = Conv(n, k)
        e = Add(a, b)  y = Add(e, d)"""
    model = graph(around(nodes, tail=""), **WEIGHTS, u=weights(5, 4, 5), k=weights(5, 4, 1), **norm("n", 4))
    _, report = folds_to(model, "Conv Relu Conv Conv Conv Add Add", *LENGTHS)
    assert report.carriers == 1


def test_a_chain_of_the_books_order_gets_a_carrier_a_layer_at_most() -> None:
    layers = " ".join(
        f"c{k} = Conv<pads=[1,1]>({'x' if k == 0 else f'n{k - 1}'}, w{k}) r{k} = Relu(c{k}) n{k} = BN(r{k}, n{k})"
        for k in range(4)
    )
    arrays = {f"w{k}": weights(4, 3 if k == 0 else 4, 3, seed=k) for k in range(4)}
    for k in range(4):
        arrays |= norm(f"n{k}", 4)
    model = graph(
        f"(float[N,3,L] x) => (float[N,5,L] y) {{ {layers} y = Conv<pads=[1,1]>(n3, v) }}", v=WEIGHTS["v"], **arrays
    )
    _, report = folds_to(model, "Conv Relu " * 4 + "Conv", *LENGTHS)
    assert report.carriers <= 4


def test_a_channel_with_gamma_0_is_the_carrier_and_no_channel_is_added() -> None:
    given = norm("n", 4, gamma=[1, 0, -1, 2], beta=[1, 2, 3, 4])
    model = graph(around("r = Relu(c) n = BN(r, n)"), **WEIGHTS, **given)
    after, report = folds_to(model, "Conv Relu Conv", *LENGTHS)
    assert report.carriers == 0
    assert weight_of(after).shape == WEIGHTS["w"].shape


def test_a_convolution_that_already_emits_a_constant_is_read_for_it() -> None:
    w, b = WEIGHTS["w"].copy(), np.float32([0.1, 0.2, 3, 0.4])
    w[2] = 0
    model = graph(
        around("r = Relu(c) n = BN(r, n)", head="c = Conv<pads=[1,1]>(x, w, b)"),
        w=w,
        b=b,
        v=WEIGHTS["v"],
        **norm("n", 4),
    )
    _, report = folds_to(model, "Conv Relu Conv", *LENGTHS)
    assert report.carriers == 0


def test_a_batchnorm_on_the_input_of_a_padded_convolution_gets_its_ones_from_a_pad() -> None:
    text = "(float[N,3,L] x) => (float[N,5,L] y) { n = BN(x, n) y = Conv<pads=[1,1]>(n, v) }"
    model = graph(text, v=weights(5, 3, 3), **norm("n", 3))
    after, report = folded(model)
    assert operators(after) == ["Conv", "Pad"]
    assert report.carriers == 1
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 22])
def test_the_pad_that_puts_ones_is_written_as_its_opset_wants(opset: int) -> None:
    text = "(float[N,3,L] x) => (float[N,5,L] y) { n = BN(x, n) y = Conv<pads=[1,1]>(n, v) }"
    model = graph(text, opset=opset, v=weights(5, 3, 3), **norm("n", 3))
    after, _ = folded(model)
    assert "BatchNormalization" not in operators(after)
    if opset > 10:
        same_function(model, after, *LENGTHS)


def test_a_carrier_flattened_into_a_linear_layer_is_read_with_zeros() -> None:
    nodes = """r = Relu(c)  n = BN(r, n)  a = Conv<pads=[1,1]>(n, v)  f = Flatten(n)  g = Gemm(f, k)
        h = GlobalAveragePool(a)  q = Flatten(h)  y = Add(g, q)"""
    text = around(nodes, tail="").replace("float[N,5,M] y", "float[N,5] y").replace("float[N,3,L]", "float[N,3,6]")
    model = graph(text, **WEIGHTS, k=weights(24, 5), **norm("n", 4))
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, (2, 3, 6))


def test_a_tensor_whose_shape_is_read_gets_no_channel_more() -> None:
    nodes = """r = Relu(c)  n = BN(r, n)  s = Shape(r)  t = Cast<to=1>(s)  m = ReduceMean(t)
        y0 = Conv<pads=[1,1]>(n, v)  y = Add(y0, m)"""
    model = graph(around(nodes, tail=""), **WEIGHTS, **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_an_output_of_the_network_gets_no_channel_more() -> None:
    text = """(float[N,3,L] x) => (float[N,5,L] y, float[N,4,L] r) {
        c = Conv<pads=[1,1]>(x, w)  r = Relu(c)  n = BN(r, n)  y = Conv<pads=[1,1]>(n, v) }"""
    model = graph(text, **WEIGHTS, **norm("n", 4))
    after, _ = folded(model)
    assert [d.dim_value for d in after.graph.output[1].type.tensor_type.shape.dim][1] == 4
    same_function(model, after, *LENGTHS)


@pytest.mark.parametrize(
    ("channels", "taps", "length", "carriers"),
    [(4, 15, 2000, 0), (4, 15, 24, 1), (4, 3, 2000, 1), (64, 15, 400, 1), (4, 15, None, 1)],
)
def test_no_carrier_is_brought_where_it_takes_longer_than_the_batchnorm(
    channels: int, taps: int, length: int | None, carriers: int
) -> None:
    # Measured, of the time with the BatchNorms: 1.22, 0.91, 1.01 and 1.00; an open length is taken for a short one.
    ends, dim = f"pads=[{taps // 2},{taps // 2}]", length or "L"
    text = f"""(float[1,3,{dim}] x) => (float[1,{channels},{dim}] y) {{
        c = Conv<{ends}>(x, w)  r = Relu(c)  n = BN(r, n)  y = Conv<{ends}>(n, v) }}"""
    arrays = {"w": weights(channels, 3, taps), "v": weights(channels, channels, taps)}
    model = graph(text, **arrays, **norm("n", channels, gamma="mixed"))
    after, report = folded(model)
    assert report.carriers == carriers
    assert operators(after) == ["Conv", "Conv", "Relu"] or not carriers
    same_function(model, after, (1, 3, length or 40))


@pytest.mark.parametrize(("channels", "stays"), [(8, True), (20, True), (6, False), (18, False)])
def test_no_carrier_is_brought_where_a_2d_tensor_would_leave_its_blocks(channels: int, stays: bool) -> None:
    text = """(float[N,3,H,L] x) => (float[N,5,H,L] y) {
        c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  n = BN(r, n)  y = Conv<pads=[1,1,1,1]>(n, v) }"""
    arrays = {"w": weights(channels, 3, 3, 3), "v": weights(5, channels, 3, 3)}
    model = graph(text, **arrays, **norm("n", channels, gamma="mixed"))
    after, report = folded(model)
    assert (report.batchnorms_after, report.carriers) == ((1, 0) if stays else (0, 1))
    same_function(model, after, (1, 3, 5, 7))


def test_a_shift_alone_before_a_padded_reader_is_not_moved_at_a_loss() -> None:
    # Nothing before the sigmoid can emit ones, and an Add is as cheap as the Pad that would put them.
    text = """(float[N,3,L] x) => (float[N,5,L] y, float[N,3,L] s) {
        s = Sigmoid(x)  n = Add(s, t)  y = Conv<pads=[1,1]>(n, v) }"""
    model = graph(text, v=weights(5, 3, 3), t=weights(3, 1))
    after, _ = folded(model)
    assert len(after.graph.node) <= len(model.graph.node)
    same_function(model, after, *LENGTHS)


# --- what cannot be widened -------------------------------------------------------------------------------------------


def tensor(net: Net, name: str) -> Tensor:
    return next(t for op in net.ops for t in (*op.inputs, *op.outputs) if t.name == name)


def test_the_input_and_the_output_of_a_network_cannot_be_widened() -> None:
    net = net_of(graph("(float[N,3,L] x) => (float[N,4,L] y) { y = Conv(x, w) }", w=weights(4, 3, 1)))
    with pytest.raises(Refused, match="'x' is an input of the network, so it cannot get one more channel"):
        new_carrier(tensor(net, "x"))
    with pytest.raises(Refused, match="'y' is an output of the network, so it cannot get one more channel"):
        new_carrier(tensor(net, "y"))


def test_a_tensor_without_channels_cannot_be_widened() -> None:
    net = net_of(graph("(float[N] x) => (float[N] y) { a = Sigmoid(x) y = Tanh(a) }"))
    with pytest.raises(Refused, match="'a' has no channels"):
        new_carrier(tensor(net, "a"))


def test_a_constant_that_an_activation_makes_0_is_no_carrier() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) m = Clip(c, lo, hi) y = Conv<pads=[1,1]>(m, v) }"
    model = graph(text, w=weights(4, 3, 1), v=weights(4, 4, 3), lo=np.float32(-1), hi=np.float32(0))
    with pytest.raises(Refused, match="no constant other than 0 reaches 'm'"):
        new_carrier(tensor(net_of(model), "m"))


def test_a_widened_tensor_is_followed_to_all_that_read_it() -> None:
    text = """(float[N,3,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  r = Relu(c)  a = Conv(r, v)  b = Conv(r, v)  y = Add(a, b) }"""
    net = net_of(graph(text, w=weights(4, 3, 1), v=weights(4, 4, 1)))
    found = new_carrier(tensor(net, "r"))
    assert sorted(op.node.op_type for op in found.touched) == ["Conv", "Conv", "Conv", "Relu"]
    assert {t.name for t in found.added} == {"c", "r"}
    found.carry_out(net)
    assert tensor(net, "r").size(1) == 5


# --- the Pad that puts a carrier --------------------------------------------------------------------------------------


def put() -> Ones:
    net = net_of(graph("(float[N,3,L] x) => (float[N,4,L] y) { y = Conv<pads=[1,1]>(x, w) }", w=weights(4, 3, 3)))
    (conv,) = net.ops
    assert isinstance(conv, Linear)
    return put_ones_before(net, conv)


def test_the_ones_of_a_put_carrier_are_not_scaled() -> None:
    carrier = put()
    (x,), (y,) = carrier.inputs, carrier.outputs
    assert y.size(1) == 4
    ones = Affine.along(1, 3, np.float64([2, 3, 4, 1]), np.zeros(4))
    assert carrier.spread(Gauges({y: ones}))[x].equals(Affine.along(1, 3, np.float64([2, 3, 4]), np.zeros(3)))
    with pytest.raises(Refused, match="holds ones, which are not to be scaled"):
        carrier.spread(Gauges({y: Affine.of(np.full((1, 1, 1), 2.0), 0.0)}))


def test_the_ones_of_a_put_carrier_are_known_as_constant() -> None:
    (channels,) = put().constants({})
    assert channels is not None
    np.testing.assert_array_equal(channels, [np.nan, np.nan, np.nan, 1])


def test_a_channel_more_before_a_put_carrier_goes_before_its_ones() -> None:
    carrier = put()
    assert carrier.add_channel({carrier.inputs[0]: AddedChannel(1, 3)}) == {carrier.outputs[0]: AddedChannel(1, 3)}


def test_no_carrier_is_put_before_a_grouped_reader() -> None:
    model = graph("(float[N,4,L] x) => (float[N,4,L] y) { y = Conv<group=4,pads=[1,1]>(x, w) }", w=weights(4, 1, 3))
    net = net_of(model)
    with pytest.raises(Refused, match="is depthwise or grouped, so it cannot read a carrier"):
        put_ones_before(net, net.ops[0])  # type: ignore[arg-type]


@pytest.mark.xfail(strict=True, reason="constant channels are followed along axis 1 only, so a Pad puts the ones")
def test_a_carrier_through_matmuls_reaches_the_convolution_behind() -> None:
    nodes = """t = Transpose<perm=[0,2,1]>(x)  p = MatMul(t, k)  q = Add(p, b)  c = Transpose<perm=[0,2,1]>(q)
        r = Relu(c)  n = BN(r, n)"""
    model = graph(around(nodes, head=""), k=weights(3, 4), b=weights(4), v=WEIGHTS["v"], **norm("n", 4))
    _, report = folds_to(model, "Transpose MatMul Add Transpose Relu Conv", *LENGTHS)
    assert report.carriers == 1


def test_a_split_whose_two_parts_meet_in_a_gate_carries_no_channel_more() -> None:
    # Both parts would have to grow for it, and the tensor that is split by one only.
    text = """(float[N,3,L] x) => (float[N,5,L] y) {
        c = Conv(x, w)  a, b = Split<axis=1>(c, halves)  s = Sigmoid(a)  g = Mul(b, s)  n = BN(g, n)
        y = Conv<pads=[1,1]>(n, v) }"""
    model = graph(text, w=weights(8, 3, 1), v=weights(5, 4, 3), halves=np.array([4, 4]), **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, (2, 3, 12), (3, 3, 23))


def test_a_carrier_leaves_what_scales_all_channels_alike_as_it_was_written() -> None:
    gelu = "d = Div(c, root) e = Erf(d) a = Add(e, one) m = Mul(c, a) r = Mul(m, half)"
    scalars = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    model = graph(around(f"{gelu} n = BN(r, n)"), **WEIGHTS, **scalars, **norm("n", 4))
    after, report = folds_to(model, "Conv Div Erf Add Mul Mul Conv", *LENGTHS)
    assert report.carriers == 1
    constants = {name for node in after.graph.node if node.op_type != "Conv" for name in node.input}
    assert scalars.keys() <= constants


@pytest.mark.parametrize(("scales", "opset"), [("", 13), ("none", 11)])
def test_no_carrier_goes_through_a_resize_to_a_number_of_channels(scales: str, opset: int) -> None:
    text = f"""(float[1,3,10] x) => (float[1,5,20] y) {{
        c = Conv<pads=[1,1]>(x, w) s = Sigmoid(c) n = BN(s, n)
        z = Resize(n, none, {scales}, sizes)
        y = Conv<pads=[1,1]>(z, v) }}"""
    arrays = {"none": np.zeros(0, np.float32), "sizes": np.array([1, 128, 20])}
    model = graph(text, opset, w=weights(128, 3, 3), v=weights(5, 128, 3), **arrays, **norm("n", 128))
    after, report = folded(model)
    assert report.carriers == 1  # put behind the Resize
    same_in_onnxruntime(model, after, (1, 3, 10))


def test_a_refused_plan_leaves_no_pad_of_ones_behind() -> None:
    # The zeros stand before the Pad that would put the ones, so the ones would not end where the tensor ends.
    text = """(float[N,3,L] x) => (float[N,5,M] y, float[N,128,L] p) {
        c = Conv<pads=[1,1]>(x, w) s = Sigmoid(c) p = Softmax<axis=1>(s) n = BN(s, n)
        a = Shape(x) e = Gather(a, last) q = Concat<axis=0>(zeros, e) z = Pad(n, q) y = Conv(z, v) }"""
    arrays = {"last": np.array([2]), "zeros": np.zeros(5, np.int64)}
    model = graph(text, w=weights(128, 3, 3), v=weights(5, 128, 3), **arrays, **norm("n", 128))
    after, report = folded(model)
    assert report.carriers == 0
    assert operators(after).count("Pad") == 1
    assert weight_of(after, 1).shape == (5, 128, 3)
    same_in_onnxruntime(model, after, (2, 3, 12), (1, 3, 5))


def residual(blocks: int) -> onnx.ModelProto:
    block = """a{n} = Conv<pads=[1,1]>(x{p}, v) b{n} = Relu(a{n}) c{n} = BN(b{n}, n)
               d{n} = Conv<pads=[1,1]>(c{n}, v) e{n} = Relu(d{n}) f{n} = BN(e{n}, m) x{n} = Add(x{p}, f{n})"""
    nodes = "\n".join(block.format(n=n, p=n - 1) for n in range(1, blocks + 1))
    text = f"(float[N,3,L] x) => (float[N,4,M] y) {{ x0 = Conv<pads=[1,1]>(x, w) {nodes} y = Tanh(x{blocks}) }}"
    return graph(text, w=weights(4, 3, 3), v=weights(4, 4, 3), **norm("n", 4), **norm("m", 4))


@pytest.mark.parametrize("fold_all", [False, True])
def test_a_carrier_is_not_followed_through_a_long_residual_stream(
    monkeypatch: pytest.MonkeyPatch, fold_all: bool
) -> None:
    asked: list[Sum] = []
    real = Sum.add_channel
    monkeypatch.setattr(Sum, "add_channel", lambda op, added: (asked.append(op), real(op, added))[1])

    def work(blocks: int) -> float:
        asked.clear()
        _, report = fold(residual(blocks), fold_all=fold_all)
        assert report.batchnorms_after == 0 or not fold_all
        return len(asked) / blocks

    assert work(80) <= 1.5 * work(40)


def test_constants_are_looked_for_in_the_nearest_branch_first(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(residual(12))
    last = next(op.outputs[0] for op in net.ops if op.outputs[0].name == "x12")
    asked: list[Sum] = []
    real = Sum.constants
    monkeypatch.setattr(Sum, "constants", lambda op, known: (asked.append(op), real(op, known))[1])
    assert ConstantChannels().of(last) is None
    assert len(asked) == 1


def test_where_no_pad_can_be_a_carrier_is_followed_further_only_at_any_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = "r = Relu(c) p = Pad(r, ends) y = Conv(p, v)"
    text = f"(float[N,3,L] x) => (float[N,5,M] y) {{ c = Conv(x, w) {nodes} }}"
    net = net_of(graph(text, **WEIGHTS, ends=np.array([0, 0, 1, 0, 0, 1])))
    reader = next(op for op in net.ops if isinstance(op, Linear) and op.outputs[0].name == "y")
    assert isinstance(carrier_for(reader), NewCarrier)
    monkeypatch.setattr(carrier, "MOST_LINEARS", 1)
    with pytest.raises(Refused, match="zeros that a Pad puts"):
        carrier_for(reader)
    assert isinstance(carrier_for(reader, at_any_cost=True), NewCarrier)

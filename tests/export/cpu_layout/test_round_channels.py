"""Channel counts are rounded up to whole blocks where only convolutions are affected."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.export.cpu_layout.test_blocked import optimised
from tests.export.cpu_layout.test_lift import shapes_of
from tests.export.fold.graphs import graph, operators, same_function, weights

from normfold.export.cpu_layout import lift, lift_and_round

C = 31
HELD: dict[str, Any] = {
    "w": weights(C, 8, 3),
    "b": weights(C),
    "z": weights(16, C, 3),
    "d": weights(C, 1, 3),
    "q": weights(C, C, 1),
    "g": weights(C, C, 1, seed=1),
    "narrow": weights(1, C, 1),
    "slope": np.linspace(0.1, 0.9, C, dtype=np.float32).reshape(C, 1),
    "mixed": np.linspace(-0.9, 0.9, C, dtype=np.float32).reshape(1, C, 1),
    "six": np.float32(6),
    "zero": np.float32(0),
    "first": np.array([0]),
    "ten": np.array([10]),
    "one": np.array([1]),
    "four": np.linspace(0.5, 2, C, dtype=np.float32),
}
SHAPES = ((1, 8, 40), (2, 8, 57))


def network(nodes: str, more: str = "") -> onnx.ModelProto:
    """Return a convolution to 31 channels u, the nodes, a convolution of v; ``more`` outputs beside its y."""
    text = f"(float[N, 8, L] x) => (float[N, 16, M] y{more}) {{ u = Conv(x, w, b) {nodes} y = Conv(v, z) }}"
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return graph(text, **{k: v for k, v in HELD.items() if k in words})


def widened(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    copy = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))
    changed = lift_and_round(copy)
    after = ir.to_proto(copy)
    onnx.checker.check_model(after, full_check=True)
    return after, changed


def kernels(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    held = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return [held[n.input[1]][:2] for n in model.graph.node if n.op_type == "Conv"]


THROUGH = {
    "Relu": "v = Relu(u)",
    "an operator that makes more of zeros": "s = Sigmoid(u) v = Softplus(s)",
    "Clip": "v = Clip(u, zero, six)",
    "PRelu by channel": "v = PRelu(u, mixed)",
    "Max by channel": "v = Max(u, slope)",
    "constants on the left": "s = Sub(mixed, u) v = Mul(six, s)",
    "a residual sum": "a = Relu(u) c = Conv(a, q) v = Add(c, u)",
    "pools": "p = MaxPool<kernel_shape = [3]>(u) v = AveragePool<kernel_shape = [2], pads = [1, 1]>(p)",
    "a gate of all channels": "m = GlobalAveragePool(u) c = Conv(m, g) s = Sigmoid(c) v = Mul(u, s)",
    "a gate of one channel": "c = Conv(u, narrow) s = Sigmoid(c) v = Mul(s, u)",
    "a quotient by one number": "v = Div(u, six)",
    "a depthwise convolution": "r = Relu(u) v = Conv<group = 31, pads = [1, 1]>(r, d, b)",
}


@pytest.mark.parametrize("nodes", THROUGH.values(), ids=THROUGH)
def test_channels_between_convolutions_become_whole_blocks(nodes: str) -> None:
    before = network(nodes)
    after, changed = widened(before)
    assert changed
    assert not {C} & {c for kernel in kernels(after) for c in kernel}
    assert shapes_of(after.graph.output) == shapes_of(before.graph.output)
    same_function(before, after, *SHAPES)


REFUSED = {
    "the output of the network": ("t = Relu(u) v = Relu(t)", ", float[N, 31, K] t"),
    "a concat that is an output": ("v = Relu(u) t = Concat<axis = 1>(v, v)", ", float[N, 62, K] t"),
    "a concat of another axis": ("t = Concat<axis = 2>(u, u) v = Softmax<axis = 1>(t)", ""),
    "a slice of channels": ("v = Relu(u) t = Slice(v, first, ten, one)", ", float[N, 10, K] t"),
    "zeros that become infinite": ("a = Abs(u) e = Log(a) v = Neg(e)", ""),
    "a quotient": ("v = Div(u, slope)", ""),
    "statistics": ("v = InstanceNormalization(u, four, four)", ""),
    "places of maxima": ("v, t = MaxPool<kernel_shape = [3]>(u)", ", int64[N, 31, K] t"),
    "a softmax of channels": ("v = Softmax<axis = 1>(u)", ""),
}


@pytest.mark.parametrize(("nodes", "more"), REFUSED.values(), ids=REFUSED)
def test_channels_that_something_else_sees_stay(nodes: str, more: str) -> None:
    after, changed = widened(network(nodes, more))
    assert not changed
    assert kernels(after)[0] == (C, 8)


CONCATS = {
    "each part with its own zeros": ("c = Conv(u, q) r = Relu(c) v = Concat<axis = 1>(u, r)", [31, 31]),
    "parts of a sum": ("a = Concat<axis = 1>(u, u) t = Concat<axis = 1>(u, u) v = Add(a, t)", [31, 31]),
    "constants of all parts": ("a = Concat<axis = 1>(u, u) v = Mul(a, row)", [31, 31]),
    "depthwise": ("a = Concat<axis = 1>(u, u) v = Conv<group = 62>(a, e)", [31, 31]),
    "a part that is too small to become a block": ("c = Conv(u, narrow) v = Concat<axis = 1>(c, u)", [1, 31]),
    "a part that is the network's own": ("s = Slice(x, zero0, ten, first2) v = Concat<axis = 1>(u, s)", [31, 8]),
}


@pytest.mark.parametrize(("nodes", "parts"), CONCATS.values(), ids=CONCATS)
def test_the_parts_of_a_concat_become_whole_blocks_each(nodes: str, parts: list[int]) -> None:
    total = sum(parts)
    held = {"row": np.linspace(1, 2, total, dtype=np.float32).reshape(total, 1), "e": weights(total, 1, 3)}
    held |= {"zero0": np.array([0]), "first2": np.array([2])}
    text = f"(float[N, 8, L] x) => (float[N, 16, M] y) {{ u = Conv<pads = [1, 1]>(x, w, b) {nodes} y = Conv(v, wide) }}"
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    before = graph(text, wide=weights(16, total, 3), **{k: v for k, v in {**HELD, **held}.items() if k in words})
    if "Slice" in nodes:
        same = next(t for t in before.graph.initializer if t.name == "ten")
        same.CopyFrom(onnx.numpy_helper.from_array(np.array([10**6]), "ten"))
    after, changed = widened(before)
    assert changed
    assert kernels(after)[-1] == (16, sum(32 if part == C else part for part in parts))
    same_function(before, after, *SHAPES)


def test_a_sum_of_parts_that_are_not_parted_alike_keeps_its_channels() -> None:
    text = """(float[N, 8, L] x) => (float[N, 16, M] y)
    { u = Conv(x, w) a = Concat<axis = 1>(u, u) c = Conv(x, t) s = Add(a, c) y = Conv(s, z) }"""
    before = graph(text, w=weights(31, 8, 3), t=weights(62, 8, 3), z=weights(16, 62, 3))
    assert not widened(before)[1]


@pytest.mark.parametrize(("channels", "wide"), [(12, 12), (13, 16), (16, 16), (17, 17), (65, 72), (254, 256)])
def test_a_count_becomes_a_multiple_of_the_block_where_that_is_near(channels: int, wide: int) -> None:
    text = "(float[N, 8, L] x) => (float[N, 16, M] y) { u = Conv(x, w) v = Relu(u) y = Conv(v, z) }"
    before = graph(text, w=weights(channels, 8, 1), z=weights(16, channels, 1))
    after, changed = widened(before)
    assert changed == (wide != channels)
    assert kernels(after) == [(wide, 8), (16, wide)]


def test_channels_that_no_convolution_reads_stay() -> None:
    text = "(float[N, 8, L] x) => (float[N, 31, 1] y) { u = Conv(x, w, b) y = ReduceMean<axes = [2]>(u) }"
    assert not widened(graph(text, **{k: HELD[k] for k in "wb"}))[1]


def test_what_a_branch_reads_of_the_network_keeps_its_channels() -> None:
    text = """(float[N, 8, L] x, bool c) => (float[N, 16, M] y, float[N, 31, K] t)
    { u = Conv(x, w, b) y = Conv(u, z)
      t = If (c) <then_branch = yes () => (float[N, 31, K] p) { p = Relu(u) },
                  else_branch = no () => (float[N, 31, K] q) { q = Neg(u) }> }"""
    before = graph(text, **{k: HELD[k] for k in "wbz"})
    assert not widened(before)[1]


def test_onnxruntime_blocks_every_convolution_of_a_network_with_31_channels() -> None:
    before = network("r = Relu(u) c = Conv(r, q) a = Add(c, r) v = Relu(a)")
    only = ir.from_proto(before)
    lift(only)
    assert "blocked ReorderOutput" in optimised(ir.to_proto(only))[:-2]
    found = optimised(widened(before)[0])
    assert [o for o in found if o.startswith("blocked")][-1] == "blocked ReorderOutput"
    assert found.count("blocked Conv") == operators(before).count("Conv")
    assert not [o for o in found if o in ("Conv", "FusedConv")]

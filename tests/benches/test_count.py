"""What counts as left of a BatchNorm: small graphs, with counts worked out by hand."""

from __future__ import annotations

import onnx
import pytest
from benches.folding.count import Count, count


def graph(nodes: str, initializers: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 2, L] x) => (float[N, 2, L] y) <{initializers}> {{ {nodes} }}""")


CHANNEL = "float[1, 2, 1] s = {2, 3}"


def test_a_batchnorm_is_counted_by_name() -> None:
    model = graph(
        "y = BatchNormalization(x, s, s, s, s)",
        "float[2] s = {1, 1}",
    )
    assert count(model).batchnorms == 1
    assert count(model).affines == 0


@pytest.mark.parametrize("operator", ["Mul", "Add", "Sub", "Div"])
def test_arithmetic_with_one_constant_a_channel_is_an_affine(operator: str) -> None:
    assert count(graph(f"y = {operator}(x, s)", CHANNEL)).affines == 1
    assert count(graph(f"y = {operator}(s, x)", CHANNEL)).affines == 1


@pytest.mark.parametrize("constant", ["float[1] s = {2}", "float[1, 1, 1] s = {2}", "float[1, 2, 2] s = {1, 2, 3, 4}"])
def test_a_scalar_and_a_constant_for_each_position_are_no_affines(constant: str) -> None:
    assert count(graph("y = Mul(x, s)", constant)).affines == 0


def test_a_product_of_two_values_is_no_affine() -> None:
    assert count(graph("y = Mul(x, x)")).affines == 0


def test_constants_behind_nodes_are_found() -> None:
    model = graph(
        """
        c = Constant <value = float[2] {1, 2}> ()
        axes = Constant <value = int64[2] {0, 2}> ()
        wide = Unsqueeze (c, axes)
        same = Identity (wide)
        y = Mul (x, same)
        """
    )
    assert count(model).affines == 1
    assert count(model).nodes == 1


WEIGHT = "float[2, 2, 1] w = {1, 2, 3, 4}"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("z = Conv(x, w) y = Add(z, s)", 0),
        ("z = Conv(x, w, b) y = Add(z, s)", 1),
        ("z = Conv(x, w) y = Mul(z, s)", 1),
        ("z = Relu(x) y = Add(z, s)", 1),
        ("z = MatMul(x, m) y = Add(z, v)", 0),
        ("z = MatMul(x, m) t = Transpose<perm = [0, 2, 1]>(z) y = Add(t, s)", 0),
    ],
)
def test_an_add_is_forgiven_only_as_the_one_bias_of_a_linear_operator(nodes: str, expected: int) -> None:
    constants = f"{CHANNEL}, {WEIGHT}, float[2] b = {{1, 2}}, float[2, 2] m = {{1, 2, 3, 4}}, float[2] v = {{1, 2}}"
    assert count(graph(nodes, constants)).affines == expected


@pytest.mark.parametrize(
    ("node", "weight", "expected"),
    [
        ("Conv<group = 2>", "float[2, 1, 1] w = {2, 3}", 1),
        ("Conv<group = 2>", "float[2, 1, 3] w = {1, 2, 3, 4, 5, 6}", 0),
        ("Conv", "float[2, 2, 1] w = {2, 0, 0, 3}", 1),
        ("Conv", WEIGHT, 0),
        ("ConvTranspose<group = 2>", "float[2, 1, 1] w = {2, 3}", 1),
    ],
)
def test_a_convolution_that_only_scales_channels_is_a_disguise(node: str, weight: str, expected: int) -> None:
    assert count(graph(f"y = {node}(x, w)", weight)).diagonals == expected


def test_a_clamp_by_channel_is_counted_and_one_by_a_scalar_is_not() -> None:
    assert count(graph("y = Max(x, s)", CHANNEL)).clamps == 1
    assert count(graph("y = Min(s, x)", CHANNEL)).clamps == 1
    assert count(graph("y = Max(x, s)", "float[1] s = {0}")).clamps == 0


def test_one_clamp_for_each_replaced_relu_is_free_and_the_next_is_not() -> None:
    before = count(graph("y = Relu(x)"))
    once = count(graph("y = Max(x, s)", CHANNEL))
    twice = count(graph("z = Max(x, s) y = Min(z, s)", CHANNEL))
    assert once.left(before) == 0
    assert twice.left(before) == 1


def test_a_depthwise_convolution_of_the_network_itself_is_not_held_against_it() -> None:
    scaling = count(graph("y = Conv<group = 2>(x, w)", "float[2, 1, 1] w = {2, 3}"))
    assert scaling.left(scaling) == 0
    assert scaling.left(count(graph("y = Relu(x)"))) == 1


def test_what_is_inside_a_branch_is_counted() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (bool[1] which, float[N, 2, L] x) => (float[N, 2, L] y) <float[1, 2, 1] s = {2, 3}> {
            y = If (which) <
                then_branch = yes () => (float[N, 2, L] a) { a = Mul(x, s) },
                else_branch = no () => (float[N, 2, L] b) { b = Add(x, s) }
            >
        }""")
    assert count(model).affines == 2


def test_a_count_is_a_value() -> None:
    assert count(graph("y = Relu(x)")) == Count(1, 0, 0, 0, 0, 1)

"""Any network, folded and rewritten, is the same function: drawn networks in float64, before a weight is rounded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, note, reject
from onnx import numpy_helper

from normfold.export.fold import fold
from normfold.export.forms.variants import made_anew
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.proof.algebra import Algebra
from normfold.export.proof.verify import Case, Verification

from .networks import Layer, Network, build, networks
from .test_fold import drawing


def cases(network: Network) -> list[Case]:
    rng = np.random.default_rng(0)
    fixed = network.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value

    def case(kind: str, n: int, length: int, scale: float) -> Case:
        shape = (n, network.channels, fixed or length)
        return Case(kind, kind, {"x": (scale * rng.standard_normal(shape)).astype(np.float32)})

    return [case("short", 2, 24, 1), case("long", 3, 41, 1), case("large", 2, 24, 1e4), case("small", 2, 24, 1e-4)]


def is_nothing(verification: Verification) -> bool:
    """Whether what differs should be 0 in the whole case: before a ReLU that is dead there, float64 leaves 1e-22."""
    return all(d.passed or (not d.trouble and d.relative > 1 and d.max_abs < 1e-18) for d in verification.differences)


def in_float64(file: onnx.ModelProto) -> tuple[ir.Model, bytes]:
    """The network with weights that were never rounded: to be folded, and as it is now."""
    model = unrounded(ir.from_proto(onnx.shape_inference.infer_shapes(file)))
    assert model is not None
    return model, exact_of(Graph.of(model))


def exact_of(graph: Graph) -> bytes:
    """The graph before its weights are rounded."""
    assert graph.exact is not None
    return graph.exact


@drawing(150)
@given(networks())
def test_every_variant_of_a_network_is_the_same_function(drawn: tuple[list[Layer], Network]) -> None:
    layers, network = drawn
    note("\n".join(map(str, layers)))
    model, exact = in_float64(network.model)
    unfolded = Graph.of(model)
    try:
        algebra = Algebra(exact, cases(network))
    except Exception:
        reject()  # the drawn network does not run at one of these lengths
    fold(model)
    folded = Graph.of(model)
    for name, graph in (("folded", folded), *made_anew(unfolded, folded)):
        verification = algebra.of(exact_of(graph))
        assert verification.passed or is_nothing(verification), (name, verification.worst)


def identity(offset: float = 0.0, weights: bool = False) -> bytes:
    """The network y = x, computed as (x + offset) - offset; the proof moves each of the two that is a weight."""
    if weights:
        held, nodes = f"<double b = {{{offset}}}, double c = {{{offset}}}>", ""
    else:
        held, nodes = "", " ".join(f"{name} = Constant <value = double {{{offset}}}> ()" for name in "bc")
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (double[N,6] x) => (double[N,6] y) {held}
        {{ {nodes} a = Add (x, b) y = Sub (a, c) }}"""
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(
    ("rewritten", "scales", "passes"),
    [
        (identity(1e6), (1.0,), False),  # 1e-10 of the outputs
        (identity(1e6, weights=True), (1.0,), True),  # as far as its weights' own rounding moves it
        (identity(1e9, weights=True), (1.0,), False),  # beyond what may be its own rounding
        (identity(1e2), (1e-4,), False),  # 1e-10 of outputs that are small
        (identity(1e2), (1.0, 1e-4), True),  # 1e-14 of those that are ordinary
        (identity(1e4), (1.0, 1e-4), False),  # 1e-8 of the small ones
    ],
)
def test_a_rewritten_graph_may_round_worse_where_its_numbers_or_its_ordinary_outputs_say_so(
    rewritten: bytes, scales: tuple[float, ...], passes: bool
) -> None:
    x = np.random.default_rng(0).standard_normal((4, 6))
    algebra = Algebra(identity(), [Case(f"times {scale}", "one", {"x": scale * x}) for scale in scales])
    found = algebra.of(rewritten)
    assert found.worst.relative > 1e-12
    assert found.passed is passes


def test_a_batchnorm_of_one_channel_with_a_tiny_scale_leaves_the_carrier_as_it_is() -> None:
    """A drawn network: scale 9e-7 and shift 0.45. A carrier that went through it came out with eleven digits."""
    network = build(
        [Layer("conv"), Layer("norm", seed=1), Layer("norm", a=3, b=1, c=1), Layer("conv", a=2, c=4, seed=1)],
        1, 9, False, None,
    )  # fmt: skip
    model, exact = in_float64(network.model)
    algebra = Algebra(exact, cases(network))
    fold(model)
    assert algebra.of(exact_of(Graph.of(model))).worst.relative < 1e-14


@pytest.mark.parametrize("gamma", [1.0, 1e-9])
def test_a_constant_channel_carries_a_shift_only_if_it_keeps_its_digits(gamma: float) -> None:
    """Under the BatchNorm's gauge the constant 3 is (0.5 + 3e-9 - 0.5) / 1e-9, which has seven digits."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,L] x) => (float[N,3,M] y)
        <float[2,2,1] c = {0,0,1,2}, float[2] d = {3,0.1}, float[2] h = {%s,%s}, float[2] k = {0.5,0.4},
         float[2] z = {0,0}, float[2] u = {1,2}>
        { n = Conv (x, c, d) r = Relu (n) a = BatchNormalization (r, h, k, z, u) y = Conv <pads = [1, 1]> (a, w) }"""
    file = onnx.parser.parse_model(text % (gamma, gamma))
    taps = np.random.default_rng(0).standard_normal((3, 2, 3)).astype(np.float32)
    file.graph.initializer.append(numpy_helper.from_array(taps, "w"))
    model, exact = in_float64(file)
    x = np.random.default_rng(0).standard_normal((2, 2, 9)).astype(np.float32)
    algebra = Algebra(exact, [Case("short", "short", {"x": x})])
    assert not fold(model).batchnorms_after
    assert algebra.of(exact_of(Graph.of(model))).worst.relative < 1e-13

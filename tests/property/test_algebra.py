"""Any network, folded and rewritten, is the same function: drawn networks in float64, before a weight is rounded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, note, reject

from normfold.export.fold import fold
from normfold.export.forms.variants import made_anew
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.proof.algebra import Algebra
from normfold.export.proof.verify import Case

from .networks import Layer, Network, networks
from .test_fold import drawing


def cases(network: Network) -> list[Case]:
    rng = np.random.default_rng(0)
    fixed = network.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value

    def case(kind: str, n: int, length: int, scale: float) -> Case:
        shape = (n, network.channels, fixed or length)
        return Case(kind, kind, {"x": (scale * rng.standard_normal(shape)).astype(np.float32)})

    return [case("short", 2, 24, 1), case("long", 3, 41, 1), case("large", 2, 24, 1e4), case("small", 2, 24, 1e-4)]


@drawing(150)
@given(networks())
def test_every_variant_of_a_network_is_the_same_function(drawn: tuple[list[Layer], Network]) -> None:
    layers, network = drawn
    note("\n".join(map(str, layers)))
    model = unrounded(ir.from_proto(onnx.shape_inference.infer_shapes(network.model)))
    assert model is not None
    unfolded = Graph.of(model)
    assert unfolded.exact is not None
    try:
        algebra = Algebra(unfolded.exact, cases(network))
    except Exception:
        reject()  # the drawn network does not run at one of these lengths
    fold(model)
    folded = Graph.of(model)
    for name, graph in (("folded", folded), *made_anew(unfolded, folded)):
        assert graph.exact is not None
        verification = algebra.of(graph.exact)
        assert verification.passed, (name, verification.worst)

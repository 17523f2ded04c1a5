"""Any network, its channels scaled anew, is the same function: drawn networks and drawn scales, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import given, note, reject

from normfold.export.fold import fold
from normfold.export.fold.engine import equalising
from normfold.export.fold.engine.areas import Area
from normfold.export.fold.equalised import Channels, equalise
from normfold.export.graphs.exact import Graph
from normfold.export.proof.algebra import Algebra

from .networks import Layer, Network, networks
from .test_algebra import cases, exact_of, in_float64
from .test_fold import drawing


@drawing(60)
@given(networks())
def test_a_network_whose_channels_are_scaled_is_the_same_function(drawn: tuple[list[Layer], Network]) -> None:
    layers, network = drawn
    note("\n".join(map(str, layers)))
    model, exact = in_float64(network.model)
    try:
        algebra = Algebra(exact, cases(network))
    except Exception:
        reject()  # the drawn network does not run at one of these lengths
    fold(model)
    rng = np.random.default_rng(0)

    def scales(area: Area, held: Mapping[str, Channels]) -> np.ndarray:
        return np.exp(rng.uniform(-4, 4, area.size))

    chosen, equalising.best_scales = equalising.best_scales, scales
    try:
        layers_changed = equalise(model, lambda axes: dict.fromkeys(axes, Channels(*np.ones((3, 1)))))
    finally:
        equalising.best_scales = chosen
    note(str(layers_changed))
    verification = algebra.of(exact_of(Graph.of(model)))
    assert verification.passed, verification.worst

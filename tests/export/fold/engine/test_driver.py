"""The order in which affines are tried: until nothing more goes, and each at least once."""

from __future__ import annotations

import pytest
from tests.export.fold.graphs import graph, net_of, norm, weights

from normfold.export.fold.engine.driver import Folding
from normfold.export.fold.engine.plan import Refusals
from normfold.export.fold.ops.scaling import Scaling


def test_a_factor_that_becomes_an_affine_by_channel_in_the_last_pass_is_tried_and_has_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a network of GELUs between re-parametrised blocks: a BatchNorm leaves its signs, a factor takes the rest.
    text = "(float[N,2,L] x) => (float[N,2,M] y) { c = Conv(x, w) d = BN(c, n) e = Sigmoid(d) y = BN(e, p) }"
    net = net_of(graph(text, w=weights(2, 2, 1), **norm("n", 2), **norm("p", 2)))
    first, factor = (op for op in net.ops if isinstance(op, Scaling))
    factor.target = False
    tried = []

    def leaves_a_sign(folding: Folding, target: Scaling) -> tuple[str, Refusals]:
        tried.append(target)
        if target is first and not factor.target:
            factor.target = True
            folding.targets.append(factor)
            return "adjusted to it", Refusals()
        return "", Refusals()

    monkeypatch.setattr(Folding, "_try", leaves_a_sign)
    folding = Folding(net)
    folding.run()
    assert [fold.name for fold in folding.folds] == [first.name, factor.name]
    assert set(tried) == {first, factor}

"""The size at which a graph alone differs from its network."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.verify import Arrays, Case
from normfold.export.proof.which_size import size_apart


def network(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] + 1}


@pytest.mark.parametrize(
    ("off_at", "found"),
    [
        (lambda n, length: n == 1, "N = 1"),
        (lambda n, length: length == 9, "L = 9"),
        (lambda n, length: n == 1 and length == 9, ""),
        (lambda n, length: n > 1, ""),
        (lambda n, length: True, ""),
        (lambda n, length: False, ""),
    ],
)
def test_one_size_is_named_only_where_it_alone_tells_the_cases_apart(off_at, found):
    cases = [Case("random", f"{n} {length}", {"x": np.ones((n, length))}) for n in (1, 2, 5) for length in (8, 9)]

    def graph(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"] + (2 if off_at(*inputs["x"].shape) else 1)}

    assert size_apart(network, graph, cases, parse_inputs(["x=FP64[N,L]"]), 1e-6) == found

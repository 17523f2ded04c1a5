"""The ways that ``benches.folding.depthwise`` times compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from benches.folding.depthwise import WAYS, block
from benches.folding.measure import relative_error, session


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("dilation", [1, 3])
def test_every_way_to_bring_a_shift_through_computes_the_same(dims: int, dilation: int) -> None:
    size = (4, 6, 20, dilation)
    shape = (1, 4, *(1,) * (dims - 1), 20)
    x = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    expected = session(block("batchnorm", dims, *size)).run(None, x)[0].astype(np.float64)
    for way in WAYS:
        error = relative_error(session(block(way, dims, *size)).run(None, x)[0], expected)
        assert (error < 1e-5) == (way != "nothing"), way

"""The ways that ``benches.folding.phases`` times compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from benches.folding.measure import relative_error, session
from benches.folding.phases import WAYS, convolution


@pytest.mark.parametrize("taps", [8, 9, 15])
def test_every_way_to_compute_a_convolution_computes_the_same(taps: int) -> None:
    size = (4, 6, taps, 24)
    x = {"x": np.random.default_rng(0).standard_normal((1, 4, 24)).astype(np.float32)}
    expected = session(convolution("whole", *size)).run(None, x)[0].astype(np.float64)
    assert expected.shape == (1, 6, 24)
    for way in WAYS:
        assert relative_error(session(convolution(way, *size)).run(None, x)[0], expected) < 1e-5, way

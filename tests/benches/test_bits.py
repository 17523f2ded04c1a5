"""The comparison of int8 with and without samples, on a network of a few layers."""

from __future__ import annotations

import numpy as np
import pytest
from benches.bits.__main__ import METHODS, Loss, lines, loss, made


def test_a_loss_has_the_largest_error_its_mean_square_and_the_labels():
    exact, got = np.float32([[0, 4], [2, 0]]), np.float32([[0, 3], [0, 1]])
    assert loss(exact, got) == Loss(0.5, pytest.approx(np.sqrt(6 / 4) / exact.std()), 0.5)
    assert loss(exact[..., None], got[..., None]).labels is None


def test_data_are_the_same_on_every_call_and_not_of_mean_0_and_deviation_1():
    np.testing.assert_array_equal(made((3, 50), 8, 1), made((3, 50), 8, 1))
    assert made((3, 50), 256, 0).std() > 4
    assert made((3, 50), 256, 0).mean() == pytest.approx(2, abs=1.5)


def test_the_page_has_a_row_for_each_network_and_the_medians():
    losses = dict(zip(METHODS, (Loss(0.1, 0.02, 1.0), Loss(0.2, 0.03, None), Loss(0.5, 0.4, 0.5)), strict=True))
    page = "\n".join(lines([("small", 1, losses)]))
    assert "| small | 1 | 0.100; 0.020; 100.0 | 0.200; 0.030 | 0.500; 0.400; 50.0 |" in page
    assert "Median of the largest error: samples 0.100, data-free 0.200, noise 0.500." in page

from __future__ import annotations

import pytest
import torch
from torch import nn

from normfold.models import recipe


def test_a_reproducible_block_repeats_itself_and_restores_threads_and_kernels() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    drawn = []
    for _ in range(2):
        with recipe.reproducible(3) as random:
            assert torch.get_num_threads() == 1
            drawn.append((torch.rand(4).tolist(), torch.randperm(9, generator=random).tolist()))
    assert drawn[0] == drawn[1]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_negative_gammas_are_counted_by_batchnorm() -> None:
    network = nn.Sequential(nn.Conv1d(1, 3, 1), nn.BatchNorm1d(3))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, -1.0, 0.0]))
    assert recipe.negative_gammas(network) == {"1": (1, 3)}


def test_the_average_starts_at_the_first_weights_and_is_that_of_shamir_and_zhang_afterwards() -> None:
    weights = [3.0, -1.0, 5.0, 2.0]
    mean, network = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    expected = 0.0
    for t, weight in enumerate(weights, start=1):
        nn.init.constant_(network.weight, weight)
        recipe.average(mean, network, step=t)
        expected = (1 - (8 + 1) / (t + 8)) * expected + (8 + 1) / (t + 8) * weight
        assert mean.weight.item() == pytest.approx(expected)

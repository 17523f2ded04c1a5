"""In float64 a network keeps the numbers that its code takes from its own type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.export.capture.named_network import NamedNetwork
from normfold.export.sources.module_origin import exact


class Computing(nn.Module):
    """One layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.norm, self.function = nn.Linear(4, 4, bias=False), nn.RMSNorm(4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.layer(x)))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y,
        lambda y: F.rms_norm(1e-4 * y, (4,)),
        lambda y: torch.rms_norm(1e-4 * y, [4]),
        lambda y: F.rms_norm(1e-4 * y, (4,), None, 1e-9),
        lambda y: torch.log((1e-4 * y).pow(2) + torch.finfo(y.dtype).eps),
    ],
)
def test_an_epsilon_of_the_networks_type_is_the_same_in_float64(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = NamedNetwork(Computing(function).eval(), ["x"])
    inputs = {"x": np.float32(1e-3) * np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    run, name, _ = exact(network, inputs)
    assert name == "PyTorch, float64"
    wanted = run(inputs)["output"]
    assert wanted.dtype == np.float64
    np.testing.assert_allclose(network.run(inputs)["output"], wanted, rtol=2e-5, atol=1e-6)
    assert torch.finfo(torch.float64).eps < 1e-15

"""The zoo's m5 is the network of torchaudio's tutorial, and runs at the sizes that the zoo names."""

from __future__ import annotations

import torch
from benches.zoo.speech import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F


def tutorial(network: nn.Module, x: Tensor) -> Tensor:
    """Compute the tutorial's forward(), written out, with the weights of ``network``."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv1d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [(c.in_channels, c.out_channels, *c.kernel_size, *c.stride) for c in convolutions] == [
        (1, 32, 80, 16),
        (32, 32, 3, 1),
        (32, 64, 3, 1),
        (64, 64, 3, 1),
    ]
    for convolution, norm in zip(convolutions, norms, strict=True):
        x = F.max_pool1d(F.relu(norm(convolution(x))), 4)
    x = F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
    (classes,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    assert classes.out_features == 35
    return F.log_softmax(classes(x), dim=2)


def test_m5_is_the_tutorials_network_and_runs_at_its_sizes() -> None:
    (entry,) = (n for n in NETWORKS if n.name == "m5")
    torch.manual_seed(0)
    network = entry.build().eval()
    for sizes in entry.sizes:
        x = torch.randn(entry.dims(sizes))
        torch.testing.assert_close(network(x), tutorial(network, x))

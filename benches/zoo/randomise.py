"""Give the BatchNorms of a network weights and statistics such as training might leave, always the same ones.

First gamma and beta are drawn, 15 % of gamma negative and 3 % zero. Then the statistics are measured on random inputs,
so that activations stay of order one in a network of any depth. At last a jitter makes the statistics differ from those
of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NEGATIVE = 0.15
ZERO = 0.03
#: Every variance is at least this part of its layer's median. A channel that gamma = 0 has made constant has variance
#: 0: dividing it by sqrt(eps) would leave nothing but rounding to compare.
VARIANCE_FLOOR = 0.05


def randomise(network: nn.Module, inputs: Sequence[Tensor], seed: int = 0) -> None:
    """Set gamma, beta, mean and variance of every BatchNorm of ``network`` in place, and leave it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        if norm.affine:
            draw_weights(norm, generator)
    calibrate(network, norms, inputs)
    for norm in norms:
        jitter(norm, generator)


def draw_weights(norm: _BatchNorm, generator: torch.Generator) -> None:
    """Draw gamma in 0.5..1.5 with its sign and its zeros, beta normal with deviation 0.3."""
    channels = norm.num_features
    gamma = 0.5 + torch.rand(channels, generator=generator)
    order = torch.randperm(channels, generator=generator)
    negative, zero = math.ceil(NEGATIVE * channels), round(ZERO * channels)
    gamma[order[:negative]] *= -1
    gamma[order[negative : negative + zero]] = 0
    with torch.no_grad():
        norm.weight.copy_(gamma)
        norm.bias.copy_(0.3 * torch.randn(channels, generator=generator))


def calibrate(network: nn.Module, norms: Sequence[_BatchNorm], inputs: Sequence[Tensor]) -> None:
    """Set every running mean and variance to the average over ``inputs``; all other modules stay in eval mode."""
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in inputs:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def jitter(norm: _BatchNorm, generator: torch.Generator) -> None:
    """Move each mean by a tenth of a deviation and each variance by a fifth, and keep the variances above zero."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    variance.clamp_(min=float(variance.median()) * VARIANCE_FLOOR).clamp_(min=1e-4)
    mean += 0.1 * variance.sqrt() * torch.randn(mean.shape, generator=generator)
    variance *= (0.2 * torch.randn(variance.shape, generator=generator)).exp()

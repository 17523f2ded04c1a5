"""A network without what stands between its caller and its layers: wrappers, and weights computed from others.

torch.compile, DataParallel, DistributedDataParallel      the network that they hold
torch.nn.utils.parametrizations (orthogonal, ...)         the weight that they compute, once
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["unwrapped", "with_plain_weights"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network within wrappers that change how it runs, not what it computes."""
    while True:
        inner = network.module if isinstance(network, _PARALLEL) else getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def with_plain_weights(network: nn.Module) -> None:
    """Replace each parametrized weight of a network in eval() by its value, in place.

    The value depends on nothing but other weights, so the network computes the same; ONNX has no counterpart for some
    operators that compute it (the exponential of a matrix).
    """
    with torch.no_grad():
        for module in list(network.modules()):
            if parametrize.is_parametrized(module):
                _plain(module)


def _plain(module: nn.Module) -> None:
    """Give one module its values and its own class again.

    ``parametrize.remove_parametrizations`` would take the weight out of the class that torch made for the module, which
    a copy shares with the network that it was copied from.
    """
    held = module.parametrizations
    assert isinstance(held, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in held}
    kind = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = kind
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))

"""A network without what stands between its caller and its layers: wrappers, and weights computed from others.

torch.compile, DataParallel, DistributedDataParallel      the network that they hold
torch.nn.utils.parametrizations (orthogonal, ...)         the weight that they compute, once
torch.nn.utils.weight_norm, spectral_norm, prune          the same, computed by a hook before each call
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from normfold.export.errors import CaptureError

__all__ = ["all_in_float64", "duplicate", "unwrapped", "with_plain_weights"]

#: Hooks that compute a weight from other weights before each call, and can put its value in its place.
_COMPUTING = (WeightNorm, SpectralNorm, BasePruningMethod)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
#: Where the class of what torch.compile returns is defined. Its import takes seconds, so it is known by name.
_COMPILED = "torch._dynamo.eval_frame"


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network within wrappers that change how it runs, not what it computes.

    Raises:
        CaptureError: a wrapper has a hook, which may change what it computes.
    """
    while isinstance(network, _PARALLEL) or type(network).__module__ == _COMPILED:
        if network._forward_hooks or network._forward_pre_hooks:
            raise CaptureError(
                f"{type(network).__name__} around the network has a hook, which may change its answers. "
                "Remove the hook, or give the network that it wraps."
            )
        inner = network.module if isinstance(network, _PARALLEL) else network._orig_mod
        assert isinstance(inner, nn.Module)
        network = inner
    return network


def duplicate(network: nn.Module) -> nn.Module:
    """Return a copy of ``network``, which stays as it is.

    A tensor that the network has computed, such as the weight of ``torch.nn.utils.weight_norm``, is copied as numbers:
    torch copies no tensor that remembers how it was computed.
    """
    memo: dict[int, Any] = {}
    for tensor in _tensors([vars(module) for module in network.modules()], set()):
        if isinstance(tensor, nn.UninitializedBuffer):  # torch copies such parameters, but no such buffers
            like = tensor.data
            memo[id(tensor)] = nn.UninitializedBuffer(device=like.device, dtype=like.dtype)  # type: ignore[call-arg]
        elif not is_lazy(tensor) and not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's own, of a program's parts
        return copy.deepcopy(network, memo)


def all_in_float64(network: nn.Module) -> nn.Module:
    """Put ``network`` in float64 in place, with the tensors that it keeps as plain attributes, as SincNet does."""
    network.double()
    for tensor in _tensors([vars(module) for module in network.modules()], set()):
        if tensor.is_floating_point() and not is_lazy(tensor):
            tensor.data = tensor.data.double()
    return network


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in a value and in the containers of which it is made, each container once."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
        seen.add(id(value))
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner, seen)


def with_plain_weights(network: nn.Module) -> None:
    """Replace each weight that a network in eval() computes from others by its value, in place.

    The value depends on nothing but other weights, so the network computes the same; ONNX has no counterpart for some
    operators that compute it (the exponential of a matrix).
    """
    with torch.no_grad():
        for module in list(network.modules()):
            if parametrize.is_parametrized(module):
                _plain(module)
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, _COMPUTING):
                    hook.remove(module)
                    del module._forward_pre_hooks[key]


def _plain(module: nn.Module) -> None:
    """Give one module its values and its own class again.

    ``parametrize.remove_parametrizations`` would take the weight out of the class that torch made for the module, which
    a copy shares with the network that it was copied from.
    """
    held = module.parametrizations
    assert isinstance(held, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in held}
    trained = {name: any(p.requires_grad for p in parts.parameters()) for name, parts in held.items()}
    kind = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = kind
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trained[name]))

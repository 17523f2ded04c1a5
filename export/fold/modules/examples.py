"""Example inputs for a network that is given none: shapes that its first layer takes, tried at usual lengths."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import torch
from torch import nn

from normfold.export.errors import FoldError

_WITH_SIZES = (nn.Embedding, nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.modules.batchnorm._BatchNorm)
_LENGTHS = (64, 128, 256, 32, 28, 224, 512, 1024, 96, 150, 1000, 2048, 16000)


def example_for(module: nn.Module) -> tuple[torch.Tensor, ...]:
    """Return inputs of batch 2 that the network takes.

    Raises:
        FoldError: the first layer has no sizes, or the network takes none of the usual lengths.
    """
    name = type(module).__name__
    arguments = inspect.signature(module.forward).parameters.values()
    if sum(p.default is p.empty for p in arguments) == 1:
        network = copy.deepcopy(module)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            for example in _candidates(network):
                try:
                    network(example.clone())
                except Exception:  # any error means that it does not take this shape
                    continue
                return (example,)
    raise FoldError(
        f"{name}: the inputs of the network cannot be inferred from its first layer; give example inputs: "
        "fold(network, (torch.randn(2, 3, 100),))."
    )


def _candidates(network: nn.Module) -> Iterator[torch.Tensor]:
    """Yield tensors that the first layer may take."""
    layer = next((m for m in network.modules() if isinstance(m, _WITH_SIZES)), None)
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float32).to(like)

    if isinstance(layer, nn.Embedding):
        for length in _LENGTHS:
            yield torch.randint(layer.num_embeddings, (2, length), device=like.device)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        for length in _LENGTHS[: None if len(layer.kernel_size) == 1 else 8]:
            if length ** len(layer.kernel_size) <= 1 << 20:
                yield drawn(2, layer.in_channels, *(length,) * len(layer.kernel_size))
    elif isinstance(layer, nn.Linear):
        yield drawn(2, layer.in_features)
        yield drawn(2, 16, layer.in_features)
    elif isinstance(layer, nn.RNNBase):
        yield drawn(2, 16, layer.input_size)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        for length in _LENGTHS[:8]:
            for count in (1, 2, 3):
                if length**count <= 1 << 20:
                    yield drawn(2, layer.num_features, *(length,) * count)
        yield drawn(2, layer.num_features)

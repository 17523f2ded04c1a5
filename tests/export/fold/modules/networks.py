"""Networks of a few lines, one for each way in which people stack a BatchNorm, and what is asserted of each fold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.export.fold import FoldReport, fold_module

BatchNorm = nn.modules.batchnorm._BatchNorm


def filled(network: nn.Module, gamma: str = "mixed", seed: int = 1) -> nn.Module:
    """Return the network in float64 and eval mode, its BatchNorms with drawn numbers.

    gamma: "mixed" signs, "positive", or "zeros" (a third of them 0).
    """
    draw = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, BatchNorm):
                size = layer.num_features
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.copy_(0.2 * torch.randn(size, generator=draw))
                layer.running_var.copy_(0.5 + torch.rand(size, generator=draw))
                if layer.affine:
                    layer.weight.copy_(0.5 + torch.rand(size, generator=draw))
                    layer.bias.copy_(0.5 * torch.randn(size, generator=draw))
                    if gamma == "mixed":
                        layer.weight[::3] *= -1
                    if gamma == "zeros":
                        layer.weight[::3] = 0
    return network


def inputs(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Return a drawn input in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def checked(network: nn.Module, example: Any, *others: Any) -> tuple[nn.Module, FoldReport]:
    """Return the fold, after the assertion that it computes the same on all inputs and left the network alone.

    The bound is 1e-10: networks of these tests have fewer than 100 terms to a sum and numbers below 1e3 throughout, so
    that rounding in float64 stays below 100 * 1e3 * 2e-16 * layers.
    """
    before = {name: t.clone() for name, t in network.state_dict().items()}
    lines = str(network)
    example = example if isinstance(example, tuple) else (example,)
    folded, report = fold_module(network, *example)
    assert str(network) == lines
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    with torch.no_grad():
        for x in (example, *others):
            x = x if isinstance(x, tuple) else (x,)
            want, got = (torch.utils._pytree.tree_leaves(n(*(t.clone() for t in x))) for n in (network, folded))
            assert len(want) == len(got)
            for a, b in zip(want, got, strict=True):
                assert a.shape == b.shape
                assert a.dtype == b.dtype
                assert float((a - b).abs().max()) < 1e-10
    return folded, report


def batchnorms(network: nn.Module) -> int:
    """Return how many BatchNorms a network holds."""
    return sum(isinstance(layer, BatchNorm) for layer in network.modules())


def block(channels_in: int, channels: int, kernel: int = 3, padding: Any = 0, **given: Any) -> list[nn.Module]:
    """Return convolution, ReLU, BatchNorm: the book's order."""
    return [nn.Conv1d(channels_in, channels, kernel, padding=padding, **given), nn.ReLU(), nn.BatchNorm1d(channels)]


class Residual(nn.Module):
    """x + convolution(ReLU(BatchNorm(x))), twice: pre-activation (He et al. 2016)."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, channels, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 3, padding=1, bias=False) for _ in range(4))
        self.last = nn.BatchNorm1d(channels)
        self.classifier = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k in (0, 2):
            out = self.convs[k](F.relu(self.norms[k](x)))
            out = self.convs[k + 1](F.relu(self.norms[k + 1](out), inplace=True))
            out += x
            x = out
        return self.classifier(F.relu(self.last(x)).mean(2))


class Dense(nn.Module):
    """BatchNorm, ReLU, convolution on all that came before, joined (Huang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(4 + 3 * k) for k in range(4))
        self.convs = nn.ModuleList(nn.Conv1d(4 + 3 * k, 3, 3, padding=1) for k in range(4))
        self.stem = nn.Conv1d(2, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            found.append(conv(torch.relu(norm(torch.cat(found, dim=1)))))
        return found[-1]


class Inception(nn.Module):
    """A BatchNorm behind a concat of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(3, 4, 1)
        self.branches = nn.ModuleList(nn.Conv1d(4, 4, k, padding="same", bias=False) for k in (3, 5, 8))
        self.bn, self.last = nn.BatchNorm1d(16), nn.Conv1d(16, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        return self.last(self.bn(torch.cat([*(b(x) for b in self.branches), x], 1)).relu())


class Res2Net(nn.Module):
    """Convolution, ReLU, BatchNorm on each part of a split, the next part added to the last result."""

    def __init__(self, parts: int = 4, width: int = 3) -> None:
        super().__init__()
        self.parts = parts
        self.first = nn.Sequential(*block(2, parts * width, 1))
        self.blocks = nn.ModuleList(nn.Sequential(*block(width, width, 3, 1)) for _ in range(parts - 1))
        self.last = nn.Sequential(*block(parts * width, 5, 1), nn.Conv1d(5, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x).chunk(self.parts, dim=1)
        found = [parts[0]]
        last = parts[1]
        for k, layer in enumerate(self.blocks):
            last = layer(last if k == 0 else last + parts[k + 1])
            found.append(last)
        return self.last(torch.cat(found, 1))


class ToTheSides(nn.Module):
    """A padded convolution whose BatchNorm is read by several layers, one of them transposed into a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 5, 3, padding=1), nn.BatchNorm1d(5)
        self.near, self.far, self.mix = nn.Conv1d(5, 2, 1), nn.Conv1d(5, 2, 9, padding=8, dilation=2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.bn(F.elu(self.conv(x)))
        return self.near(x), {"far": self.far(x), "mix": self.mix(x.transpose(1, 2))}


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "the book's order": (
        nn.Sequential(
            *block(5, 6), *block(6, 6), nn.Conv1d(6, 6, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4)
        ),
        (2, 5, 20),
    ),
    "the book's order, zero-padded": (
        nn.Sequential(*block(3, 6, 3, 1), *block(6, 6, 5, "same"), nn.Conv1d(6, 2, 3, padding=2)),
        (2, 3, 17),
    ),
    "reflected": (
        nn.Sequential(*block(3, 6, 3, 1), nn.Conv1d(6, 2, 5, padding=2, padding_mode="reflect")),
        (2, 3, 17),
    ),
    "around the corner": (
        nn.Sequential(*block(3, 6, 3, 1), nn.Conv1d(6, 2, 5, padding="same", padding_mode="circular")),
        (2, 3, 17),
    ),
    "replicated by a layer": (nn.Sequential(*block(3, 6), nn.ReplicationPad1d(2), nn.Conv1d(6, 2, 5)), (2, 3, 17)),
    "back into a convolution": (
        nn.Sequential(nn.Conv1d(3, 6, 3, bias=False), nn.BatchNorm1d(6), nn.ReLU6(), nn.Conv1d(6, 2, 3)),
        (2, 3, 17),
    ),
    "back into a transposed one": (
        nn.Sequential(nn.ConvTranspose1d(3, 6, 4, 2, 1, groups=3), nn.BatchNorm1d(6), nn.Tanh()),
        (2, 3, 17),
    ),
    "forward into a transposed one": (
        nn.Sequential(*block(3, 6), nn.ConvTranspose1d(6, 2, 4, 2, 1, output_padding=1)),
        (2, 3, 17),
    ),
    "depthwise": (
        nn.Sequential(
            nn.Conv1d(4, 4, 3, padding=1, groups=4),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Conv1d(4, 8, 1),
            nn.BatchNorm1d(8),
            nn.ReLU(),
        ),
        (2, 4, 17),
    ),
    "PReLU": (
        nn.Sequential(
            nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.PReLU(6), nn.BatchNorm1d(6), nn.Conv1d(6, 2, 3, padding=1)
        ),
        (2, 3, 17),
    ),
    "LeakyReLU": (
        nn.Sequential(nn.Conv1d(3, 6, 3), nn.LeakyReLU(0.1), nn.BatchNorm1d(6), nn.Conv1d(6, 2, 3)),
        (2, 3, 17),
    ),
    "smooth activations": (
        nn.Sequential(
            nn.Conv1d(3, 6, 3),
            nn.GELU(),
            nn.BatchNorm1d(6),
            nn.Conv1d(6, 4, 3, padding=1),
            nn.SiLU(),
            nn.BatchNorm1d(4),
            nn.Conv1d(4, 2, 3, padding=1),
        ),
        (2, 3, 17),
    ),
    "max-pool between": (
        nn.Sequential(*block(3, 6, 3, 1), nn.MaxPool1d(2), nn.Conv1d(6, 2, 3, padding=1)),
        (2, 3, 20),
    ),
    "mean-pool between": (nn.Sequential(*block(3, 6, 3, 1), nn.AvgPool1d(3, 2, 1), nn.Conv1d(6, 2, 3)), (2, 3, 20)),
    "two dimensions": (
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(6),
            nn.Dropout2d(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(6, 2, (3, 5), padding=(1, 2)),
        ),
        (2, 3, 9, 10),
    ),
    "three dimensions": (
        nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 2, padding=1)),
        (1, 2, 6, 7, 8),
    ),
    "of rows": (
        nn.Sequential(
            nn.Linear(7, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.ELU(), nn.BatchNorm1d(6), nn.Linear(6, 2)
        ),
        (5, 7),
    ),
    "flattened": (
        nn.Sequential(
            *block(3, 4, 3, 1),
            nn.Flatten(),
            nn.Linear(40, 6),
            nn.ReLU(),
            nn.BatchNorm1d(6, affine=False),
            nn.Linear(6, 2),
        ),
        (2, 3, 10),
    ),
    "flattened twice": (
        nn.Sequential(
            *block(3, 4, 3, 1), nn.Flatten(), nn.Flatten(), nn.Linear(40, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        ),
        (2, 3, 10),
    ),
    "along time": (
        nn.Sequential(nn.Conv1d(3, 20, 3, padding=1), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(10, 4)),
        (2, 3, 10),
    ),
    "on one axis": (nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.Tanh(), nn.Flatten(0)), (2, 3, 17)),
    "at both ends": (
        nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3), nn.BatchNorm1d(2)),
        (2, 3, 17),
    ),
    "several at once": (
        nn.Sequential(
            nn.Conv1d(3, 6, 3),
            nn.BatchNorm1d(6),
            nn.BatchNorm1d(6),
            nn.Identity(),
            nn.SyncBatchNorm(6),
            nn.Conv1d(6, 2, 1),
        ),
        (2, 3, 17),
    ),
    "pre-activation": (Residual(), (2, 3, 17)),
    "dense": (Dense(), (2, 2, 17)),
    "inception": (Inception(), (2, 3, 17)),
    "Res2Net": (Res2Net(), (2, 2, 17)),
    "several readers": (ToTheSides(), (2, 3, 17)),
}

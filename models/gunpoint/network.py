"""InceptionTime (Fawaz et al. 2019, arXiv:1909.04939), one network of its ensemble, narrower and with odd kernels.

An inception block has four branches: three convolutions of a 1x1 bottleneck, which keep the length by zero padding,
and a max-pool of the block's input with a 1x1 convolution behind it. Their concat goes through BatchNorm, *then* ReLU.
After every third block a projection (1x1 convolution, BatchNorm) of the input of these three blocks is added.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Kernel sizes. They are odd, so that the zero padding is the same on both sides; the paper has 40, 20, 10.
KERNELS = (39, 19, 9)


class InceptionBlock(nn.Module):
    """(N, channels_in, L) to (N, 4 * filters, L); the convolutions have no bias, because BatchNorm adds one."""

    def __init__(self, channels_in: int, filters: int) -> None:
        super().__init__()
        single = channels_in == 1
        self.bottleneck = nn.Identity() if single else nn.Conv1d(channels_in, filters, 1, bias=False)
        self.branches = nn.ModuleList(
            nn.Conv1d(channels_in if single else filters, filters, kernel, padding=kernel // 2, bias=False)
            for kernel in KERNELS
        )
        self.pool = nn.MaxPool1d(3, stride=1, padding=1)
        self.pool_projection = nn.Conv1d(channels_in, filters, 1, bias=False)
        self.bn = nn.BatchNorm1d(4 * filters)

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU(BatchNorm(concat of the four branches))."""
        narrow = self.bottleneck(x)
        branches = [branch(narrow) for branch in self.branches] + [self.pool_projection(self.pool(x))]
        return F.relu(self.bn(torch.cat(branches, dim=1)))


class InceptionTime(nn.Module):
    """Logits (N, classes) of series (N, channels, L); any L of at least 1, trained at 150."""

    def __init__(self, channels: int = 1, classes: int = 2, filters: int = 16, depth: int = 6) -> None:
        super().__init__()
        width = 4 * filters
        self.blocks = nn.ModuleList(InceptionBlock(width if i else channels, filters) for i in range(depth))
        starts = [width if i else channels for i in range(depth // 3)]
        self.shortcuts = nn.ModuleList(
            nn.Sequential(nn.Conv1d(start, width, 1, bias=False), nn.BatchNorm1d(width)) for start in starts
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``."""
        before = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i % 3 == 2:
                before = x = F.relu(x + self.shortcuts[i // 3](before))
        return cast(Tensor, self.classifier(x.mean(dim=2)))

"""The layers that a fold may put into a network and that ``torch.nn`` does not have.

TorchScript reads their annotations, so these have the form that it accepts.
"""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClampByChannel(nn.Module):
    """min(max(x, lo), hi), bounds broadcast against x; None where there is no bound."""

    lo: Optional[Tensor]  # noqa: UP045
    hi: Optional[Tensor]  # noqa: UP045

    def __init__(self, lo: Tensor | None, hi: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("lo", lo)
        self.register_buffer("hi", hi)

    def forward(self, x: Tensor) -> Tensor:
        """Return the clamped tensor."""
        lo, hi = self.lo, self.hi
        if lo is not None:
            x = torch.maximum(x, lo)
        if hi is not None:
            x = torch.minimum(x, hi)
        return x


class AffineByChannel(nn.Module):
    """scale * x + shift, both broadcast against x; None where it is 1 or 0 everywhere."""

    scale: Optional[Tensor]  # noqa: UP045
    shift: Optional[Tensor]  # noqa: UP045

    def __init__(self, scale: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted tensor."""
        scale, shift = self.scale, self.shift
        if scale is not None:
            x = x * scale
        if shift is not None:
            x = x + shift
        return x


class SlopeByChannel(nn.Module):
    """x where it is positive, slope * x where it is not; slope broadcast against x."""

    slope: Tensor

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sloped tensor."""
        return torch.where(x > 0, x, x * self.slope)


class ChannelOfOnes(nn.Module):
    """Adds a channel of ones behind the others: (N, C, *) to (N, C + 1, *)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor with one more channel."""
        return F.pad(x, [0, 0] * (x.dim() - 2) + [0, 1], value=1.0)

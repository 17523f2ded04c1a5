"""The surname network: one-hot characters to nationalities, in the order of the book's Example 4.22.

*Natural Language Processing with PyTorch* (Rao, McMahan 2019), chapter 4: convolution, ReLU, **then** BatchNorm. No
convolution pads, so every BatchNorm can be folded forward into the convolutions that read it. Two 1x1 convolutions, the
network-in-network layers (Lin et al. 2013, arXiv:1312.4400), reduce the channels before the wide kernels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: (channels, kernel, stride) of the parallel convolutions, which find endings, syllables and whole stems.
BRANCHES = ((64, 1, 1), (128, 2, 1), (128, 3, 1), (128, 5, 2))

#: Smallest length of the input: the receptive field of the widest branch.
MINIMUM_LENGTH = 6


class SurnameCNN(nn.Module):
    """Logits (N, classes) of one-hot surnames (N, characters, L), L at least ``MINIMUM_LENGTH``.

    Because of the maximum over L, the number of zeros after a name does not change the answer, if there are at least
    ``normfold.models.surnames.vectorizer.TAIL`` of them.
    """

    def __init__(self, characters: int = 42, classes: int = 18, dropout: float = 0.6) -> None:
        super().__init__()
        self.conv, self.conv_bn = nn.Conv1d(characters, 128, 2), nn.BatchNorm1d(128)
        self.nin1, self.nin1_bn = nn.Conv1d(128, 64, 1), nn.BatchNorm1d(64)
        self.nin2, self.nin2_bn = nn.Conv1d(64, 48, 1), nn.BatchNorm1d(48)
        self.branches = nn.ModuleList(nn.Conv1d(48, width, kernel, stride) for width, kernel, stride in BRANCHES)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(sum(width for width, _, _ in BRANCHES), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``."""
        x = self.conv_bn(F.relu(self.conv(x)))
        x = self.nin1_bn(F.relu(self.nin1(x)))
        x = self.nin2_bn(F.relu(self.nin2(x)))
        found = [F.relu(branch(x)).amax(dim=2) for branch in self.branches]
        return cast(Tensor, self.classifier(self.dropout(torch.cat(found, dim=1))))

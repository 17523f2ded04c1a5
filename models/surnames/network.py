"""The surname network: one-hot characters to nationalities, in the order of the book's Example 4.22.

*Natural Language Processing with PyTorch* (Rao, McMahan 2019), chapter 4: convolution, ReLU, **then** BatchNorm. No
convolution pads, so every BatchNorm can be folded forward into the convolution that reads it. The 1x1 convolutions are
the network-in-network layers (Lin et al. 2013, arXiv:1312.4400): they reduce the channels before the next wide kernel.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

#: Least length of the input, the receptive field of one output position.
MINIMUM_LENGTH = 9


class SurnameCNN(nn.Module):
    """Logits (N, classes) of one-hot surnames (N, characters, L), L at least ``MINIMUM_LENGTH``.

    The maximum over L makes the answer independent of how many zeros follow a name, once there are enough of them
    (``normfold.models.surnames.vectorizer.TAIL``).
    """

    def __init__(self, characters: int = 41, classes: int = 18, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(characters, 128, 3), nn.BatchNorm1d(128)
        self.nin1, self.nin1_bn = nn.Conv1d(128, 64, 1), nn.BatchNorm1d(64)
        self.conv2, self.bn2 = nn.Conv1d(64, 128, 3), nn.BatchNorm1d(128)
        self.nin2, self.nin2_bn = nn.Conv1d(128, 64, 1), nn.BatchNorm1d(64)
        self.conv3 = nn.Conv1d(64, 256, 5, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``."""
        x = self.bn1(F.relu(self.conv1(x)))
        x = self.nin1_bn(F.relu(self.nin1(x)))
        x = self.bn2(F.relu(self.conv2(x)))
        x = self.nin2_bn(F.relu(self.nin2(x)))
        x = F.relu(self.conv3(x))
        return cast(Tensor, self.classifier(self.dropout(x.amax(dim=2))))

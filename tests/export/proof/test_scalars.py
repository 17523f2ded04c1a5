"""Numbers in the network's code that float32 does not hold are noted where they matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from normfold.export.pipeline import export_model
from normfold.export.request import ExportRequest

pytestmark = pytest.mark.usefixtures("cache")


class Offset(nn.Module):
    """Takes off again what it added, in numbers that float32 does not hold."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.conv, self.offset = nn.Conv1d(2, 3, 3), offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv(x) + self.offset) * 0.7 - self.offset * 0.7


@pytest.mark.parametrize("offset", [0.1, 10000.1])
def test_numbers_of_the_code_that_matter_in_float32_are_noted(offset: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    request = ExportRequest(Offset(offset).eval(), tmp_path, "net", inputs=["x=FP32[N,2,9]"], variant="folded")
    noted = [n for n in export_model(request).notes if "holds each number of the network's code in float32" in n]
    assert len(noted) == (1 if offset > 1 else 0)

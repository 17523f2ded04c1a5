"""The whole network among the classes of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.export.errors import SourceError
from normfold.export.sources.defined import defined_names, whole_networks
from normfold.export.sources.named import split_source

BLOCKS = """
import torch
from torch import nn

class Config:
    width = 8

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x):
        return Block.forward(self, x)

class Wide(Block):
    pass

def build():
    return Net()
"""
NET = """
class Net(nn.Module):
    def __init__(self, width=8, *, depth=2):
        super().__init__()
        self.blocks = nn.Sequential(Wide(width), Block(width))
"""
SIZED = """
class Sized(torch.nn.Module):
    def __init__(self, width, *rest, depth=2):
        super().__init__()
        self.block = Wide(width)
"""


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (BLOCKS + NET, ["Net"]),
        (BLOCKS + SIZED + NET, ["Net", "Sized"]),
        (BLOCKS + SIZED.replace("width, *rest, depth=2", "*, width") + NET, ["Net", "Sized"]),
        (BLOCKS, ["Wide"]),
        (BLOCKS + NET.replace("Net(nn.Module)", "_Net(nn.Module)"), ["Block", "Wide"]),
        ("class A(L.LightningModule):\n  pass\nclass B(A):\n  def __init__(self, *, n):\n    pass", ["B"]),
        ("class A(B):\n  pass\nclass B(A):\n  def forward(self): pass", ["A", "B"]),
        ("class Data(L.LightningDataModule):\n  pass\nclass A(nn.Module):\n  pass", ["A"]),
        ("def build(): pass", []),
        ("class", []),
    ],
)
def test_the_class_that_no_other_uses_is_the_whole_network(tmp_path: Path, text: str, whole: list[str]) -> None:
    file = tmp_path / "nets.py"
    file.write_text(text)
    assert whole_networks(file) == whole


def test_a_file_without_a_name_is_answered_with_its_whole_networks(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(BLOCKS + SIZED + NET)
    assert defined_names(file) == ["Net", "Sized", "Config", "Block", "Wide", "build"]
    with pytest.raises(SourceError) as raised:
        split_source(str(file))
    assert str(raised.value).endswith(f": {file}:Net or {file}:Sized")

"""Sizes that depend on one another are refused, and what the message says to type is exported."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from normfold.export.capture.capture import capture
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import InputSpecError
from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.accepted_sizes import sizes_of
from normfold.export.sources.program_origin import open_program


class Linked(nn.Module):
    """Windows of ``factor`` entries of ``y`` behind its first ``offset`` belong to an entry of ``x``."""

    def __init__(self, factor: int, offset: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.Conv1d(3, 2, 1))
        self.factor, self.offset = factor, offset

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        windows = y[:, :, self.offset :].reshape(y.shape[0], y.shape[1], -1, self.factor)
        return self.layers(x) + windows.sum(3)


class Image(nn.Module):
    """An image that is ``factor`` times as wide as it is high."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(3, (-1, self.factor)).sum(4) + x.mean(3).unsqueeze(2)


def options(message: str) -> list[str]:
    return re.findall(r"--input '([^']*)'", message)


@pytest.mark.parametrize("seed", range(5))
def test_a_program_with_linked_inputs_is_refused_with_options_that_export_it(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    factor, offset = draw.choice([(1, draw.randint(1, 7)), (draw.randint(2, 5), 0), (2, draw.randint(1, 5))])
    length = draw.randint(3, 9)
    other = factor * length + offset
    batch, n = torch.export.Dim("batch"), torch.export.Dim("n", min=2, max=64)
    shapes = {0: batch, 2: n}, {0: batch, 2: factor * n + offset}
    inputs = torch.randn(2, 2, length), torch.randn(2, 2, other)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Linked(factor, offset).eval(), inputs, dynamic_shapes=shapes), path)
    with pytest.raises(InputSpecError) as refused:
        open_program(path, ())
    told = str(refused.value)
    expected = f"{'' if factor == 1 else f'{factor}*'}n{f' + {offset}' if offset else ''}"
    assert f"axis 2 of 'x' is n, axis 2 of 'y' is {expected}. " in told

    origin = open_program(path, parse_inputs(options(told)))
    sizes = sizes_of(origin)
    assert [spec.shape({**sizes.trace, "N": 3}) for spec in sizes.specs] == [(3, 2, length), (3, 2, other)]
    graph = origin.graph(sizes.specs, sizes.trace, 18).graph
    assert [[str(size) for size in value.shape or ()] for value in graph.inputs] == [["N", "2", "L"], ["N", "2", "L2"]]
    answer = origin.run({"x": np.ones((3, 2, length), np.float32), "y": np.ones((3, 2, other), np.float32)})
    assert answer["output"].shape == (3, 2, length)

    wrong = f"y=FP32[N,2,L2:{other + 1}..{other + 1}]"
    for given in ([options(told)[0], wrong], ["x=FP32[N,2,L]", options(told)[1]]):
        with pytest.raises(InputSpecError, match="depend on one another"):
            open_program(path, parse_inputs(given))


def test_two_linked_axes_of_one_input_are_refused(tmp_path: Path) -> None:
    height = torch.export.Dim("height", min=2, max=64)
    shapes = ({2: height, 3: 3 * height},)
    program = torch.export.export(Image(3), (torch.randn(2, 1, 4, 12),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(InputSpecError, match=r"axis 2 of 'x' is n, axis 3 of 'x' is 3\*n") as refused:
        open_program(tmp_path / "net.pt2", ())
    origin = open_program(tmp_path / "net.pt2", parse_inputs(options(str(refused.value))))
    assert origin.graph(origin.specs, {"L": 4, "L2": 12}, 18).graph


def test_a_module_whose_capture_finds_a_link_is_refused() -> None:
    network = NamedNetwork(Linked(1, 3).eval(), ["x", "y"])
    specs = parse_inputs(["x=FP32[N,2,L]", "y=FP32[N,2,M]"])
    with pytest.raises(InputSpecError, match=r"axis 2 of 'y' is n \+ 3") as refused:
        capture(network, specs, {"N": 2, "L": 6, "M": 9})
    assert options(str(refused.value)) == ["x=FP32[N,2,L:6..6]", "y=FP32[N,2,M:9..9]"]
    assert capture(network, parse_inputs(options(str(refused.value))), {"N": 2, "L": 6, "M": 9}).graph

"""A network that takes another path from some size on is published for the sizes below, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import normfold
from normfold.export.inputs.guards import Guard


class Net(nn.Module):
    """A small network whose last step is ``way(x, y)`` of its input and its answer."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.way(x, self.norm(torch.relu(self.conv(x))))
        return answer


def exported(way: Any, folder: Path, text: str = "x=FP32[N,4,L]") -> tuple[Net, Any]:
    """The network and the report of its export."""
    torch.manual_seed(0)
    network = Net(way).eval()
    return network, normfold.export_network(network, inputs=text, repository=folder, name="m", form="folded", version=1)


def tripled(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[-1] >= 1000 else y


def cut(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y[..., :1000] * 3 if y.shape[-1] // 2 >= 500 else y


def only_at(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[-1] == 777 else y


def refusing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] > 300:
        raise ValueError("too long")
    return y


@pytest.mark.parametrize(("way", "high"), [(tripled, 999), (cut, 999), (only_at, 776), (refusing, 300)])
def test_the_range_ends_where_another_path_begins(tmp_path: Path, way: Any, high: int) -> None:
    network, report = exported(way, tmp_path)
    assert f"L from 1 to {high}" in str(report.limits)
    assert any(f"L is up to {high}, while" in note for note in report.notes)
    x = np.random.default_rng(0).standard_normal((1, 4, high)).astype(np.float32)
    (got,) = ort.InferenceSession(Path(report.path) / "model.onnx").run(None, {"x": x})
    wanted = network(torch.from_numpy(x)).detach().numpy()
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("text", "fits"), [("x=FP32[N,4,L:..5000]", False), ("x=FP32[N,4,L:..999]", True)])
def test_a_declared_range_is_refused_where_another_path_begins_within(tmp_path: Path, text: str, fits: bool) -> None:
    if fits:
        assert not any("while" in note for note in exported(tripled, tmp_path, text)[1].notes)
        return
    with pytest.raises(normfold.ExportError, match=r"while L < 1000: at L = 1000 .* Declare L:1\.\.999"):
        exported(tripled, tmp_path, text)


def by_both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[0] * x.shape[-1] > 4000 else y


@pytest.mark.parametrize(("text", "fits"), [("x=FP32[N,4,L]", False), ("x=FP32[N:..4,4,L:..1000]", True)])
def test_a_condition_on_two_dimensions_needs_ranges_within_which_it_holds(
    tmp_path: Path, text: str, fits: bool
) -> None:
    if fits:
        exported(by_both, tmp_path, text)
        return
    with pytest.raises(normfold.ExportError, match=r"only while L\*N <= 4000: at .* Declare ranges for L and N"):
        exported(by_both, tmp_path, text)


def same_on_both_ways(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y + 0 if x.shape[-1] >= 1000 else y


def test_two_paths_that_give_the_same_are_no_bound(tmp_path: Path) -> None:
    assert not any("while" in note for note in exported(same_on_both_ways, tmp_path)[1].notes)


@given(traced=st.integers(1, 500), bound=st.integers(2, 1 << 20))
def test_the_first_size_that_breaks_a_bound_is_found(traced: int, bound: int) -> None:
    guard = Guard("L < bound", ("L",), lambda sizes: sizes["L"] < max(bound, traced + 1))
    assert guard.broken_above({"L": traced}, "L", 1 << 20) == (max(bound, traced + 1) if bound <= 1 << 20 else None)
    assert guard.broken_above({"L": traced}, "L", max(bound, traced + 1) - 1) is None

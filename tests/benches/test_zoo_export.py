"""The table of networks through the export: what counts as exported, refused and a fault."""

from __future__ import annotations

import pytest
import torch
from benches.zoo import export
from benches.zoo.export import Line, exported, page
from benches.zoo.network import Network
from torch import nn

from normfold.export.errors import VerificationError


def network(build, shape=("N", 3, "L")):
    return Network("mine", "nobody's", build, shape, ({"N": 2, "L": 20}, {"N": 3, "L": 17}))


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 1))


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_is_exported_with_its_figures() -> None:
    line = exported(network(convolutions))
    assert (line.outcome, line.before, line.after) == ("exported", 1, 0)
    assert float(line.algebra) <= 1e-12


def test_a_network_that_cannot_be_captured_is_refused_with_the_line() -> None:
    line = exported(network(Deciding))
    assert line.outcome == "refused"
    assert "test_zoo_export.py" in line.why


def test_a_network_that_its_package_cannot_make_says_so() -> None:
    def missing() -> nn.Module:
        raise ImportError("no package")

    assert exported(network(missing)) == Line("mine", "nobody's", "not built", why="ImportError: no package")


@pytest.mark.parametrize("error", [VerificationError("not the same"), KeyError("x")])
def test_a_proof_that_fails_and_an_error_without_a_sentence_are_faults(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("normfold.export.notebook.export_network", failing)
    monkeypatch.setattr(export, "make", lambda _: convolutions())
    assert exported(network(convolutions)).outcome == "FAULT"


def test_the_page_counts_the_outcomes_and_keeps_to_its_columns() -> None:
    lines = [
        Line("a", "p 1", "exported", 3, 1, "lifted", "1e-15", "2e-07 of 1e-06", "x | y"),
        Line("b", "p 1", "refused"),
    ]
    text = page(lines)
    assert "2 networks: 1 exported, 1 refused." in text
    assert "| a | p 1 | exported | 3 → 1 | lifted | 1e-15 | 2e-07 of 1e-06 | x \\| y |" in text

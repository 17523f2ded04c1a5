"""Every usual network, folded: no BatchNorm, the same function at several lengths, the network itself untouched."""

from __future__ import annotations

import copy

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from normfold.export.fold import fold
from normfold.models.gunpoint.network import InceptionTime
from normfold.models.surnames.network import SurnameCNN

from .networks import NETWORKS, batchnorms, checked, filled, inputs

#: Networks whose length a layer fixes.
FIXED = ("of rows", "flattened", "flattened twice", "along time", "three dimensions", "two dimensions")
#: Signs by channel that may stay where scales are negative or 0: a max-pool, and a ReLU, let only s >= 0 pass.
SIGNS = {"max-pool between": 1, "Res2Net": 2}
#: The same networks as ONNX graphs take long to export; these hold every kind of fold.
AS_ONNX = (
    "the book's order, zero-padded",
    "PReLU",
    "smooth activations",
    "max-pool between",
    "dense",
    "several readers",
)


def drawn(name: str, gamma: str) -> tuple[nn.Module, list[torch.Tensor]]:
    network, shape = NETWORKS[name]
    lengths = [shape[2:]] if name in FIXED else [shape[2:], (shape[2] + 1,), (2 * shape[2] + 3,)]
    return filled(copy.deepcopy(network), gamma), [inputs((*shape[:2], *length)) for length in lengths]


@pytest.mark.parametrize("gamma", ["positive", "mixed", "zeros"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_batchnorm_is_left_and_the_function_is_the_same(name: str, gamma: str) -> None:
    network, examples = drawn(name, gamma)
    folded, report = checked(network, *examples)
    assert batchnorms(folded) == report.batchnorms_after == 0, report.folds
    assert report.affines_after <= (0 if gamma == "positive" else SIGNS.get(name, 0)), report.folds
    assert report.batchnorms_before == batchnorms(network)
    assert report.nodes_after <= report.nodes_before


class All(nn.Module):
    """All networks side by side, each with an input of its own."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, xs: list[Tensor]) -> list[object]:
        return [network(x) for network, x in zip(self.networks, xs, strict=True)]


def test_as_many_are_left_as_in_the_onnx_graph() -> None:
    networks, examples = zip(*(drawn(name, "mixed") for name in AS_ONNX), strict=True)
    xs = [x[0] for x in examples]
    program = torch.onnx.export(All(list(networks)).eval(), (xs,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    graph: ir.Model = program.model
    report = fold(graph)
    alone = [fold(network, x)[1] for network, x in zip(networks, xs, strict=True)]
    assert report.affines_before == sum(r.affines_before for r in alone)
    assert report.affines_after == sum(r.affines_after for r in alone)


@pytest.mark.parametrize(
    ("network", "shape"), [(SurnameCNN(characters=41), (2, 41, 20)), (InceptionTime(), (2, 1, 60))]
)
def test_the_reference_networks_keep_none(network: nn.Module, shape: tuple[int, ...]) -> None:
    network = filled(network)
    folded, report = checked(network, inputs(shape), inputs((3, shape[1], 41)))
    assert batchnorms(folded) == report.affines_after == 0
    assert report.affines_before > 0


def test_folding_twice_changes_nothing() -> None:
    network, examples = drawn("pre-activation", "mixed")
    once, _ = checked(network, *examples)
    twice, report = fold(once, examples[0])
    assert report.affines_before == report.carriers == report.channels_removed == 0
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))

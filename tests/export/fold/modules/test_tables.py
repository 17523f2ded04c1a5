"""Parameters that are read as tensors: tables of positions, and what a recurrent layer starts from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import batchnorms, checked, filled, inputs


class Positions(nn.Module):
    """A convolution, to which a function of a table and of the input is added, and a BatchNorm."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int, trained: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), function
        table = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        self.table = nn.Parameter(table, requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(self.conv(x) + self.function(self.table, x)))


#: How a table comes to the length of the input, and its shape.
CUT: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "slice": (lambda t, x: t[:, :, : x.shape[2]], (1, 4, 40)),
    "turned": (lambda t, x: t.transpose(1, 2)[:, :, : x.size(-1)], (1, 40, 4)),
    "twice": (lambda t, x: t[:, :, : x.shape[2]] - t[:, :, 1 : 1 + x.shape[2]], (1, 4, 40)),
    "mean": (lambda t, x: t[:, :, : x.shape[2]].mean(2, keepdim=True), (1, 4, 40)),
    "pooled": (lambda t, x: F.adaptive_avg_pool1d(t, x.shape[2]), (1, 4, 40)),
    "largest": (lambda t, x: F.adaptive_max_pool1d(t, x.shape[2]), (1, 4, 40)),
    "nearest": (lambda t, x: F.interpolate(t, size=x.shape[2]), (1, 4, 5)),
    "linear": (lambda t, x: F.interpolate(t, size=x.shape[2], mode="linear"), (1, 4, 5)),
    "split": (lambda t, x: torch.split(t, [x.shape[1] + 1, x.shape[1]], 1)[0], (1, 7, 1)),
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("gamma", ["positive", "mixed"])
def test_a_batchnorm_goes_into_a_table_of_positions(name: str, gamma: str) -> None:
    function, shape = CUT[name]
    network = filled(Positions(function, *shape), gamma)
    _, report = checked(network, inputs((2, 3, 12)), inputs((3, 3, 23)), inputs((1, 3, 9)))
    # The largest entries are others under a negative scale.
    assert report.affines_after == int(name == "largest" and gamma == "mixed")


@pytest.mark.parametrize("trained", [True, False])
def test_a_folded_table_is_trained_if_it_was(trained: bool) -> None:
    function, shape = CUT["turned"]
    folded, _ = checked(filled(Positions(function, *shape, trained=trained)), inputs((2, 3, 12)))
    assert dict(folded.named_parameters())["folded_transpose"].requires_grad is trained
    again, _ = checked(copy.deepcopy(folded), inputs((2, 3, 12)))
    assert "folded_transpose" in again.state_dict()


class Added(nn.Module):
    """A sum over the positions of what a BatchNorm gives, for inputs of at most a table's length."""

    def __init__(self, most: int, pieces: int) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.table = nn.Parameter(torch.randn((1, 4, most), generator=torch.Generator().manual_seed(3)))
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h = h.reshape(x.shape[0], 4, self.pieces, x.shape[2] // self.pieces).flatten(2)
        return self.fc(self.norm(torch.tanh(h + self.table[..., : x.shape[2]])).sum(-1))


@pytest.mark.parametrize("pieces", [1, 2, 16])
def test_a_length_is_dynamic_where_the_network_takes_only_shorter_ones(pieces: int) -> None:
    network = filled(Added(96, pieces))
    _, report = checked(network, inputs((2, 3, 96)), inputs((2, 3, 48)), inputs((1, 3, 80)))
    assert any("dynamic" in reason for reason in report.folds[0].reasons), report.folds


def test_a_standardised_input_keeps_its_channels() -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 4, 3)
            self.mean = nn.Parameter(torch.ones(3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x - self.mean)

    _, report = checked(filled(Standardised()), inputs((2, 3, 12)), inputs((2, 3, 9)))
    assert report.affines_after == 0 < report.affines_before


class Decoder(nn.Module):
    """A recurrent layer behind a BatchNorm, called in one of several ways."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], layer: Callable[..., nn.Module] = nn.GRU) -> None:
        super().__init__()
        self.linear, self.norm, self.call = nn.Linear(3, 4), nn.BatchNorm1d(4), call
        self.start = nn.Parameter(torch.randn((5, 1, 4), generator=torch.Generator().manual_seed(4)))
        self.layer = layer(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.norm(torch.sigmoid(self.linear(x))).unsqueeze(0))


#: Calls in which the BatchNorm's output is a state, which nothing may scale.
STATES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "behind a constant input": lambda net, h: net.layer(net.start, h)[0],
    "by name": lambda net, h: net.layer(input=net.start, hx=h)[0],
    "and the input": lambda net, h: net.layer(h, h)[0],
    "and the input, by name": lambda net, h: net.layer(h, hx=h)[0],
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("layer", [nn.GRU, nn.RNN])
def test_a_state_of_a_recurrent_layer_is_not_scaled(name: str, layer: Callable[..., nn.Module]) -> None:
    folded, _ = checked(filled(Decoder(STATES[name], layer)), inputs((1, 3)))
    assert batchnorms(folded) == 1


@pytest.mark.parametrize("pair", [lambda h: (h, torch.tanh(h)), lambda h: (torch.tanh(h), h), lambda h: (h, h)])
def test_neither_state_of_an_lstm_is_scaled(pair: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    folded, _ = checked(filled(Decoder(lambda net, h: net.layer(h, pair(h))[0], nn.LSTM)), inputs((1, 3)))
    assert batchnorms(folded) == 1


def test_a_batchnorm_goes_into_a_recurrent_layer_whose_input_is_given_by_name() -> None:
    folded, _ = checked(filled(Decoder(lambda net, h: net.layer(input=h)[0])), inputs((2, 3)))
    assert batchnorms(folded) == 0


class NamedLSTM(nn.LSTM):
    def __init__(self, size: int) -> None:
        super().__init__(size, size)


class NamedGRU(nn.GRU):
    def __init__(self, size: int) -> None:
        super().__init__(size, size)


class NamedRNN(nn.RNN):
    def __init__(self, size: int) -> None:
        super().__init__(size, size, nonlinearity="relu")


@pytest.mark.parametrize("layer", [NamedLSTM, NamedGRU, NamedRNN])
@pytest.mark.parametrize("weights", ["plain", "normalised"])
def test_a_batchnorm_goes_into_a_subclass_of_a_recurrent_layer(layer: Callable[[int], nn.Module], weights: str) -> None:
    network = Decoder(lambda net, h: net.layer(h)[0], lambda size, _: layer(size))
    if weights == "normalised":
        nn.utils.parametrizations.weight_norm(network.requires_grad_(False).layer, "weight_ih_l0")
    folded, _ = checked(filled(network), inputs((2, 3)))
    assert batchnorms(folded) == 0

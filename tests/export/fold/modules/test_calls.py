"""Functions and methods are read as the layers are; what nothing is known of, nothing passes."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.export.fold import fold_module

from .networks import batchnorms, block, checked, filled, inputs


class Between(nn.Module):
    """Convolution, ReLU, BatchNorm, a function, and a convolution that pads."""

    def __init__(self, function: Callable[[Tensor], Tensor], padding: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(*block(3, 6, 3, 1))
        self.function = function
        self.last = nn.Conv1d(6, 2, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


#: A positive gamma passes all of these.
PASSED: dict[str, Callable[[Tensor], Tensor]] = {
    "F.max_pool1d": lambda x: F.max_pool1d(x, 3, stride=2, padding=1),
    "torch.max_pool1d": lambda x: torch.max_pool1d(x, 2),
    "F.avg_pool1d": lambda x: F.avg_pool1d(x, 2, ceil_mode=True),
    "F.adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 7),
    "F.adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 7),
    "mean": lambda x: x + x.mean(2, keepdim=True),
    "sum": lambda x: x - x[:, :, :4].sum(2, keepdim=True),
    "amax": lambda x: x.amax(dim=-1, keepdim=True) + x,
    "amin": lambda x: x.amin(dim=-1, keepdim=True) + x,
    "max": lambda x: torch.max(x, 2, keepdim=True)[0] - x,
    "max.values": lambda x: x.max(dim=2, keepdim=True).values + x,
    "cat": lambda x: torch.cat((x[:, :2], x[:, 2:]), dim=1),
    "slices": lambda x: x[:, :, 1:-1][..., ::2],
    "computed slice": lambda x: x[:, :, : x.size(2) - 1],
    "flipped twice": lambda x: x.transpose(1, 2).contiguous().permute(0, 2, 1),
    "turned twice": lambda x: x.mT.mT,
    "view": lambda x: x.view(x.size(0), 6, -1),
    "reshape": lambda x: x.reshape(x.shape[0], 6, x.shape[2]),
    "more axes": lambda x: x.unsqueeze(2).squeeze(2)[:, :, None].flatten(1, 2),
    "one more axis": lambda x: x[:, :, None, :].squeeze(2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="linear", align_corners=False),
    "nearest": lambda x: F.interpolate(x, size=30),
    "reflect": lambda x: F.pad(x, (2, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (2, 1), mode="replicate"),
    "crop": lambda x: F.pad(x, (-1, -1)),
    "split": lambda x: torch.cat(x.split([2, 4], 1), 1),
    "chunk": lambda x: torch.cat(torch.chunk(x, 2, dim=1), 1),
    "numbers": lambda x: 1 - (2 * x - 1) / 4,
    "negation": lambda x: 1 - torch.neg(-x),
    "doubled": lambda x: x + x,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "in place": lambda x: x.mul_(2).add_(1),
}


@pytest.mark.parametrize("name", PASSED)
def test_a_positive_scale_and_a_shift_pass(name: str) -> None:
    network = filled(Between(PASSED[name]), "positive")
    folded, report = checked(network, inputs((2, 3, 18)), inputs((3, 3, 25)))
    assert batchnorms(folded) == report.affines_after == 0, report.folds


def test_lengths_may_be_read_where_nothing_else_can_go() -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Sigmoid(), nn.BatchNorm1d(4), Lengths(), nn.Conv1d(4, 2, 3)))
    folded, report = checked(network, inputs((2, 3, 18)), inputs((3, 3, 25)))
    assert batchnorms(folded) == report.affines_after == 0, report.folds


class Lengths(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, length = x.shape
        return x.reshape(n, c, length).view(x.size(0), x.size(1), x.shape[-1]).reshape(x.shape)


@pytest.mark.parametrize("name", PASSED)
def test_zero_padding_behind_it_reads_a_carrier(name: str) -> None:
    network = filled(Between(PASSED[name], padding=1), "positive")
    folded, report = checked(network, inputs((2, 3, 18)), inputs((3, 3, 25)))
    assert batchnorms(folded) == report.affines_after == 0, report.folds


#: Calls of which the engine knows nothing, and calls that no shift or scale passes.
STOPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "flip": lambda x: x.flip(2),
    "sort": lambda x: x.sort(2)[0],
    "cumsum": lambda x: x.cumsum(2),
    "power": lambda x: x**2,
    "absolute": lambda x: x.abs(),
    "random": lambda x: F.dropout(x, 0.0),
    "max by number": lambda x: x.gather(2, x.max(2, keepdim=True)[1]) + x,
    "other type": lambda x: x.float().double(),
    "add with alpha": lambda x: torch.add(x, x, alpha=2),
    "sum of squares": lambda x: x / x.norm(dim=1, keepdim=True),
    "computed product": lambda x: torch.bmm(x, x.transpose(1, 2)) @ x,
    "clamp of a tensor": lambda x: torch.clamp(x, x.mean(), x.amax()),
    "unknown index": lambda x: x[:, :, torch.tensor([0, 2, 1, 3])],
    "written through a mask": lambda x: x.masked_fill(x > 1, 0.5),
    "group norm": lambda x: F.group_norm(x, 3),
    "parts of positions": lambda x: torch.cat(x.split(4, 2), 2),
    "lp pool": lambda x: F.lp_pool1d(x, 2, 2),
    "divisor": lambda x: F.avg_pool2d(x[:, :, None], (1, 2), divisor_override=3)[:, :, 0],
    "bounds by a floor": lambda x: torch.div(x, 2, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_is_not_known_is_not_passed(name: str) -> None:
    network = filled(Between(STOPPED[name]))
    _, report = checked(network, inputs((2, 3, 18)), inputs((3, 3, 25)))
    assert report.batchnorms_before == 1
    for fold in report.folds:
        assert fold.folded or fold.reasons or fold.how


ACTIVATIONS = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "F.relu6": F.relu6,
    "clamp": lambda x: x.clamp(min=-0.5, max=2),
    "clamp_min": lambda x: torch.clamp_min(x, -1),
    "F.hardtanh": F.hardtanh,
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "F.elu": lambda x: F.elu(x, 1.0, True),
    "F.gelu": F.gelu,
    "F.gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "F.silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "F.softplus": F.softplus,
    "mish": F.mish,
}


class Activated(nn.Module):
    """Convolution, BatchNorm, activation, BatchNorm, convolution, as functions of parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3)), nn.Parameter(torch.randn(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))
        self.table = nn.Parameter(torch.randn(2, 4))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv1d(x, self.weight, self.bias, padding=1)
        norm = self.norms[0]
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)
        x = self.norms[1](self.function(x))
        return F.linear(x.transpose(1, 2), self.table)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_functions_of_parameters_fold_as_layers_do(name: str) -> None:
    folded, report = checked(filled(Activated(ACTIVATIONS[name])), inputs((2, 3, 18)), inputs((3, 3, 25)))
    assert batchnorms(folded) == report.affines_after == 0, report.folds


class Recurring(nn.Module):
    """Words, an embedding, BatchNorm, a recurrent layer and a Linear."""

    def __init__(self, layer: nn.RNNBase, table: int = 5) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(11, table), nn.Conv1d(table, 4, 3)
        self.norms, self.layer = nn.ModuleList([nn.BatchNorm1d(table), nn.BatchNorm1d(4)]), layer
        self.last = nn.Linear(3 * (2 if layer.bidirectional else 1), 2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.norms[0](self.embedding(words).transpose(1, 2))
        x = self.norms[1](self.conv(x).relu()).transpose(1, 2)
        return self.last(self.layer(x)[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 3, batch_first=True, bidirectional=True),
        nn.LSTM(4, 3, 2, batch_first=True, bias=False),
        nn.GRU(4, 3, batch_first=True),
        nn.RNN(4, 3, batch_first=True, nonlinearity="relu"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_batchnorm_goes_into_an_embedding_and_into_a_recurrent_layer(layer: nn.RNNBase) -> None:
    network = filled(Recurring(layer))
    words = torch.arange(24).reshape(2, 12) % 11
    folded, report = checked(network, words, words[:, :7])
    assert batchnorms(folded) == report.affines_after == 0, report.folds


class Constants(nn.Module):
    """An affine by channel from a parameter, one from arithmetic on buffers, and a uniform one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 2, 3)
        self.gamma = nn.Parameter(torch.randn(4))
        self.register_buffer("beta", torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() * torch.exp(self.gamma)[None, :, None] + self.beta
        return self.last(0.5 * x)


def test_affines_of_parameters_fold_as_batchnorms_do() -> None:
    _, report = checked(filled(Constants()), inputs((2, 3, 18)))
    assert (report.affines_before, report.affines_after) == (2, 0)
    assert {f.kind for f in report.folds} == {"affine"}


@pytest.mark.parametrize("bias", [True, False])
def test_a_batchnorm_goes_back_through_a_linear_along_time(bias: bool) -> None:
    network = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.Linear(16, 5, bias), nn.BatchNorm1d(4), nn.Tanh(), nn.Conv1d(4, 2, 1)
    )
    folded, report = checked(filled(network), inputs((2, 3, 18)))
    assert batchnorms(folded) == report.affines_after == 0, report.folds


class Branches(nn.Module):
    """A block of RepVGG, added up in place, and a skip before a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.narrow = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).sigmoid()
        y = self.norms[0](self.wide(x))
        y += self.norms[1](self.narrow(x))
        y += self.norms[2](x)
        y = y.relu()
        z: Tensor = self.norms[3](self.narrow(y) + y)
        return z.tanh()


def test_branches_of_one_tensor_become_convolutions() -> None:
    folded, report = checked(filled(Branches()), inputs((2, 3, 18)), inputs((1, 3, 1)))
    assert batchnorms(folded) == report.affines_after == 0, report.folds
    assert sum(n.target in (torch.add, operator.add) for n in folded.graph.nodes) == 1


class Own(nn.Conv1d):
    """A convolution with a forward of its own: zeros before the first position only."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (self.kernel_size[0] - 1, 0)))


class OwnName(nn.BatchNorm1d):
    """A BatchNorm under another name."""


def test_subclasses_are_read_by_what_they_compute() -> None:
    network = filled(nn.Sequential(Own(3, 4, 3), nn.ReLU(), OwnName(4), Own(4, 2, 3)))
    folded, report = checked(network, inputs((2, 3, 18)), inputs((3, 3, 25)))
    assert batchnorms(folded) == report.affines_after == 0, report.folds


def test_a_layer_called_twice_gets_a_copy_for_each_change() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 3, padding=1)
            self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = self.norms[0](self.conv(self.stem(x)))
            return self.norms[1](self.conv(a.relu())), self.conv(self.norms[2](a.relu()))

    folded, report = checked(filled(Twice()), inputs((2, 3, 18)), inputs((3, 3, 25)))
    assert batchnorms(folded) == 0, report.folds


def test_a_batchnorm_called_twice_folds_into_both_sides() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv1d(3, 4, 1), nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.a(x)) + self.bn(self.b(x))

    folded, report = checked(filled(Twice()), inputs((2, 3, 18)))
    assert (report.batchnorms_before, report.batchnorms_after, batchnorms(folded)) == (2, 0, 0)


def test_a_layer_with_a_hook_is_left_alone() -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU()))
    network[0].register_forward_hook(lambda layer, args, result: 2 * result)
    checked(network, inputs((2, 3, 18)))


@pytest.mark.parametrize("computed", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_is_folded_as_it_is(computed: Callable[[nn.Module], nn.Module]) -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()))
    computed(network[0])  # its weight is a result of torch, which copy.deepcopy refuses
    folded, report = checked(network, inputs((2, 3, 18)))
    assert report.affines_after == 0
    assert not folded.get_submodule("0")._forward_pre_hooks
    assert network[0]._forward_pre_hooks


@pytest.mark.parametrize("wrapped", [nn.DataParallel, torch.compile])
def test_the_network_within_a_wrapper_is_folded(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()))
    folded, report = fold_module(wrapped(network), inputs((2, 3, 18)))
    assert (report.batchnorms_before, report.batchnorms_after) == (1, 0)
    x = inputs((3, 3, 11))
    torch.testing.assert_close(folded(x), network(x))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_whose_forward_was_replaced_is_left_alone(layer: int) -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1)))
    real = network[layer].forward
    network[layer].forward = lambda x: 2 * real(x) - 1
    checked(network, inputs((2, 3, 18)))


def test_a_batchnorm_with_a_hook_is_said_to_have_one() -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)))
    network[1].register_forward_hook(lambda layer, args, result: 2 * result)
    _, report = checked(network, inputs((2, 3, 18)))
    assert "it has a hook" in report.folds[0].reasons[0]


def test_a_batchnorm_with_a_negative_variance_is_said_to_have_no_finite_parameters() -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)))
    network[1].running_var[0] = -1.0
    _, report = fold_module(network, inputs((2, 3, 18)))
    assert report.folds[0].reasons == ("its parameters are not finite",)


def test_weights_under_a_parametrization_are_folded_as_they_are() -> None:
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3)), nn.BatchNorm1d(4), nn.ReLU())
    folded, report = checked(filled(network), inputs((2, 3, 18)))
    assert report.affines_after == 0
    assert type(folded.get_submodule("0")) is nn.Conv1d


def test_the_carrier_is_put_before_a_reader_that_cannot_get_it_otherwise() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.readers = nn.BatchNorm2d(3), nn.ModuleList(nn.Conv2d(3, 4, 3, padding=1) for _ in range(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.readers[0](self.bn(x))

    folded, report = checked(filled(Shared()), inputs((2, 3, 9, 8)), inputs((1, 3, 5, 12)))
    assert report.batchnorms_after == 0
    assert fold_module(folded, inputs((2, 3, 9, 8)))[1].affines_after == 0

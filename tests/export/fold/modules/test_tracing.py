"""Networks that cannot be folded are refused; the message says where and what to do. No given network is changed."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.export.errors import FoldError
from normfold.export.fold import fold, fold_module

from .networks import batchnorms, block, checked, filled, inputs


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*block(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return self.layers(x)


def test_a_network_that_looks_at_its_numbers_is_refused_with_the_line() -> None:
    with pytest.raises(
        FoldError, match=r"Decides: .*test_tracing\.py:\d+ in forward: `if x\.sum\(\) > 0:`.*normfold export"
    ):
        fold_module(Decides(), torch.randn(2, 3, 9))


class Looks(Decides):
    """Looks at ranks and parts, which are the same whatever goes in, and decides by a length."""

    def forward(self, x: Tensor) -> Tensor:
        while len(x.shape) < 3:
            x = x[None]
        assert x.ndim == x.dim() == 3
        n, c, _ = x.shape
        x = self.layers(x).view(n, c + 1, -1)
        x = torch.cat([part if k else 2 * part for k, part in enumerate(x.chunk(2, 1))], 1)
        return F.pad(x, (0, 1)) if x.shape[-1] % 2 else x


def test_ranks_are_known_and_a_decision_by_a_length_is_checked() -> None:
    network = filled(Looks())
    folded, _ = checked(network, inputs((2, 3, 9)), inputs((1, 3, 13)))
    with pytest.raises(RuntimeError, match=r"lengths take another: test_tracing\.py:\d+ in forward.*gives 0, not True"):
        folded(inputs((2, 3, 10)))
    again, _ = fold_module(pickle.loads(pickle.dumps(folded)), inputs((2, 3, 9)))  # noqa: S301
    with pytest.raises(RuntimeError, match="lengths take another"):
        again(inputs((2, 3, 10)))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*block(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        y[:, 0] = 1
        return y


class Renamed(Written):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        z = y.view(-1)
        y += 1
        return z + 0


@pytest.mark.parametrize(("network", "words"), [(Written(), "item assignment"), (Renamed(), "changed in place")])
def test_what_changes_tensors_in_place_unseen_is_refused(network: nn.Module, words: str) -> None:
    with pytest.raises(FoldError, match=words):
        fold_module(network, torch.randn(2, 3, 9))


class InPlace(nn.Module):
    """ReLU in place on a tensor that is read again: what is added is behind the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu, self.last = (
            nn.Conv1d(3, 4, 3),
            nn.BatchNorm1d(4),
            nn.ReLU(True),
            nn.Conv1d(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        b = self.bn(a)
        c = self.relu(b)
        return self.last(c + b) + self.last(F.relu(a, inplace=True) + a)


def test_a_tensor_changed_in_place_is_read_as_it_is_afterwards() -> None:
    folded, _ = checked(filled(InPlace()), inputs((2, 3, 9)))
    assert not any(getattr(layer, "inplace", False) for layer in folded.modules())


def test_a_function_that_could_write_its_result_somewhere_else_and_does_not_is_read() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.last = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.bn(F.normalize(self.conv(x), dim=1)))  # torch.fx notes it with out=None

    _, report = checked(filled(Normalised()), inputs((2, 3, 9)))
    assert report.batchnorms_after == 0


def test_the_example_must_fit() -> None:
    network = nn.Sequential(*block(3, 4))
    with pytest.raises(FoldError, match=r"Sequential does not take the example inputs.*expected input"):
        fold_module(network, torch.randn(2, 5, 9))
    with pytest.raises(FoldError, match=r"forward\(input\) takes 1 or more inputs; 2 were given"):
        fold_module(network, torch.randn(2, 3, 9), torch.randn(2, 3, 9))


def test_a_layer_without_a_shape_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.LazyConv1d(4, 3), nn.ReLU())
        statistics_only = nn.Sequential(nn.Conv1d(3, 4, 3), nn.LazyBatchNorm1d(affine=False))
    with pytest.raises(FoldError, match=r"'0\.weight' has no shape yet; run the network once"):
        fold_module(network, torch.randn(2, 3, 9))
    with pytest.raises(FoldError, match=r"'1\.running_mean' has no shape yet; run the network once"):
        fold_module(statistics_only, torch.randn(2, 3, 9))


def test_a_batchnorm_without_statistics_stays_and_is_reported() -> None:
    network = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, track_running_stats=False), *block(4, 4), nn.Conv1d(4, 2, 1)
    )
    folded, report = checked(filled_statistics(network), inputs((2, 3, 9)))
    assert (report.batchnorms_before, report.batchnorms_after, batchnorms(folded)) == (2, 1, 1)
    (stays,) = (f for f in report.folds if not f.folded)
    assert stays.name == "1"
    assert "own statistics" in stays.reason


def filled_statistics(network: nn.Module) -> nn.Module:
    return network.double().eval()


def test_a_network_in_training_mode_is_folded_for_inference_and_the_report_says_so() -> None:
    network = nn.Sequential(*block(3, 4), nn.Dropout(0.5), nn.Conv1d(4, 2, 1)).train()
    folded, report = fold_module(network, torch.randn(2, 3, 9))
    assert network.training
    assert all(layer.training for layer in network.modules())
    assert not any(layer.training for layer in folded.modules())
    assert report.notes == ("Sequential was in training mode; the folded copy is in eval mode",)


def test_nothing_else_of_the_program_changes() -> None:
    network = filled(nn.Sequential(*block(3, 4, 3, 1), *block(4, 4, 3, 1), nn.LSTM(9, 2)))
    torch.manual_seed(3)
    want = torch.randn(4)
    torch.manual_seed(3)
    fold_module(network, inputs((2, 3, 9)))
    assert torch.equal(torch.randn(4), want)
    assert torch.is_grad_enabled()


def test_arguments_that_are_not_given_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.last = nn.Sequential(*block(3, 4)), nn.Conv1d(4, 2, 1)

        def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> Tensor:
            x = self.layers(x)
            if mask is not None:
                x = x * mask
            return self.last(x + x if twice else x)

    network = filled(Optional())
    _, report = checked(network, inputs((2, 3, 9)))
    assert report.affines_after == 0
    _, report = checked(network, (inputs((2, 3, 9)), inputs((2, 1, 7))), (inputs((3, 3, 12)), inputs((3, 1, 10))))
    assert report.affines_before == 1


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(*block(3, 4), nn.Conv1d(4, 2, 1)),
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 * 126, 2)),
        nn.Sequential(nn.Dropout(), nn.Linear(7, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.Flatten(1), nn.BatchNorm1d(64)),
    ],
    ids=lambda network: "-".join(type(layer).__name__ for layer in network),
)
def test_the_inputs_of_a_network_are_inferred_from_its_first_layer(network: nn.Module) -> None:
    _, report = fold(network)
    assert (report.affines_before, report.affines_after) == (1, 0)


def test_without_an_example_and_without_a_first_layer_it_is_asked_for_one() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(FoldError, match="give example inputs"):
        fold(Two())


@pytest.mark.parametrize("example", [torch.randn(2, 3, 9), (torch.randn(2, 3, 9),), [torch.randn(2, 3, 9)]])
def test_fold_takes_an_example_alone_or_in_a_tuple(example: object) -> None:
    network = nn.Sequential(*block(3, 4), nn.Conv1d(4, 2, 1))
    before = copy.deepcopy(network.state_dict())
    folded, report = fold(network, example)
    assert report.affines_after == batchnorms(folded) == 0
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("model", [3, None, nn.Conv1d, b"net.onnx"])
def test_anything_else_is_refused(model: object) -> None:
    with pytest.raises(
        TypeError, match=r"expected a torch.nn.Module, an onnx.ModelProto, an onnx_ir.Model or the path"
    ):
        fold(model)  # type: ignore[call-overload]


def test_a_loop_over_a_length_is_refused_in_the_words_of_the_user_and_the_advice_works() -> None:
    class Looped(nn.Module):
        def __init__(self, whole: Any) -> None:
            super().__init__()
            self.body, self.whole = nn.Sequential(*block(3, 4), nn.Conv1d(4, 2, 1)), whole

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return torch.stack([y[:, :, n] * (n + 1) for n in range(self.whole(y.shape[-1]))])

    x = torch.randn(2, 3, 9)
    with pytest.raises(FoldError, match=r"Write int\(\) around the size.*Or export it with") as refused:
        fold(Looped(lambda size: size), x)
    assert "_Known" not in str(refused.value)
    network = Looped(int).eval()
    folded, report = fold(network, x)
    assert report.affines_after == 0
    assert torch.allclose(folded(x), network(x), atol=1e-4)

"""Checkpoints that hold more than weights: what is beside the weights is left out, and no code of it runs."""

from __future__ import annotations

import argparse
import enum
import functools
import pickle
import subprocess
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.export.errors import CheckpointError
from normfold.export.sources.weights import load_into, read_checkpoint


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)


class Attributes(dict[str, Any]):
    """A dict whose entries are attributes too, as Lightning and others write their arguments."""


class Mode(enum.Enum):
    FAST = 1


class Arguments:
    def __init__(self) -> None:
        self.mode, self.rate = Mode.FAST, 0.1


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def trained() -> Net:
    torch.manual_seed(1)
    return Net()


BESIDE = {
    "a namespace": (lambda: argparse.Namespace(rate=0.1, data=Path("/data")), "argparse.Namespace"),
    "a class of the training code": (Arguments, f"{__name__}.Arguments"),
    "a dict of another class": (lambda: Attributes(rate=0.1), f"{__name__}.Attributes"),
    "a default dict": (lambda: defaultdict(list, {"loss": [0.5]}), "collections.defaultdict"),
    "a NumPy number": (lambda: np.float64(0.5), "numpy"),
    "a NumPy array": (lambda: np.arange(5), "numpy"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_objects_beside_the_weights_are_left_out_and_named(tmp_path: Path, trained: Net, kind: str) -> None:
    make, named = BESIDE[kind]
    state = {f"model.{k}": v for k, v in trained.state_dict().items()}
    path, network = tmp_path / "last.ckpt", Net()
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"all": make()}}, path)
    checkpoint = read_checkpoint(path, network.state_dict())
    load_into(network, checkpoint, path)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in trained.state_dict().items())
    assert "objects that were left out, and no code of theirs was run: " in checkpoint.notes[-1]
    assert f"'{named}" in checkpoint.notes[-1]


def test_no_function_that_a_checkpoint_names_is_called(tmp_path: Path, trained: Net) -> None:
    path, marker = tmp_path / "w.pt", tmp_path / "ran"
    for function, arguments in (
        (exec, (f"open({str(marker)!r}, 'w')",)),
        (open, (str(marker), "w")),
        (subprocess.call, (["touch", str(marker)],)),
        (np.save, (str(marker), 1)),
    ):
        torch.save({"model": trained.state_dict(), "extra": Runs(function, *arguments)}, path)
        checkpoint = read_checkpoint(path, Net().state_dict())
        assert checkpoint.tensors.keys() == trained.state_dict().keys()
        assert "no code of theirs was run" in checkpoint.notes[-1]
        assert not any(tmp_path.glob("ran*"))


def test_after_a_file_with_objects_torch_refuses_what_it_refused_before(tmp_path: Path, trained: Net) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": trained.state_dict(), "args": argparse.Namespace(rate=0.1)}, path)
    read_checkpoint(path, Net().state_dict())
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


class Quantity(torch.Tensor):
    """A weight of the training code's own class."""


@pytest.mark.parametrize(
    ("content", "needed"),
    [
        (lambda s: nn.Sequential(nn.Conv1d(1, 1, 1)), r"torch\.nn\.modules\.container\.Sequential"),
        (lambda s: {"model": nn.Linear(1, 1), "best": torch.ones(1)}, r"torch\.nn\.modules\.linear\.Linear"),
        (lambda s: {**s, "conv.bias": s["conv.bias"].numpy()}, r"numpy\S+"),
        (lambda s: {**s, "conv.bias": Arguments()}, r"\S+\.Arguments"),
        (lambda s: {**s, "conv.bias": s["conv.bias"].as_subclass(Quantity)}, r"\S+\.Quantity"),
        (lambda s: {"model": s, "step": functools.partial(print, 1)}, r"functools\.partial"),
    ],
    ids=[
        "a whole network",
        "a network under a key",
        "an array as weight",
        "an object as weight",
        "a subclass",
        "partial",
    ],
)
def test_where_the_weights_need_code_the_file_is_refused(
    tmp_path: Path, trained: Net, content: Callable[[Any], Any], needed: str
) -> None:
    path = tmp_path / "w.pt"
    torch.save(content(OrderedDict(trained.state_dict())), path)
    with pytest.raises(
        CheckpointError, match=rf"running code from inside it \(it needs {needed}\), so it was not opened"
    ):
        read_checkpoint(path, Net().state_dict())


def test_numbers_beside_the_tensors_are_no_part_of_the_network(tmp_path: Path, trained: Net) -> None:
    path, network = tmp_path / "w.pt", Net()
    state = {k: 7 if k.endswith("num_batches_tracked") else v for k, v in trained.state_dict().items()}
    torch.save({**state, "epoch": 3}, path)
    load_into(network, read_checkpoint(path, network.state_dict()), path)
    assert torch.equal(network.conv.weight, trained.conv.weight)

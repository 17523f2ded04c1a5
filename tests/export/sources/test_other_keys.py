"""Checkpoints whose keys are not exactly the network's, and which torch or safetensors load all the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from normfold.export.errors import CheckpointError
from normfold.export.sources.weights import Checkpoint, load_into, read_checkpoint, takes

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


def old_form() -> nn.Module:
    """A network with ``torch.nn.utils.weight_norm`` (keys ``0.weight_g``, ``0.weight_v``), and random numbers."""
    torch.manual_seed(3)
    network = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv1d(2, 3, 3)), nn.BatchNorm1d(3)).eval()
    with torch.no_grad():
        network[0].weight_g.uniform_(0.5, 2)
        network[1].running_mean.normal_()
    return network


def new_form() -> nn.Module:
    """The same network with ``parametrizations.weight_norm``, whose hook renames these keys."""
    return nn.Sequential(parametrizations.weight_norm(nn.Conv1d(2, 3, 3)), nn.BatchNorm1d(3)).eval()


def read(path: Path, network: nn.Module, key: str = "") -> Checkpoint:
    return read_checkpoint(path, network.state_dict(), key, accepts=partial(takes, network))


def loaded(path: Path, network: nn.Module, key: str = "") -> Checkpoint:
    checkpoint = read(path, network, key)
    load_into(network, checkpoint, path)
    return checkpoint


@pytest.mark.parametrize(
    "nest",
    [
        lambda s: s,
        lambda s: {"generator": s, "steps": 3},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {
            "state_dict": {**{f"vocoder.{k}": v for k, v in s.items()}, "discriminator.0.weight_g": torch.ones(3)}
        },
    ],
    ids=["alone", "under a key", "behind a prefix", "beside another network"],
)
def test_a_checkpoint_of_the_old_weight_norm_is_taken_as_torch_takes_it(tmp_path: Path, nest: Any) -> None:
    old, new, path, x = old_form(), new_form(), tmp_path / "w.pt", torch.randn(2, 2, 9)
    torch.save(nest(old.state_dict()), path)
    checkpoint = loaded(path, new)
    torch.testing.assert_close(new(x), old(x))
    assert "the file has other keys than the network, whose own load_state_dict takes them" in checkpoint.notes


def test_of_two_networks_in_the_old_form_a_key_chooses(tmp_path: Path) -> None:
    state, path = old_form().state_dict(), tmp_path / "w.pt"
    torch.save({"net": state, "ema": {k: v * 2 for k, v in state.items()}}, path)
    with pytest.raises(CheckpointError, match="hold 2 networks that fit: 'net', 'ema'"):
        read(path, new_form())
    network = new_form()
    loaded(path, network, "ema")
    assert torch.equal(network[0].bias, state["0.bias"] * 2)
    torch.save({"net": state, "ema": dict(state)}, path)
    loaded(path, network)  # they are equal
    assert torch.equal(network[0].bias, state["0.bias"])


class Renames(nn.Module):
    """Takes its files of two years ago, where 'out' was 'classifier' and a table of positions was in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        state.pop(f"{prefix}positions", None)
        for key in [k for k in state if k.startswith(f"{prefix}classifier.")]:
            state[key.replace("classifier.", "out.")] = state.pop(key)


class Loads(nn.Module):
    """The same by ``_load_from_state_dict``."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        Renames.rename(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *others)


@pytest.mark.parametrize("kind", [Renames, Loads])
@pytest.mark.parametrize("renamed", [False, True], ids=["a key too many", "another name"])
def test_keys_that_the_network_itself_renames_or_drops_are_taken(
    tmp_path: Path, kind: type[nn.Module], renamed: bool
) -> None:
    torch.manual_seed(1)
    trained, network, path = kind(), kind(), tmp_path / "w.safetensors"
    state = {(k.replace("out.", "classifier.") if renamed else k): v for k, v in trained.state_dict().items()}
    save_file({**state, "positions": torch.arange(5)}, path)
    loaded(path, network)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in trained.state_dict().items())


def test_a_file_that_the_network_does_not_take_leaves_it_as_it_was_and_is_refused(tmp_path: Path) -> None:
    network, path = Renames(), tmp_path / "w.pt"
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = {k.replace("out.bias", "classifier.offset"): v + 1 for k, v in network.state_dict().items()}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"'out\.bias' is not in the file\n"):
        loaded(path, network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


class Lenient(nn.Linear):
    """Leaves out what does not fit without a word: this is no answer to whether the file is the network's."""

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({k: v for k, v in state.items() if k in self.state_dict()}, strict=False)


def test_a_network_that_leaves_out_weights_does_not_take_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"bias": torch.zeros(2), "kernel": torch.zeros(2, 4)}, path)
    with pytest.raises(CheckpointError, match="the network's 'weight' is not in the file"):
        loaded(path, Lenient(4, 2))


class Copying(nn.Sequential):
    """Copies the weights that the file has, and says nothing of the others."""

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        own = self.state_dict()
        for key, weight in state.items():
            if key in own:
                own[key].copy_(weight)


def test_a_network_that_copies_what_it_finds_takes_a_file_with_all_its_weights_only(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return Copying(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Conv1d(3, 2, 1)).eval()

    state, path = network().state_dict(), tmp_path / "w.pt"
    torch.save({**state, "discriminator.weight": torch.ones(3)}, path)
    assert torch.equal(loaded(path, network()).tensors["0.weight"], state["0.weight"])
    torch.save({k: v for k, v in state.items() if k != "2.weight"}, path)
    with pytest.raises(CheckpointError, match=r"the network's '2\.weight' is not in the file"):
        loaded(path, network())


def test_weights_that_are_nan_are_refused_under_other_keys_too(tmp_path: Path) -> None:
    state, path = old_form().state_dict(), tmp_path / "w.pt"
    state["0.weight_g"][1] = float("nan")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"'0\.weight_g' hold NaN"):
        loaded(path, new_form())


class Versioned(nn.Module):
    """Until version 2 its files held the weight turned round."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, local: Any, *others: Any) -> None:
        if local.get("version") is None:
            state[f"{prefix}weight"] = state[f"{prefix}weight"].t()
        super()._load_from_state_dict(state, prefix, local, *others)  # type: ignore[misc]


@pytest.mark.parametrize("beside", [{}, {"epoch": 3}], ids=["alone", "beside a number"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_version_of_a_layers_format_reaches_the_layer(tmp_path: Path, prefix: str, beside: dict[str, int]) -> None:
    trained, network, path = nn.Sequential(Versioned()), nn.Sequential(Versioned()), tmp_path / "w.pt"
    state = (nn.ModuleDict({"module": trained}) if prefix else trained).state_dict()
    state.update(beside)
    torch.save(state, path)
    loaded(path, network)
    assert torch.equal(network[0].weight, trained[0].weight)


class Tied(nn.Module):
    """Its table is its last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bn, self.out = nn.Embedding(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 9, bias=False)
        self.out.weight = self.table.weight


@pytest.mark.parametrize("prefix", ["", "module."])
def test_of_tied_weights_one_key_in_the_file_is_enough(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(2)
    trained, network, path = Tied(), Tied(), tmp_path / "w.safetensors"
    save_model(nn.ModuleDict({"module": trained}) if prefix else trained, str(path))
    loaded(path, network)
    assert torch.equal(network.out.weight, trained.table.weight)
    assert network.out.weight is network.table.weight


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    state, path = dict(Tied().state_dict()), tmp_path / "w.pt"
    torch.save({**state, "out.weight": state["table.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match=r"'table\.weight', 'out\.weight' are one tensor in the network, but"):
        loaded(path, Tied())
    torch.save({"net": state, "ema": {**state, "out.weight": state["table.weight"] + 1}}, path)
    with pytest.raises(CheckpointError, match="hold 2 networks that fit"):
        read(path, Tied())


@pytest.mark.parametrize("dropped", ["out.weight", "table.weight"])
def test_tied_weights_are_found_and_compared_by_either_key(tmp_path: Path, dropped: str) -> None:
    trained, network, path = Tied(), Tied(), tmp_path / "w.pt"
    state = trained.state_dict()
    one = {k: v for k, v in state.items() if k != dropped}
    torch.save({"net": state, "copy": one}, path)
    loaded(path, network)  # they are equal
    torch.save({"net": one, "ema": {k: v * 2 for k, v in state.items()}}, path)
    with pytest.raises(CheckpointError, match="hold 2 networks that fit"):
        read(path, network)


def test_weights_that_are_only_equal_are_not_tied(tmp_path: Path) -> None:
    network, path = Tied(), tmp_path / "w.safetensors"
    network.out.weight = nn.Parameter(network.table.weight.detach().clone())
    save_file({k: v for k, v in network.state_dict().items() if k != "out.weight"}, path)
    with pytest.raises(CheckpointError, match=r"'out\.weight' is not in the file"):
        loaded(path, network)


def test_the_advice_on_how_to_write_weights_works_for_tied_weights(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "w.pt").write_bytes(b"no weights")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "w.pt")
    advice = str(caught.value).partition("write the network's weights with ")[2].split(" or ")
    monkeypatch.chdir(tmp_path)
    import safetensors

    for line, file in zip(advice, ("weights.pt", "weights.safetensors"), strict=True):
        network, again = Tied(), Tied()
        exec(line, {"torch": torch, "safetensors": safetensors, "network": network})
        loaded(Path(file), again)
        assert torch.equal(again.out.weight, network.table.weight)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("wrapped", "head"),
    [
        ("body._orig_mod.", "head."),
        ("body.module.", "head."),
        ("body._orig_mod.module.", "head.module."),
        ("module.body._checkpoint_wrapped_module.", "module.head."),
        ("_fsdp_wrapped_module.body._fsdp_wrapped_module.", "_fsdp_wrapped_module.head."),
    ],
)
def test_wrappers_of_parts_are_taken_out_of_the_keys(tmp_path: Path, wrapped: str, head: str) -> None:
    torch.manual_seed(4)
    trained, network, path = Parts(), Parts(), tmp_path / "w.pt"
    state = trained.state_dict()
    torch.save({k.replace("body.", wrapped).replace("head.", head): v for k, v in state.items()}, path)
    checkpoint = loaded(path, network)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in state.items())
    assert any("the names of wrappers" in note for note in checkpoint.notes)


def test_of_two_networks_one_of_them_wrapped_a_key_chooses(tmp_path: Path) -> None:
    network, path = Parts(), tmp_path / "w.pt"
    state = network.state_dict()
    torch.save({"net": state, "ema": {k.replace("body.", "body.module."): v * 2 for k, v in state.items()}}, path)
    with pytest.raises(CheckpointError, match="hold 2 networks that fit: 'net', 'ema'"):
        read(path, network)


def test_a_layer_with_the_name_of_a_wrapper_keeps_it(tmp_path: Path) -> None:
    trained, network, path = nn.ModuleDict({"module": Parts()}), nn.ModuleDict({"module": Parts()}), tmp_path / "w.pt"
    torch.save(trained.state_dict(), path)
    assert loaded(path, network).notes == ()


def test_two_networks_are_not_mixed_where_a_wrapper_is_taken_out(tmp_path: Path) -> None:
    network, path = Parts(), tmp_path / "w.pt"
    state = network.state_dict()
    part = {k: v for k, v in state.items() if k != "body.0.weight"}
    torch.save({**part, **{k.replace("body.", "body.module."): v * 2 for k, v in state.items()}}, path)
    with pytest.raises(CheckpointError, match="do not fit the network"):
        loaded(path, network)


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_weights_in_several_files_are_refused_with_how_to_join_them(tmp_path: Path, end: str, monkeypatch: Any) -> None:
    import glob

    import safetensors

    monkeypatch.chdir(tmp_path)
    trained, network = Parts(), Parts()
    items = list(trained.state_dict().items())
    for number, part in enumerate((dict(items[:4]), dict(items[4:])), 1):
        write = save_file if end == "safetensors" else torch.save
        write(part, f"model-0000{number}-of-00002.{end}")
    index = Path(f"model.{end}.index.json")
    index.write_text('{"metadata": {}, "weight_map": {}}')
    with pytest.raises(CheckpointError, match="only lists the files that hold the weights together; join the parts in"):
        loaded(index, network)
    with pytest.raises(CheckpointError, match=r"the file is part 1 of 2; join the parts in one file:") as caught:
        loaded(Path(f"model-00001-of-00002.{end}"), network)
    advice = str(caught.value).partition("join the parts in one file: ")[2].partition("\n")[0]
    exec(advice, {"glob": glob, "torch": torch, "safetensors": safetensors})
    (written,) = tmp_path.glob("weights.*")
    loaded(written, network)
    assert torch.equal(network.head.weight, trained.head.weight)


def test_a_directory_and_a_numpy_archive_are_refused_with_what_to_give(tmp_path: Path, monkeypatch: Any) -> None:
    import numpy

    monkeypatch.chdir(tmp_path)
    trained, network, directory = Parts(), Parts(), tmp_path / "best"
    directory.mkdir()
    save_file(trained.state_dict(), directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is a directory, not a file; give .*best/model\.safetensors'"):
        loaded(directory, network)
    (directory / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match=r"dcp_to_torch_save\('.*best', 'weights\.pt'\)"):
        loaded(directory, network)
    numpy.savez("w.npz", **{k: v.numpy() for k, v in trained.state_dict().items()})
    with pytest.raises(CheckpointError, match="is a NumPy archive, not a torch file; write ") as caught:
        loaded(Path("w.npz"), network)
    exec(str(caught.value).partition("; write ")[2], {"torch": torch, "numpy": numpy})
    loaded(Path("weights.pt"), network)
    assert torch.equal(network.head.weight, trained.head.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_in_another_precision_become_the_networks_own(tmp_path: Path, dtype: torch.dtype) -> None:
    trained, network, path = Parts(), Parts(), tmp_path / "w.safetensors"
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    save_file(state, path)
    loaded(path, network)
    assert network.head.weight.dtype == torch.float32
    assert torch.equal(network.head.weight, state["head.weight"].float())

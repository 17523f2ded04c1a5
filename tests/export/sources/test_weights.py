from __future__ import annotations

import ast
import hashlib
import io
import os
import pickle
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import normfold.export
from normfold.export.errors import CheckpointError
from normfold.export.sources.weights import Checkpoint, load_into, read_checkpoint


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 4, 3)
        self.conv1_bn = nn.BatchNorm1d(4)


Change = Callable[[torch.Tensor], torch.Tensor]


class Evil:
    """Touches a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (os.mkdir, (str(self.marker),))


@pytest.fixture
def trained() -> Net:
    torch.manual_seed(1)
    net = Net()
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value))
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("nest", "note"),
    [
        (lambda s: s, None),
        (lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}}, "under 'state_dict'"),
        (lambda s: {"model": s}, "under 'model'"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "'module.' was taken off"),
        (lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, "'module._orig_mod.' was taken off"),
        (lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}}, "'model.' was taken off"),
        (
            lambda s: {"state_dict": {**{f"backbone.{k}": v for k, v in s.items()}, "loss.weight": torch.ones(2)}},
            "'loss.weight' are not part of the network",
        ),
    ],
)
def test_weights_are_found_where_training_frameworks_put_them(tmp_path, trained, nest, note) -> None:
    path = tmp_path / "weights.pt"
    torch.save(nest(trained.state_dict()), path)
    net = Net()
    checkpoint = read_checkpoint(path, net.state_dict())
    load_into(net, checkpoint, path)
    assert same(net, trained)
    assert note is None or any(note in n for n in checkpoint.notes)


def test_weights_in_float64_are_rounded(tmp_path, trained) -> None:
    path = tmp_path / "weights.pt"
    torch.save({k: v.double() / 3 if v.is_floating_point() else v for k, v in trained.state_dict().items()}, path)
    net = Net()
    load_into(net, read_checkpoint(path, net.state_dict()), path)
    assert torch.equal(net.conv1_bn.running_mean, (trained.conv1_bn.running_mean.double() / 3).float())


def test_a_weight_and_a_view_of_it_of_another_shape_are_two_keys(tmp_path) -> None:
    net = Net()
    net.register_buffer("flat", net.conv1.weight.detach().view(4, 9))
    path = tmp_path / "weights.pt"
    torch.save(net.state_dict(), path)
    load_into(net, read_checkpoint(path, net.state_dict()), path)
    torch.save({k: v for k, v in net.state_dict().items() if k != "flat"}, path)
    with pytest.raises(CheckpointError, match="the network's 'flat' is not in the file"):
        load_into(net, read_checkpoint(path, net.state_dict()), path)


def average(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v * 2 for k, v in state.items()}


SEVERAL = {
    "keys": (lambda s: {"net": s, "ema": average(s)}, "'net', 'ema'", "ema"),
    "prefixes": (
        lambda s: {
            "state_dict": {**{f"student.{k}": v for k, v in s.items()}, **{f"teacher.{k}": v * 2 for k, v in s.items()}}
        },
        "'state_dict.student', 'state_dict.teacher'",
        "teacher",
    ),
    "below a prefix": (
        lambda s: {**{f"model.{k}": v for k, v in s.items()}, **{f"ema_model.module.{k}": v * 2 for k, v in s.items()}},
        "'model', 'ema_model.module'",
        "ema_model.module.",
    ),
    "beside": (
        lambda s: {"state_dict": s, "state_dict_ema": average(s)},
        "'state_dict', 'state_dict_ema'",
        "state_dict_ema",
    ),
    "deep": (
        lambda s: {"state_dict": s, "callbacks": {"ema": {"weights": average(s)}}},
        "'callbacks.ema.weights'",
        "weights",
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_networks_that_fit_a_key_chooses_and_without_it_all_are_named(tmp_path, trained, kind: str) -> None:
    write, named, key = SEVERAL[kind]
    path, net = tmp_path / "last.ckpt", Net()
    torch.save(write(trained.state_dict()), path)
    with pytest.raises(CheckpointError, match=r"hold 2 networks that fit: .*Choose one with --weights-key") as caught:
        read_checkpoint(path, net.state_dict())
    assert named in str(caught.value)
    load_into(net, read_checkpoint(path, net.state_dict(), key), path)
    assert torch.equal(net.conv1.weight, trained.conv1.weight * 2)
    with pytest.raises(CheckpointError, match=r"hold no network called 'best' .*they hold "):
        read_checkpoint(path, net.state_dict(), "best")


def test_equal_networks_and_one_of_another_shape_need_no_key(tmp_path, trained) -> None:
    state, path, net = trained.state_dict(), tmp_path / "last.ckpt", Net()
    other = {k: v.repeat(2) if v.ndim == 1 else v for k, v in state.items()}
    torch.save({"model": other, "state_dict": state, "copy": dict(state)}, path)
    load_into(net, read_checkpoint(path, net.state_dict()), path)
    assert same(net, trained)
    with pytest.raises(CheckpointError, match="the file has"):
        load_into(net, read_checkpoint(path, net.state_dict(), "model"), path)


def test_safetensors_and_the_legacy_torch_form_give_the_same_weights(tmp_path, trained) -> None:
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    torch.save(trained.state_dict(), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt"):
        net = Net()
        load_into(net, read_checkpoint(tmp_path / name), tmp_path / name)
        assert same(net, trained)


def test_missing_unexpected_and_misshapen_keys_are_listed_with_near_misses(tmp_path, trained) -> None:
    state = trained.state_dict()
    state["conv1_batchnorm.weight"] = state.pop("conv1_bn.weight")
    state["conv1.bias"] = torch.zeros(5)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_into(Net(), read_checkpoint(path), path)
    message = str(caught.value)
    assert "'conv1_bn.weight' is not in the file; the file has 'conv1_batchnorm.weight'" in message
    assert "the file's 'conv1_batchnorm.weight' [4] is not in the network" in message
    assert "conv1.bias: the file has [5], the network [4]" in message


def test_weights_that_are_nan_are_refused(tmp_path, trained) -> None:
    state = trained.state_dict()
    state["conv1.weight"][0, 0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=re.escape("'conv1.weight' hold NaN")):
        load_into(Net(), read_checkpoint(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")


@pytest.mark.parametrize("without_protection", ["0", "1"])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw pickle", "whole module", "tar", "nested", "TorchScript"])
def test_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch, form: str, without_protection: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", without_protection)
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    evil = Evil(marker)
    if form == "zip":
        torch.save(evil, path)
    elif form == "nested":
        torch.save({"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": evil}, path)
    elif form == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif form == "raw pickle":
        path.write_bytes(pickle.dumps(evil))
    elif form == "whole module":
        torch.save(nn.Sequential(nn.Conv1d(1, 1, 1)), path)
    elif form == "TorchScript":
        torch.jit.script(nn.ReLU()).save(str(tmp_path / "honest.pt"))
        with zipfile.ZipFile(tmp_path / "honest.pt") as honest, zipfile.ZipFile(path, "w") as changed:
            for entry in honest.namelist():
                changed.writestr(entry, pickle.dumps(evil) if entry.endswith("data.pkl") else honest.read(entry))
    else:
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("pickle")
            content = pickle.dumps(evil)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    if form in ("zip", "legacy", "whole module", "nested"):
        needed = "torch.nn.modules.container.Sequential" if form == "whole module" else f"{os.name}.mkdir"
        assert f"running code from inside it (it needs {needed})" in str(caught.value)
        assert "save_model" in str(caught.value)


def test_one_flipped_byte_anywhere_in_the_weights_is_refused(tmp_path, trained) -> None:
    path = tmp_path / "weights.pt"
    torch.save({k: v.repeat(64) if v.ndim == 1 else v for k, v in trained.state_dict().items()}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        data = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size > 200]
    rng = random.Random(0)
    for _ in range(50):
        entry = rng.choice(data)
        name_length, extra_length = (int.from_bytes(whole[entry.header_offset + o :][:2], "little") for o in (26, 28))
        begin = entry.header_offset + 30 + name_length + extra_length
        at = begin + rng.randrange(entry.file_size)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)


@pytest.mark.parametrize("cut", [0, 1, 7, 100, 0.5, 0.99])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_truncated_file_is_refused(tmp_path, trained, name: str, cut: float) -> None:
    path = tmp_path / name
    torch.save(trained.state_dict(), path) if name == "w.pt" else save_file(trained.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="compressed zip"):
        read_checkpoint(path)


def test_a_tensor_that_claims_a_hundred_terabytes_takes_no_memory(tmp_path) -> None:
    import json
    import resource
    import struct

    header = json.dumps({"w": {"dtype": "F32", "shape": [25 * 10**12], "data_offsets": [0, 10**14]}}).encode()
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"hello, this is a text file", "neither a safetensors nor a torch file"),
        (b"Irish\nCzech\n", "neither a safetensors nor a torch file"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_so(tmp_path, content: bytes, expected: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        read_checkpoint(tmp_path / "w.pt")


def test_a_missing_file_names_the_nearest_and_a_directory_is_refused(tmp_path) -> None:
    (tmp_path / "surnames.safetensors").touch()
    with pytest.raises(CheckpointError, match="did you mean"):
        read_checkpoint(tmp_path / "surname.safetensors")
    with pytest.raises(CheckpointError, match="directory"):
        read_checkpoint(tmp_path)


def test_objects_that_are_not_weights_are_named(tmp_path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "dict.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="its keys are 'epoch', 'lr'"):
        read_checkpoint(tmp_path / "dict.pt")
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="holds no state_dict; it is empty"):
        read_checkpoint(tmp_path / "empty.pt")


def test_a_torchscript_program_is_answered_with_how_to_go_on(tmp_path) -> None:
    torch.jit.script(nn.ReLU()).save(str(tmp_path / "program.pt"))
    with pytest.raises(CheckpointError, match=r"torch\.jit\.load"):
        read_checkpoint(tmp_path / "program.pt")


def test_the_package_never_unpickles_freely() -> None:
    """Every torch.load passes weights_only=True explicitly, and nothing else in the package runs what it reads."""
    forbidden = {"pickle": {"load", "loads", "Unpickler"}, "dill": set(), "joblib": set(), "shelve": set()}
    for file in Path(normfold.export.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "torch.serialization.add_safe_globals"), f"{file}:{node.lineno}"
                module, _, attribute = name.partition(".")
                assert attribute not in forbidden.get(module, set()), f"{file}:{node.lineno}"
                if name == "torch.load":
                    literal = {k.arg: k.value for k in node.keywords}["weights_only"]
                    assert isinstance(literal, ast.Constant), f"{file}:{node.lineno}"
                    assert literal.value is True, f"{file}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"dill", "joblib", "shelve"}, f"{file}:{node.lineno}"


def test_a_flipped_bit_in_a_safetensors_file_is_noticed_by_its_digest(tmp_path, trained) -> None:
    path = tmp_path / "w.safetensors"
    save_file(trained.state_dict(), path)
    whole = path.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    for written in (digest, digest.upper()):
        assert read_checkpoint(path, Net().state_dict(), sha256=written).sha256 == digest
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    load_into(Net(), read_checkpoint(path, Net().state_dict()), path)  # nothing in the file shows it
    with pytest.raises(CheckpointError, match=f"but --weights-sha256 is {digest}: this is another file, or it was"):
        read_checkpoint(path, Net().state_dict(), sha256=digest)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.LazyConv1d(4, 3)
        self.conv1_bn = nn.LazyBatchNorm1d()


def test_lazy_layers_take_the_shapes_of_the_file(trained: Net, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, path)
    network = Lazy()
    load_into(network, read_checkpoint(path, network.state_dict()), path)
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])


def test_a_key_that_lazy_layers_miss_is_named(trained: Net, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({k.replace("conv1_bn", "bn1"): v for k, v in trained.state_dict().items()}, path)
    network = Lazy()
    with pytest.raises(CheckpointError, match=r"'conv1_bn.weight' is not in the file; the file has 'bn1.weight'"):
        load_into(network, read_checkpoint(path, network.state_dict()), path)


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (lambda w: w.to_sparse(), "sparse_coo"),
        (lambda w: w.to("meta"), "without numbers (meta)"),
        (lambda w: w.to(torch.complex64), "complex64"),
        (lambda w: w.to(torch.int8), "int8"),
    ],
)
def test_weights_that_are_no_floats_are_refused(trained: Net, tmp_path: Path, change: Change, form: str) -> None:
    state = trained.state_dict()
    torch.save({**state, "conv1.weight": change(state["conv1.weight"])}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"'conv1.weight' is {re.escape(form)}, and float32 in"):
        load_into(Net(), read_checkpoint(tmp_path / "odd.pt", state), tmp_path / "odd.pt")


class Buffers(nn.Module):
    """A network with buffers that checkpoints keep in other types."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(2))
        self.register_buffer("mask", torch.zeros(2))
        self.register_buffer("small", torch.zeros(1, dtype=torch.float16))
        self.register_buffer("places", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("on", torch.zeros(2, dtype=torch.bool))
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(module: nn.Module, state: dict[str, torch.Tensor], *_: object) -> None:
        if "gain" in state:
            state["scale"] = state.pop("gain")


@pytest.mark.parametrize(
    "given",
    [
        {"mask": torch.tensor([True, False])},
        {"mask": torch.tensor([3, 1], dtype=torch.uint8)},
        {"scale": torch.tensor([1.5, 2.0], dtype=torch.bfloat16)},
        {"scale": torch.tensor([1.5, 2.0], dtype=torch.float64)},
        {"places": torch.tensor([1.0, 2.0])},
        {"places": torch.tensor([1, 0], dtype=torch.int8)},
        {"on": torch.tensor([1, 0])},
    ],
)
def test_other_types_with_the_same_numbers_are_taken(tmp_path: Path, given: dict[str, torch.Tensor]) -> None:
    network = Buffers()
    load_into(network, Checkpoint({**Buffers().state_dict(), **given}, ""), tmp_path)
    for name, tensor in given.items():
        assert network.state_dict()[name].tolist() == tensor.tolist()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"places": torch.tensor([1.5, 2.0])}, "'places' is float32, and int64 in the network"),
        ({"places": torch.tensor([1 + 2j, 2])}, "'places' is complex64"),
        ({"on": torch.tensor([0.5, 0.0])}, "'on' is float32, and bool"),
        ({"mask": torch.tensor([1j, 1])}, "'mask' is complex64"),
        ({"mask": torch.tensor([2**24 + 1, 0])}, "'mask' is int64"),
        ({"small": torch.tensor([-(2**63)])}, "'small' is int64"),
        ({"scale": torch.tensor([1, 2])}, "'scale' is int64, and float32"),
        ({"gain": torch.ones(2), "mask": torch.tensor([1j, 1])}, "'mask' is complex64"),
    ],
)
def test_other_types_that_lose_numbers_are_refused_also_where_hooks_rename_keys(
    tmp_path: Path, given: dict[str, torch.Tensor], words: str
) -> None:
    state = {k: v for k, v in Buffers().state_dict().items() if k != "scale" or "gain" not in given}
    with pytest.raises(CheckpointError, match=words):
        load_into(Buffers(), Checkpoint({**state, **given}, ""), tmp_path)

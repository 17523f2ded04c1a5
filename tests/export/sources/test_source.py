from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normfold.export.errors import CaptureError, CheckpointError, SourceError
from normfold.export.inputs.samples import read_sample
from normfold.export.sources.named import split_source
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Request
from normfold.export.sources.source import load_source

NETS = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, channels, kernel=3):
        super().__init__()
        self.conv = nn.Conv1d(channels, 4, kernel)
    def forward(self, x):
        return self.conv(x)

def build(channels: int = 2):
    return Tiny(channels).eval()

ready = Tiny(5)
number = 7
def broken():
    raise ValueError("no such size")
def not_a_network():
    return [1, 2]
"""


@pytest.fixture
def nets(directory: Path) -> Path:
    file = directory / "mynets.py"
    file.write_text(NETS)
    return file


def test_a_class_a_factory_and_a_ready_module_each_give_a_network_in_evaluation_mode(nets: Path) -> None:
    made = load_source("mynets.py:Tiny", {"channels": 3})
    assert made.network.conv.in_channels == 3
    assert load_source("mynets:build").network.conv.in_channels == 2
    ready = load_source(f"{nets}:ready")
    assert ready.network.conv.in_channels == 5
    assert not made.network.training
    assert not ready.network.training
    assert "training mode" in ready.notes[0]
    assert made.notes == ()


def test_a_source_is_named_without_its_directory_and_by_the_digest_of_its_file(nets: Path) -> None:
    source = load_source(f"{nets}:build")
    assert source.name == "mynets.py:build"
    assert source.sha256 == hashlib.sha256(NETS.encode()).hexdigest()


def test_a_file_in_a_package_imports_its_siblings_relatively(directory: Path) -> None:
    package = directory / "research" / "nets"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("from torch import nn\nlayer = nn.Conv1d(1, 1, 1)\n")
    (package / "whole.py").write_text("from .parts import layer\nfrom torch import nn\nnet = nn.Sequential(layer)\n")
    assert len(load_source("research/nets/whole.py:net").network) == 1


@pytest.mark.parametrize("name", ["export", "models", "serving", "protos", "cli"])
def test_a_users_module_named_like_a_folder_of_ours_is_theirs_not_ours(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    (directory / f"{name}.py").write_text("from torch import nn\nnet = nn.Conv1d(1, 9, 1)\n")
    (directory / "run.py").write_text(f"from {name} import net\n")
    for text in (f"{name}:net", f"{name}.py:net", "run.py:net"):
        assert load_source(text).network.out_channels == 9
    assert sys.modules["normfold.export"].__name__ == "normfold.export"


def test_a_file_named_like_a_loaded_module_does_not_replace_it(directory: Path) -> None:
    import random

    (directory / "random.py").write_text("from torch import nn\nnet = nn.Conv1d(1, 2, 1)\n")
    assert load_source("random.py:net").network.out_channels == 2
    import random as again

    assert again is random


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mynets.py", "The file defines Tiny, "),
        ("others.py", "expected FILE.py:NAME or package.module:NAME, for example others.py:SurnameCNN"),
        ("mynets.py:", "expected FILE.py:NAME"),
        ("mynet.py:Tiny", "did you mean 'mynets.py'"),
        ("mynets.py:Tinny", "did you mean 'Tiny'"),
        ("mynets.py:Zzzzzz", "the networks it defines: Tiny, ready"),
        ("nosuchmodule:Tiny", "no module 'nosuchmodule'"),
        ("no such:Tiny", "neither a Python module's name"),
        ("mynets.py:Tiny", "--arg channels=…"),
        ("mynets.py:number", "is an int; expected a torch.nn.Module"),
        ("mynets.py:not_a_network", "made a list"),
        ("mynets.py:broken", "mynets.py:18 in broken"),
    ],
)
def test_a_source_that_cannot_be_used_says_why_and_what_to_type(nets: Path, text: str, expected: str) -> None:
    with pytest.raises(SourceError) as caught:
        load_source(text)
    assert expected in str(caught.value)


def test_a_function_of_any_keywords_takes_them_all(nets: Path) -> None:
    nets.write_text(NETS + "\ndef free(**options):\n    return Tiny(**options)\n")
    network = load_source("mynets.py:free", {"channels": 3, "kernel": 5}).network
    assert network.conv.weight.shape == (4, 3, 5)


def test_a_file_that_is_no_python_code_is_refused(nets: Path) -> None:
    nets.rename(nets.with_suffix(".txt"))
    with pytest.raises(SourceError, match=r"^'mynets\.txt' is no file of Python code: its name must end in \.py$"):
        load_source("./mynets.txt:ready")


def test_an_argument_that_the_factory_does_not_take_names_the_nearest(nets: Path) -> None:
    with pytest.raises(SourceError, match="has no argument 'chanels'; did you mean 'channels'"):
        load_source("mynets.py:build", {"chanels": 3})
    with pytest.raises(SourceError, match="takes no --arg"):
        load_source("mynets.py:ready", {"channels": 3})


OF_CONFIG = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from torch import nn

if TYPE_CHECKING:
    from collections import OrderedDict

@dataclass
class Config:
    channels: int = 8

class Net(nn.Sequential):
    def __init__(self, config: Config, depth: int):
        super().__init__(nn.Conv1d(1, config.channels, depth))

def build(file: Path, sizes: list[int], more: OrderedDict):
    return Net(Config(), 3)

def ready():
    return Net(Config(), 3)
"""


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("Net", {}, "needs config, depth, and no option gives config: write a function without arguments that makes"),
        ("Net", {"config": 8, "depth": 3}, "Options give numbers, texts, lists and dicts; write a function without"),
        ("build", {}, "needs file, sizes, more: add --arg file=… --arg sizes=… --arg more=…"),
    ],
)
def test_a_network_made_from_an_object_needs_a_function(
    directory: Path, name: str, arguments: dict[str, Any], expected: str
) -> None:
    """--arg was advised for it, which gives no objects."""
    (directory / "of_config.py").write_text(OF_CONFIG)
    with pytest.raises(SourceError) as refused:
        load_source(f"of_config.py:{name}", arguments)
    assert expected in str(refused.value)
    assert load_source("of_config.py:ready").kind == "function"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys\nsys.exit(3)\n", "runs as a script when imported"),
        (
            "import nosuchpackage.inner\n",
            f"No module named 'nosuchpackage'. If it is a package, install it for {sys.executable}; "
            "if it is code of yours, set PYTHONPATH to the folder that holds nosuchpackage",
        ),
        (
            "get_ipython().run_line_magic('matplotlib', 'inline')\n",
            "name 'get_ipython' is not defined. Only Jupyter defines it: delete the lines of the notebook itself",
        ),
        ("x = 1\n1/0\n", "bad.py:2"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_a_file_that_fails_on_import_says_where(directory: Path, code: str, expected: str) -> None:
    (directory / "bad.py").write_text(code)
    with pytest.raises(SourceError) as caught:
        load_source("bad.py:net")
    assert expected in str(caught.value)


def test_a_part_that_an_installed_package_lacks_asks_for_no_installation(directory: Path) -> None:
    (directory / "bad.py").write_text("import numpy.nosuchpart\n")
    with pytest.raises(SourceError, match=r"ModuleNotFoundError: No module named 'numpy\.nosuchpart'$"):
        load_source("bad.py:net")


def test_the_last_colon_separates_the_attribute() -> None:
    assert split_source("a/b.py:C.build") == ("a/b.py", "C.build")


EVAL = """
import functools
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU())

class Plain(nn.Module):
    def forward(self, x):
        return x * 2

partial = functools.partial(Net)
ready = Net()

def build():
    return Net()

def new_head():
    net = Net().eval()
    net.append(nn.BatchNorm1d(8))
    return net

def fused():
    return torch.ao.quantization.fuse_modules(Net().eval(), [["0", "1", "2"]])

def scripted():
    return torch.jit.script(Net())

class Ecg(nn.Module):
    def forward(self, ecg):
        return ecg * 2

class Nothing(nn.Module):
    def forward(self, x):
        x * 2

def brain():
    return nn.Conv1d(3, 2, 3).bfloat16()
"""


def test_what_no_graph_can_hold_is_refused_with_what_to_do(directory: Path) -> None:
    (directory / "nets.py").write_text(EVAL)
    with pytest.raises(SourceError, match=r"are bfloat16, which no input .* call \.float\(\) .* --dtype bf16"):
        open_origin(Request("nets.py:brain", inputs=("input=FP32[N,3,L]",)), [])
    with pytest.raises(CaptureError, match="returns no tensor: does its forward"):
        open_origin(Request("nets.py:Nothing", inputs=("x=FP32[N,3]",)), []).run({"x": np.zeros((2, 3), np.float32)})


def test_a_sample_without_a_name_is_the_first_argument_of_forward(directory: Path) -> None:
    (directory / "nets.py").write_text(EVAL)
    np.save(directory / "one.npy", np.zeros((1, 3, 9), np.float32))
    sample = read_sample(directory / "one.npy")
    assert str(open_origin(Request("nets.py:Ecg"), [sample]).specs[0]) == "ecg=FP32[N,3,9]"
    assert str(open_origin(Request("nets.py:build"), [sample]).specs[0]) == "input=FP32[N,3,9]"
    note = "forward(ecg) has no argument 'x', so the inputs are passed to it in order"
    assert open_origin(Request("nets.py:Ecg", inputs=("x=FP32[N,3,9]",)), [sample]).notes == (note,)
    assert note not in open_origin(Request("nets.py:Ecg", inputs=("ecg=FP32[N,3,9]",)), [sample]).notes


def test_eval_reaches_every_module_also_one_that_came_later(directory: Path) -> None:
    (directory / "nets.py").write_text(EVAL)
    for name, first in (("new_head", "'3' of the network"), ("fused", "'0' of the network"), ("build", "the network")):
        source = load_source(f"nets.py:{name}")
        assert not any(module.training for module in source.network.modules())
        assert source.notes == (f"{first} came in training mode; it was set to eval(), as it runs when served",)
    assert load_source("nets.py:Net").notes == ()
    with pytest.raises(SourceError, match="made a TorchScript program; it cannot be captured any more"):
        load_source("nets.py:scripted")


def test_a_class_without_weights_is_refused_unless_untrained_is_meant(directory: Path, tmp_path: Path) -> None:
    (directory / "nets.py").write_text(EVAL)

    def notes(name: str, **options: Any) -> tuple[str, ...]:
        return open_origin(Request(f"nets.py:{name}", inputs=("input=FP32[N,3,L]",), **options), []).notes

    for name in ("Net", "partial"):
        with pytest.raises(CheckpointError, match=r"is a class, so its weights are random numbers.* say --untrained"):
            notes(name)
        assert notes(name, untrained=True)[-1].startswith("--untrained: the network was exported with")
    assert notes("build")[-1] == "no --weights: the network was exported with the weights that 'nets.py:build' returned"
    assert notes("ready")[-1].endswith("the weights that 'nets.py:ready' has")
    assert open_origin(Request("nets.py:Plain", inputs=("x=FP32[N,3,L]",)), []).notes == ()

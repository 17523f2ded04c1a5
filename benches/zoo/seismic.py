"""Networks that pick seismic phases: U-Nets, pre-activation residual stacks, ReLU before BatchNorm."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benches.zoo.network import Network, one_output

if TYPE_CHECKING:
    from torch import nn


def seisbench(name: str, module: str = "", *, first: bool = False, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of seisbench's networks; with ``first``, only the first of its outputs."""

    def build() -> nn.Module:
        made: nn.Module = getattr(importlib.import_module(f"seisbench.models{module}"), name)(**options)
        return one_output(made) if first else made

    return build


def fixed(name: str, samples: int, module: str = "", *, first: bool = False) -> Network:
    build = seisbench(name, module, first=first)
    return Network(f"seisbench_{name.lower()}", "seisbench", build, ("N", 3, samples), ({"N": 2}, {"N": 3}))


NETWORKS = (
    fixed("PhaseNet", 3001),
    fixed("PhaseNetLight", 3001),
    Network(
        "seisbench_variablelengthphasenet",
        "seisbench",
        seisbench("VariableLengthPhaseNet"),
        ("N", 3, "L"),
        ({"N": 2, "L": 2048}, {"N": 3, "L": 1333}),
    ),
    fixed("EQTransformer", 6000, first=True),
    fixed("OBSTransformer", 6000, first=True),
    fixed("GPD", 400),
    fixed("DPPDetector", 500, ".dpp"),
    fixed("Skynet", 30000),
    Network("seisbench_cred", "seisbench", seisbench("CRED"), ("N", 3, 151, 41), ({"N": 2}, {"N": 3})),
)

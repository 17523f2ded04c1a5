"""The variants of a graph that ``normfold export`` makes, and which of them it would publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from benches.zoo.network import Network
from numpy.typing import NDArray

from normfold.export.capture.capture import capture
from normfold.export.capture.max_pool import restore_max_pool
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.capture.tidy import strip, tidy
from normfold.export.errors import CaptureError
from normfold.export.fold import fold
from normfold.export.forms.variants import choose, made_anew
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.inputs.specs import parse_input

if TYPE_CHECKING:
    from torch import nn

UNFOLDED, FOLDED = "unfolded", "folded"


def captured(network: Network, module: nn.Module, unfolded: Path) -> ir.Model:
    """Return the graph as ``normfold export`` captures it, before the fold.

    Where a network bounds its length, the capture wants that bound from the user. Then this returns the zoo's file: its
    exporter finds the bound by itself.
    """
    shape = ",".join(map(str, network.shape))
    try:
        return capture(NamedNetwork(module, ["x"]), [parse_input(f"x=FP32[{shape}]")], network.sizes[0])
    except CaptureError:
        model = ir.load(unfolded)
        tidy(model, [value.name or "" for value in model.graph.outputs])
        restore_max_pool(model)
        return model


def forms(model: ir.Model) -> dict[str, bytes]:
    """Return the graph as it is, the folded graph, and the result of each rewrite that changes the folded graph."""
    working = unrounded(model) or model
    made = {UNFOLDED: Graph.of(working)}
    fold(working)
    strip(working)
    made[FOLDED] = Graph.of(working)
    made |= dict(made_anew(made[UNFOLDED], made[FOLDED]))
    return {name: graph.content for name, graph in made.items()}


def published(made: dict[str, bytes], x: NDArray[np.float32], threads: int = 1) -> str:
    """Return the name of the variant that the export would publish (``--threads``), by the export's own timing."""
    name = onnx.load_model_from_string(made[FOLDED]).graph.input[0].name
    return choose(made, {name: x}, remeasure=True, threads=threads).variant

"""The forms that ``normfold export`` makes of a graph, and which of them it would publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.fold import fold
from normfold.export.serialize import to_bytes
from normfold.export.tidy import strip
from normfold.export.variants import REWRITES, choose

FOLDED = "folded"


def forms(unfolded: Path) -> dict[str, bytes]:
    """Return the graph as it is, folded, and the folded one by every rewrite that changes it."""
    model = ir.load(unfolded)
    made = {"unfolded": to_bytes(model)}
    fold(model)
    strip(model)
    made[FOLDED] = to_bytes(model)
    for name, rewrite in REWRITES.items():
        other = ir.from_proto(onnx.load_model_from_string(made[FOLDED]))
        if rewrite(other):
            made[name] = to_bytes(other)
    return made


def published(made: dict[str, bytes], x: NDArray[np.float32]) -> str:
    """Return the name of the form that the export would publish, timed as it times."""
    name = onnx.load_model_from_string(made[FOLDED]).graph.input[0].name
    variants, _ = choose(made, {name: x})
    return next(variant.name for variant in variants if variant.published)

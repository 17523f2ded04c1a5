"""Where do two graphs that should compute the same part ways? Asked only after a proof has failed.

Folding moves per-channel affines about, so an inner value of the folded graph is that of the unfolded one up to a
scale and a shift for each channel (and perhaps a carrier channel more). A value that no such map explains, while all
before it are explained, is where the fault lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from normfold.export.errors import ExportError
from normfold.export.graphs.runtime import Runtime
from normfold.export.sources.origin import Arrays

__all__ = ["first_divergence", "unexplained"]

#: Share of a value's spread that a per-channel affine must leave unexplained to count as another value. float32's own
#: noise in deep networks reaches 1e-4 of it (ill-conditioned ones 8e-4).
THRESHOLD = 2e-3


def first_divergence(unfolded: bytes, folded: bytes, inputs: Arrays) -> str | None:
    """Return "'encoder.conv2' (Conv, value 'conv1d_1'): …" for the first value that differs, or None."""
    before, after = onnx.load_model_from_string(unfolded), onnx.load_model_from_string(folded)
    shared = {o for n in before.graph.node for o in n.output} & {o for n in after.graph.node for o in n.output}
    try:
        a, b = (Runtime(_with_outputs(m, shared), optimised=False).run(inputs) for m in (before, after))
    except ExportError:
        return None
    for node in before.graph.node:
        for name in node.output:
            if name in shared and (share := unexplained(a[name], b[name])) > THRESHOLD:
                module = next((p.value for p in node.metadata_props if p.key == "normfold.module"), node.name)
                where = f"'{module}' ({node.op_type}, value '{name}')"
                return f"{where}: {share:.1%} of it is not the same up to scale and shift"
    return None


def unexplained(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The share of ``b``'s spread that no per-channel affine of ``a`` explains; channels are axis 1."""
    if a.dtype.kind != "f" or a.ndim != b.ndim or a.size == 0:
        return 0.0
    if a.ndim > 1 and b.shape[1] > a.shape[1]:
        b = b[:, : a.shape[1]]  # carrier channels come last
    if a.shape != b.shape:
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    axes = tuple(i for i in range(a.ndim) if i != 1) if a.ndim > 1 else None
    x, y = a.astype(np.float64), b.astype(np.float64)
    x = x - x.mean(axes, keepdims=True)
    y = y - y.mean(axes, keepdims=True)
    power = (x * x).sum(axes, keepdims=True)
    slope = np.divide((x * y).sum(axes, keepdims=True), power, out=np.zeros_like(power), where=power > 0)
    residual = float(np.abs(y - slope * x).max())
    spread = float(np.abs(y).max())
    return residual / spread if spread > 0 else 0.0


def _with_outputs(model: onnx.ModelProto, names: set[str]) -> bytes:
    """The model with inner values as outputs; onnxruntime infers their types itself."""
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(names - present))
    return bytes(model.SerializeToString())

"""Error and run time of an ONNX file in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


def session(
    path: Path | bytes, *, optimise: bool = False, threads: int = 1, profile: Path | None = None
) -> ort.InferenceSession:
    """Return a session on the CPU that runs the graph as written; ``optimise`` turns on all of onnxruntime's rewrites.

    ``profile``: the beginning of the name of a file for onnxruntime's profile.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Off by default: the optimiser would fold the BatchNorms that the files are compared by.
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    model = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference over the largest expected magnitude; infinite for a wrong shape or a NaN."""
    if got.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    difference = np.abs(got.astype(np.float64) - expected)
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max() / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny))

"""One input and its answer, kept beside the graph: a server replays them before it says that the model is ready."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.proof.verify import Case
from normfold.protos.datatypes import by_dtype

__all__ = ["MAX_BYTES", "golden", "golden_case"]

#: Larger tensors are not worth replaying at every start.
MAX_BYTES = 1 << 18
#: How far another machine's float32 kernels may be from the answer, relative to the output's largest value.
RELATIVE_TOLERANCE = 1e-3


def golden_case(cases: Sequence[Case]) -> Case:
    """The case to keep: the first of the user's samples that is small, else the first small one, else the first."""
    small = [c for c in cases if sum(a.nbytes for a in c.inputs.values()) <= MAX_BYTES]
    return next((c for c in small if c.kind == "sample"), (small or list(cases))[0])


def golden(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> bytes:
    """Return ``golden.json``: tensors as name, datatype, shape and base64 of their bytes, and the tolerance."""
    content = {
        "schema": 1,
        "relative_tolerance": RELATIVE_TOLERANCE,
        "inputs": [_tensor(n, a) for n, a in inputs.items()],
        "outputs": [_tensor(n, a) for n, a in outputs.items()],
    }
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _tensor(name: str, array: NDArray[Any]) -> dict[str, Any]:
    datatype = by_dtype(array.dtype)
    data = np.ascontiguousarray(array.astype(datatype.dtype)).tobytes()
    return {
        "name": name,
        "datatype": datatype.name,
        "shape": list(array.shape),
        "data": base64.b64encode(data).decode(),
    }

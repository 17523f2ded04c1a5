"""One input and its answer, kept beside the graph: a server runs the input before it reports the model as ready."""

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

#: Inputs of more bytes would make each start of a server too slow.
MAX_BYTES = 1 << 18
#: Largest accepted difference between another machine's answer and this one, relative to the output's largest value.
RELATIVE_TOLERANCE = 1e-3


def golden_case(cases: Sequence[Case]) -> Case:
    """Return the case to keep: the user's first small sample, else the first small case, else the first case."""
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

"""One input and its answer, kept beside the graph: a server runs the input before it reports the model as ready."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.proof.verify import Case, Verification
from normfold.protos.datatypes import by_dtype

__all__ = ["MAX_BYTES", "golden", "golden_case", "tolerance"]

#: Inputs of more bytes would make each start of a server too slow.
MAX_BYTES = 1 << 18
#: Times the rounding bound that another machine's kernels may be from the answer: they are one rounding more, of the
#: network and of the answer that is kept.
FACTOR = 2.0
#: At least this much where the file is in fewer bits than float32: another machine may have other kernels for these.
FEWER_BITS = 1e-3


def golden_case(cases: Sequence[Case]) -> Case:
    """Return the case to keep: the user's first small sample, else the first small case, else the first case."""
    small = [c for c in cases if sum(a.nbytes for a in c.inputs.values()) <= MAX_BYTES]
    return next((c for c in small if c.kind == "sample"), (small or list(cases))[0])


def tolerance(rounding: Verification, kind: str, fewer_bits: Verification | None) -> float:
    """Return how far an answer to a case of ``kind`` may be from the recorded one, relative to its largest value.

    rounding is the proof of the float32 file; fewer_bits is what a reduced precision costs, where there is one.
    """
    if fewer_bits is not None:
        return max(FEWER_BITS, *(d.relative for d in fewer_bits.differences))
    return FACTOR * max(d.bound for d in rounding.differences if d.kind == kind)


def golden(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], relative_tolerance: float) -> bytes:
    """Return ``golden.json``: tensors as name, datatype, shape and base64 of their bytes, and the tolerance."""
    content = {
        "schema": 1,
        "relative_tolerance": relative_tolerance,
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

"""The golden answer: what a model answered when it was exported, which it must answer again before it is ready.

``golden.json`` is beside the model file. It has ``inputs`` and ``outputs``, lists of ``name``, ``datatype``, ``shape``
and ``data`` (base64 of raw contents), and ``relative_tolerance``: the largest difference between a float output and
its golden answer, relative to the output's largest value. Kernels of another machine round differently, but by less
than this; the answers of a damaged or exchanged model differ by far more.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos.datatypes import by_name
from normfold.serving.errors import InvalidRequest, LoadError, OutOfMemory
from normfold.serving.runtime.reasons import TOO_LITTLE
from normfold.serving.runtime.session import Session
from normfold.serving.wire.tensors import to_array

Array = NDArray[Any]

#: Kinds of NumPy dtypes whose values can be compared as numbers.
NUMERIC = "fiub"


def replay(session: Session, data: bytes) -> dict[str, Array] | None:
    """Run ``session`` on the inputs in ``data``, the content of golden.json, and return these inputs.

    Returns None, without a run, where a tensor is not of numbers. Raises LoadError where the answer differs.
    """
    try:
        content = json.loads(data)
        tolerance = float(content["relative_tolerance"])
        inputs, expected = (dict(map(_tensor, content[side])) for side in ("inputs", "outputs"))
    except (ValueError, KeyError, TypeError, RecursionError, InvalidRequest, binascii.Error) as error:
        raise LoadError(f"golden.json cannot be read: {error}") from None
    if any(array.dtype.kind not in NUMERIC for array in (*inputs.values(), *expected.values())):
        return None
    try:
        answers = session.run(inputs, list(expected))
    except (InvalidRequest, KeyError) as error:
        raise LoadError(f"golden.json does not belong to this model: {error}") from None
    except OutOfMemory:
        raise LoadError(f"a run of its golden input {TOO_LITTLE}") from None
    for (name, wanted), answer in zip(expected.items(), answers, strict=True):
        _compare(name, answer, wanted, tolerance)
    return inputs


def _tensor(entry: dict[str, Any]) -> tuple[str, Array]:
    datatype = by_name(entry["datatype"])
    shape = tuple(int(size) for size in entry["shape"])
    data = base64.b64decode(entry["data"], validate=True)
    return str(entry["name"]), to_array(data, shape, datatype, entry["name"], "")


def _compare(name: str, answer: Array, wanted: Array, tolerance: float) -> None:
    if answer.shape != wanted.shape or answer.dtype != wanted.dtype:
        raise LoadError(
            f"the golden answer of output {name!r} is {wanted.dtype}{list(wanted.shape)}, "
            f"the model gives {answer.dtype}{list(answer.shape)}"
        )
    if wanted.dtype.kind != "f":
        if not np.array_equal(answer, wanted):
            raise LoadError(f"output {name!r} is not the golden answer")
        return
    wide, truth = answer.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(truth)
    if not np.array_equal(wide[~finite], truth[~finite], equal_nan=True):
        raise LoadError(f"output {name!r} is not the golden answer where that is not finite")
    off = float(np.abs(wide[finite] - truth[finite]).max(initial=0.0))
    bound = tolerance * float(np.abs(truth[finite]).max(initial=0.0))
    if not off <= bound:
        raise LoadError(f"output {name!r} is off the golden answer by {off:.3g}, allowed is {bound:.3g}")

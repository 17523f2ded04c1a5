"""The golden answer: what a model answered when it was exported, which it must answer again before it is ready.

``golden.json`` is beside the model file. It has ``inputs`` and ``outputs``, lists of ``name``, ``datatype``, ``shape``
and ``data`` (base64 of raw contents), and ``relative_tolerance``: the largest difference between a float output and
its golden answer, relative to the output's largest value. Kernels of another machine round differently, but by less
than this; the answers of a damaged or exchanged model differ by far more.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos.datatypes import by_name
from normfold.serving.errors import Hindered, InvalidRequest, LoadError, OutOfMemory
from normfold.serving.runtime.reasons import TOO_LITTLE
from normfold.serving.runtime.session import Session
from normfold.serving.wire.tensors import to_array
from normfold.serving.wording import quoted

Array = NDArray[Any]

#: Kinds of NumPy dtypes whose values can be compared as numbers.
NUMERIC = "fiub"
#: The keys that the file must have, and those of each of its tensors.
_CONTENT, _TENSOR = ("relative_tolerance", "inputs", "outputs"), ("name", "datatype", "shape", "data")


def replay(session: Session, data: bytes) -> dict[str, Array] | None:
    """Run ``session`` on the inputs in ``data``, the content of golden.json, and return these inputs.

    Returns None, without a run, where a tensor is not of numbers. Raises LoadError where the answer differs.
    """
    try:
        tolerance, inputs, expected = _read(data)
    except (ValueError, OverflowError, RecursionError, InvalidRequest) as error:
        raise LoadError(f"golden.json cannot be read: {error}") from None
    if any(array.dtype.kind not in NUMERIC for array in (*inputs.values(), *expected.values())):
        return None
    for side, named, known in (("input", inputs, session.inputs), ("output", expected, session.outputs)):
        if other := sorted(named.keys() - {tensor.name for tensor in known}):
            raise LoadError(f"golden.json does not belong to this model, which has no {side} {quoted(other[0])}")
    if missing := sorted({tensor.name for tensor in session.inputs if not tensor.optional} - inputs.keys()):
        raise LoadError(f"golden.json does not belong to this model: it has no input {quoted(missing[0])}")
    try:
        answers = session.run(inputs, list(expected))
    except InvalidRequest as error:
        raise LoadError(f"golden.json does not belong to this model: {error}") from None
    except OutOfMemory:
        raise Hindered(f"a run of its golden input {TOO_LITTLE}") from None
    for (name, wanted), answer in zip(expected.items(), answers, strict=True):
        _compare(name, answer, wanted, tolerance)
    return inputs


def _read(data: bytes) -> tuple[float, dict[str, Array], dict[str, Array]]:
    """The tolerance, the inputs and the outputs. Raises ValueError, OverflowError, RecursionError or InvalidRequest."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    _require(content, _CONTENT, "it")
    tolerance = content["relative_tolerance"]
    if type(tolerance) not in (int, float):
        raise ValueError(f"relative_tolerance must be a number, got {type(tolerance).__name__}")
    inputs, outputs = (_tensors(content[side], side) for side in ("inputs", "outputs"))
    if not outputs:
        raise ValueError("outputs is empty, so there is nothing to compare")
    return float(tolerance), inputs, outputs


def _tensors(entries: object, side: str) -> dict[str, Array]:
    if not isinstance(entries, list):
        raise ValueError(f"{side} must be a list, got {type(entries).__name__}")
    return dict(_tensor(entry, f"{side}[{number}]") for number, entry in enumerate(entries))


def _tensor(entry: Any, where: str) -> tuple[str, Array]:
    _require(entry, _TENSOR, where)
    name, shape = str(entry["name"]), entry["shape"]
    try:
        datatype = by_name(str(entry["datatype"]))
    except KeyError:
        raise ValueError(f"{where}: datatype {quoted(str(entry['datatype']))} is none of the protocol's") from None
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{where}: shape must be a list of sizes")
    try:
        data = base64.b64decode(entry["data"], validate=True)
    except (ValueError, TypeError):
        raise ValueError(f"{where}: data is not in base64") from None
    return name, to_array(data, tuple(shape), datatype, quoted(name), "")


def _require(value: object, keys: tuple[str, ...], where: str) -> None:
    """Raise ValueError unless ``value`` is an object of JSON with these keys."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with {', '.join(keys)}, got {type(value).__name__}")
    if missing := [key for key in keys if key not in value]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")


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

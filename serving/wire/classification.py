"""The classification extension: the best classes of each row as text, with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.serving.wire.turns import pieces


def classify(
    scores: NDArray[Any], count: int, labels: Sequence[str], batched: bool, datatype: str = "FP32"
) -> NDArray[Any]:
    """The ``count`` highest scores of each row, best first, as bytes ``value:index`` or ``value:index:label``.

    ``scores`` has the shape (N, ...) if ``batched``, and is one row otherwise. The answer is (N, k) or (k,), where k is
    ``count`` or, if that is less, the number of classes. Equal scores keep their order; NaN comes last.
    """
    rows = scores.reshape(len(scores), math.prod(scores.shape[1:])) if batched else scores.reshape(1, scores.size)
    if datatype == "BF16":
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    count = min(count, rows.shape[1])
    answer = np.empty((len(rows), count), object)
    for row, values in enumerate(rows):
        best = _best(values)[:count]
        for piece in pieces(count):
            answer[row, piece] = [_text(values[index], int(index), labels).encode() for index in best[piece]]
    return answer if batched else answer[0]


def _best(values: NDArray[Any]) -> NDArray[np.intp]:
    """The indices of ``values`` from the highest to the lowest; NumPy sorts NaN to the end."""
    if values.dtype.kind in "iu":
        return len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]  # unsigned numbers cannot be negated
    return np.argsort(-values.astype(np.float64), kind="stable")


def _text(value: Any, index: int, labels: Sequence[str]) -> str:
    shown = str(value.item()) if value.dtype.kind in "iu" else f"{float(value):f}"
    return f"{shown}:{index}:{labels[index]}" if index < len(labels) else f"{shown}:{index}"


def read_labels(data: bytes) -> tuple[str, ...]:
    """The labels in a file, one in each line; the last line may have no end of line, the first a byte order mark."""
    lines = data.decode("utf-8-sig").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return tuple(line.rstrip("\r") for line in lines)

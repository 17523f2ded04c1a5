"""Which operators lose most in int8: they stay in float32 where the whole network in int8 loses too much.

Each linear operator is quantised alone, and the outputs are compared with those in float32, on inputs that calibrate.
Most often one or two are to blame, the first and the last, and to keep those costs little time: the first reads the
input, whose rare values matter, and the last gives the answer, which nothing behind it smooths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from normfold.export.errors import ExportError
from normfold.export.forms.int8 import named, quantized
from normfold.export.graphs.runtime import Runtime

__all__ = ["keeping", "most_sensitive"]

Arrays = Mapping[str, NDArray[Any]]
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Operators that are tried, from both ends of a longer network, and inputs that each is tried on.
TRIED, INPUTS = 64, 8


def keeping(content: bytes, inputs: Sequence[Arrays]) -> Iterator[tuple[str, ...]]:
    """Yield names of operators of the float32 graph to keep: 1, 2, 4, … of them, at most half; the worst come first.

    Nodes without a name get one (:func:`normfold.export.forms.int8.named`).
    """
    order = most_sensitive(content, inputs)
    number = 1
    while number <= len(order) // 2:
        yield tuple(order[:number])
        number *= 2


def most_sensitive(content: bytes, inputs: Sequence[Arrays]) -> list[str]:
    """Return the names of the linear operators, first the one whose weights and data in int8 move an output most.

    How far an output moves is its largest difference over its largest value.
    """
    names = [node.name for node in named(onnx.load_model_from_string(content)).graph.node if node.op_type in LINEAR]
    if len(names) > TRIED:
        names = [*names[: TRIED // 2], *names[-TRIED // 2 :]]
    some = list(inputs)[:: max(1, len(inputs) // INPUTS)][:INPUTS]
    full = Runtime(content, optimised=True)
    answers = [full.run(x) for x in some]
    moved = {name: _alone(content, name, some, answers) for name in names}
    return sorted(names, key=lambda name: -moved[name])


def _alone(content: bytes, name: str, inputs: Sequence[Arrays], answers: Sequence[Arrays]) -> float:
    """Return how far the outputs move where one operator alone is in int8; infinity where it cannot be."""
    try:
        run = Runtime(quantized(content, inputs, only=name), optimised=True).run
    except ExportError:
        return float("inf")
    largest = 0.0
    for x, exact in zip(inputs, answers, strict=True):
        for output, y in run(x).items():
            scale = float(np.abs(exact[output]).max(initial=0.0)) if y.dtype.kind == "f" else 0.0
            if scale > 0:
                largest = max(largest, float(np.abs(y - exact[output]).max()) / scale)
    return largest

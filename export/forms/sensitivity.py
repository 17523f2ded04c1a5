"""Which operators lose most in int8: those that cost little in float32 stay there, others only where too much is lost.

What moves an output is most often the rounding of an activation, and all operators that read it suffer together. So
operators that read one value are a *group*: they are quantised alone, the outputs are compared with those in float32 on
inputs that calibrate, and they stay in float32 together. The network's input is the usual example: its numbers are few,
so its readers cost little, and 8 bits of it are the least that any layer gets to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from normfold.export.errors import ExportError
from normfold.export.forms.int8 import named, quantized
from normfold.export.forms.ranges import with_outputs
from normfold.export.graphs.runtime import Runtime

__all__ = ["BUDGET", "LINEAR", "Group", "cheap_to_keep", "difference", "groups_of", "keeping", "scale_of"]

Arrays = Mapping[str, NDArray[Any]]
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Groups that are tried, from both ends of a longer network, and inputs that each is tried on.
TRIED, INPUTS = 64, 8
#: The part of a network's multiply-adds that may stay in float32 where its error is already small enough.
BUDGET = 0.1
#: A group that gives less than this part of the sum of all squared errors is not worth two more conversions.
LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Group:
    """The linear operators that read one value, with what they cost and lose."""

    #: The names of the nodes, in the graph's order.
    names: tuple[str, ...]
    #: Their part of the network's multiply-adds.
    work: float
    #: How far an output moves where they alone are in int8: the largest difference over its largest value.
    moved: float


def groups_of(
    content: bytes, inputs: Sequence[Arrays], ranges: Mapping[str, tuple[float, float]] | None = None
) -> list[Group]:
    """Return the groups of a float32 graph, the one that moves an output most first; infinity where it cannot be tried.

    Nodes without a name get one (:func:`normfold.export.forms.int8.named`). ranges are those of
    :func:`normfold.export.forms.int8.quantized`.
    """
    model = named(onnx.load_model_from_string(content))
    readers: dict[str, list[str]] = {}
    held = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in LINEAR:
            read = next((name for name in node.input if name not in held), "")
            readers.setdefault(read, []).append(node.name)
    tried = list(readers.values())
    if len(tried) > TRIED:
        tried = [*tried[: TRIED // 2], *tried[-TRIED // 2 :]]
    some = list(inputs)[:: max(1, len(inputs) // INPUTS)][:INPUTS]
    full = Runtime(content, optimised=True)
    answers = [full.run(x) for x in some]
    work = _work(model, inputs[0])
    total = max(sum(work.values()), 1.0)
    groups = [
        Group(tuple(names), sum(work[n] for n in names) / total, _alone(content, names, some, answers, inputs, ranges))
        for names in tried
    ]
    return sorted(groups, key=lambda group: -group.moved)


def cheap_to_keep(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the names of operators to keep: at most BUDGET of the work, most error for a multiply-add first."""
    total = sum(group.moved**2 for group in groups if np.isfinite(group.moved))
    left = BUDGET
    kept: list[str] = []
    for group in sorted(groups, key=lambda group: -(group.moved**2) / max(group.work, 1e-12)):
        if group.work <= left and group.moved**2 > LEAST_SHARE * total and len(groups) > 1:
            left -= group.work
            kept += group.names
    return tuple(kept)


def keeping(groups: Sequence[Group], already: Sequence[str]) -> list[tuple[str, ...]]:
    """Return sets of names to keep beside ``already``: the 1, 2, 4, … worst other groups, at most half of all."""
    rest = [group.names for group in groups if not set(group.names) <= set(already)]
    sets: list[tuple[str, ...]] = []
    number = 1
    while number <= len(groups) // 2 and number <= len(rest):
        sets.append((*already, *(name for names in rest[:number] for name in names)))
        number *= 2
    return sets


def _work(model: onnx.ModelProto, inputs: Arrays) -> dict[str, float]:
    """Return the multiply-adds of each linear node on these inputs; 0 where a shape is not known."""
    nodes = [node for node in model.graph.node if node.op_type in LINEAR]
    sizes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    wanted = [name for node in nodes for name in (*node.input[:2], *node.output[:1]) if name not in sizes]
    graph = with_outputs(bytes(model.SerializeToString()), wanted)
    sizes.update({name: array.shape for name, array in {**inputs, **graph.run(inputs)}.items()})
    work = {}
    for node in nodes:
        x, weight = (sizes.get(name, ()) for name in node.input[:2])
        y = sizes.get(node.output[0], ())
        if node.op_type == "Conv":
            work[node.name] = float(np.prod(y) * np.prod(weight[1:]))
        elif node.op_type == "ConvTranspose":
            work[node.name] = float(np.prod(x) * np.prod(weight[1:]))
        else:
            shared = x[0 if any(a.name == "transA" and a.i for a in node.attribute) else -1] if x else 0
            work[node.name] = float(np.prod(y) * shared)
    return work


def _alone(
    content: bytes,
    names: Sequence[str],
    some: Sequence[Arrays],
    answers: Sequence[Arrays],
    inputs: Sequence[Arrays],
    ranges: Mapping[str, tuple[float, float]] | None,
) -> float:
    """Return how far the outputs move where one group alone is in int8; infinity where it cannot be."""
    try:
        run = Runtime(quantized(content, inputs, only=names, ranges=ranges), optimised=True).run
    except ExportError:
        return float("inf")
    largest = 0.0
    for x, exact in zip(some, answers, strict=True):
        for output, y in run(x).items():
            scale = scale_of(exact[output]) if y.dtype.kind == "f" else 0.0
            if scale > 0:
                largest = max(largest, difference(y, exact[output]) / scale)
    return largest


def difference(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return the largest difference where ``exact`` is a number; infinity where ``found`` is NaN in such a place.

    A network may answer -inf for what is masked, or NaN, where its input has NaN.
    """
    numbers = np.isfinite(exact)
    largest = float(np.abs(found[numbers] - exact[numbers]).max(initial=0.0))
    return largest if largest >= 0 else float("inf")


def scale_of(exact: NDArray[Any]) -> float:
    """Return the largest number of an answer."""
    return float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))

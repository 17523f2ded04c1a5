"""Samples whose scale is far from the training data's, by what the BatchNorms remember of it.

A BatchNorm keeps mean mu and variance var of each channel that it reads, over all of the training data. Samples in
other units than the training data (volts for millivolts, not standardised) show at the first BatchNorms, those with no
other BatchNorm before them. With x a channel that such a BatchNorm reads, and x0 the same where the input is zero,

    r^2 = mean over channels of  E[(x - x0)^2] / (var + eps + (mu - x0)^2)      how large the sample is
    q   = mean over channels of  E[(x - mu)^2] / (var + eps)                    how far it is from the mean

where E is the mean over one row's positions. Over the training data the mean of both is at most 1, because
E[(x - x0)^2] = var + (mu - x0)^2. So, by Markov's inequality and for data of any distribution, at most 1 of 100
training rows has r >= 10, and at most 1 of 100 has q >= 100; of data with Gaussian tails none has. There is no such
bound below: the threshold is the same, r <= 1/10. On the data of both reference networks (3,000 rows) r is from 0.41
to 1.22, and sqrt(q) from 0.47 to 1.21. For a layer that is linear in the input, r is the factor itself.

Statistics of 0 and 1 exactly are those that a BatchNorm begins with: no data made them, and they are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from normfold.export.calibration.rows import parts, rows_of
from normfold.export.errors import ExportError
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import InputSpec
from normfold.export.proof.verify import Arrays, Case

__all__ = ["FARTHEST", "Norm", "norms_of", "unlike_training", "with_norm_inputs"]

#: Times too large or too small, and standard deviations from the mean, from which a row is named.
FARTHEST = 10.0
#: Rows that are computed at once.
AT_ONCE = 32
#: Rows that a warning names; more are counted.
NAMED = 3


@dataclass(frozen=True)
class Norm:
    """A BatchNorm with the statistics of its training data."""

    #: The module's path if the exporter noted it, else the node's name.
    name: str
    #: The value that it reads.
    value: str
    #: Of each channel, (C,); eps is part of ``var``.
    mean: NDArray[np.float64]
    var: NDArray[np.float64]
    #: Whether no BatchNorm is before it.
    first: bool


def norms_of(content: bytes) -> tuple[Norm, ...]:
    """Return the BatchNorms of a graph whose statistics come from data, in the graph's order."""
    graph = onnx.load_model_from_string(content).graph
    held = {t.name: t for t in graph.initializer}
    behind: set[str] = set()
    found = []
    for node in graph.node:
        later = any(name in behind for name in node.input)
        if node.op_type == "BatchNormalization" or later:
            behind.update(node.output)
        if node.op_type != "BatchNormalization" or not all(name in held for name in node.input[3:5]):
            continue
        mean, var = (numpy_helper.to_array(held[name]).astype(np.float64) for name in node.input[3:5])
        if (mean == 0).all() and (var == 1).all():
            continue
        eps = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        module = next((p.value for p in node.metadata_props if p.key == "normfold.module"), node.name or node.output[0])
        found.append(Norm(module, node.input[0], mean, var + eps, not later))
    return tuple(found)


def with_norm_inputs(content: bytes, norms: Sequence[Norm]) -> Runtime:
    """Return the graph with every value that one of ``norms`` reads as a further output."""
    model = onnx.load_model_from_string(content)
    present = {v.name for v in (*model.graph.output, *model.graph.input)}
    new = dict.fromkeys(n.value for n in norms if n.value not in present)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
    return Runtime(bytes(model.SerializeToString()), optimised=False)


def unlike_training(unfolded: bytes, samples: Sequence[Case], specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Return sentences on the rows of ``samples`` that are far from what the BatchNorms were trained on.

    unfolded is the captured float32 graph. Rows with NaN or infinity at a BatchNorm are passed over.
    """
    norms = [norm for norm in norms_of(unfolded) if norm.first]
    if not norms:
        return ()
    graph = with_norm_inputs(unfolded, norms)
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    total = 0
    for case in samples:
        number, single = 0, rows_of(case, specs) == 1
        for piece in parts(case, AT_ONCE, specs):
            rows = rows_of(piece, specs)
            for row, (layer, kind, factor) in _far(graph, norms, piece, rows, specs):
                name = f"sample '{case.name}'" if single else f"row {number + row} of sample '{case.name}'"
                found.setdefault((layer, kind), []).append((name, factor))
            number += rows
        total += number
    return tuple(_sentence(layer, kind, rows, total) for (layer, kind), rows in found.items())


def _far(
    graph: Runtime, norms: Sequence[Norm], case: Case, rows: int, specs: Sequence[InputSpec]
) -> Iterator[tuple[int, tuple[str, str, float]]]:
    """Yield the number of each row that is far off, with the first layer at which it is, and in which way."""
    floats = [s.name for s in specs if s.datatype.dtype.kind == "f"]
    zero = {k: np.zeros_like(v) if k in floats else v for k, v in case.inputs.items()}
    try:
        got, none = _values(graph, case.inputs), _values(graph, zero) if floats else None
    except ExportError:
        return
    reported: set[int] = set()
    for norm in norms:
        x, x0 = got[norm.value], None if none is None else none[norm.value]
        if len(x) % rows or not np.isfinite(x0 if x0 is not None else 0.0).all():
            continue
        still = norm.mean if x0 is None else _by_channel(x0).mean((0, 2))
        large = np.sqrt(_ratios(x, rows, still, norm.var + (norm.mean - still) ** 2)) if x0 is not None else None
        off = np.sqrt(_ratios(x, rows, norm.mean, norm.var))
        for row in range(rows):
            if row in reported or not np.isfinite(off[row]):
                continue
            r = None if large is None else float(large[row])
            if r is not None and r >= FARTHEST:
                what = ("large", r)
            elif r is not None and r <= 1 / FARTHEST:
                what = ("small", 1 / r if r > 0 else np.inf)
            elif off[row] >= FARTHEST:
                what = ("off", float(off[row]))
            else:
                continue
            reported.add(row)
            yield row, (norm.name, *what)


def _values(graph: Runtime, inputs: Arrays) -> Mapping[str, NDArray[Any]]:
    return {**inputs, **graph.run(inputs)}


def _by_channel(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return (B, C, …) as (B, C, positions)."""
    return x.reshape(x.shape[0], x.shape[1], -1).astype(np.float64)


def _ratios(
    x: NDArray[Any], rows: int, centre: NDArray[np.float64], expected: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return for each row the mean over channels of E[(x - centre)^2] / expected; x has some entries of each row."""
    with np.errstate(all="ignore"):
        squares = ((_by_channel(x) - centre[:, None]) ** 2).mean(2).reshape(rows, -1, len(centre)).mean(1)
        ratios: NDArray[np.float64] = (squares / expected).mean(1)
    return ratios


def _sentence(layer: str, kind: str, rows: Sequence[tuple[str, float]], total: int) -> str:
    names = ", ".join(name for name, _ in rows[:NAMED])
    if len(rows) > NAMED:
        names = f"{len(rows)} of {total} rows ({names}, …)"
    verb = "look" if len(rows) > 1 else "looks"
    factor = float(np.median([factor for _, factor in rows]))
    if kind == "off":
        what = f"{verb} {factor:.0f} standard deviations away from the training data"
    elif kind == "small" and factor > 1e6:
        what = f"{verb} as if {'they were' if len(rows) > 1 else 'it was'} all zero"
    else:
        what = f"{verb} {_round(factor)} times too {kind}"
    return f"{names} {what} at layer '{layer}': are the units and the scaling those of the training data?"


def _round(factor: float) -> str:
    """Return the factor with one significant digit: it is an estimate."""
    return f"about {float(f'{factor:.0e}'):,.0f}"

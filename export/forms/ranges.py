"""The ranges of a graph's values on inputs that calibrate, and by how much other inputs may exceed them.

A range that holds every calibrating row is too narrow for other rows: the largest of n maxima is exceeded by the next
row with a probability of about 1/n, and what exceeds it is clipped by as much. So the spread of the rows' own ends
widens a range,

    high = max_r high_r + k sd_r(high_r),     low = min_r low_r - k sd_r(low_r)

over pieces r of the calibrating inputs. For maxima of Gumbel's distribution, deviation sd, the largest of N rows is
expected sd (sqrt(6) / pi) ln(N / n) above that of n rows: k = 1.8 for ten times as many. A value whose rows all end
alike (one-hot input, a saturated sigmoid) keeps its range, whatever k is. Which k is best is measured
(:mod:`normfold.export.forms.calibrated`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from normfold.export.graphs.runtime import Runtime

__all__ = ["Ranges", "ranges_of", "with_outputs"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Ranges:
    """The least and the largest number of each floating-point value on each piece of the calibrating inputs."""

    #: Value -> (pieces, 2): low, high.
    ends: Mapping[str, NDArray[np.float64]]

    @property
    def pieces(self) -> int:
        """The number of pieces."""
        return max((len(ends) for ends in self.ends.values()), default=0)

    def widened(self, k: float) -> dict[str, tuple[float, float]]:
        """Return the range of each value, ``k`` deviations of its rows' ends wider than all of them; 0 is inside."""
        found = {}
        for name, ends in self.ends.items():
            spread = k * ends.std(axis=0)
            low, high = ends[:, 0].min() - spread[0], ends[:, 1].max() + spread[1]
            # What never was negative behind a ReLU never will be.
            low = 0.0 if ends[:, 0].min() >= 0 else min(low, 0.0)
            high = 0.0 if ends[:, 1].max() <= 0 else max(high, 0.0)
            found[name] = (float(low), float(high))
        return found

    def of(self, pieces: slice) -> Ranges:
        """Return the ranges on some of the pieces."""
        return Ranges({name: ends[pieces] for name, ends in self.ends.items()})


def ranges_of(content: bytes, pieces: Sequence[Arrays]) -> Ranges:
    """Run the graph on each piece and return the ranges of all its floating-point values, inputs and outputs too.

    Raises ExportError where the graph does not run.
    """
    graph = with_outputs(content)
    ends: dict[str, list[tuple[float, float]]] = {}
    for piece in pieces:
        for name, array in {**piece, **graph.run(piece)}.items():
            # a value may also be a sequence of arrays, which is a list
            if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size:
                ends.setdefault(name, []).append((float(array.min()), float(array.max())))
    return Ranges({name: np.array(found) for name, found in ends.items() if len(found) == len(pieces)})


def with_outputs(content: bytes, names: Sequence[str] | None = None) -> Runtime:
    """Return the graph, not optimised, with ``names`` as further outputs; without names, every value of its nodes."""
    model = onnx.load_model_from_string(content)
    there = {v.name for v in (*model.graph.output, *model.graph.input)}
    made = [name for node in model.graph.node for name in node.output if name] if names is None else names
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(made) if name not in there)
    return Runtime(bytes(model.SerializeToString()), optimised=False)

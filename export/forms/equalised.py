"""The float32 graphs that int8 may be written from: with branches apart, and equalised, where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.equalised import Channels, equalise
from normfold.export.forms.ranges import with_outputs
from normfold.export.graphs.exact import Graph

__all__ = ["Equalised", "equalised", "other_graphs"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Equalised:
    """The same function in a graph that int8 may hold better."""

    graph: Graph
    #: The layers whose output channels were scaled; () in a graph that only has its branches apart.
    layers: tuple[str, ...]
    #: Whether sums that the fold takes into convolutions are left in the graph.
    apart: bool = False


def other_graphs(
    graph: Graph, apart: Graph | None, pieces: Sequence[Arrays], same: Callable[[Graph], bool]
) -> list[Equalised]:
    """Return the graphs that int8 may hold better than ``graph``; ``apart`` is the one with branches apart.

    Those with branches apart come last. ``pieces`` and ``same`` are those of :func:`equalised`.
    """
    found = [equalised(graph, pieces, same)]
    if apart is not None and same(apart):
        equal = equalised(apart, pieces, same)
        found += [Equalised(apart, (), True), None if equal is None else replace(equal, apart=True)]
    return [one for one in found if one is not None]


def equalised(graph: Graph, pieces: Sequence[Arrays], same: Callable[[Graph], bool]) -> Equalised | None:
    """Return ``graph`` with the scales that fit what its channels hold on ``pieces``; None where none fits better.

    ``same`` says whether a graph is the same function as the network: the proof. A graph that is not, is not returned.
    """
    model = graph.model()
    layers = equalise(model, lambda axes: held_by(graph.content, axes, pieces))
    if not layers:
        return None
    made = Graph.of(model)
    return Equalised(made, layers) if same(made) else None


def held_by(content: bytes, axes: Mapping[str, int], pieces: Sequence[Arrays]) -> dict[str, Channels]:
    """Return what the channels of each value hold on all pieces; ``axes`` has the axis of each value's channels."""
    graph = with_outputs(content, list(axes))
    found: dict[str, list[tuple[NDArray[np.float64], ...]]] = {}
    for piece in pieces:
        values = {**piece, **graph.run(piece)}
        for name, axis in axes.items():
            rows = np.moveaxis(values[name].astype(np.float64), axis, 0)
            rows = rows.reshape(len(rows), -1)
            if rows.size:
                found.setdefault(name, []).append((rows.min(1), rows.max(1), (rows**2).mean(1)))
    return {
        name: Channels(
            np.min([part[0] for part in parts], axis=0),
            np.max([part[1] for part in parts], axis=0),
            np.mean([part[2] for part in parts], axis=0),
        )
        for name, parts in found.items()
        if np.isfinite(parts).all()
    }

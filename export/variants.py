"""The forms of one network that could be published, timed against each other; the fastest that is proved is published.

    unfolded    as it was captured
    folded      every BatchNorm folded that can go
    lifted      the folded graph with what runs along one axis as pictures of height 1 (:data:`REWRITES`)

The folded graph is published unless another is faster beyond what a busy machine can feign, twice in a row: near ties
go to it, so that the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from normfold.export.layout import lift
from normfold.export.measure import Arrays, medians
from normfold.export.runtime import Runtime

__all__ = ["MARGINS", "REWRITES", "Variant", "choose"]

#: Further forms: name -> a rewrite of the folded graph in place, which returns whether it changed anything. Each is
#: proved like the folded graph itself.
REWRITES: dict[str, Callable[[ir.Model], bool]] = {"lifted": lift}
#: How much faster than the folded graph a form must be to be published in its place.
MARGINS: Mapping[str, float] = {"unfolded": 1.15}
DEFAULT_MARGIN = 1.03


@dataclass(frozen=True)
class Variant:
    """One form, measured."""

    name: str
    bytes: int
    median_ms: float
    published: bool


def choose(forms: Mapping[str, bytes], inputs: Arrays) -> tuple[tuple[Variant, ...], int]:
    """Time the forms, "folded" among them; return them, one marked for publication, and the number of rounds."""
    graphs = {name: Runtime(content, optimised=True) for name, content in forms.items()}
    times, rounds = medians(graphs, inputs)
    best = _best(times)
    if best != "folded":
        again, _ = medians({name: graphs[name] for name in ("folded", best)}, inputs, seconds=1.0)
        best = _best(again)
    return tuple(Variant(name, len(forms[name]), ms, name == best) for name, ms in times.items()), rounds


def _best(times: Mapping[str, float]) -> str:
    """The form to publish: the fastest of those that beat the folded graph by their margin, else the folded graph."""
    folded = times["folded"]
    faster = {n: ms for n, ms in times.items() if n != "folded" and ms * MARGINS.get(n, DEFAULT_MARGIN) < folded}
    return min(faster, key=faster.__getitem__) if faster else "folded"

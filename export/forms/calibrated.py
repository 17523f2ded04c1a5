"""One float32 graph in int8, with every choice made on the inputs that calibrate, none on those that measure.

equalised   a graph with equal ranges, or with branches apart (:mod:`normfold.export.forms.equalised`), takes the first
            one's place, if its error is smaller once all else is chosen for both (:func:`better`)
widening    how far the ranges go beyond the rows that were seen (:mod:`normfold.export.forms.ranges`): tried on
            each half of the pieces with the ranges of the other half
kept        operators that lose much and cost little stay in float32 (:mod:`normfold.export.forms.sensitivity`)
corrected   biases make up for the mean error (:mod:`normfold.export.forms.biases`), if the error is smaller then
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.forms.biases import corrected
from normfold.export.forms.int8 import quantized
from normfold.export.forms.ranges import Ranges, ranges_of
from normfold.export.forms.sensitivity import Group, cheap_to_keep, difference, groups_of, keeping, scale_of
from normfold.export.graphs.runtime import Runtime

__all__ = ["Calibrated", "Int8File", "better", "error_between"]

Arrays = Mapping[str, NDArray[Any]]
#: The widenings that are tried, in deviations of the rows' ends, and the one with fewer than four pieces.
WIDENINGS, USUAL = (1.0, 2.0, 4.0, 8.0), 1.0
#: The widest ranges are taken whose error is at most this many times the least: rows are more than were seen here, and
#: a range that is too wide costs digits, one that is too narrow costs the largest numbers.
ROOM = 1.25


@dataclass(frozen=True)
class Int8File:
    """An int8 file and what was done for it."""

    content: bytes
    #: The operators that stayed in float32, by the names of their nodes.
    kept: tuple[str, ...]
    #: Whether biases were corrected.
    corrected: bool


@dataclass
class Calibrated:
    """A float32 graph with the inputs that calibrate it, in pieces: one row each, or a few."""

    content: bytes
    pieces: Sequence[Arrays]
    ranges: Ranges = field(init=False)
    #: Which groups of operators lose most.
    groups: list[Group] = field(init=False)
    #: The operators that always stay in float32.
    kept: tuple[str, ...] = field(init=False)
    #: How far the ranges are widened, in deviations of the rows' ends.
    widening: float = field(init=False)
    #: The error on pieces that the ranges were not taken from; on all pieces where they are too few to be parted.
    unseen_error: float = field(init=False)

    def __post_init__(self) -> None:
        """Raises ExportError where the graph does not run, or no int8 file can be written of it."""
        self.ranges = ranges_of(self.content, self.pieces)
        self._answers = _answers(self.content, self.pieces)
        usual = self.ranges.widened(USUAL)
        quantized(self.content, self.pieces, ranges=usual)  # what cannot be written at all is not tried in parts
        self.groups = groups_of(self.content, self.pieces, usual)
        self.kept = cheap_to_keep(self.groups)
        errors = self._unseen_errors()
        self.widening = max(k for k in errors if errors[k] <= ROOM * min(errors.values()))
        self.unseen_error = errors[self.widening]

    def written(self, kept: Sequence[str] | None = None) -> Int8File:
        """Return the int8 file in which the operators ``kept`` stay in float32 (None: the usual ones)."""
        kept = self.kept if kept is None else tuple(kept)
        ranges = self.ranges.widened(self.widening)
        plain = quantized(self.content, self.pieces, kept, ranges=ranges)
        balanced = corrected(self.content, plain, self.pieces)
        if balanced is not None:
            better = quantized(balanced, self.pieces, kept, ranges=ranges)
            if self.error(better) < self.error(plain):
                return Int8File(better, kept, True)
        return Int8File(plain, kept, False)

    def more_kept(self) -> list[tuple[str, ...]]:
        """Return larger and larger sets of operators to keep, where the usual ones are not enough."""
        return keeping(self.groups, self.kept)

    def error(self, int8: bytes, which: slice = slice(None)) -> float:
        """Return a file's error on the pieces (:func:`error_between`), beside the float32 graph."""
        return error_between(self._answers[which], _answers(int8, self.pieces[which]))

    def _unseen_errors(self) -> dict[float, float]:
        """Return the error for each widening that is tried, on each half of the pieces with the other half's ranges."""
        if len(self.pieces) < 4:
            return {USUAL: self.error(self._in_int8(self.ranges.widened(USUAL)))}
        halves = (slice(0, None, 2), slice(1, None, 2))
        errors = {}
        for k in WIDENINGS:
            found = [
                self.error(self._in_int8(self.ranges.of(seen).widened(k)), unseen)
                for seen, unseen in (halves, halves[::-1])
            ]
            errors[k] = float(np.linalg.norm(found))
        return errors

    def _in_int8(self, ranges: Mapping[str, tuple[float, float]]) -> bytes:
        return quantized(self.content, self.pieces, self.kept, ranges=ranges)


def better(one: Calibrated, other: Calibrated | None, worth: float = 1.0) -> Calibrated:
    """Return the graph of the two, of one function, that has the smaller error in int8, with what is kept by each.

    The other one is taken only where its error is below ``worth`` times that of ``one``. The largest error is not
    enough to judge by before some operators are kept: those may be the ones that lose it.
    """
    return one if other is None or worth * one.unseen_error <= other.unseen_error else other


def _answers(content: bytes, pieces: Sequence[Arrays]) -> list[Arrays]:
    graph = Runtime(content, optimised=True)
    return [graph.run(piece) for piece in pieces]


def error_between(exact: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """Return the root mean square, over pieces, of the largest error on each, over the scale of the output."""
    worst = 0.0
    for name in exact[0]:
        if exact[0][name].dtype.kind == "f":
            scale = max(scale_of(e[name]) for e in exact)
            errors = [difference(f[name], e[name]) for e, f in zip(exact, found, strict=True)]
            worst = max(worst, float(np.sqrt(np.mean(np.square(errors)))) / scale if scale > 0 else 0.0)
    return worst

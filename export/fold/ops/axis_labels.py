"""Labels: the axes of a sum of products with a constant, named as in an Einsum, "nkctv,kvw->nctw"."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_letters

import numpy as np

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.net import Op, Refused


@dataclass(frozen=True)
class AxisLabels:
    """The labels of the axes of the computed input, of the constant and of the result."""

    data: tuple[str, ...]
    constant: tuple[str, ...]
    result: tuple[str, ...]

    @classmethod
    def along(cls, axis: int, rank: int) -> AxisLabels:
        """Return those of a matrix (out, in) that weighs one axis of a tensor."""
        names = tuple(f"axis {a}" for a in range(rank))
        return cls(names, ("out", names[axis]), (*names[:axis], "out", *names[axis + 1 :]))

    @classmethod
    def of_matmul(cls, rank: int, rank_of_constant: int, place: int) -> AxisLabels:
        """Return those of a MatMul with a constant of any rank; ``place`` is that of the computed input."""
        most = max(rank, rank_of_constant)
        batch = [f"batch {a}" for a in range(most - 2)]
        left, right = (rank, rank_of_constant) if place == 0 else (rank_of_constant, rank)
        terms = (*batch[most - left :], "row", "inner"), (*batch[most - right :], "inner", "column")
        return cls(terms[place], terms[1 - place], (*batch, "row", "column"))

    @property
    def adds_up(self) -> bool:
        """Whether entries are added up along an axis that the constant does not weigh."""
        return not set(self.data) <= {*self.constant, *self.result}

    def weighed(self, constant: Array, entries: Array) -> Array:
        """Return the sum of products; ``entries`` has length 1 along each axis where all entries are equal.

        The result has length 1 along each axis of the data alone where that has length 1.
        """
        sizes = dict(zip(self.constant, constant.shape, strict=True))
        whole = np.broadcast_to(entries, [sizes.get(name, n) for name, n in zip(self.data, entries.shape, strict=True)])
        letters = dict(zip(dict.fromkeys((*self.data, *self.constant, *self.result)), ascii_letters, strict=False))
        data, weights, result = (
            "".join(letters[name] for name in names) for names in (self.data, self.constant, self.result)
        )
        product: Array = np.einsum(f"{data},{weights}->{result}", whole, constant)
        return product

    def passed(self, part: Array, on: bool) -> Array:
        """Return what differs along axes that the constant does not weigh, with its axes moved: on, or back."""
        source, target = (self.data, self.result) if on else (self.result, self.data)
        kept = [name for name in target if name in source and name not in self.constant]
        lengths = [part.shape[source.index(name)] if name in kept else 1 for name in target]
        order = [source.index(name) for name in kept]
        others = [a for a in range(part.ndim) if a not in order]
        return part.transpose([*others, *order]).reshape(lengths)

    def onto_constant(self, part: Array, of_result: bool) -> Array:
        """Return what differs along axes that the constant weighs, with the constant's axes."""
        names = self.result if of_result else self.data
        order = [names.index(name) for name in self.constant if name in names]
        others = [a for a in range(part.ndim) if a not in order]
        lengths = [part.shape[names.index(name)] if name in names else 1 for name in self.constant]
        return part.transpose([*others, *order]).reshape(lengths)

    def passes(self, gauge: Affine, op: Op, of_result: bool) -> bool:
        """Whether the scale differs along axes that the constant does not weigh, so that it passes the operator.

        Refused where it differs along those and along others, too: no constant would take a part of it.
        """
        names, others = (self.result, self.data) if of_result else (self.data, self.result)
        own, foreign = False, False
        for name, length in zip(names, gauge.scale.shape, strict=True):
            if length > 1 and name not in self.constant and name not in others:
                raise Refused(f"{op} adds up entries along which the scale differs")
            own = own or (length > 1 and name in self.constant)
            foreign = foreign or (length > 1 and name not in self.constant)
        if own and foreign:
            raise Refused(f"{op} weighs whole channels, and here the scale differs within one")
        return foreign

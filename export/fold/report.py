"""The report of a fold, as values: where each BatchNorm and affine went, or why it stayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

#: ``str`` of a report shows this many folds; those that stayed come first.
SHOWN = 10


@dataclass(frozen=True)
class Fold:
    """The result for one BatchNorm, or for one affine that was a Mul, Add, Sub or Div."""

    #: The module's path if the exporter noted it, else the node's name.
    name: str
    #: "BatchNorm" or "affine".
    kind: str
    #: Whether it is gone.
    folded: bool
    #: Where it or a part of it went, in words ("back into 'conv1'"); "" where all of it stayed.
    how: str
    #: Why it or the rest of it stayed: a sentence for each reason, with the ways that were tried; () where it went.
    reasons: tuple[str, ...] = ()
    #: Whether it stayed only because every way that is exact costs more than it saves; ``fold_all`` folds it.
    by_cost: bool = False

    @property
    def reason(self) -> str:
        """The first reason why it stayed, or ""."""
        return self.reasons[0] if self.reasons else ""

    @property
    def result(self) -> str:
        """Where it went, and why the rest stayed."""
        stayed = f"{'the rest is not folded' if self.how else 'not folded'}: {self.reason}" if self.reason else ""
        return "; ".join(part for part in (self.how, stayed) if part)

    def __str__(self) -> str:
        """Return where it went and why the rest stayed, in one line."""
        return f"{self.name}: {self.result}"


def labels(folds: Sequence[Fold]) -> list[str]:
    """Return a label for each fold: "norm", "norm (2 of 3)", "mul_1 (Mul or Add by constants)".

    A module that is called three times has three folds of one name.
    """
    calls, seen, found = Counter(fold.name for fold in folds), Counter[str](), []
    for fold in folds:
        seen[fold.name] += 1
        remarks = [f"{seen[fold.name]} of {calls[fold.name]}"] if calls[fold.name] > 1 else []
        remarks += [] if fold.kind == "BatchNorm" else ["Mul or Add by constants"]
        found.append(f"{fold.name} ({', '.join(remarks)})" if remarks else fold.name)
    return found


def kept(folds: Sequence[Fold]) -> dict[str, int]:
    """Return how many affines stayed by cost and by mathematics, under the names of the report's fields."""
    stayed = [one for one in folds if not one.folded]
    by_cost = sum(one.by_cost for one in stayed)
    return {"kept_by_cost": by_cost, "kept_by_mathematics": len(stayed) - by_cost}


@dataclass(frozen=True)
class FoldReport:
    """The changes that a fold made to a model."""

    folds: tuple[Fold, ...] = ()
    batchnorms_before: int = 0
    batchnorms_after: int = 0
    #: BatchNorms and per-channel affines of any kind of node.
    affines_before: int = 0
    affines_after: int = 0
    nodes_before: int = 0
    nodes_after: int = 0
    #: Numbers in floating-point initializers.
    parameters_before: int = 0
    parameters_after: int = 0
    #: Channels added to carry a shift through zero padding, and constant channels that were removed.
    carriers: int = 0
    channels_removed: int = 0
    #: Sums that are gone because what they add to a convolution, or to a product, went into its weights.
    sums_removed: int = 0
    notes: tuple[str, ...] = field(default=())
    #: How many stayed because to fold them costs more than it saves, and how many because no way is exact.
    kept_by_cost: int = 0
    kept_by_mathematics: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the counts before and after, and a line for each fold, in a dozen lines."""
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """Return the same lines for a notebook."""
        return f"<pre>{escape(str(self))}</pre>"

    def _lines(self) -> Iterator[str]:
        yield (
            f"BatchNorms {self.batchnorms_before} → {self.batchnorms_after}, "
            f"affines {self.affines_before} → {self.affines_after}, nodes {self.nodes_before} → {self.nodes_after}, "
            f"parameters {self.parameters_before:,} → {self.parameters_after:,}"
        )
        if self.kept_by_cost:
            yield f"{self.kept_by_cost} stayed by cost (fold_all=True folds them)"
        if self.kept_by_mathematics:
            yield f"{self.kept_by_mathematics} stayed by mathematics"
        shown = list(zip(labels(self.folds), self.folds, strict=True))
        if len(shown) > SHOWN:
            shown = sorted(shown, key=lambda labelled: labelled[1].folded)[:SHOWN]
        yield from (f"  {label}: {fold.result}" for label, fold in shown)
        if left := self.folds[len(shown) :]:
            yield f"  and {len(left)} more in .folds"
        yield from (f"note: {note}" for note in self.notes)

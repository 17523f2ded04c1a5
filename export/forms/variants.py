"""The forms of one network that could be published, timed against each other; the fastest that is proved is published.

    unfolded    as it was captured
    folded      every BatchNorm folded that can go
    lifted      the folded graph with what runs along one axis as pictures of height 1 (:data:`REWRITES`)
    widened     the lifted graph with channel counts rounded up to the block that kernels work in
    blocked     lifted first and folded then: as widened, but a BatchNorm stays where the channel that would carry its
                shift breaks such a block (:data:`REFOLDS`)

The folded graph is published unless another is faster beyond what a busy machine can feign, twice in a row. What was
measured is remembered, so that the same inputs give the same bytes also where two forms are about equally fast; naming
the form gives them on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from normfold.export.cpu_layout import fold_in_blocks, lift, lift_and_widen
from normfold.export.errors import ExportError
from normfold.export.fold import FoldReport, counts
from normfold.export.forms.machine import Machine, this_machine
from normfold.export.forms.measure import Arrays, medians, shapes_of
from normfold.export.forms.remembered import Measurement, Subject, measured_once
from normfold.export.graphs.exact import Graph
from normfold.export.graphs.runtime import Runtime

__all__ = ["AUTO", "FORMS", "MARGINS", "REWRITES", "Choice", "Variant", "check_form", "choose", "rewritten_forms"]

#: Further forms: name -> a rewrite of the folded graph in place, which returns whether it changed anything. Each is
#: proved like the folded graph itself.
REWRITES: dict[str, Callable[[ir.Model], bool]] = {"lifted": lift, "widened": lift_and_widen}
#: And of the unfolded graph, in place; returns what the fold did to it.
REFOLDS: dict[str, Callable[[ir.Model], FoldReport]] = {"blocked": fold_in_blocks}
#: How much faster than the folded graph a form must be to be published in its place; of two forms, the one that is
#: the fastest with its margin. One that keeps BatchNorms must be worth that.
MARGINS: Mapping[str, float] = {"unfolded": 1.05, "blocked": 1.1}
DEFAULT_MARGIN = 1.03

#: Every form there is, and the word that leaves the choice to the clock.
FORMS = ("unfolded", "folded", *REWRITES, *REFOLDS)
AUTO = "auto"


@dataclass(frozen=True)
class Variant:
    """One form, measured."""

    name: str
    bytes: int
    median_ms: float
    published: bool


@dataclass(frozen=True)
class Choice:
    """The forms of one network with their figures, one of them marked for publication."""

    variants: tuple[Variant, ...]
    #: Rounds the medians were taken over.
    rounds: int
    #: Whether the figures are those of an earlier export.
    remembered: bool
    #: What the figures hold for.
    machine: Machine

    @property
    def form(self) -> str:
        """The form to publish."""
        return next(v.name for v in self.variants if v.published)


def check_form(form: str) -> None:
    """Raise ExportError where there is no form of that name."""
    if form != AUTO and form not in FORMS:
        raise ExportError(
            f"there is no form '{form}'; there are {', '.join(FORMS)}, and {AUTO} for the fastest of them"
        )


def rewritten_forms(unfolded: Graph, folded: Graph, asked: str = AUTO) -> dict[str, Graph]:
    """Return the further forms of a graph. Raises ExportError where it has none of the name that was asked for."""
    made = dict(made_anew(unfolded, folded))
    if asked in made and made[asked] is None:
        there = ", ".join(["unfolded", "folded", *(name for name, graph in made.items() if graph is not None)])
        raise ExportError(
            f"this network has no {asked} form: it holds nothing that is written in another way there. It has {there}; "
            "ask for one of these, or leave --form out"
        )
    return {name: graph for name, graph in made.items() if graph is not None}


def made_anew(unfolded: Graph, folded: Graph) -> Iterator[tuple[str, Graph | None]]:
    """Yield every further form of a graph by name, None where it is no other than the folded one or another's."""
    for name, rewrite in REWRITES.items():
        model = folded.model()
        yield name, Graph.of(model, folded.exact is not None) if rewrite(model) else None
    batchnorms, _, _ = counts(folded.model())
    for name, refold in REFOLDS.items():
        model = unfolded.model()
        blocked = refold(model).batchnorms_after > batchnorms
        yield name, Graph.of(model, unfolded.exact is not None) if blocked else None


def choose(forms: Mapping[str, bytes], inputs: Arrays, asked: str = AUTO, remeasure: bool = False) -> Choice:
    """Time the forms, "unfolded" among them, or remember their times; mark the one asked for, else the fastest."""
    machine = this_machine()
    subject = Subject.of(forms, shapes_of(inputs), machine)
    known = measured_once(subject, lambda: _measurement(forms, inputs), remeasure)
    form = known.fastest if asked == AUTO else asked
    variants = tuple(Variant(name, len(forms[name]), ms, name == form) for name, ms in known.medians_ms.items())
    return Choice(variants, known.rounds, known.remembered, machine)


def _measurement(forms: Mapping[str, bytes], inputs: Arrays) -> Measurement:
    graphs = {name: Runtime(content, optimised=True) for name, content in forms.items()}
    times, rounds = medians(graphs, inputs)
    plain = "folded" if "folded" in forms else "unfolded"
    fastest = _fastest(times, plain)
    if fastest != plain:
        again, _ = medians({name: graphs[name] for name in (plain, fastest)}, inputs, seconds=1.0)
        fastest = _fastest(again, plain)
    return Measurement(times, rounds, fastest)


def _fastest(times: Mapping[str, float], plain: str) -> str:
    """The fastest of the forms, each with its margin and the ``plain`` one with none."""
    handicapped = {n: ms * (1.0 if n == plain else MARGINS.get(n, DEFAULT_MARGIN)) for n, ms in times.items()}
    return min(handicapped, key=handicapped.__getitem__)

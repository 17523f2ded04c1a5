"""The variants of one network that could be published: each is proved, all are timed, the fastest is published.

    unfolded    the graph as it was captured
    folded      every BatchNorm that can be folded is folded
    lifted      the folded graph, where tensors with one running axis get an axis of height 1 (:data:`REWRITES`)
    widened     the lifted graph, where channel counts are rounded up to the block that kernels compute at once
    blocked     the unfolded graph, lifted first and folded after that: like widened, but a BatchNorm stays where the
                channel that would carry its shift breaks such a block (:data:`REFOLDS`)

The folded graph is published unless another variant is clearly faster, by more than a busy machine can simulate, in
two measurements in a row. Measurements are remembered, so that the same inputs give the same bytes even where two
variants are about equally fast. With a variant that is named, every machine writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from normfold.export.capture.tidy import strip
from normfold.export.choices import AUTO, VARIANTS
from normfold.export.cpu_layout import fold_in_blocks, lift, lift_and_round
from normfold.export.errors import ExportError, VerificationError
from normfold.export.fold import FoldReport, counts, fold_apart
from normfold.export.forms.machine import Machine, this_machine
from normfold.export.forms.measure import Arrays, medians, shapes_of
from normfold.export.forms.remembered import Measurement, Subject, measured_once
from normfold.export.graphs.exact import Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.proof.proof import Proof

__all__ = [
    "MARGINS",
    "REFOLDS",
    "REWRITES",
    "Choice",
    "Variant",
    "branches_apart",
    "choose",
    "made_anew",
    "proved_variants",
    "rewritten_variants",
]

#: Variants made from the folded graph: name -> a rewrite in place, which returns whether it changed anything. Each
#: result is proved as the folded graph is.
REWRITES: dict[str, Callable[[ir.Model], bool]] = {"lifted": lift, "widened": lift_and_round}
#: Variants made from the unfolded graph: name -> a rewrite in place, which returns what the fold did.
REFOLDS: dict[str, Callable[[ir.Model], FoldReport]] = {"blocked": fold_in_blocks}
#: A variant is published in place of the folded graph only if its run time, times this margin, is below that of the
#: folded graph; of several, the one with the least product. A variant that keeps BatchNorms has a larger margin.
MARGINS: Mapping[str, float] = {"unfolded": 1.05, "blocked": 1.1}
DEFAULT_MARGIN = 1.03


@dataclass(frozen=True)
class Variant:
    """One variant and its measured run time."""

    name: str
    bytes: int
    median_ms: float
    published: bool


@dataclass(frozen=True)
class Choice:
    """The variants of one network with their figures, one of them marked for publication."""

    variants: tuple[Variant, ...]
    #: Number of rounds that each median is taken over.
    rounds: int
    #: Whether an earlier export measured the figures.
    remembered: bool
    #: The machine that the figures are valid for.
    machine: Machine

    @property
    def variant(self) -> str:
        """The name of the variant to publish."""
        return next(v.name for v in self.variants if v.published)


def rewritten_variants(unfolded: Graph, folded: Graph, asked: str = AUTO) -> dict[str, Graph]:
    """Return the further variants of a graph. Raises ExportError where the one that was asked for is not among them."""
    made = dict(made_anew(unfolded, folded))
    if asked not in (AUTO, "unfolded", "folded", *made):
        there = [name for name in VARIANTS if name in ("unfolded", "folded", *made)]
        raise ExportError(
            f"this network has no {asked} form: nothing in it would be written differently. It has the forms "
            f"{', '.join(there)}; ask for one of these, or leave --form out"
        )
    return made


def proved_variants(proof: Proof, made: Mapping[str, Graph], asked: str) -> tuple[dict[str, Graph], tuple[str, ...]]:
    """Return the variants that may be published, the unfolded one among them, and a note on each that may not.

    A variant that rounds worse than the network does is left out, unless it was asked for: it is the same function.
    Raises VerificationError where a variant is not the same function, or where the one that was asked for cannot be
    shown to be. If the unfolded one was asked for, another that is not the same function only gives a note.
    """
    passed, notes = {"unfolded": proof.unfolded}, []
    for name, graph in made.items():
        proved = proof.of(graph)
        try:
            proof.require_same(proved, graph, name)
        except VerificationError as error:
            if asked != "unfolded":
                raise
            what = str(error).partition("; --form")[0].replace(", so nothing was published", "")
            notes.append(f"the {name} form was left out: {what}")
            continue
        if proved.rounding.passed or name == asked:
            passed[name] = graph
        if not proved.rounding.passed:
            worst = proved.rounding.worst
            what = worst.trouble or (
                f"output '{worst.output}' is off by {worst.relative:.1e} of its scale on {worst.kind} inputs, where "
                f"{worst.bound:.1e} is allowed"
            )
            if name == asked and proved.algebra is None:
                raise VerificationError(
                    f"the {name} form that was asked for rounds worse in float32 than the network itself, and the "
                    f"network cannot be computed in float64 to show that they are the same, so nothing was published: "
                    f"{what}",
                    output=worst.output,
                    max_abs_diff=worst.max_abs,
                    bound=worst.bound,
                )
            outcome = "is published because it was asked for" if name == asked else "was left out"
            notes.append(f"the {name} form rounds worse in float32 than the network itself and {outcome}: {what}")
    return passed, tuple(notes)


def made_anew(unfolded: Graph, folded: Graph) -> Iterator[tuple[str, Graph]]:
    """Yield the name and the graph of every further variant that does not repeat an earlier one."""
    for name, rewrite in REWRITES.items():
        model = folded.model()
        if rewrite(model):
            yield name, Graph.of(model)
    batchnorms, _, _ = counts(folded.model())
    for name, refold in REFOLDS.items():
        model = unfolded.model()
        if refold(model).batchnorms_after > batchnorms:
            yield name, Graph.of(model)


def branches_apart(unfolded: Graph, published: Graph, form: str) -> Graph | None:
    """Return the published ``form`` with sums that the fold takes into convolutions left in it; None if unfolded.

    It has the metadata of ``published``, the folded graph of that form, with its own number of BatchNorms.
    """
    if form == "unfolded":
        return None
    model, other = unfolded.model(), published.model()
    if form == "blocked":
        fold_in_blocks(model, fold_apart)
    else:
        fold_apart(model)
        if form in REWRITES:
            REWRITES[form](model)
    strip(model)
    model.ir_version, model.graph.name = other.ir_version, other.graph.name
    model.producer_name, model.producer_version = other.producer_name, other.producer_version
    model.metadata_props.update(other.metadata_props)
    before, _, _ = other.metadata_props.get("normfold.batchnorms", "").partition(",")
    if before:
        left, _, _ = counts(model)
        model.metadata_props["normfold.batchnorms"] = f"{before}, {left} with branches apart"
    return Graph.of(model)


def choose(
    graphs: Mapping[str, bytes], inputs: Arrays, asked: str = AUTO, remeasure: bool = False, threads: int = 1
) -> Choice:
    """Time the variants, or read their remembered times; mark the one that was asked for, else the fastest.

    graphs maps the name of each variant to its bytes; "unfolded" must be among them. threads share the work of a run:
    kernels divide their work in different ways, so that another variant may be the fastest on several.
    """
    machine = this_machine(threads=threads)
    subject = Subject.of(graphs, shapes_of(inputs), machine)
    known = measured_once(subject, lambda: _measurement(graphs, inputs, threads), remeasure)
    chosen = known.fastest if asked == AUTO else asked
    variants = tuple(Variant(name, len(graphs[name]), ms, name == chosen) for name, ms in known.medians_ms.items())
    return Choice(variants, known.rounds, known.remembered, machine)


def _measurement(graphs: Mapping[str, bytes], inputs: Arrays, threads: int) -> Measurement:
    runtimes = {name: Runtime(content, optimised=True, threads=threads) for name, content in graphs.items()}
    times, rounds = medians(runtimes, inputs)
    plain = "folded" if "folded" in graphs else "unfolded"
    fastest = _fastest(times, plain)
    if fastest != plain:
        again, _ = medians({name: runtimes[name] for name in (plain, fastest)}, inputs, seconds=1.0)
        fastest = _fastest(again, plain)
    return Measurement(times, rounds, fastest)


def _fastest(times: Mapping[str, float], plain: str) -> str:
    """Return the variant of the least run time times margin; the ``plain`` one has the margin 1."""
    handicapped = {n: ms * (1.0 if n == plain else MARGINS.get(n, DEFAULT_MARGIN)) for n, ms in times.items()}
    return min(handicapped, key=handicapped.__getitem__)

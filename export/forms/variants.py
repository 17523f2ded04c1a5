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

import onnx
import onnx_ir as ir

from normfold.export.cpu_layout import fold_in_blocks, lift, lift_and_widen
from normfold.export.errors import ExportError, VerificationError
from normfold.export.fold import FoldReport, counts
from normfold.export.forms.machine import Machine, this_machine
from normfold.export.forms.measure import Arrays, medians, shapes_of
from normfold.export.forms.remembered import Measurement, Subject, measured_once
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.serialize import to_bytes
from normfold.export.proof.proof import Proof
from normfold.export.proof.verify import Verification

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


def rewritten_forms(
    unfolded: bytes, folded: bytes, proof: Proof, asked: str = AUTO
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the further forms of a graph that pass the proof, and a note on each that does not.

    Raises, for the form that was asked for, ExportError where it is no other than the folded graph, and
    VerificationError where it does not pass.
    """
    forms: dict[str, bytes] = {}
    notes = []
    for name, content in made_anew(unfolded, folded):
        if content is None:
            if name == asked:
                raise ExportError(
                    f"this network has no {name} form: it holds nothing that is written in another way there. "
                    "Ask for folded or unfolded, or leave --form out"
                )
            continue
        verification = proof.of(content)
        if verification.passed:
            forms[name] = content
        elif name == asked:
            _require(proof, verification, content, name)
        else:
            worst = verification.worst
            why = worst.trouble or f"output '{worst.output}' is off by {worst.relative:.1e} of its scale"
            notes.append(f"the {name} form did not pass the proof and was left out: {why}")
    return forms, tuple(notes)


def made_anew(unfolded: bytes, folded: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Yield every further form of a graph by name, None where it is no other than the folded one or another's."""
    for name, rewrite in REWRITES.items():
        model = ir.from_proto(onnx.load_model_from_string(folded))
        yield name, to_bytes(model) if rewrite(model) else None
    batchnorms, _, _ = counts(ir.from_proto(onnx.load_model_from_string(folded)))
    for name, refold in REFOLDS.items():
        model = ir.from_proto(onnx.load_model_from_string(unfolded))
        yield name, to_bytes(model) if refold(model).batchnorms_after > batchnorms else None


def _require(proof: Proof, verification: Verification, content: bytes, name: str) -> None:
    try:
        proof.require(verification, content)
    except VerificationError as error:
        message = f"the {name} form that was asked for does not pass the proof: {error}"
        raise VerificationError(
            message, output=error.output, max_abs_diff=error.max_abs_diff, bound=error.bound
        ) from None


def choose(forms: Mapping[str, bytes], inputs: Arrays, asked: str = AUTO, remeasure: bool = False) -> Choice:
    """Time the forms, "folded" among them, or remember their times; mark the one asked for, else the fastest."""
    machine = this_machine()
    subject = Subject.of(forms, shapes_of(inputs), machine)
    known = measured_once(subject, lambda: _measurement(forms, inputs), remeasure)
    form = known.fastest if asked == AUTO else asked
    variants = tuple(Variant(name, len(forms[name]), ms, name == form) for name, ms in known.medians_ms.items())
    return Choice(variants, known.rounds, known.remembered, machine)


def _measurement(forms: Mapping[str, bytes], inputs: Arrays) -> Measurement:
    graphs = {name: Runtime(content, optimised=True) for name, content in forms.items()}
    times, rounds = medians(graphs, inputs)
    fastest = _fastest(times)
    if fastest != "folded":
        again, _ = medians({name: graphs[name] for name in ("folded", fastest)}, inputs, seconds=1.0)
        fastest = _fastest(again)
    return Measurement(times, rounds, fastest)


def _fastest(times: Mapping[str, float]) -> str:
    """The fastest of the forms with their margins, and of the folded graph with none."""
    handicapped = {n: ms * (1.0 if n == "folded" else MARGINS.get(n, DEFAULT_MARGIN)) for n, ms in times.items()}
    return min(handicapped, key=handicapped.__getitem__)

"""What an export did, as a value: the command prints it, ``export.json`` holds it, the HTML page shows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from normfold.export.fold import FoldReport
from normfold.export.forms.machine import Machine
from normfold.export.forms.measure import Timing
from normfold.export.forms.precision import PrecisionReport
from normfold.export.forms.variants import Variant
from normfold.export.proof.verify import Verification

__all__ = ["ExportReport", "Form", "Published", "as_json", "chosen", "forms"]


@dataclass(frozen=True)
class Published:
    """The form of the network that ``model.onnx`` holds (before a reduction of its precision)."""

    #: A variant's name: "folded", "unfolded", or that of a rewrite for a target.
    form: str
    batchnorms: int
    nodes: int
    parameters: int
    #: "measurement", or "request" where the person named the form.
    chosen_by: str = "measurement"


@dataclass(frozen=True)
class ExportReport:
    """One export, whole."""

    #: The model's name and version in the repository.
    model: str
    version: int
    #: Where it was written.
    path: str
    #: "mynets.py:SurnameCNN", and the sha256 of its file and of the weights ("" where there was none).
    source: str
    source_sha256: str
    weights: str
    weights_sha256: str
    #: "x=FP32[N:1..,77,L:9..]"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    #: What folding did; where the published form is another one, that is not all that was done, or not done there.
    folding: FoldReport
    published: Published
    #: Size of the captured graph's file, and of the published one's in float32.
    bytes_before: int
    bytes_after: int
    #: The published form in float64 against the captured graph; None where it cannot be computed in float64.
    algebra: Verification | None
    #: The published file in float32 against the network in float64.
    verification: Verification
    timing: Timing
    #: What the run times hold for.
    machine: Machine
    #: sha256 of model.onnx.
    sha256: str
    #: Versions of what made it: normfold, torch, onnx, onnxruntime.
    versions: dict[str, str]
    #: What the person should know: prefixes stripped, eval() called, sizes that could not be tried.
    notes: tuple[str, ...] = ()
    #: Every form of the network that was timed, the published one marked.
    variants: tuple[Variant, ...] = ()
    #: The reduced precision that was published in float32's place, if one was.
    precision: PrecisionReport | None = None


@dataclass(frozen=True)
class Form:
    """One column of the comparison: a form of the network with its figures."""

    title: str
    batchnorms: int
    nodes: int
    parameters: int
    bytes: int
    median_ms: float


def forms(report: ExportReport) -> tuple[Form, ...]:
    """The forms to show side by side: before and after, and the folded one where another is published."""
    folding, published = report.folding, report.published
    sizes = {v.name: (v.bytes, v.median_ms) for v in report.variants}
    before = Form(
        "before",
        folding.batchnorms_before,
        folding.nodes_before,
        folding.parameters_before,
        report.bytes_before,
        report.timing.before_ms,
    )
    after = Form(
        "after", published.batchnorms, published.nodes, published.parameters, report.bytes_after, report.timing.after_ms
    )
    if published.form == "folded":
        return before, after
    folded = Form("folded", folding.batchnorms_after, folding.nodes_after, folding.parameters_after, *sizes["folded"])
    if published.form == "unfolded":
        return replace(before, title="before: published"), folded
    return before, folded, replace(after, title=f"{published.form}: published")


def chosen(report: ExportReport) -> str:
    """Say which form is published, who chose it, and when the run times were taken, in a sentence."""
    form, others = report.published.form, len(report.variants) - 1
    if report.published.chosen_by == "request":
        why = "as it was asked for"
    elif form == "folded":
        why = "no other form is clearly faster" if others else "the only form"
    else:
        why = f"the fastest of {others + 1} forms"
    taken = (
        "remembered from an earlier export of it (--remeasure takes them again)"
        if report.timing.remembered
        else "measured now"
    )
    return f"the {form} form is published, {why}; run times {taken}, on {report.machine}"


def as_json(report: ExportReport) -> dict[str, Any]:
    """Return the report as plain dicts, lists and numbers, the derived figures included.

    "version" and "path" are left out where they are not known yet: the directory that the file stands in is both.
    """
    content: dict[str, Any] = dataclasses.asdict(report)
    content["schema"] = 1
    for unknown in ("version", "path"):  # of a report that stands in the version it is about
        if not content[unknown]:
            del content[unknown]
    for entry, fold in zip(content["folding"]["folds"], report.folding.folds, strict=True):
        entry["reason"] = fold.reason
    for name, part in (("algebra", report.algebra), ("verification", report.verification)):
        if part is not None:
            content[name]["passed"] = part.passed
            for entry, difference in zip(content[name]["differences"], part.differences, strict=True):
                entry["passed"] = difference.passed
                entry["ratio"] = difference.ratio if difference.ratio != float("inf") else None
    content["timing"]["ratio"] = report.timing.ratio
    return content

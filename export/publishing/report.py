"""The report of an export: the command prints it, ``export.json`` holds it, the HTML page shows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from normfold.counting import counted
from normfold.export.calibration.rows import FEWEST
from normfold.export.fold import FoldReport
from normfold.export.forms.machine import Machine
from normfold.export.forms.measure import TimeComparison
from normfold.export.forms.precision import PrecisionReport
from normfold.export.forms.variants import Variant
from normfold.export.proof.verify import Difference, Verification

__all__ = ["Column", "ExportReport", "Published", "as_json", "chosen", "columns", "folded_form", "labels_kept"]


@dataclass(frozen=True)
class Published:
    """The variant of the network that ``model.onnx`` holds (before a reduction of its precision)."""

    #: The name of the variant: "folded", "unfolded", or that of a rewrite for the CPU ("form" in JSON).
    variant: str
    batchnorms: int
    nodes: int
    parameters: int
    #: "measurement", or "request" where the user named the variant.
    chosen_by: str = "measurement"


@dataclass(frozen=True)
class ExportReport:
    """Everything that is reported of one export."""

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
    #: The fold as applied to the "folded" variant. If "blocked" or "unfolded" is published, see ``published``.
    folding: FoldReport
    published: Published
    #: File size of the captured graph, and of the published graph in float32.
    bytes_before: int
    bytes_after: int
    #: The published file in float32 against the network in float64.
    verification: Verification
    timing: TimeComparison
    #: The machine that the run times are valid for.
    machine: Machine
    #: sha256 of model.onnx.
    sha256: str
    #: Versions of the packages that made it: normfold, torch, onnx, ….
    versions: dict[str, str]
    #: What the user should know: prefixes stripped, eval() called, sizes that could not be tried.
    notes: tuple[str, ...] = ()
    #: Every variant of the network that was timed; one is marked as published.
    variants: tuple[Variant, ...] = ()
    #: The reduced precision, if one was published in place of float32.
    precision: PrecisionReport | None = None
    #: The published variant in float64 against the captured graph; None where it cannot be computed in float64.
    algebra: Verification | None = None
    #: The most rows in a request, by config.pbtxt; 0: requests are not batched, or there is no repository.
    max_batch_size: int = 0
    #: The sizes that requests may have: a few words for each dimension.
    limits: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a dozen lines, as ``normfold export`` prints them."""
        from normfold.export.publishing.summary import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """Return the same lines for a notebook."""
        from normfold.export.publishing.summary import as_notebook_html

        return as_notebook_html(self)


@dataclass(frozen=True)
class Column:
    """One column of the comparison: a variant of the network with its figures."""

    title: str
    batchnorms: int
    nodes: int
    parameters: int
    bytes: int
    median_ms: float


def columns(report: ExportReport) -> tuple[Column, ...]:
    """Return the columns to show side by side, the published file last, unless that is the unfolded form in float32.

    They are: before, after, the folded variant where another is published, and the file in fewer bits. A folded variant
    that was left out, because it rounds worse, has no column.
    """
    folding, published = report.folding, report.published
    sizes = {v.name: (v.bytes, v.median_ms) for v in report.variants}
    before = Column(
        "before",
        folding.batchnorms_before,
        folding.nodes_before,
        folding.parameters_before,
        report.bytes_before,
        report.timing.before_ms,
    )
    after = Column(
        "after", published.batchnorms, published.nodes, published.parameters, report.bytes_after, report.timing.after_ms
    )
    fewer = report.precision
    reduced: tuple[Column, ...] = ()
    if fewer is not None:
        title, ms = f"{fewer.precision}: published", fewer.timing.after_ms
        reduced = (Column(title, fewer.batchnorms, fewer.nodes, fewer.parameters, fewer.bytes_after, ms),)
    if published.variant == "folded":
        return before, after if fewer is None else replace(after, title="folded, float32"), *reduced
    figures = folding.batchnorms_after, folding.nodes_after, folding.parameters_after
    folded = (Column("folded", *figures, *sizes["folded"]),) if "folded" in sizes else ()
    state = ": published" if fewer is None else ", float32"
    if published.variant == "unfolded":
        return replace(before, title=f"{'before' if fewer is None else 'unfolded'}{state}"), *folded, *reduced
    return before, *folded, replace(after, title=f"{published.variant}{state}"), *reduced


def chosen(report: ExportReport) -> str:
    """Say in one sentence which variant is published, who chose it, and when the run times were measured."""
    variant, others = report.published.variant, len(report.variants) - 1
    if report.published.chosen_by == "request":
        why = "as it was asked for"
    elif variant == "folded":
        why = "no other form is clearly faster" if others else "the only form"
    else:
        why = f"the fastest of {others + 1} forms" if others else "the only form that was not left out"
    measured = (
        "remembered from an earlier export of it (--remeasure measures them again)"
        if report.timing.remembered
        else "measured now"
    )
    free = ", ".join(f"{name}=SIZE" for name in report.timing.free)
    other = f" (at another size: --time-at {free}, or a --sample of that size)" if free else ""
    fewer = report.precision
    taken = "published" if fewer is None else f"published in {fewer.precision}"
    times = f"run times at {report.timing.shapes}{other} {measured}"
    return f"the {variant} form is {taken}, {why}; {times}, on {report.machine}"


def folded_form(report: ExportReport) -> str:
    """Say that the report on each BatchNorm is about another form than the published one; "" where it is not."""
    published = report.published
    if published.variant not in ("unfolded", "blocked"):
        return ""
    if report.variants and all(variant.name != "folded" for variant in report.variants):
        return (
            f"the {published.variant} form keeps its BatchNorms, because the folded form was left out (see the notes); "
            "what follows is about the folded form"
        )
    kept = counted(published.batchnorms, "BatchNorm")
    them = "it" if published.batchnorms == 1 else "them"
    why = "as it was asked for" if published.chosen_by == "request" else f"because it runs faster with {them}"
    return (
        f"the {published.variant} form keeps {kept}, {why}; --form folded publishes the folded form, "
        "which the following is about"
    )


def labels_kept(difference: Difference) -> str:
    """Say in how many rows the label stayed: "75 of 75 rows"; "" where no labels were compared."""
    agree, rows = difference.label_agreement, difference.rows
    if agree is None:
        return ""
    share = f" ({agree:.1%})" if rows >= FEWEST else ""
    return f"{round(agree * rows):,} of {rows:,} rows{share}"


def as_json(report: ExportReport) -> dict[str, Any]:
    """Return the report as plain dicts, lists and numbers, the derived figures included.

    "version" and "path" are left out where they are not known yet: the file's own directory gives both.
    """
    content: dict[str, Any] = dataclasses.asdict(report)
    content["schema"] = 1
    content["published"] = {"form": content["published"].pop("variant"), **content["published"]}
    for unknown in ("version", "path"):  # left out of the file that is part of the version
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

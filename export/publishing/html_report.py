"""The report as one HTML page that needs no other file: to read, to print, to give to a reviewer.

The page is the template ``report.html.j2`` beside this module. Every text from the report is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import onnx
import onnx_ir as ir
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from normfold.export.fold.report import Fold, labels
from normfold.export.publishing.graph_picture import before_and_after
from normfold.export.publishing.report import ExportReport, chosen, folded_form, labels_kept

__all__ = ["as_html"]


#: Explained where they stand, and once more at the end of the page.
TERMS = {
    "unfolded": "the graph as it was captured, with every BatchNorm",
    "folded": "the graph after every BatchNorm that can be folded was folded",
    "lifted": "the folded graph with an axis of height 1, for which onnxruntime has faster CPU kernels",
    "widened": "the lifted graph with channel counts rounded up to what a kernel computes at once",
    "blocked": "lifted first, folded after that; a BatchNorm stays where a carrier would cost more than it saves",
}


def as_html(report: ExportReport, before: bytes = b"", after: bytes = b"") -> str:
    """Return the page; ``before`` and ``after`` are the captured and the published graph, to be drawn side by side.

    Nodes and parameters are counted for the unfolded, the folded and the published variant only.
    """
    folding, published = report.folding, report.published
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    page = template.render(
        report=report,
        chosen=chosen(report),
        folded_form=folded_form(report),
        labels_kept=labels_kept,
        folds=list(zip(labels(folding.folds), folding.folds, strict=True)),
        terms=TERMS,
        graphs=_drawn(before, after, folding.folds),
        longest_ms=max(v.median_ms for v in report.variants),
        counted={
            "unfolded": (folding.batchnorms_before, folding.nodes_before, folding.parameters_before),
            "folded": (folding.batchnorms_after, folding.nodes_after, folding.parameters_after),
            published.variant: (published.batchnorms, published.nodes, published.parameters),
        }
        if folding.batchnorms_before or not folding.affines_before
        else {
            "unfolded": (folding.affines_before, folding.nodes_before, folding.parameters_before),
            "folded": (folding.affines_after, folding.nodes_after, folding.parameters_after),
        },
    )
    return page.encode(errors="backslashreplace").decode()  # a file's name may be bytes that are no text


def _drawn(before: bytes, after: bytes, folds: Sequence[Fold]) -> tuple[Markup, Markup] | None:
    if not (before and after):
        return None
    graphs = [ir.from_proto(onnx.load_model_from_string(content)).graph for content in (before, after)]
    found = before_and_after(graphs[0], graphs[1], folds)
    if found is None:
        return None
    before_svg, after_svg = (Markup(svg.replace(' xmlns="http://www.w3.org/2000/svg"', "")) for svg in found)
    return before_svg, after_svg

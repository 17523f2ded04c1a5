"""The report as one HTML page that needs no other file: to read, to print, to give to a reviewer.

The page is the template ``report.html.j2`` beside this module. Every text from the report is escaped.
"""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment, StrictUndefined

from normfold.export.publishing.report import ExportReport, chosen, labels_kept

__all__ = ["as_html"]


def as_html(report: ExportReport) -> str:
    """Return the page.

    Nodes and parameters are counted for the unfolded, the folded and the published variant only.
    """
    folding, published = report.folding, report.published
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        report=report,
        chosen=chosen(report),
        labels_kept=labels_kept,
        longest_ms=max(v.median_ms for v in report.variants),
        counted={
            "unfolded": (folding.batchnorms_before, folding.nodes_before, folding.parameters_before),
            "folded": (folding.batchnorms_after, folding.nodes_after, folding.parameters_after),
            published.variant: (published.batchnorms, published.nodes, published.parameters),
        },
    )

"""The report as one HTML page that needs nothing else: to read, to print, to hand to a reviewer."""

from __future__ import annotations

from collections.abc import Container, Iterable
from html import escape

from normfold.export.fold.report import Fold
from normfold.export.publishing.report import ExportReport, chosen

__all__ = ["as_html"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828; --bar: #4c78a8; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; --bar: #6f9fd0; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td:last-child, th:last-child { padding-right: 0; }
code { font-size: .9em; } code.long { overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } .quiet { opacity: .7; overflow-wrap: anywhere; }
.bar { background: var(--bar); height: .4rem; display: block; margin-left: auto; border-radius: 2px; }
@media print {
  :root { color-scheme: light; --good: #1a7f37; --bad: #c62828; } body { font-size: 10pt; margin: 0; max-width: none; }
  .wide { overflow: visible; } tr { break-inside: avoid; } h2 { break-after: avoid; }
  .bar { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def as_html(report: ExportReport) -> str:
    """Return the page."""
    folding, proof, not_folded = report.folding, report.verification, report.published.variant == "unfolded"
    verdict = (
        '<span class="good">the same network</span>'
        if proof.passed
        else '<span class="bad">not the same network</span>'
    )
    parts = [
        f"<h1>{escape(report.model)}</h1>",
        f"<p class=quiet>{escape(report.source)}{', ' + escape(report.weights) if report.weights else ''}</p>",
        f"<p>{_summary(report)}; {verdict} within the bound, on {len(proof.cases)} inputs against "
        f"{escape(proof.reference)}.</p>",
        "<h2>The forms of the network</h2>",
        f"<p class=quiet>{escape(_sentence(chosen(report)))} Each is the median at {escape(report.timing.shapes)}.</p>",
        _figures(report),
        *_precision(report),
        "<h2>Where each BatchNorm went</h2>",
        *(["<p class=quiet>In the folded form, which is not the published one.</p>"] if not_folded else []),
        _table(
            ("layer", "outcome", "where to, or why not"),
            [
                (
                    _path(f.name),
                    f'<span class="{"good" if f.folded else "bad"}">{_outcome(f)}</span>',
                    "<br>".join(escape(line) for line in (f.how, *f.reasons) if line),
                )
                for f in folding.folds
            ],
        ),
        "<h2>The proof</h2>",
        "<p class=quiet>Errors are relative to the largest value of the exact output. The unit is the unfolded "
        "float32 graph's own error, the larger of two orders of rounding; the folded graph may err twice as much, and "
        "four units in the last place more.</p>",
        _table(
            (
                "output",
                "inputs",
                "largest error",
                "unfolded float32",
                "allowed",
                "mean, absolute",
                "same label",
                "result",
            ),
            [
                (
                    f"<code>{escape(d.output)}</code>",
                    f"{d.cases} {escape(d.kind)}",
                    f"{d.relative:.1e}",
                    f"{d.unfolded_relative:.1e}",
                    f"{d.bound:.1e}",
                    f"{d.mean_abs:.1e}",
                    "" if d.label_agreement is None else f"{d.label_agreement:.1%}",
                    '<span class="good">passed</span>'
                    if d.passed
                    else f'<span class="bad">{escape(d.trouble or "failed")}</span>',
                )
                for d in proof.differences
            ],
            numbers=range(2, 7),
        ),
        f"<p class=quiet>Inputs: {escape(', '.join(dict.fromkeys(proof.cases)))}</p>",
        "<h2>What it is</h2>",
        _table(
            (),
            [
                ("inputs", _long(", ".join(report.inputs))),
                ("outputs", _long(", ".join(report.outputs))),
                ("opset", str(report.opset)),
                ("sha256 of model.onnx", _long(report.sha256)),
                ("sha256 of the source", _long(report.source_sha256)),
                ("sha256 of the weights", _long(report.weights_sha256)),
                ("made with", escape(", ".join(f"{k} {v}" for k, v in report.versions.items()))),
            ],
        ),
        *(f"<p>Note: {escape(note)}</p>" for note in report.notes),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{escape(report.model)}: export report</title>\n"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _precision(report: ExportReport) -> list[str]:
    """What fewer bits cost, where the graph was published in fewer."""
    fewer = report.precision
    if fewer is None:
        return []
    rows = [
        (
            f"<code>{escape(d.output)}</code>",
            f"{d.relative:.2%}",
            f"{d.bound:.0%}",
            "" if d.label_agreement is None else f"{d.label_agreement:.1%}",
        )
        for d in fewer.verification.differences
    ]
    return [
        f"<h2>Published as {escape(fewer.precision)}</h2>",
        f"<p>{fewer.bytes_before:,} bytes before, {fewer.bytes_after:,} after; {fewer.timing.before_ms:.3f} ms before, "
        f"{fewer.timing.after_ms:.3f} ms after.</p>",
        _table(("output", "largest error", "allowed", "same label"), rows, numbers=range(1, 4)),
    ]


def _summary(report: ExportReport) -> str:
    """The BatchNorms in a sentence, which is about what is published."""
    folding = report.folding
    if report.published.variant == "unfolded":
        gone = folding.batchnorms_before - folding.batchnorms_after
        return (
            f"<b>{report.published.batchnorms}</b> BatchNorms: folding takes {gone} of them out, but the unfolded form "
            + (
                "was asked for"
                if report.published.chosen_by == "request"
                else "is the faster one on the machine that made this, and was published"
            )
        )
    return f"{folding.batchnorms_before} BatchNorms before, <b>{report.published.batchnorms}</b> after folding"


def _outcome(fold: Fold) -> str:
    return "folded" if fold.folded else "partly folded" if fold.how else "left"


def _figures(report: ExportReport) -> str:
    """A row for each form that was timed: what it holds, its time with a bar of that length, which is published.

    Nodes and parameters are counted in the unfolded, the folded and the published form only.
    """
    folding, published = report.folding, report.published
    counted = {
        "unfolded": (folding.batchnorms_before, folding.nodes_before, folding.parameters_before),
        "folded": (folding.batchnorms_after, folding.nodes_after, folding.parameters_after),
        published.variant: (published.batchnorms, published.nodes, published.parameters),
    }
    longest = max(v.median_ms for v in report.variants)
    rows = [
        (
            f'{escape(v.name)} <span class="good">published</span>' if v.published else escape(v.name),
            f'{v.median_ms:.3f} ms<span class="bar" style="width:{6 * v.median_ms / longest:.2f}rem"></span>',
            f"{v.bytes:,}",
            *(f"{n:,}" for n in counted.get(v.name, ())),
            *("–" for _ in range(0 if v.name in counted else 3)),
        )
        for v in report.variants
    ]
    titles = ("form", "run time", "bytes", "BatchNorms", "nodes", "parameters")
    return _table(titles, rows, numbers=range(1, 6))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _path(name: str) -> str:
    """A layer's path, which may be broken behind its dots."""
    return f"<code>{escape(name).replace('.', '.<wbr>')}</code>"


def _long(text: str) -> str:
    return f'<code class="long">{escape(text)}</code>'


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]], numbers: Container[int] = ()) -> str:
    """A table of cells that are HTML already; the columns in ``numbers`` are aligned as figures."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    titles = row(head, "th")
    first = f"<thead><tr>{titles}</tr></thead>" if titles else ""
    return f'<div class="wide"><table>{first}<tbody>\n{body}</tbody></table></div>'

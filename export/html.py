"""The report as one HTML page that needs nothing else: to read, to print, to hand to a reviewer."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from normfold.export.report import ExportReport

__all__ = ["as_html"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .8rem .3rem 0;
border-bottom: 1px solid var(--line); vertical-align: top; } td.n, th.n { text-align: right; font-variant-numeric:
tabular-nums; } code { font-size: .9em; overflow-wrap: anywhere; } .good { color: var(--good); } .bad { color:
var(--bad); } .bar { background: #4c78a8; height: .7rem; display: inline-block; border-radius: 2px; } .quiet { opacity:
.7; }
"""


def as_html(report: ExportReport) -> str:
    """Return the page."""
    folding, proof = report.folding, report.verification
    verdict = (
        '<span class="good">the same network</span>'
        if proof.passed
        else '<span class="bad">not the same network</span>'
    )
    parts = [
        f"<h1>{escape(report.model)}</h1>",
        f"<p class=quiet>{escape(report.source)}{', ' + escape(report.weights) if report.weights else ''}</p>",
        f"<p>{folding.batchnorms_before} BatchNorms before, <b>{folding.batchnorms_after}</b> after folding; {verdict} "
        f"within the bound, on {len(proof.cases)} inputs against {escape(proof.reference)}.</p>",
        "<h2>The graph</h2>",
        _table(
            ("", "before", "after"),
            [
                ("BatchNorms", str(folding.batchnorms_before), str(folding.batchnorms_after)),
                ("nodes", str(folding.nodes_before), str(folding.nodes_after)),
                ("parameters", f"{folding.parameters_before:,}", f"{folding.parameters_after:,}"),
                ("bytes", f"{report.bytes_before:,}", f"{report.bytes_after:,}"),
                (f"median run time, {report.timing.shapes}, one thread", *_times(report)),
            ],
            numbers=True,
        ),
        "<h2>The forms that were timed</h2>",
        _table(
            ("form", "bytes", "median run time", ""),
            [
                (escape(v.name), f"{v.bytes:,}", f"{v.median_ms:.3f} ms", "published" if v.published else "")
                for v in report.variants
            ],
            numbers=True,
        ),
        *_precision(report),
        "<h2>Where each BatchNorm went</h2>",
        _table(
            ("layer", "", ""),
            [
                (
                    f"<code>{escape(f.name)}</code>",
                    '<span class="good">folded</span>' if f.folded else '<span class="bad">left</span>',
                    escape(f.how) if f.folded else "<br>".join(escape(r) for r in f.reasons),
                )
                for f in folding.folds
            ],
        ),
        "<h2>The proof</h2>",
        "<p class=quiet>Errors are relative to the largest value of the exact output. The unit is the unfolded "
        "float32 graph's "
        "own error; the folded graph may err twice as much, and four units in the last place more.</p>",
        _table(
            ("output", "inputs", "largest error", "unfolded float32", "allowed", "mean, absolute", "same label", ""),
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
        ),
        f"<p class=quiet>Inputs: {escape(', '.join(dict.fromkeys(proof.cases)))}</p>",
        "<h2>What it is</h2>",
        _table(
            ("", ""),
            [
                ("inputs", f"<code>{escape(', '.join(report.inputs))}</code>"),
                ("outputs", f"<code>{escape(', '.join(report.outputs))}</code>"),
                ("opset", str(report.opset)),
                ("sha256 of model.onnx", f"<code>{report.sha256}</code>"),
                ("sha256 of the source", f"<code>{report.source_sha256}</code>"),
                ("sha256 of the weights", f"<code>{report.weights_sha256}</code>"),
                ("made with", escape(", ".join(f"{k} {v}" for k, v in report.versions.items()))),
            ],
        ),
        *(f"<p>Note: {escape(note)}</p>" for note in report.notes),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{escape(report.model)}: export report</title>\n"
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n'
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
        _table(("output", "largest error", "allowed", "same label"), rows, numbers=True),
    ]


def _times(report: ExportReport) -> tuple[str, str]:
    """Both times with bars of their lengths."""
    before, after = report.timing.before_ms, report.timing.after_ms
    longest = max(before, after)

    def shown(ms: float) -> str:
        return f'{ms:.3f} ms <span class="bar" style="width:{8 * ms / longest:.2f}rem"></span>'

    return shown(before), shown(after)


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]], numbers: bool = False) -> str:
    """A table of cells that are HTML already."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' if numbers and i else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(head, 'th')}</tr>\n{body}</table>"

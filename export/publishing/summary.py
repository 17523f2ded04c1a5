"""The report in a dozen lines: for a terminal, as plain text, and as HTML for a notebook."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from normfold.counting import counted
from normfold.export.fold.report import labels
from normfold.export.forms.precision import PrecisionReport
from normfold.export.publishing.report import ExportReport, chosen, columns, folded_form, labels_kept

__all__ = ["as_notebook_html", "as_text", "print_summary"]

#: The width of plain text in characters; longer lines are not broken.
WIDTH = 160
#: Why "BatchNorms 14 → 0" can stand above BatchNorms of which a part stays.
PARTS = "what stays of a BatchNorm may be a Mul or an Add; the number of BatchNorms above does not count these"


def print_summary(report: ExportReport, console: Console) -> None:
    """Print the report in a dozen lines."""
    worst = report.verification.worst
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    shown = columns(report)
    for _ in shown:
        table.add_column()
    table.add_row("", *(c.title for c in shown))
    table.add_row("BatchNorms", *(str(c.batchnorms) for c in shown))
    table.add_row("nodes", *(str(c.nodes) for c in shown))
    table.add_row("parameters", *(f"{c.parameters:,}" for c in shown))
    table.add_row("size", *(_size(c.bytes) for c in shown))
    times = [f"{c.median_ms:.3f} ms" for c in shown]
    table.add_row("run time", *times[:-1], f"{times[-1]}  ({report.timing.shapes}, {report.machine.in_words})")
    console.print(f"[bold]{escape(report.source)}[/bold]  {escape(', '.join(report.inputs))}")
    console.print(table)
    if report.limits:
        console.print(escape(f"requests  {'; '.join(report.limits)}"))
    console.print(escape(chosen(report)))
    if remark := folded_form(report):
        console.print(f"{remark}:")
    folds = report.folding.folds
    for label, fold in zip(labels(folds), folds, strict=True):
        unfolded = "the rest is not folded" if fold.how else "not folded"
        went = [escape(fold.how)] if fold.how else []
        went += [f"[yellow]{unfolded}[/yellow]: {escape(fold.reason)}"] if fold.reason else []
        console.print(f"  {escape(label)}: {'; '.join(went)}")
    if any(fold.kind == "BatchNorm" and fold.how and not fold.folded for fold in folds):
        console.print(f"  {PARTS}")
    cases = len(report.verification.cases)
    console.print(
        f"largest error  {worst.relative:.1e} of the output's scale against {escape(report.verification.reference)} "
        f"({counted(cases, 'input')}; allowed {worst.bound:.1e}, unfolded float32 graph {worst.unfolded_relative:.1e})"
    )
    if report.algebra is not None:
        function = report.algebra.worst
        console.print(
            f"same function  to {function.relative:.1e} of the output's scale in float64, before rounding "
            f"(allowed {function.bound:.0e})"
        )
    if report.precision is not None:
        for line in _fewer_bits(report.precision):
            console.print(line)
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    console.print(f"written to [bold]{escape(report.path)}[/bold]")


def _fewer_bits(fewer: PrecisionReport) -> Iterator[str]:
    """Yield what the reduction cost, the inputs that it was calibrated and measured on, and the warnings."""
    loss = fewer.verification.worst
    same = labels_kept(loss)
    yield (
        f"{fewer.precision}  {_size(fewer.bytes_before)} → {_size(fewer.bytes_after)}, "
        f"{fewer.timing.before_ms:.3f} → "
        f"{fewer.timing.after_ms:.3f} ms, largest error {loss.relative:.2%} of the output's scale"
        f"{f', same label on {same}' if same else ''}"
    )
    if fewer.calibration is not None:
        yield escape(f"  calibrated on {fewer.calibration}")
    yield escape(f"  measured on {fewer.measured}")
    if fewer.equalised:
        layers = counted(len(fewer.equalised), "layer")
        yield f"  equalised: the output channels of {layers} were scaled to equal ranges"
    if fewer.apart:
        yield "  apart: branches beside convolutions stay sums, because int8 loses less so"
    if fewer.corrected:
        yield "  corrected: biases make up for the mean error of rounding"
    if fewer.kept:
        yield escape(f"  in float32, because {fewer.precision} loses most there: {', '.join(fewer.kept)}")
    for warning in fewer.warnings:
        yield f"[yellow]warning[/yellow]: {escape(warning)}"


def _size(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"


def as_text(report: ExportReport) -> str:
    """Return what ``print_summary`` prints, without colours."""
    return _console(report).export_text().rstrip("\n")


def as_notebook_html(report: ExportReport) -> str:
    """Return what ``print_summary`` prints as one HTML element; every text of the report is escaped."""
    return _console(report).export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _console(report: ExportReport) -> Console:
    console = Console(
        file=io.StringIO(), record=True, width=WIDTH, highlight=False, soft_wrap=True, force_terminal=False
    )
    print_summary(report, console)
    return console

"""Shared by the commands that export: steps on a terminal, errors as messages, the report in a dozen lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from normfold.export.publishing.report import ExportReport

__all__ = ["errors_as_messages", "print_report", "steps"]


@contextmanager
def errors_as_messages(debug: bool) -> Iterator[None]:
    """End with one message and exit code 1 for an ExportError; show a traceback with --debug and for our own bugs."""
    try:
        yield
    except ImportError as error:
        if debug or (error.name or "").partition(".")[0] not in (
            "torch",
            "onnx",
            "onnx_ir",
            "onnxscript",
            "safetensors",
            "jinja2",
        ):
            raise
        raise click.ClickException(
            f"exporting needs {error.name}, which is not installed: pip install 'normfold[export,cpu]'"
        ) from None
    except KeyboardInterrupt:
        click.echo("stopped; nothing was published", err=True)
        sys.exit(130)
    except Exception as error:
        from normfold.export.errors import ExportError

        if debug or not isinstance(error, ExportError):
            raise
        raise click.ClickException(str(error)) from None


@contextmanager
def steps(quiet: bool) -> Iterator[tuple[Console, Callable[[str], None]]]:
    """Yield a console and a function that shows the name of the current step, on a terminal only."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    terminal = Console(file=sys.stderr, highlight=False)  # this stream, even while sys.stderr is replaced
    if quiet or not terminal.is_terminal or os.environ.get("TERM") == "dumb":
        yield console, lambda step: None
        return
    with terminal.status("starting") as status:
        yield console, lambda step: status.update(step)


def print_report(report: ExportReport, console: Console, next_command: str) -> None:
    """Print the report in a dozen lines."""
    from rich.markup import escape
    from rich.table import Table

    from normfold.export.publishing.report import chosen, columns

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
    table.add_row("run time", *times[:-1], f"{times[-1]}  ({report.timing.shapes}, 1 thread)")
    console.print(f"[bold]{escape(report.source)}[/bold]  {escape(', '.join(report.inputs))}")
    console.print(table)
    console.print(escape(chosen(report)))
    if report.published.variant in ("unfolded", "blocked"):
        console.print("what folding does in the folded form, which is not the published one:")
    for fold in report.folding.folds:
        unfolded = "the rest is not folded" if fold.how else "not folded"
        went = [escape(fold.how)] if fold.how else []
        went += [f"[yellow]{unfolded}[/yellow]: {escape(fold.reason)}"] if fold.reason else []
        console.print(f"  {escape(fold.name)}: {'; '.join(went)}")
    cases = len(report.verification.cases)
    console.print(
        f"largest error  {worst.relative:.1e} of the output's scale against {escape(report.verification.reference)} "
        f"({cases} inputs; allowed {worst.bound:.1e}, unfolded float32 graph {worst.unfolded_relative:.1e})"
    )
    if report.algebra is not None:
        function = report.algebra.worst
        console.print(
            f"same function  to {function.relative:.1e} of the output's scale in float64, before rounding "
            f"(allowed {function.bound:.0e})"
        )
    if (fewer := report.precision) is not None:
        loss = fewer.verification.worst
        labels = "" if loss.label_agreement is None else f", same label on {loss.label_agreement:.1%}"
        console.print(
            f"{fewer.precision}  {_size(fewer.bytes_before)} → {_size(fewer.bytes_after)}, "
            f"{fewer.timing.before_ms:.3f} → "
            f"{fewer.timing.after_ms:.3f} ms, largest error {loss.relative:.2%} of the output's scale{labels}"
        )
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    console.print(f"written to [bold]{escape(report.path)}[/bold]")
    console.print(f"next: {escape(next_command)}")


def _size(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"

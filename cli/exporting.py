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

#: The packages of the extra ``export``.
_NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "jinja2")
_AT_STEP = "at the step '"

__all__ = ["errors_as_messages", "print_report", "steps"]


@contextmanager
def errors_as_messages(debug: bool) -> Iterator[None]:
    """End with one message and exit code 1 for any error; --debug shows Python's traceback."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped; nothing was published", err=True)
        sys.exit(130)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _NEEDED:
            raise click.ClickException(
                f"exporting needs {error.name}, which is not installed: pip install 'normfold[export,cpu]'"
            ) from None
        raise click.ClickException(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """Return the message of an ExportError; for any other error its first line, the step, and the user's line."""
    from normfold.export.errors import ExportError
    from normfold.export.user_code import line_of_error

    if isinstance(error, ExportError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
    step = next((note for note in getattr(error, "__notes__", ()) if note.startswith(_AT_STEP)), "")
    line = line_of_error(error)
    where = f"{f' {step}' if step else ''}{f' at {line}' if line else ''}"
    return f"stopped{where}, nothing was written: {reason} (--debug shows Python's traceback)"


@contextmanager
def steps(quiet: bool) -> Iterator[tuple[Console, Callable[[str], None]]]:
    """Yield a console and a function that shows the name of the current step, on a terminal only."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    terminal = Console(file=sys.stderr, highlight=False)  # this stream, even while sys.stderr is replaced
    if quiet or not terminal.is_terminal or os.environ.get("TERM") == "dumb":
        with _noted() as note:
            yield console, note
        return
    with terminal.status("starting") as status, _noted() as note:

        def show(step: str) -> None:
            note(step)
            status.update(step)

        yield console, show


@contextmanager
def _noted() -> Iterator[Callable[[str], None]]:
    """Yield a function that is given the name of each step; an error gets a note with the step that it came in."""
    current = "starting"

    def note(step: str) -> None:
        nonlocal current
        current = step

    try:
        yield note
    except Exception as error:
        error.add_note(f"{_AT_STEP}{current}'")
        raise


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

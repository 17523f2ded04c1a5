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
    """Print the report in a dozen lines, and the command that comes next."""
    from rich.markup import escape

    from normfold.export.publishing.summary import print_summary

    print_summary(report, console)
    console.print(f"next: {escape(next_command)}")

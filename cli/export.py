"""``normfold export``: fold a trained network, export it to ONNX, prove it, publish it."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from normfold.export.report import ExportReport

__all__ = ["export"]

_EXAMPLES = """
\b
Examples:
  A class in a file, its weights, and an input with a batch N and a length L:
    normfold export mynets.py:SurnameCNN --weights surnames.safetensors \\
        --input x=FP32[N,77,L] --repository repository --name surnames
\b
  A factory with arguments, lengths from 9 to 100, class names, a real input to prove it with:
    normfold export mynets.py:build --arg channels=128 --weights best.ckpt \\
        --input x=FP32[N:1..64,77,L:9..100] --labels labels.txt --sample one.npy \\
        --repository repository --name surnames
\b
  Characters as indices into an embedding of 85 rows:
    normfold export mynets.py:TextNet --input tokens=INT64[N,L]:0..84 --repository repository --name text
"""


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("source", metavar="SOURCE")
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE", help="safetensors, or a .pt/.ckpt of tensors only."
)
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=DTYPE[DIMS]", help="One for each input; names are dynamic sizes."
)
@click.option(
    "--sample", "samples", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A real input (.npy, .npz, .safetensors) to prove with; shows the shapes where --input is left out.",
)  # fmt: skip
@click.option(
    "--repository", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The model repository."
)
@click.option("--name", required=True, help="The model's name in the repository.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="The classes' names, one a line.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="An argument for the factory or class; repeatable."
)
@click.option("--version", type=int, metavar="N", help="The version to write; default: the next free one.")
@click.option("--overwrite", is_flag=True, help="Replace the version if it exists.")
@click.option("--opset", type=int, default=18, show_default=True, help="The ONNX opset to write.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON on standard output.")
@click.option("--debug", is_flag=True, help="Show Python's traceback of an error.")
def export(
    source: str,
    weights: Path | None,
    inputs: tuple[str, ...],
    samples: tuple[Path, ...],
    repository: Path,
    name: str,
    labels: Path | None,
    arguments: tuple[str, ...],
    version: int | None,
    overwrite: bool,
    opset: int,
    as_json: bool,
    debug: bool,
) -> None:
    """Fold every BatchNorm of a trained network, export it to ONNX, prove it and publish it.

    SOURCE is FILE.py:NAME or package.module:NAME, where NAME is a class, a function that makes a network, or a network.
    The exported graph is compared with PyTorch in float64 on random inputs of every dynamic size and on your samples;
    nothing is published unless it is the same network.
    """
    keywords = dict(_argument(a) for a in arguments)
    with _errors_as_messages(debug), _steps(quiet=as_json) as (console, progress):
        progress("import PyTorch")
        from normfold.export.pipeline import ExportRequest, export_model

        request = ExportRequest(
            source=source,
            repository=repository,
            name=name,
            inputs=inputs,
            weights=weights,
            labels=labels,
            samples=samples,
            arguments=keywords,
            version=version,
            overwrite=overwrite,
            opset=opset,
        )
        with redirect_stdout(sys.stderr):  # what the user's code prints on import is not our output
            report = export_model(request, progress)
    if as_json:
        from normfold.export.report import as_json as jsonable

        click.echo(json.dumps(jsonable(report), indent=2))
    else:
        _print(report, console, repository)


def _argument(text: str) -> tuple[str, Any]:
    """Read key=value; the value is a Python literal where it is one, else the text itself."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise click.UsageError(f"--arg {text}: expected KEY=VALUE, for example --arg channels=128")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


@contextmanager
def _errors_as_messages(debug: bool) -> Iterator[None]:
    """End with one message and exit code 1 for a person's mistake; a traceback is for --debug and for our own bugs."""
    try:
        yield
    except ImportError as error:
        if debug or (error.name or "").partition(".")[0] not in (
            "torch",
            "onnx",
            "onnx_ir",
            "onnxscript",
            "safetensors",
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
def _steps(quiet: bool) -> Iterator[tuple[Console, Any]]:
    """Yield a console and a function that names the step now under way, on a terminal only."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    terminal = Console(file=sys.stderr, highlight=False)  # this very stream, also while another stands for it
    if quiet or not terminal.is_terminal or os.environ.get("TERM") == "dumb":
        yield console, lambda step: None
        return
    with terminal.status("starting") as status:
        yield console, lambda step: status.update(step)


def _print(report: ExportReport, console: Console, repository: Path) -> None:
    """Print what was done, in a dozen lines."""
    from rich.markup import escape
    from rich.table import Table

    folding, timing, worst = report.folding, report.timing, report.verification.worst
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_column()
    table.add_row("", "before", "after")
    table.add_row("BatchNorms", str(folding.batchnorms_before), str(folding.batchnorms_after))
    table.add_row("nodes", str(folding.nodes_before), str(folding.nodes_after))
    table.add_row("parameters", f"{folding.parameters_before:,}", f"{folding.parameters_after:,}")
    table.add_row("size", _size(report.bytes_before), _size(report.bytes_after))
    table.add_row("run time", f"{timing.before_ms:.3f} ms", f"{timing.after_ms:.3f} ms  ({timing.shapes}, 1 thread)")
    console.print(f"[bold]{escape(report.source)}[/bold]  {escape(', '.join(report.inputs))}")
    console.print(table)
    for fold in folding.folds:
        went = escape(fold.how) if not fold.reason else f"[yellow]stayed[/yellow]: {escape(fold.reason)}"
        console.print(f"  {escape(fold.name)}: {went}")
    cases = len(report.verification.cases)
    console.print(
        f"largest error  {worst.relative:.1e} of the output's scale against {escape(report.verification.reference)} "
        f"({cases} inputs; allowed {worst.bound:.1e}, unfolded float32 graph {worst.unfolded_relative:.1e})"
    )
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    console.print(f"written to [bold]{escape(report.path)}[/bold]")
    console.print(f"next: normfold serve --repository {escape(str(repository))}")


def _size(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"

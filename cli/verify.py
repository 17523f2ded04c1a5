"""``normfold verify``: check whether two networks compute the same; each may be code, a file or a served model."""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normfold.cli.connection import connection_options
from normfold.cli.exporting import errors_as_messages, steps

if TYPE_CHECKING:
    from rich.console import Console

    from normfold.export.inputs.samples import SampleFile
    from normfold.export.proof.compare import Side
    from normfold.export.proof.verify import Verification
    from normfold.serving.client.connection import Credentials

__all__ = ["verify"]

_SERVED = re.compile(r"(?:grpc://)?(?P<address>[\w.\-\[\]]+:\d+)/(?P<model>[\w.\-]+)(?:/(?P<version>\d+))?\Z")
_EXAMPLES = """
\b
Examples:
  An exported version against the code it was made of:
    normfold verify mynets.py:SurnameCNN repository/surnames/1 \\
        --weights surnames.safetensors --input 'x=FP32[N,77,L]'
\b
  Two files; a file against what a server answers:
    normfold verify net.onnx net.folded.onnx
    normfold verify net.onnx localhost:8001/surnames
"""


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--weights",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights for A or B if it is code; give it twice, for A first, if both are.",
)
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=DTYPE[DIMS]", help="The inputs, if neither side describes them."
)
@click.option(
    "--sample",
    "samples",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A real input to compare on.",
)
@connection_options
@click.option("--allow-nonfinite", is_flag=True, help="Samples may hold NaN and infinity.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on standard output.")
@click.option("--debug", is_flag=True, help="Show Python's traceback of an error.")
def verify(
    first: str,
    second: str,
    weights: tuple[Path, ...],
    inputs: tuple[str, ...],
    samples: tuple[Path, ...],
    allow_nonfinite: bool,
    as_json: bool,
    debug: bool,
    credentials: Credentials,
) -> None:
    """Compare two networks: A computed in float64 against B, on random inputs and your samples.

    Each is FILE.py:NAME or package.module:NAME, a .onnx or .pt2 file, a version's directory, or HOST:PORT/MODEL of a
    server. B passes if its error is at most three times that of A in its own precision plus four units in the last
    place; for a file that computes in float16, both are those of float16. Exit code 0: the same; 1: not the same, or an
    error.
    """
    with errors_as_messages(debug), steps(quiet=as_json) as (console, progress):
        progress("load both")
        from normfold.export.inputs.samples import fit, read_sample
        from normfold.export.proof.compare import compare
        from normfold.export.proof.verify import Case

        files = [read_sample(path, allow_nonfinite) for path in samples]
        remaining = list(weights)
        for text in (first, second):
            _require(text)
        with redirect_stdout(sys.stderr):
            sides = _sides((first, second), remaining, inputs, files, credentials)
            if remaining:
                raise click.UsageError(f"--weights {remaining[0]}: neither side is code that takes weights")
            described = next((s.origin.specs for s in sides if s.origin is not None), ())
            progress("compare")
            result = compare(sides[0], sides[1], [Case("sample", f.name, fit(f, described)) for f in files])
    if as_json:
        click.echo(json.dumps({**asdict(result), "passed": result.passed}, indent=2))
    else:
        _print(result, console)
    sys.exit(0 if result.passed else 1)


def _sides(
    texts: tuple[str, str],
    weights: list[Path],
    inputs: tuple[str, ...],
    samples: list[SampleFile],
    credentials: Credentials,
) -> tuple[Side, Side]:
    """Open both; without ``inputs``, a side that is code takes the inputs that the other side describes."""
    if _is_code(texts[0]) and not _is_code(texts[1]):
        second, first = _sides((texts[1], texts[0]), weights, inputs, samples, credentials)
        return first, second
    first = _side(texts[0], weights, inputs, samples, credentials)
    described = tuple(str(s) for s in first.origin.specs) if first.origin is not None else ()
    described = inputs or (described if _is_code(texts[1]) else ())
    return first, _side(texts[1], weights, described, samples, credentials)


def _is_file(text: str) -> bool:
    return Path(text).is_dir() or Path(text).suffix in (".onnx", ".pt2")


def _is_code(text: str) -> bool:
    return not _is_file(text) and (_SERVED.match(text) is None or Path(text).exists())


def _side(
    text: str, weights: list[Path], inputs: tuple[str, ...], samples: list[SampleFile], credentials: Credentials
) -> Side:
    from normfold.export.proof.compare import Side
    from normfold.export.sources.opening import open_origin
    from normfold.export.sources.origin import Request

    served = _SERVED.match(text)
    if served is not None and not Path(text).exists():
        return Side(text, _served(served["address"], served["model"], served["version"] or "", credentials))
    path = Path(text) / "model.onnx" if Path(text).is_dir() else Path(text)
    mine = weights.pop(0) if weights and _is_code(text) else None
    origin = open_origin(
        Request(
            source=str(path) if _is_file(text) else text,
            weights=mine,
            untrained=_is_code(text) and mine is None,  # wrong weights are seen in the comparison
            inputs=inputs,
        ),
        samples,
    )
    return Side(text, origin.run, origin)


def _require(text: str) -> None:
    """Raise ExportError for a path to a file, a version or a model that is not there."""
    from normfold.export.errors import ExportError

    path = Path(text)
    if text.startswith(("http://", "https://")):
        raise ExportError(f"'{text}': leave out {text.partition('://')[0]}://, a served model is HOST:PORT/MODEL")
    if path.is_file() or (path / "model.onnx").is_file() or ":" in text:
        return
    if path.is_dir():
        versions = [p.name for p in path.iterdir() if p.name.isdigit() and (p / "model.onnx").is_file()]
        last = max(versions, key=int, default="")
        models = sorted(p.parent for p in path.glob("*/*/model.onnx"))
        hint = f"; it is a model's directory, so name a version: {path / last}" if last else ""
        if not last and models:
            hint = f"; it is a repository, so name a model and a version: {models[-1]}"
        raise ExportError(f"'{text}' holds no model.onnx{hint}")
    parent = path.parent
    beside = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
    there = f"; '{parent}' holds {', '.join(beside[:8])}" if beside and parent != Path() else ""
    raise ExportError(
        f"there is no file or directory '{text}'{there}. Expected FILE.py:NAME, a .onnx or .pt2 file, a version's "
        "directory, or HOST:PORT/MODEL"
    )


def _served(address: str, model: str, version: str, credentials: Credentials) -> Any:
    """Return a function from named arrays to named arrays that asks a server."""
    from normfold.export.errors import ExportError
    from normfold.serving.client.client import Client, ClientError

    try:
        client = Client(address, tls=credentials.tls, token=credentials.token)
    except ValueError as error:
        raise ExportError(str(error)) from None

    def run(arrays: Any) -> Any:
        try:
            return client.infer(model, arrays, version=version)
        except (ClientError, ValueError) as error:
            raise ExportError(f"{address}/{model}: {error}") from error

    return run


def _print(result: Verification, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("output", "inputs", "largest error", "own rounding", "allowed", "same label", ""):
        table.add_column(title)
    for d in result.differences:
        table.add_row(
            escape(d.output),
            f"{d.cases} {d.kind}",
            f"{d.relative:.1e}",
            f"{d.unfolded_relative:.1e}",
            f"{d.bound:.1e}",
            "" if d.label_agreement is None else f"{d.label_agreement:.1%}",
            "[green]passed[/green]" if d.passed else f"[red]{escape(d.trouble or 'failed')}[/red]",
        )
    console.print(table)
    verdict = "[green]the same network[/green]" if result.passed else "[red]not the same network[/red]"
    console.print(f"{verdict}, against {escape(result.reference)}; errors are relative to the output's largest value")

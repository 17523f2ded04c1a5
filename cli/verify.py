"""``normfold verify``: check whether two networks compute the same; each may be code, a file or a served model."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from normfold.cli.connection import asks_no_server, connection_options
from normfold.cli.ends import ends_of
from normfold.cli.exporting import errors_as_messages, prints_apart, steps
from normfold.cli.keywords import SAMPLES_NEEDED, check_weights_key, code_arguments, keywords_of, weights_key_option
from normfold.cli.needs import Need, needing
from normfold.cli.output import json_of
from normfold.cli.verify_sides import Code, ends_in, is_code, is_served, require, sides_of, with_ends

if TYPE_CHECKING:
    from normfold.cli.plain_console import PlainConsole
    from normfold.export.proof.verify import Verification
    from normfold.export.sources.ends import Ends
    from normfold.serving.client.connection import Credentials

__all__ = ["verify"]

_EXAMPLES = """
\b
Examples:
  An exported version against the code it was made of:
    normfold verify mynets.py:SurnameCNN repository/surnames/1 \\
        --weights surnames.safetensors --input 'x=FP32[N,77,L]'
\b
  The same, where the export had --standardize and --softmax:
    normfold verify mynets.py:SurnameCNN repository/surnames/1 \\
        --weights surnames.safetensors --standardize x=mean.npy,std.npy --softmax output
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
@weights_key_option
@code_arguments
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
@click.option(
    "--standardize",
    multiple=True,
    metavar="NAME=MEAN,STD",
    help="What the export was given: (x - mean) / std is computed before the code, or before A where none is code.",
)
@click.option("--softmax", multiple=True, metavar="OUTPUT[:AXIS]", help="What the export was given, behind the code.")
@click.option("--sigmoid", multiple=True, metavar="OUTPUT", help="What the export was given, behind the code.")
@connection_options
@click.option("--allow-nonfinite", is_flag=True, help="Samples may hold NaN and infinity.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on standard output.")
@click.option("--debug", is_flag=True, help="Show Python's traceback of an error.")
@needing(
    SAMPLES_NEEDED,
    Need(
        ("arguments", "config"),
        "first",
        lambda values: is_code(values["first"]) or is_code(values["second"]),
        "here: neither side is code",
    ),
    asks_no_server(
        "first",
        lambda values: is_served(values["first"]) or is_served(values["second"]),
        "here: neither side is a served model, HOST:PORT/MODEL",
    ),
)
def verify(
    first: str,
    second: str,
    weights: tuple[Path, ...],
    weights_key: str,
    arguments: tuple[str, ...],
    config: Path | None,
    inputs: tuple[str, ...],
    samples: tuple[Path, ...],
    standardize: tuple[str, ...],
    softmax: tuple[str, ...],
    sigmoid: tuple[str, ...],
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
    from normfold.export.sources.named import BOTH_SERVED, require_files

    check_weights_key(weights_key, weights)
    if is_served(first) and is_served(second):
        raise click.ClickException(BOTH_SERVED)
    code = Code([*weights], weights_key, keywords_of(config, arguments))
    with errors_as_messages(debug), steps(quiet=as_json) as (console, progress):
        for text in (first, second):
            require(text)
            require_files(text if is_code(text) else "")
        require_files(weights=weights, samples=samples)
        progress("load both")
        ends = ends_of(standardize, softmax, sigmoid)
        from normfold.export.inputs.samples import fit, read_sample
        from normfold.export.proof.compare import compare
        from normfold.export.proof.verify import Case

        files = [read_sample(path, allow_nonfinite) for path in samples]
        with prints_apart():
            sides = [*sides_of((first, second), code, inputs, files, credentials)]
            if code.weights:
                raise click.UsageError(f"--weights {code.weights[0]}: neither side is code that takes weights")
            wrapped = 0 if is_code(first) or not is_code(second) else 1
            sides[wrapped] = with_ends(sides[wrapped], ends)
            described = next((s.origin.specs for s in sides if s.origin is not None), ())
            progress("compare")
            result = compare(sides[0], sides[1], [Case("sample", f.name, fit(f, described)) for f in files])
    if as_json:
        click.echo(json_of({**asdict(result), "passed": result.passed}, indent=2))
    else:
        _print(result, console)
        if not result.passed:
            _print_ends((first, second), ends, console)
            _print_weightless([text for text in (first, second) if is_code(text)][len(weights) :], console)
    sys.exit(0 if result.passed else 1)


def _print_ends(texts: tuple[str, str], ends: Ends, console: PlainConsole) -> None:
    """Say where a version holds more than its network (--standardize, …), unless options here say the same."""
    from rich.markup import escape

    if ends.anything:
        return
    for text in texts:
        if notes := ends_in(Path(text) / "export.json"):
            cure = "give --standardize, --softmax, --sigmoid as the export had them"
            console.print(f"in {escape(text)}: {escape('; '.join(notes))}; {cure}")


def _print_weightless(texts: list[str], console: PlainConsole) -> None:
    """Say which code ran with the weights that it makes itself, which are random in a class."""
    from rich.markup import escape

    for text in texts:
        console.print(
            f"note: no --weights FILE was given for {escape(text)}: it ran with the weights that it begins with"
        )


def _print(result: Verification, console: PlainConsole) -> None:
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
    console.print_table(table)
    for note in result.notes:
        console.print(f"note: {escape(note)}")
    verdict = "[green]the same network[/green]" if result.passed else "[red]not the same network[/red]"
    console.print(f"{verdict}, against {escape(result.reference)}; errors are relative to the output's largest value")

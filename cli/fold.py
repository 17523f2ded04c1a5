"""``normfold fold``: fold the BatchNorms of an ONNX file of any exporter."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from normfold.cli.exporting import errors_as_messages, fold_all_option, print_report, steps, timed_threads
from normfold.cli.keywords import FOLDING_NEEDS, sizes_of, timed_sizes
from normfold.cli.needs import needing
from normfold.cli.output import json_of, told_after
from normfold.finite_json import finite_json

__all__ = ["fold"]

_EXAMPLES = """
\b
Examples:
    normfold fold net.onnx net.folded.onnx
    normfold fold net.onnx net.folded.onnx --input 'x=FP32[batch:1..8,3,time:9..4000]' --report html
"""


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("source", type=click.Path(path_type=Path), metavar="IN.onnx")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT.onnx")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=DTYPE[DIMS]",
    help="Ranges for dimensions that the file leaves open.",
)
@click.option(
    "--sample",
    "samples",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A real input for the proof.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Samples may hold NaN and infinity.")
@click.option(
    "--form", default="auto", show_default=True, metavar="FORM",
    help="Write this form: unfolded, folded, lifted, widened, blocked (for CPUs); auto: the fastest on this machine.",
)  # fmt: skip
@fold_all_option
@click.option("--remeasure", is_flag=True, help="Time the forms again, even if an earlier run has timed them.")
@timed_threads
@timed_sizes
@click.option(
    "--report",
    "written",
    type=click.Choice(["html", "json"]),
    help="Write the whole report to OUT.html or OUT.json as well.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT.onnx, and the file of --report, if they exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON on standard output.")
@click.option("--debug", is_flag=True, help="Show Python's traceback of an error.")
@needing(*FOLDING_NEEDS)
def fold(
    source: Path,
    target: Path,
    inputs: tuple[str, ...],
    samples: tuple[Path, ...],
    allow_nonfinite: bool,
    form: str,
    fold_all: bool,
    remeasure: bool,
    threads: int,
    time_at: tuple[str, ...],
    written: str | None,
    overwrite: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Fold every BatchNorm of an ONNX file into the weights around it and prove that it computes the same.

    IN.onnx may come from any exporter, with opset 11 or newer; it must hold its weights itself. OUT.onnx keeps its
    inputs, outputs and opset, and is written only if it agrees with IN.onnx computed in float64. It must be another
    file than IN.onnx.
    """
    sizes = sizes_of(time_at)
    beside = target.with_suffix(f".{written}") if written is not None else None
    with errors_as_messages(debug) as done, steps(quiet=as_json) as (console, progress):
        from normfold.export.choices import check_threads, check_variant
        from normfold.export.errors import PublishError
        from normfold.export.publishing.onnx_places import check_places, require_place
        from normfold.export.sources.named import require_files

        check_variant(form)
        check_threads(threads)
        check_places(source, target, overwrite)
        require_files(samples=samples)
        if beside is not None:
            require_place(beside, overwrite)
        progress("import the graph tools")
        from normfold.export.onnx_fold import fold_file, write_file
        from normfold.export.publishing import report as reports
        from normfold.export.publishing.html_report import as_html

        report = fold_file(
            source,
            target,
            inputs=inputs,
            samples=samples,
            allow_nonfinite=allow_nonfinite,
            overwrite=overwrite,
            variant=form,
            remeasure=remeasure,
            threads=threads,
            time_at=sizes,
            fold_all=fold_all,
            progress=progress,
        )
        done.append(f"{target} is written")
        if beside is not None:
            try:
                whole = as_html(report) if written == "html" else finite_json(reports.as_json(report), 2) + "\n"
                write_file(beside, whole.encode(), overwrite)
            except PublishError as error:
                raise PublishError(f"{error}; '{target}' is written") from None
    with told_after(*done):
        if as_json:
            click.echo(json_of(reports.as_json(report), indent=2))
        else:
            print_report(report, console, shlex.join(["normfold", "verify", str(source), str(target)]))

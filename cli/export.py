"""``normfold export``: fold a trained network, export it to ONNX, prove it, publish it."""

from __future__ import annotations

import re
from pathlib import Path

import click

from normfold.cli.control import ADDRESS
from normfold.cli.exporting import errors_as_messages, fold_all_option, print_report, prints_apart, steps, timed_threads
from normfold.cli.keywords import (
    FOLDING_NEEDS,
    check_weights_key,
    code_arguments,
    keywords_of,
    sizes_of,
    timed_sizes,
    weights_key_option,
)
from normfold.cli.needs import Need, needing
from normfold.cli.next_command import after_export
from normfold.cli.output import json_of, told_after

__all__ = ["export"]

_EXAMPLES = """
\b
Examples:
  A class in a file, its weights, and an input with a batch N and a length L:
    normfold export mynets.py:SurnameCNN --weights surnames.safetensors \\
        --input 'x=FP32[N,77,L]' --repository repository --name surnames
\b
  A factory with arguments, lengths from 9 to 100, class names, a real input to prove it with:
    normfold export mynets.py:build --arg channels=128 --weights best.ckpt \\
        --input 'x=FP32[N:1..64,77,L:9..100]' --labels labels.txt --sample one.npy \\
        --repository repository --name surnames
\b
  Characters as indices into an embedding of 85 rows:
    normfold export mynets.py:TextNet --weights text.pt --input 'tokens=INT64[N,L]:0..84' \\
        --repository repository --name text
"""


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("source", metavar="SOURCE")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="safetensors, or a .pt/.ckpt; no code in it runs.",
)
@weights_key_option
@click.option(
    "--weights-sha256", default="", metavar="HEX", help="The SHA-256 that the file of weights must have (sha256sum)."
)
@click.option("--untrained", is_flag=True, help="Export a class with the random weights that it begins with.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=DTYPE[DIMS]",
    help="One for each input; a dimension with a name is dynamic.",
)
@click.option(
    "--sample", "samples", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A real input (.npy, .npz, .safetensors) for the proof; gives the shapes if --input is left out.",
)  # fmt: skip
@click.option(
    "--test-sample", "test_samples", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Real inputs that --quantize is not calibrated on: error and labels are measured on them.",
)  # fmt: skip
@click.option("--allow-nonfinite", is_flag=True, help="Samples may hold NaN and infinity.")
@click.option(
    "--repository", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The model repository."
)
@click.option("--name", required=True, help="The model's name in the repository.")
@click.option(
    "--labels", type=click.Path(path_type=Path), metavar="FILE", help="The names of the classes, one on each line."
)
@click.option(
    "--standardize", multiple=True, metavar="NAME=MEAN,STD",
    help="Compute (x - mean) / std first: numbers or .npy files, one value or one for each channel. It is folded too.",
)  # fmt: skip
@click.option("--softmax", multiple=True, metavar="OUTPUT[:AXIS]", help="Give the softmax of this output's classes.")
@click.option("--sigmoid", multiple=True, metavar="OUTPUT", help="Give the sigmoid of each number of this output.")
@code_arguments
@click.option("--version", type=int, metavar="N", help="The version to write; default: the next free one.")
@click.option("--overwrite", is_flag=True, help="Replace the version if it exists.")
@click.option("--opset", type=int, default=18, show_default=True, help="The ONNX opset to write.")
@click.option(
    "--dtype", type=click.Choice(["fp16", "bf16"]), help="Weights and arithmetic in half precision, with its own proof."
)
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Static int8, calibrated on every second row of the samples and measured on the others (or on --test-sample); "
    "without samples, calibrated on the BatchNorms' statistics.",
)
@click.option(
    "--form", default="auto", show_default=True, metavar="FORM",
    help="Publish this form: unfolded, folded, lifted, widened, blocked (for CPUs); auto: the fastest on this machine.",
)  # fmt: skip
@fold_all_option
@click.option("--remeasure", is_flag=True, help="Time the forms again, even if an earlier export has timed them.")
@timed_threads
@timed_sizes
@click.option("--even-if-slower", is_flag=True, help="Publish fewer bits even if float32 is faster on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON on standard output.")
@click.option("--debug", is_flag=True, help="Show Python's traceback of an error.")
@needing(
    *FOLDING_NEEDS,
    Need(
        ("even_if_slower",),
        "quantize",
        lambda values: bool(values["dtype"] or values["quantize"]),
        "without --dtype or --quantize",
    ),
)
def export(
    source: str,
    weights: Path | None,
    weights_key: str,
    weights_sha256: str,
    untrained: bool,
    inputs: tuple[str, ...],
    samples: tuple[Path, ...],
    test_samples: tuple[Path, ...],
    allow_nonfinite: bool,
    repository: Path,
    name: str,
    labels: Path | None,
    standardize: tuple[str, ...],
    softmax: tuple[str, ...],
    sigmoid: tuple[str, ...],
    arguments: tuple[str, ...],
    config: Path | None,
    version: int | None,
    overwrite: bool,
    opset: int,
    dtype: str | None,
    quantize: str | None,
    form: str,
    fold_all: bool,
    remeasure: bool,
    threads: int,
    time_at: tuple[str, ...],
    even_if_slower: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Fold every BatchNorm of a trained network, export it to ONNX, prove it and publish it.

    SOURCE is FILE.py:NAME or package.module:NAME, where NAME is a class, a function that makes a network, or a network.
    The exported graph is compared with PyTorch in float64 on random inputs of every dynamic size and on your samples;
    nothing is published unless both compute the same.
    """
    if dtype and quantize:
        raise click.UsageError("give only one of --dtype and --quantize")
    if weights and untrained:
        raise click.UsageError("give only one of --weights and --untrained")
    if weights_sha256 and (not weights or not re.fullmatch("[0-9a-fA-F]{64}", weights_sha256)):
        raise click.UsageError("--weights-sha256 takes 64 digits, as sha256sum prints, and --weights FILE beside it")
    check_weights_key(weights_key, weights)
    keywords, sizes = keywords_of(config, arguments), sizes_of(time_at)
    with errors_as_messages(debug) as done, steps(quiet=as_json) as (console, progress):
        from normfold.export.choices import check_opset, check_threads, check_variant
        from normfold.export.publishing.destination import check_name
        from normfold.export.sources.named import require_files

        check_name(name)
        check_opset(opset)
        check_variant(form)
        check_threads(threads)
        require_files(source, [weights] if weights is not None else [], labels, [*samples, *test_samples])
        progress("import PyTorch")
        from normfold.cli.ends import ends_of
        from normfold.export.pipeline import export_model
        from normfold.export.request import ExportRequest

        request = ExportRequest(
            source=source,
            repository=repository,
            name=name,
            inputs=inputs,
            weights=weights,
            weights_key=weights_key,
            weights_sha256=weights_sha256,
            untrained=untrained,
            labels=labels,
            samples=samples,
            test_samples=test_samples,
            allow_nonfinite=allow_nonfinite,
            arguments=keywords,
            ends=ends_of(standardize, softmax, sigmoid),
            version=version,
            overwrite=overwrite,
            opset=opset,
            precision=dtype or quantize,
            even_if_slower=even_if_slower,
            variant=form,
            remeasure=remeasure,
            threads=threads,
            fold_all=fold_all,
            time_at=sizes,
        )
        with prints_apart():
            report = export_model(request, progress)
        done.append(f"version {report.version} of {report.model} is published")
    with told_after(*done):
        if as_json:
            from normfold.export.publishing import report as reports

            click.echo(json_of(reports.as_json(report), indent=2))
        else:
            print_report(report, console, after_export(repository, report.model, report.version, ADDRESS))

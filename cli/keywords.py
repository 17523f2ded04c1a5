"""Options of the form KEY=VALUE: arguments of the user's code, sizes of dimensions."""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from normfold.cli.needs import Need
from normfold.cli.option_groups import option_group
from normfold.digits import read_digits
from normfold.plain_file import read_plain_text

__all__ = [
    "FOLDING_NEEDS",
    "SAMPLES_NEEDED",
    "check_weights_key",
    "code_arguments",
    "keywords_of",
    "sizes_of",
    "timed_sizes",
    "weights_key_option",
]

#: ONNX has sizes of 64 bits.
LARGEST_SIZE = (1 << 63) - 1

weights_key_option = click.option(
    "--weights-key", default="", metavar="KEY", help="Which network, where the file of weights holds several: ema, …."
)
#: --allow-nonfinite is about the files of --sample, and of --test-sample where the command has it.
SAMPLES_NEEDED = Need(
    ("allow_nonfinite",),
    "samples",
    lambda values: bool(values["samples"] or values.get("test_samples")),
    "without --sample FILE",
)
#: The options that options of ``normfold export`` and of ``normfold fold`` need.
FOLDING_NEEDS = (
    SAMPLES_NEEDED,
    Need(("fold_all",), "form", lambda values: values["form"] != "unfolded", "with --form unfolded: nothing is folded"),
)
code_arguments = option_group(
    click.option(
        "--arg", "arguments", multiple=True, metavar="KEY=VALUE",
        help="An argument for the factory or class; repeatable.",
    ),
    click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE",
        help="Arguments for the factory or class from a .toml or .json file; --arg goes first.",
    ),
)  # fmt: skip
timed_sizes = click.option(
    "--time-at", multiple=True, metavar="DIM=SIZE",
    help="Time the forms at this size of a dynamic dimension, L=5000; default: the first sample's, or a usual one.",
)  # fmt: skip


def check_weights_key(key: str, weights: object) -> None:
    """Raise click.UsageError where --weights-key is given without --weights."""
    if key and not weights:
        raise click.UsageError("--weights-key chooses in a file of weights: give it with --weights FILE")


def keywords_of(config: Path | None, arguments: Iterable[str]) -> dict[str, Any]:
    """The keyword arguments of --config and --arg. Raises click.UsageError and click.ClickException."""
    return {**(_config(config) if config else {}), **dict(_argument(text) for text in arguments)}


def sizes_of(texts: Iterable[str]) -> dict[str, int]:
    """The sizes of --time-at. Raises click.UsageError."""
    return dict(_size(text) for text in texts)


def _config(path: Path) -> dict[str, Any]:
    """Read a table of arguments from TOML or JSON."""
    try:
        text = read_plain_text(path)
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise click.ClickException(f"--config {path}: {error.strerror}") from None
    except ValueError as error:  # both decoders' errors
        raise click.ClickException(f"--config {path}: {error}") from None
    if not isinstance(content, dict):
        raise click.ClickException(f"--config {path}: expected a table of arguments, not a {type(content).__name__}")
    return content


def _size(text: str) -> tuple[str, int]:
    """Read DIM=SIZE. Raises click.UsageError."""
    name, _, size = text.partition("=")
    number = read_digits(size, LARGEST_SIZE)
    if not name or not number:
        raise click.UsageError(f"--time-at {text}: expected a dimension and a size from 1 up, for example L=5000")
    return name, number


def _argument(text: str) -> tuple[str, Any]:
    """Read key=value; the value is read as a Python literal if it is one, or true or false, else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise click.UsageError(f"--arg {text}: expected KEY=VALUE, for example --arg channels=128")
    if value in ("true", "false"):  # as in TOML and JSON; as a text both would be taken for true
        return key, value == "true"
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # {[1]}, or nested too deep
        return key, value

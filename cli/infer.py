"""``normfold infer``: ask a served model for an answer."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normfold.array_file import DAMAGED, open_array_file, why_unread
from normfold.cli.connection import connection_options
from normfold.cli.control import ADDRESS, asking
from normfold.cli.named_values import read_metadata, split
from normfold.cli.output import json_of
from normfold.cli.seconds import Seconds
from normfold.cli.target_file import check_target
from normfold.cli.terminal import one_line
from normfold.plain_file import read_plain_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from normfold.serving.client.calls import LabelledClass
    from normfold.serving.client.connection import Credentials
    from normfold.serving.client.metadata import ModelMetadata

    Array = NDArray[Any]

#: How JSON writes the numbers that it lacks: that of protobuf, and --json here.
_BEYOND_JSON = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@click.command(short_help="Ask a served model for an answer.")
@click.argument("model")
@click.option(
    "--input",
    "-i",
    "inputs",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="NAME=@file.npy, NAME=@file.npz (its array NAME), NAME=@file.json, or NAME=JSON. Repeat for more inputs.",
)
@click.option("--address", "-a", default=ADDRESS, show_default=True, help="host:port, or unix:/path.")
@connection_options
@click.option("--version", default="", help="The model's version. Default: the highest in service.")
@click.option("--output", "-o", "outputs", multiple=True, metavar="NAME", help="Only this output (repeat for more).")
@click.option("--top", type=click.IntRange(1), help="Print this many best classes of the output, with their labels.")
@click.option(
    "--metadata",
    "call_metadata",
    multiple=True,
    metavar="NAME=VALUE",
    help="gRPC metadata for the server, such as traceparent=00-… (base64 for names in -bin; repeat for more).",
)
@click.option("--cast", is_flag=True, help="Cast the arrays of .npy and .npz files to the model's datatypes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the outputs to this .npz file.")
@click.option("--timeout", type=Seconds(0, min_open=True), default=60.0, show_default=True, help="Seconds.")
def infer(
    model: str,
    inputs: tuple[str, ...],
    address: str,
    version: str,
    outputs: tuple[str, ...],
    top: int | None,
    call_metadata: tuple[str, ...],
    cast: bool,
    as_json: bool,
    save: Path | None,
    timeout: float,
    credentials: Credentials,
) -> None:
    """Ask the served MODEL for an answer.

    \b
    Examples:
      normfold infer surnames --input x=@one.npy
      normfold infer surnames --input x=@one.npy --top 3
      normfold infer adder --input a='[[1, 2]]' --input b='[[3, 4]]' --json
      normfold infer surnames --input x=@batch.npy --output y --save answers.npz --address 10.0.0.5:8001

    JSON numbers take the datatype that the model declares; arrays in files do so with --cast. Inputs of sizes that the
    model was not proved for are not sent; a size above the largest that the proof ran gives a note.

    Exit code: 0 with an answer, 1 without, 2 for a wrong command.
    """
    from normfold.serving.client.sizes import note, refusal

    if top is not None and save is not None:
        raise click.UsageError("--save writes arrays and --top prints text; give one of them")
    if save is not None and save.suffix != ".npz":
        raise click.UsageError(f"--save {save} must end in .npz: it is written as np.savez does")
    if save is not None:
        check_target("--save", save)
    if top is not None and len(outputs) > 1:
        raise click.UsageError("--top takes one --output")
    values = split("--input", inputs, "x=@one.npy or x='[[1, 2]]'")
    sent = read_metadata(call_metadata)
    contents = {name: _read(name, text) for name, text in values}
    with asking(address, timeout, credentials, sent) as client:
        metadata = client.model_metadata(model, version)
        arrays = {name: _as_input(name, text, contents[name], metadata, cast) for name, text in values}
        shapes = {name: array.shape for name, array in arrays.items()}
        if said := refusal(metadata, shapes):
            raise click.ClickException(said)
        if said := note(metadata, shapes):
            click.echo(f"note: {one_line(said)}", err=True)
        if top is not None:
            rows = client.classify(model, arrays, top, outputs[0] if outputs else None, version)
            _print_classes(rows, as_json)
            return
        answers = client.infer(model, arrays, outputs or None, version)
        if not answers:
            raise click.ClickException("the server's answer holds no output")
    if answers.version and not as_json:
        click.echo(one_line(f"answered by {answers.model} version {answers.version}"), err=True)
    if save is not None:
        _save(save, answers)
        click.echo(one_line(f"wrote {save}"), err=True)
    if save is None or as_json:
        _print_arrays(answers, as_json)


def _read(name: str, text: str) -> Array | str:
    """The array in the file that ``text`` names; JSON, of a file or given itself, as text. Raises click.UsageError."""
    import numpy as np

    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        if path.suffix == ".json":
            return read_plain_text(path)
        opened = open_array_file(path)
        if isinstance(opened, np.ndarray):
            return opened
        with opened:
            if name not in opened.files:
                raise click.UsageError(f"{path} holds no array {name!r}; it has {', '.join(opened.files)}")
            return np.asarray(opened[name])
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except DAMAGED as error:
        raise click.UsageError(f"{path} is not a .npy, .npz or .json file with numbers: {why_unread(error)}") from None


def _as_input(name: str, text: str, content: Array | str, metadata: ModelMetadata, cast: bool) -> Array:
    """The array to send for ``text``, of which ``content`` was read. Raises click.UsageError or ValueError.

    JSON becomes an array of the datatype of the model's input, and so does an array in a file if ``cast``.
    """
    from normfold.serving.client.inputs import declared_datatype

    declared = declared_datatype(name, metadata)
    path = Path(text[1:])
    if isinstance(content, str):
        return _from_json(name, content, declared, path if text.startswith("@") else None)
    return _of_datatype(name, content, declared, cast, path)


def _from_json(name: str, text: str, declared: str, path: Path | None) -> Array:
    """The array that ``text``, from the file ``path`` if that is given, writes in JSON.

    Raises click.UsageError or ValueError.
    """
    from normfold.serving.client.inputs import as_declared, as_given

    try:
        value = json.loads(text)
        if declared.startswith("FP") and '"' in text:
            value = _numbers(value)
    except (ValueError, RecursionError) as error:
        file = f": it is a file, so write --input {name}=@{text}" if _is_file(text) else f" ({error})"
        if path is not None:
            raise click.UsageError(f"{path} is not JSON: {error}") from None
        raise click.UsageError(f"input {name!r}: {text[:80]!r} is neither @file nor JSON{file}") from None
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, dict):
        raise click.UsageError(
            f"input {name!r}: {path or 'the JSON'} holds an object, {{…}}; it must hold nothing but the values of this "
            "input as lists within lists, such as [[1, 2, 3], [4, 5, 6]]"
        )
    return (as_declared(name, value, declared) if declared else as_given(name, value))[0]


def _numbers(value: Any) -> Any:
    """``value`` with NaN and infinity in the place of the texts for them."""
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return _BEYOND_JSON.get(value, value) if isinstance(value, str) else value


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _of_datatype(name: str, array: Array, declared: str, cast: bool, path: Path) -> Array:
    """``array``, or its copy in the datatype of the model's input if ``cast``. Raises click.UsageError or ValueError.

    Rounding a float is a cast; changing an integer, or a float to infinity, is an error.
    """
    from normfold.protos.datatypes import by_name
    from normfold.serving.client.inputs import as_declared

    if declared in ("", "BYTES", "BF16") or array.dtype.kind not in "biuf":
        return array
    wanted = by_name(declared).dtype
    if array.dtype.newbyteorder("=") == wanted.newbyteorder("="):
        return array
    if cast:
        return as_declared(name, array, declared)[0]
    raise click.UsageError(
        f"{path} holds {array.dtype.name}, and input {name!r} of the model takes {wanted.name}: add --cast, or "
        f"save it as {name}.astype('{wanted.name}')"
    )


def _save(path: Path, answers: dict[str, Array]) -> None:
    import numpy as np

    from normfold.whole_file import written_whole

    for name, array in answers.items():
        if array.dtype == object and any(text.endswith(b"\0") for text in array.ravel()):
            raise click.ClickException(
                f"{path} cannot hold output {name!r}: its text ends in a NUL, which .npz cuts off; print it with --json"
            )
    named: dict[str, Any] = {n: a if a.dtype != object else a.astype(np.bytes_) for n, a in answers.items()}
    try:
        with written_whole(path) as file:
            np.savez(file, **named)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None


def _print_classes(rows: list[list[LabelledClass]], as_json: bool) -> None:
    if as_json:
        click.echo(json_of([[vars(one) for one in row] for row in rows]))
        return
    for number, row in enumerate(rows):
        if len(rows) > 1:
            click.echo(f"row {number}")
        for one in row:
            click.echo(one_line(f"{one.score:>12.6f}  {one.label or one.index}"))


def _print_arrays(answers: dict[str, Array], as_json: bool) -> None:
    import numpy as np

    from normfold.protos.datatypes import by_dtype

    if as_json:
        click.echo(json_of({name: _plain(array) for name, array in answers.items()}))
        return
    for name, array in answers.items():
        heading = f"{one_line(name)} {by_dtype(array.dtype).name}{list(array.shape)}"
        click.echo(click.style(heading, bold=True))
        click.echo(
            np.array2string(
                array,
                precision=6,
                suppress_small=True,
                threshold=200,
                max_line_width=shutil.get_terminal_size().columns,
            )
        )


def _plain(array: Array) -> Any:
    """``array`` as nested lists for JSON; BYTES as text."""
    return _text(array.tolist()) if array.dtype == object else array.tolist()


def _text(value: Any) -> Any:
    return [_text(each) for each in value] if isinstance(value, list) else value.decode(errors="replace")

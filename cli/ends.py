"""The options of ``normfold export`` for what is computed before and after the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normfold.array_file import DAMAGED, open_array_file, why_unread

if TYPE_CHECKING:
    from normfold.export.sources.ends import Ends

__all__ = ["ends_of"]


def ends_of(standardize: Sequence[str], softmax: Sequence[str], sigmoid: Sequence[str]) -> Ends:
    """Read the options, and the files that they name. Raises click.UsageError or click.ClickException."""
    from normfold.export.sources.ends import Ends

    names = [text.partition("=")[0] for text in standardize]
    outputs = [text.partition(":")[0] for text in (*softmax, *sigmoid)]
    for option, given in (("--standardize", names), ("--softmax or --sigmoid", outputs)):
        if twice := next((name for name in given if given.count(name) > 1), ""):
            raise click.UsageError(f"{option} is given more than once for {twice}")
    return Ends(dict(_standard(text) for text in standardize), dict(_output(text) for text in softmax), tuple(sigmoid))


def _standard(text: str) -> tuple[str, tuple[Any, Any]]:
    name, _, values = text.partition("=")
    mean, _, std = values.partition(",")
    if not (name and mean and std):
        raise click.UsageError(
            f"--standardize {text}: expected NAME=MEAN,STD, for example x=mean.npy,std.npy or x=0.5,2"
        )
    return name, (_numbers(mean, text), _numbers(std, text))


def _numbers(text: str, option: str) -> Any:
    import numpy as np

    if not text.endswith(".npy"):
        try:
            return np.float64(text)
        except ValueError:
            raise click.UsageError(f"--standardize {option}: {text!r} is neither a number nor a .npy file") from None
    try:
        array = open_array_file(Path(text))
    except OSError as error:
        raise click.ClickException(
            f"--standardize {option}: {text} cannot be read: {error.strerror or error}"
        ) from None
    except DAMAGED as error:
        raise click.ClickException(
            f"--standardize {option}: {text} is not a .npy file of numbers: {why_unread(error)}"
        ) from None
    if not isinstance(array, np.ndarray):
        raise click.ClickException(f"--standardize {option}: {text} holds several arrays; write one with np.save")
    if array.dtype.kind not in "iuf":
        raise click.ClickException(f"--standardize {option}: {text} holds {array.dtype}, not numbers")
    return array


def _output(text: str) -> tuple[str, int | None]:
    name, colon, axis = text.rpartition(":")
    if not colon:
        return text, None
    try:
        return name, int(axis)
    except ValueError:
        raise click.UsageError(f"--softmax {text}: expected OUTPUT or OUTPUT:AXIS, for example output:1") from None

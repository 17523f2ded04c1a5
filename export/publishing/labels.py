"""The names of a classifier's classes, one on each line, and the output that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normfold.counting import counted
from normfold.export.errors import InputSpecError
from normfold.export.publishing.config import OutputSpec
from normfold.export.sources.named import no_labels
from normfold.plain_file import read_plain_text

__all__ = ["label_notes", "labelled_output", "read_labels"]


def read_labels(path: Path | Sequence[str]) -> list[str]:
    """Read ``path``: UTF-8, one label on each line; names in memory are only checked.

    A byte order mark at the beginning is left out. Raises InputSpecError if the file is missing, or for an empty or odd
    line.
    """
    if not isinstance(path, Path):
        return _checked([str(label) for label in path], "the labels")
    try:
        text = read_plain_text(path, "utf-8-sig")
    except FileNotFoundError:
        raise no_labels(path) from None
    except UnicodeDecodeError:
        raise InputSpecError(f"the labels '{path}' are not UTF-8 text; expected one label a line") from None
    except OSError as error:
        raise InputSpecError(f"the labels '{path}' cannot be read: {error.strerror or error}") from None
    return _checked([line.strip() for line in text.rstrip().split("\n")], f"the labels '{path}'")


def _checked(labels: list[str], where: str) -> list[str]:
    for number, label in enumerate(labels, 1):
        if not label or not label.isprintable():
            what = "empty" if not label else f"not printable ({label!r})"
            raise InputSpecError(f"{where}: line {number} is {what}; expected one label a line")
    return labels


def label_notes(labels: Sequence[str]) -> tuple[str, ...]:
    """Return a note where several classes have one name, so that their answers look the same."""
    lines: dict[str, list[int]] = {}
    for number, label in enumerate(labels, 1):
        lines.setdefault(label, []).append(number)
    return tuple(
        f"{len(numbers)} classes are called '{label}', by lines {', '.join(map(str, numbers))} of the labels: answers "
        "name them alike"
        for label, numbers in lines.items()
        if len(numbers) > 1
    )


def labelled_output(labels: Sequence[str], outputs: Sequence[OutputSpec]) -> str:
    """Return the output whose last dimension has one entry for each label. Raises InputSpecError without one."""
    for output in outputs:
        if output.dims and output.dims[-1] == len(labels):
            return output.name
    shapes = ", ".join(f"'{o.name}' [{', '.join(str(d) or '?' for d in o.dims)}]" for o in outputs)
    there = f"there {'is' if len(labels) == 1 else 'are'} {counted(len(labels), 'label')}"
    raise InputSpecError(f"{there}, but no output has that many classes: {shapes}")

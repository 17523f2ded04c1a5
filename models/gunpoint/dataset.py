"""Read the ``.ts`` files of the UEA and UCR archives, if they hold univariate series of equal length.

Header lines begin with ``#`` (a comment) or ``@``, as ``@classLabel true 1 2``. After ``@data`` every line is a series:
comma-separated values, a colon, the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normfold.models.errors import DataError

#: Name of a class in the data -> our name.
MOTIONS = {"1": "Gun-Draw", "2": "Point"}

FILES = ("GunPoint_TRAIN.ts", "GunPoint_TEST.ts")


@dataclass(frozen=True)
class LabelledSeries:
    """Series (N, 1, L) in FP32, and the index of the class of each series, (N,)."""

    series: NDArray[np.float32]
    classes: NDArray[np.int64]


def read(path: Path) -> LabelledSeries:
    """Return the series of a ``.ts`` file and their classes.

    Raises:
        DataError: the file is missing; it has no ``@data``, or no series after it; a line is not a series of the first
            one's length with a class of ``MOTIONS``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the folder that holds {' and '.join(FILES)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    try:
        first = [line.strip().lower() for line in lines].index("@data") + 1
    except ValueError:
        raise DataError(f"{path}: no line '@data'; expected a .ts file of the UCR archive") from None
    series, classes, names = [], [], list(MOTIONS)
    for number, line in enumerate(lines[first:], start=first + 1):
        if not line.strip():
            continue
        values, colon, name = line.strip().rpartition(":")
        if not colon or name not in names:
            raise DataError(
                f"{path}, line {number}: ends in {line[-20:]!r}; "
                f"expected comma-separated values, ':', then {' or '.join(names)}"
            )
        try:
            series.append([float(value) for value in values.split(",")])
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {error}; expected comma-separated numbers before the last ':'"
            ) from None
        if not np.isfinite(series[-1]).all():
            raise DataError(f"{path}, line {number}: a value that is not finite; expected numbers")
        if len(series[-1]) != len(series[0]):
            raise DataError(
                f"{path}, line {number}: {len(series[-1])} values, the first series has {len(series[0])}; "
                f"expected equal lengths"
            )
        classes.append(names.index(name))
    if not series:
        raise DataError(f"{path}: no series below '@data'")
    return LabelledSeries(np.array(series, np.float32)[:, None, :], np.array(classes, np.int64))


def read_folder(folder: Path) -> tuple[LabelledSeries, LabelledSeries]:
    """Return the training and the test series of a folder that holds ``FILES``; raises as ``read`` does."""
    train, test = (read(folder / name) for name in FILES)
    return train, test
